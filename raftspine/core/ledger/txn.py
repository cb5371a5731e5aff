"""Transactions on memories of one shard group: compare, then one of two branches, in one log entry.

The rule: a branch is applied whole or not at all. Its operations see one another's effects as if they stood one
after the other, but no two may name the same memory: both would carry this entry's version, and a version names
one state. An operation whose own condition fails takes the branch with it.

Whether the comparison holds is an answer, not a failure (`succeeded`), as in etcd.
"""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict, replace

from raftspine.core.ledger import fence, limits, lock_queue, memories
from raftspine.core.ledger.lock_commands import LOCK
from raftspine.core.ledger.memory_commands import GetMemory, MemoryCommand, TxnOp
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.task_commands import Compare, Txn
from raftspine.core.ledger.work import Work, invalid
from raftspine.core.version_text import strong_version_text
from raftspine.model import Memory

APPLIED = frozenset((Status.CREATED, Status.CHANGED, Status.EQUAL, Status.DELETED, Status.DEMOTED))


def apply(work: Work, command: Txn) -> Outcome:
    """`result`: succeeded, results (one for each operation of the branch: status, id, version; for a get also
    memory). A refused operation is the outcome; its place in the branch is `result.op`."""
    wrong = limits.first(
        limits.between(len(command.compare), 0, limits.NAMES_AT_ONCE, "the number of comparisons"),
        *(memories.wrong_id(compare.memory) for compare in command.compare if compare.memory),
        *(limits.name(compare.lock, "lock") for compare in command.compare if compare.lock),
        *(_wrong_branch(branch) for branch in (command.then, command.otherwise)),
    )
    if wrong:
        return invalid("", wrong)
    if (refused := fence.refused(work, "", command.guards)) is not None:
        return refused
    succeeded = all(_holds(work, compare) for compare in command.compare)
    results: list[dict[str, Any]] = []
    size = 0
    for number, op in enumerate(command.then if succeeded else command.otherwise):
        outcome = _get(work, op) if isinstance(op, GetMemory) else write(work, op)
        if outcome.status is Status.ABSENT and not isinstance(op, GetMemory) and op.expected.version is None:
            pass  # deleting or patching what is not there: said in the results, as it is elsewhere
        elif outcome.status not in APPLIED and not isinstance(op, GetMemory):
            return replace(outcome, result={**outcome.result, "op": number, "succeeded": succeeded})
        results.append(_told(op, outcome))
        size += limits.size(outcome.memory) if isinstance(op, GetMemory) else 0
        if size > limits.READ_BYTES:
            return Outcome(Status.TOO_MANY, op.id, reason=f"more than {limits.READ_BYTES} bytes are read")
    return Outcome(Status.DONE, result={"succeeded": succeeded, "results": results})


def write(work: Work, op: MemoryCommand) -> Outcome:
    """Apply one memory command as a part of this one."""
    op = op if op.agent else replace(op, agent=work.agent)
    outcome, effects = memories.decide(work, replace(op, request=b""), work.at, work.group, work.time_ms)
    work.take(effects)
    return outcome


def wrong_ids(ids: Sequence[str]) -> str | None:
    """Why a list of memory ids cannot be written in one step."""
    if len(ids) > limits.NAMES_AT_ONCE:
        return f"more than {limits.NAMES_AT_ONCE} operations"
    return "two operations name the same memory" if len(set(ids)) != len(ids) else None


def _wrong_branch(branch: tuple[TxnOp, ...]) -> str | None:
    too_many = limits.between(len(branch), 0, limits.NAMES_AT_ONCE, "the number of operations")
    return too_many or wrong_ids([op.id for op in branch if not isinstance(op, GetMemory)])


def _holds(work: Work, compare: Compare) -> bool:
    if compare.memory:
        memory, version = _alive(work, compare.memory)
        if compare.exists is not None and compare.exists is not (memory is not None):
            return False
        if compare.version is not None and compare.version != version:
            return False
    if not compare.lock:
        return True
    if compare.token:
        return lock_queue.holder(work, LOCK, compare.lock, compare.token) is not None
    return not lock_queue.holders(work, LOCK, compare.lock, 1)


def _alive(work: Work, id: str) -> tuple[Memory | None, str | None]:
    """A strong memory and its version; nothing when it is deleted or has expired."""
    record = work.strong(id)
    memory = None if record is None else record.memory
    if record is None or memory is None:
        return None, None
    if memory.expires_at_ms is not None and memory.expires_at_ms <= work.time_ms:
        return None, None
    return memory, strong_version_text(work.group, record.index, record.sub)


def _get(work: Work, op: GetMemory) -> Outcome:
    if memories.wrong_id(op.id) is not None:
        return Outcome(Status.ABSENT, op.id)
    memory, version = _alive(work, op.id)
    if memory is None:
        return Outcome(Status.ABSENT, op.id)
    return Outcome(Status.DONE, op.id, record=work.strong(op.id), version=version)


def _told(op: TxnOp, outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"status": outcome.status.value, "id": op.id, "version": outcome.version}
    if isinstance(op, GetMemory):
        told["memory"] = None if outcome.memory is None else _plain(outcome.memory)
    return told


def _plain(memory: Memory) -> dict[str, Any]:
    """As it will be read when the outcome is replayed: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(memory).items()}
