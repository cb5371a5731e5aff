"""Writes of memories inside something else (a transaction, a task's completion), from the wire to commands."""

from msgspec import UNSET

from raftspine.core.ledger.memory_commands import (
    Condition,
    DeleteMemory,
    GetMemory,
    PatchMemory,
    PutMemory,
    TxnOp,
)
from raftspine.core.limits import (
    Limits,
    check_content,
    check_draft_fields,
    check_free,
    check_id,
    check_importance,
    check_metadata,
    check_namespace,
    check_tags,
    check_ttl,
)
from raftspine.errors import SpineError
from raftspine.http import parse
from raftspine.http.coordination import task_bodies as bodies
from raftspine.services import compose
from raftspine.services.values import Draft, Patch


def operations(given: "list[bodies.Op] | list[bodies.PutOp]", agent: str, limits: Limits, where: str) -> list[TxnOp]:
    """Each within limits; a refusal names the place, e.g. ``$.then[2].tags``."""
    made = []
    for at, op in enumerate(given):
        try:
            made.append(_operation(op, agent, limits))
        except SpineError as error:
            raise parse.within(error, f"{where}[{at}]") from error
    return made


def puts(given: "list[bodies.PutOp]", agent: str, limits: Limits) -> tuple[PutMemory, ...]:
    made = operations(given, agent, limits, "$.then")
    return tuple(op for op in made if isinstance(op, PutMemory))


def _operation(op: bodies.Op, agent: str, limits: Limits) -> TxnOp:
    check_id(op.id, limits, "$.id")
    if isinstance(op, bodies.GetOp):
        return GetMemory(op.id)
    check_free(op.id, "$.id")
    condition = Condition(op.expected_version, isinstance(op, bodies.PutOp) and op.absent)
    if isinstance(op, bodies.DeleteOp):
        return DeleteMemory(op.id, condition, agent=agent)
    if isinstance(op, bodies.PatchOp):
        return _patch(op, condition, agent, limits)
    tags = check_draft_fields(
        op.content,
        op.agent_id or agent,
        op.namespace,
        () if op.tags is UNSET else op.tags,
        op.importance,
        op.metadata,
        op.ttl_seconds,
        limits,
    )
    draft = Draft(op.content, op.agent_id, op.namespace, tags, op.importance, op.metadata, op.ttl_seconds, op.pinned)
    memory = compose.fresh(draft, tags, None, agent, 0)
    return PutMemory(op.id, memory, keep_tags=op.tags is UNSET, expected=condition, agent=agent)


def _patch(op: bodies.PatchOp, condition: Condition, agent: str, limits: Limits) -> PatchMemory:
    tags = op.tags
    if op.content is not UNSET:
        check_content(op.content, limits)
    if op.namespace is not UNSET:
        check_namespace(op.namespace, limits)
    if tags is not UNSET:
        tags = check_tags(tags, limits)
    if op.importance is not UNSET:
        check_importance(op.importance)
    if op.metadata is not UNSET:
        check_metadata(op.metadata, limits)
    if op.ttl_seconds is not UNSET and op.ttl_seconds is not None:
        check_ttl(op.ttl_seconds, limits)
    fields = compose.changes(
        Patch(op.content, op.namespace, tags, op.importance, op.metadata, op.ttl_seconds, op.pinned)
    )
    if "content" in fields:
        fields["content_sha256"] = compose.content_digest(fields["content"])
    return PatchMemory(op.id, fields, condition, agent=agent)
