"""Fencing: who may write, by the token they carry.

Two uses. A *guard* on a write in this group's log is checked in the log: the write happens only if the token is a
current holder's, in one order with the locks' passing on. A *fence* serves a resource that the log does not
hold: it is a maximum that only grows, and whoever comes with less has been overtaken.

A guard names a lock of the same shard group. The machine cannot know where else a lock might be, so for a lock
elsewhere it would answer `fenced`; whoever proposes must refuse that before (`cross_group`).
"""

from msgspec import Struct

from raftspine.core.ledger import limits, lock_queue
from raftspine.core.ledger.lock_commands import SPACES, RaiseFence
from raftspine.core.ledger.memory_commands import Guard
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table
from raftspine.core.ledger.work import Work, invalid


class Fence(Struct, frozen=True, array_like=True):
    highest: int
    at_ms: int
    agent: str = ""


FENCES = Table("fence", Fence)


def refused(view: LedgerView, id: str, guards: tuple[Guard, ...]) -> Outcome | None:
    """The refusal of a write whose guards do not all hold; `result`: lock, token. None when they do."""
    if len(guards) > limits.NAMES_AT_ONCE:
        return Outcome(Status.INVALID, id, reason=f"more than {limits.NAMES_AT_ONCE} guards")
    for guard in guards:
        known = guard.space in SPACES and not limits.name(guard.lock)
        if not known or lock_queue.holder(view, guard.space, guard.lock, guard.token) is None:
            return Outcome(
                Status.FENCED,
                id,
                reason="the token of a guard is not current",
                result={"lock": guard.lock, "token": guard.token},
            )
    return None


def raise_fence(work: Work, command: RaiseFence) -> Outcome:
    """`result`: highest."""
    wrong = limits.first(
        limits.name(command.resource, "resource"), limits.between(command.token, 1, limits.NUMBER, "token")
    )
    if wrong:
        return invalid(command.resource, wrong)
    row = FENCES.get(work, command.resource)
    highest = 0 if row is None else row.highest
    if command.token < highest:
        return Outcome(
            Status.STALE_TOKEN, command.resource, reason="a higher token was seen", result={"highest": highest}
        )
    if command.token > highest:
        work.put(FENCES, command.resource, value=Fence(command.token, work.time_ms, work.agent))
    return Outcome(Status.DONE, command.resource, result={"highest": command.token})


def highest(view: LedgerView, resource: str) -> int:
    """The highest token seen for a resource; 0 when none was."""
    row = None if limits.name(resource) else FENCES.get(view, resource)
    return 0 if row is None else row.highest
