"""Gates on the wire. A policy is written as it is stored, but for the times of a planned freeze, which are text here
and milliseconds in the log."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from raftspine.core.ledger.gate_policy import Approval, Check, Hold, Override, Policy, Wait, Window
from raftspine.http import parse
from raftspine.http.coordination.lock_bodies import Id, Reason, Token
from raftspine.http.coordination.lock_bodies import Wait as WaitSeconds
from raftspine.http.render import rfc3339

Digest = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=1024)]
Actor = Annotated[str, Meta(max_length=128)]


class PlannedFreeze(Struct, tag_field="type", tag="freeze", forbid_unknown_fields=True, frozen=True):
    """A freeze planned ahead; times as RFC 3339 text."""

    starts_at: str
    ends_at: str
    reason: str = ""


class PolicyBody(Struct, forbid_unknown_fields=True, frozen=True):
    """When a request may go through. `concurrent`: how many at once. `open_seconds`: how long one may take.
    `request_seconds`: how long it may wait. `queue_seconds`: how long a place is kept unasked. `supersede`: a new
    request for the same subject ends the one before. `override`: how many people set the conditions aside, how
    long."""

    conditions: tuple[Check | Approval | Wait | Window | PlannedFreeze | Hold, ...] = ()
    concurrent: int = 1
    open_seconds: int = 3600
    request_seconds: int = 7 * 86_400
    queue_seconds: int = 60
    supersede: bool = True
    override: Override | None = None


def policy_of(body: PolicyBody) -> Policy:
    """The policy as the log keeps it. Raises InvalidRequest for a time that is none."""
    plain = msgspec.to_builtins(body)
    for at, condition in enumerate(plain["conditions"]):
        if condition["type"] == "freeze":
            for field in ("starts_at", "ends_at"):
                where = f"$.policy.conditions[{at}].{field}"
                condition[f"{field}_ms"] = parse.moment_ms(condition.pop(field), where)
    return msgspec.convert(plain, Policy)


def policy_told(plain: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stored policy as clients wrote it."""
    if plain is None:
        return None
    conditions = []
    for condition in plain["conditions"]:
        told = dict(condition)
        for field in ("starts_at", "ends_at"):
            if f"{field}_ms" in told:
                told[field] = rfc3339(told.pop(f"{field}_ms"))
        conditions.append(told)
    return {**plain, "conditions": conditions}


class GateBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A gate. `uses`: how many passages (null: any number). `expires_at`: closed from then on. With a `policy` it is
    passed by requests."""

    state: Literal["open", "closed"]
    uses: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None
    expires_at: str | int | None = None
    reason: Text = ""
    policy: PolicyBody | None = None
    agent_id: Actor = ""


class PassBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Who passes."""

    agent_id: Actor = ""


class RequestBody(Struct, forbid_unknown_fields=True, frozen=True):
    """An artifact that asks to go through. `subject`: what is deployed where."""

    artifact_digest: Digest
    requester: Actor = ""
    subject: Annotated[str, Meta(max_length=255)] = ""
    id: Id | None = None
    metadata: Any = None


class ApproveBody(Struct, forbid_unknown_fields=True, frozen=True):
    """An approval of one artifact. `groups`: those the approver belongs to."""

    artifact_digest: Digest
    approver: Actor = ""
    groups: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    comment: Text = ""


class EndBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Why a request is rejected or cancelled, and by whom."""

    agent_id: Actor = ""
    reason: Text = ""


class ReportBody(Struct, forbid_unknown_fields=True, frozen=True):
    """What a check found of the artifact."""

    check: Annotated[str, Meta(min_length=1, max_length=64)]
    ok: bool
    artifact_digest: Digest
    details: Text = ""
    agent_id: Actor = ""


class HoldBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Which hold."""

    hold: Annotated[str, Meta(min_length=1, max_length=64)]
    agent_id: Actor = ""


class AdmitBody(Struct, forbid_unknown_fields=True, frozen=True):
    """The artifact to let through now. `queue`: take a place when all slots are taken, also implied by a wait."""

    artifact_digest: Digest
    queue: bool = False
    wait_seconds: WaitSeconds = 0
    agent_id: Actor = ""


class VerifyBody(Struct, forbid_unknown_fields=True, frozen=True):
    """The token of an admission, before the next irreversible step."""

    fencing_token: Token
    artifact_digest: Digest | None = None


class DoneBody(Struct, forbid_unknown_fields=True, frozen=True):
    """How the deployment ended."""

    fencing_token: Token
    ok: bool = True
    details: Text = ""
    agent_id: Actor = ""


class OverrideBody(Struct, forbid_unknown_fields=True, frozen=True):
    """One person's word that the conditions be set aside."""

    artifact_digest: Digest
    reason: Reason
    approver: Actor = ""


class FreezeBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Nothing goes through. `scope` all, or the gates whose names begin with `prefix`. `freeze_id`: to ask again, or
    to change it. `until`: RFC 3339 text; without it, until it is lifted. `overridable`: an override reaches through
    it."""

    reason: Reason
    scope: Literal["all", "prefix"] | None = None
    prefix: Annotated[str, Meta(max_length=255)] = ""
    freeze_id: Id | None = None
    until: str | int | None = None
    overridable: bool = True
    agent_id: Actor = ""


class UnfreezeBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A freeze to lift."""

    freeze_id: Id
    reason: Text = ""
    agent_id: Actor = ""


class RequestsQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`cursor`: a page's `next_cursor`."""

    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AuditQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Entries behind number `after`."""

    after: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ChainsQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`kind` and `name` of one chain: lock, election, gate or freeze; `group`: of freezes, which each group keeps.
    Without a name: the heads of all chains."""

    kind: Literal["lock", "election", "gate", "freeze", "access"] | None = None
    name: str | None = None
    group: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    after: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Passed(Struct, frozen=True):
    """A passage; one use is gone."""

    name: str
    pass_id: str
    fencing_token: int
    uses_left: int | None


class Verified(Struct, frozen=True):
    """The admission holds; `remaining_ms` is what is left of its time."""

    gate: str
    request: str
    valid: bool
    reasons: list[str]
    artifact_digest: str
    open_until: str
    remaining_ms: int


class AuditPage(Struct, frozen=True):
    """A part of an audit chain. Each entry's hash is SHA-256 over the previous hash, a newline, and the entry's other
    fields as JSON with sorted keys and no blanks. `next`: what to give as `after`; null at the end."""

    kind: str
    name: str
    head: dict[str, Any] | None
    entries: list[dict[str, Any]]
    next: int | None
