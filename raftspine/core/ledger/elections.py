"""Elections: a lock whose holder is known to all, and says something while it holds.

The rule: an election is a lock in a space of its own. To campaign is to ask for it (AcquireLock with `space`
election), the term of office is the token, and to resign is to release it; so a leader is one at a time, in
order of candidacy, and its writes can be guarded with its term. What is added is the proclamation: a value that only
the leader sets, first with its candidacy; the events tell observers when to read it.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import limits, lock_queue
from raftspine.core.ledger.lock_commands import ELECTION, Proclaim
from raftspine.core.ledger.lock_queue import ASKS, LOCKS
from raftspine.core.ledger.locks import lease
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.work import Work, invalid


class Office(Struct, frozen=True):
    """Who leads an election, since when, and what they proclaim."""

    lease: str
    session: str
    owner: str
    term: int
    since_ms: int
    value: Any


def proclaim(work: Work, command: Proclaim) -> Outcome:
    """`result`: term."""
    name = command.name
    if wrong := limits.data(command.value, "value", limits.METADATA_BYTES):
        return invalid(name, wrong)
    ask = lease(work, ELECTION, name, command.lease, command.token)
    lock = None if ask is None else LOCKS.get(work, ELECTION, name)
    if ask is None or lock is None or not ask.token:
        return Outcome(Status.NOT_CURRENT, name, reason="this candidate is not in office")
    number = work.number()
    work.put(ASKS, ELECTION, name, command.lease, value=replace(ask, metadata=command.value))
    work.put(LOCKS, ELECTION, name, value=replace(lock, revision=number))
    work.tell(ELECTION, name, "proclaimed", number, lease=command.lease, owner=ask.owner, token=ask.token)
    return Outcome(Status.DONE, name, result={"term": ask.token})


def leader(view: LedgerView, name: str) -> Office | None:
    """Who is in office; None when nobody is."""
    found = [] if limits.name(name) else lock_queue.holders(view, ELECTION, name, 1)
    if not found:
        return None
    candidate, ask = found[0]
    return Office(candidate, ask.session, ask.owner, ask.token, ask.since_ms, ask.metadata)
