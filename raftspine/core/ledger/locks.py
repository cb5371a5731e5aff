"""Locks: what each command on them does.

The rules, besides those of the queue (lock_queue.py):

* A lease is named by whoever asks, before the log. Asking again under the same name is the same request: it
  answers with the lease or the place that name has, so a client that lost a reply, or its connection, keeps its
  place. The name of a place is its ticket. Another owner who asks under that name is refused.
* A session has a lock once. When it asks again it has it one hold more; what it has in another mode, or of another
  weight, it must give back first, for it would wait for itself.
* A token is checked by looking it up: it is current as long as its lease is there. Writes that carry it as a guard
  are refused from the moment it is not, in the same order of events that grants the lock to the next.
* What an operator breaks is written down with who and why.

Exclusion holds for writes with a guard and for resources that check the token (fence.py). For anything else a
lock is advice: a holder that was paused does not know that time has passed.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import audit, limits, lock_queue, sessions
from raftspine.core.ledger.deadlocks import would_wait_for_itself
from raftspine.core.ledger.lock_commands import (
    ELECTION,
    LOCK,
    SPACES,
    AcquireAll,
    AcquireLock,
    BreakLock,
    ExpireTicket,
    ReleaseLock,
)
from raftspine.core.ledger.lock_queue import ASKS, EXCLUSIVE, KIND, LOCKS, MODES, SEMAPHORE, Ask, Lock
from raftspine.core.ledger.outcomes import REFUSALS, Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import pack, unpack
from raftspine.core.ledger.work import Work, invalid

POSITIONS_COUNTED = 100
"""How far a place is counted for the reply; further back it is None."""
BROKEN_AT_ONCE = 64


# ── acquire ─────────────────────────────────────────────────────────────────────────────────────────────────


def acquire(work: Work, command: AcquireLock) -> Outcome:
    """granted: `result` lease, session, token, hold, mode, ttl_ms. queued: ticket, session, position, waiting,
    holder. lock_held: holder, waiting, free_at_ms."""
    if wrong := _wrong(command):
        return invalid(command.name, wrong)
    space, name = command.space, command.name
    refused = sessions.enter(work, command.session, command.lease, command.ttl_ms, command.owner or work.agent)
    if refused is not None:
        return refused
    session = sessions.named(command.session, command.lease)
    held = sessions.HELD.get(work, session, KIND, space, name)
    ask = ASKS.get(work, space, name, command.lease)
    if ask is not None and ask.session != session:
        return invalid(name, "the lease is another session's")
    if held is not None:
        return _again(work, command, held.ref)
    return _afresh(work, command, session)


def _wrong(command: AcquireLock) -> str | None:
    known = command.space in SPACES and command.mode in MODES
    if command.space == ELECTION and command.mode != EXCLUSIVE:
        known = False
    return limits.first(
        None if known else "no such space or mode",
        limits.name(command.name),
        limits.name(command.owner, "owner") if command.owner else None,
        limits.between(command.priority, *limits.PRIORITIES, "priority"),
        limits.between(command.lock_delay_ms, 0, limits.DELAY_MS, "lock_delay_ms"),
        limits.between(command.permits, 0, limits.PERMITS, "permits"),
        limits.between(command.weight, 1, limits.PERMITS, "weight"),
        limits.ttl(command.ticket_ttl_ms) if command.ticket_ttl_ms else None,
        limits.data(command.metadata, "metadata", limits.METADATA_BYTES),
    )


def _again(work: Work, command: AcquireLock, lease: str) -> Outcome:
    """The session has this lock, or a place in its queue."""
    space, name = command.space, command.name
    ask, lock = ASKS.get(work, space, name, lease), LOCKS.get(work, space, name)
    assert ask is not None and lock is not None, "the index by session leads to an ask"
    if ask.mode != command.mode:
        return Outcome(Status.DEADLOCK, name, reason=f"the session has this lock as {ask.mode}: give it back first")
    if ask.mode == SEMAPHORE and ask.weight != command.weight:
        why = f"the session has {ask.weight} of the permits: give them back first"
        return Outcome(Status.DEADLOCK, name, reason=why)
    again = command.lease == lease
    ask = replace(ask, asked=work.number(), hold=ask.hold if again or not ask.token else ask.hold + 1)
    work.put(ASKS, space, name, lease, value=ask)
    if ask.token:
        return _granted(work, name, lease, ask)
    lock_queue.settle(work, space, name, lock)  # a delay may have passed since
    now, lock = ASKS.get(work, space, name, lease) or ask, LOCKS.get(work, space, name) or lock
    return _granted(work, name, lease, now) if now.token else _queued(work, space, name, lock, lease, now)


def _afresh(work: Work, command: AcquireLock, session: str) -> Outcome:
    space, name, lease = command.space, command.name, command.lease
    lock = LOCKS.get(work, space, name) or Lock()
    if command.mode == SEMAPHORE:
        permits = lock.permits or command.permits
        if command.permits not in (0, permits) or command.weight > permits:
            return invalid(name, f"the semaphore has {permits} permits")
        lock = replace(lock, permits=permits)
    if sessions.full(work, session):
        return Outcome(Status.TOO_MANY, name, reason="the session holds too much")
    number = work.number()
    ask = Ask(
        session,
        number,
        number,
        command.owner or work.agent,
        command.mode,
        command.weight if command.mode == SEMAPHORE else 1,
        lock_queue.rank_of(work.time_ms, command.priority),
        work.time_ms,
        priority=command.priority,
        lock_delay_ms=command.lock_delay_ms,
        ticket_ttl_ms=command.ticket_ttl_ms,
        metadata=command.metadata,
    )
    free = not lock.waiting and lock_queue.can_take(lock, ask.mode, ask.weight, work.time_ms)
    if not free and command.queue and would_wait_for_itself(work, session, space, name, ask):
        return Outcome(Status.DEADLOCK, name, reason="the session holds what its predecessors wait for")
    sessions.hold(work, session, KIND, space, name, lease)
    if free:
        lock = lock_queue.grant(work, space, name, lock, lease, ask)
    else:
        lock = lock_queue.enqueue(work, space, name, lock, lease, ask)
    lock_queue.settle(work, space, name, lock)
    now, lock = ASKS.get(work, space, name, lease) or ask, LOCKS.get(work, space, name) or lock
    if now.token:
        return _granted(work, name, lease, now)
    if command.queue:
        return _queued(work, space, name, lock, lease, now)
    return _held(work, space, name, replace(lock, waiting=lock.waiting - 1))


def _granted(work: Work, name: str, lease: str, ask: Ask) -> Outcome:
    session = sessions.read(work, ask.session)
    result = {
        "lease": lease,
        "session": ask.session,
        "token": ask.token,
        "hold": ask.hold,
        "mode": ask.mode,
        "ttl_ms": 0 if session is None else session.ttl_ms,
    }
    return Outcome(Status.GRANTED, name, result=result)


def _queued(work: Work, space: str, name: str, lock: Lock, lease: str, ask: Ask) -> Outcome:
    position = lock_queue.position(work, space, name, lock, ask, POSITIONS_COUNTED)
    result = {
        "ticket": lease,
        "session": ask.session,
        "position": position,
        "waiting": lock.waiting,
        "holder": told_holder(work, space, name),
        "free_at_ms": lock.free_at_ms,
    }
    return Outcome(Status.QUEUED, name, result=result, reason="the lock is held")


def _held(work: Work, space: str, name: str, lock: Lock) -> Outcome:
    result = {
        "holder": told_holder(work, space, name),
        "waiting": lock.waiting,
        "free_at_ms": lock.free_at_ms,
    }
    return Outcome(Status.LOCK_HELD, name, result=result, reason="the lock is held")


def told_holder(view: LedgerView, space: str, name: str) -> dict[str, Any] | None:
    """The oldest holder, as a reply tells it."""
    found = lock_queue.holders(view, space, name, 1)
    if not found:
        return None
    lease, ask = found[0]
    return {"lease": lease, "owner": ask.owner, "token": ask.token, "since_ms": ask.since_ms, "session": ask.session}


# ── acquire all ─────────────────────────────────────────────────────────────────────────────────────────────


def acquire_all(work: Work, command: AcquireAll) -> Outcome:
    """granted: `result` lease, session, tokens (by name), ttl_ms. lock_held: name, holder, waiting, free_at_ms."""
    names = tuple(sorted(set(command.names)))
    wrong = limits.first(
        limits.between(len(names), 1, limits.NAMES_AT_ONCE, "the number of locks"),
        *(limits.name(name) for name in names),
        limits.id(command.lease, "lease"),
        limits.id(command.session, "session") if command.session else None,
    )
    if wrong:
        return invalid(command.lease, wrong)
    if (refused := _not_all(work, command, names)) is not None:
        return refused
    tokens: dict[str, int] = {}
    outcome = Outcome(Status.INVALID)
    for name in names:
        outcome = acquire(work, _one(command, name))
        if outcome.status in REFUSALS:
            return outcome
        assert outcome.status is Status.GRANTED, "what can be had now is granted, or refused for another reason"
        tokens[name] = outcome.result["token"]
    result = {key: outcome.result[key] for key in ("lease", "session", "ttl_ms")}
    return Outcome(Status.GRANTED, command.lease, result={**result, "tokens": tokens})


def _one(command: AcquireAll, name: str) -> AcquireLock:
    return AcquireLock(
        name,
        command.lease,
        command.session,
        command.owner,
        command.ttl_ms,
        lock_delay_ms=command.lock_delay_ms,
        metadata=command.metadata,
        agent=command.agent,
    )


def _not_all(work: Work, command: AcquireAll, names: tuple[str, ...]) -> Outcome | None:
    """Why not all of the locks can be had now; looks at the state before anything of this command is in it."""
    session = sessions.named(command.session, command.lease)
    if command.session and sessions.read(work, session) is None:
        return Outcome(Status.SESSION_GONE, session, reason="there is no such session")
    held: Outcome | None = None
    for name in names:
        lock = LOCKS.get(work, LOCK, name) or Lock()
        row = sessions.HELD.get(work, session, KIND, LOCK, name)
        mine = None if row is None else ASKS.get(work, LOCK, name, row.ref)
        if mine is not None and mine.mode != EXCLUSIVE:
            return Outcome(
                Status.DEADLOCK, name, reason=f"the session has this lock as {mine.mode}: give it back first"
            )
        if mine is not None and mine.token:
            continue
        if mine is None and not lock.waiting and lock_queue.can_take(lock, EXCLUSIVE, 1, work.time_ms):
            continue
        if command.wait and would_wait_for_itself(work, session, LOCK, name, None):
            return Outcome(Status.DEADLOCK, name, reason="the session holds what the lock's holder waits for")
        if held is None:
            held = _held(work, LOCK, name, lock)
            held = replace(held, id=command.lease, reason=f"{name} is held", result={"name": name, **held.result})
    return held


# ── giving back, losing, taking away ────────────────────────────────────────────────────────────────────────


def release(work: Work, command: ReleaseLock) -> Outcome:
    """`result`: hold, what the session still has."""
    found = _current(work, command.space, command.name, command.lease, command.token)
    if found is None:
        return _not_current(command.name)
    if found.hold > 1 and not command.all:
        found = replace(found, hold=found.hold - 1)
        work.put(ASKS, command.space, command.name, command.lease, value=found)
        return Outcome(Status.DONE, command.name, result={"hold": found.hold})
    change = "released" if found.token else "withdrawn"
    lock_queue.drop(work, command.space, command.name, command.lease, found, change, lost=False)
    return Outcome(Status.DONE, command.name, result={"hold": 0})


def expire_ticket(work: Work, command: ExpireTicket) -> Outcome:
    """The place goes, unless it has become a lease or was asked for since."""
    ask = _ask(work, command.space, command.name, command.lease)
    if ask is None:
        return Outcome(Status.ABSENT, command.name, reason="there is no such ticket")
    if ask.token or ask.asked != command.asked or command.term != work.at.term:
        return Outcome(Status.OVERTAKEN, command.name, reason="the ticket was asked for since")
    lock_queue.drop(work, command.space, command.name, command.lease, ask, "lapsed", lost=True)
    return Outcome(Status.DONE, command.name)


def break_lock(work: Work, command: BreakLock) -> Outcome:
    """`result`: broken (each lease, owner and token), holders (how many are left)."""
    space, name = command.space, command.name
    wrong = limits.first(
        limits.name(name),
        None if space in SPACES else "no such space",
        None if command.reason.strip() else "a reason is required",
        limits.reason(command.reason),
    )
    if wrong:
        return invalid(name, wrong)
    found = lock_queue.holders(work, space, name, BROKEN_AT_ONCE)
    if command.token:
        lease = lock_queue.holder(work, space, name, command.token)
        ask = None if lease is None else ASKS.get(work, space, name, lease)
        found = [] if lease is None or ask is None else [(lease, ask)]
    if not found:
        return _not_current(name)
    for lease, ask in found:
        audit.append(work, space, name, "break", ask.owner, reason=command.reason, lease=lease, token=ask.token)
        lock_queue.drop(work, space, name, lease, ask, "broken", lost=True)
    lock = LOCKS.get(work, space, name)
    broken = [{"lease": lease, "owner": ask.owner, "token": ask.token} for lease, ask in found]
    return Outcome(Status.DONE, name, result={"broken": broken, "holders": 0 if lock is None else lock.holders})


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


class Check(Struct, frozen=True):
    """A token that is current, and whose it is. `session` is where the rest of its time is asked for: the leader
    knows it, not the log."""

    lease: str
    session: str
    owner: str
    hold: int
    since_ms: int


def check(view: LedgerView, space: str, name: str, token: int) -> Check | None:
    """What a token stands for, None when it is not current."""
    if limits.name(name) or space not in SPACES:
        return None
    lease = lock_queue.holder(view, space, name, token)
    ask = None if lease is None else ASKS.get(view, space, name, lease)
    return None if lease is None or ask is None else Check(lease, ask.session, ask.owner, ask.hold, ask.since_ms)


def lease(view: LedgerView, space: str, name: str, lease: str, token: int) -> Ask | None:
    """A lease that is current under this token; for renewing it. With token 0: a ticket."""
    return _current(view, space, name, lease, token)


class Shown(Struct, frozen=True):
    """A lock as it is inspected: the row, its oldest holders and the next in its queue."""

    name: str
    lock: Lock
    holders: list[tuple[str, Ask]]
    waiting: list[tuple[str, Ask]]


def show(view: LedgerView, space: str, name: str, limit: int = 100) -> Shown | None:
    """None when nobody holds it or waits for it."""
    if limits.name(name):
        return None
    lock = LOCKS.get(view, space, name)
    if lock is None:
        return None
    queue = lock_queue.waiting(view, space, name, limit)
    return Shown(name, lock, lock_queue.holders(view, space, name, limit), queue)


def page(view: LedgerView, space: str, prefix: str, after: str, limit: int) -> list[tuple[str, Lock]]:
    """Locks that are held or waited for, by name, behind `after`."""
    start = b"" if not after else pack(space) + after.encode() + b"\1"
    rows = LOCKS.page(view, pack(space) + prefix.encode(), start=start, limit=limit)
    return [(unpack(key, str, str)[1], row) for key, row in rows]


def _current(view: LedgerView, space: str, name: str, lease: str, token: int) -> Ask | None:
    ask = _ask(view, space, name, lease)
    return None if ask is None or ask.token != token else ask


def _ask(view: LedgerView, space: str, name: str, lease: str) -> Ask | None:
    if space not in SPACES or limits.name(name) or limits.id(lease):
        return None
    return ASKS.get(view, space, name, lease)


def _not_current(name: str) -> Outcome:
    return Outcome(Status.NOT_CURRENT, name, reason="this lease is not current")
