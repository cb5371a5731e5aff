"""The rows of a lock, who is next, and what passing it on means.

The rules:

* The next holder is chosen in the same log entry that makes room: between holder and holder there is no moment
  in which a newcomer could slip in, and none in which a dead session could be chosen, because a session's places
  leave the queue in the entry that ends it.
* The queue is ordered by rank: the (log) time of asking, less AGING_MS for each step of priority. So within
  a priority it is first come, first served; a higher priority goes first; and one that has waited AGING_MS a step
  longer goes before it, so nobody starves. The rank never changes, hence the order is an order of keys.
* Only the head may be granted. A writer that waits behind readers is not overtaken by more readers.
* The fencing token of a grant is the group's next number (work.py): above every token before it, in this lock
  and in every other lock of the group.
* After an involuntary loss (expiry, break) a lock with a delay stays free but ungranted until the delay has
  passed: what the lost holder sent before may still be under way.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import due, sessions
from raftspine.core.ledger.limits import NUMBER
from raftspine.core.ledger.lock_commands import ELECTION
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack
from raftspine.core.ledger.work import Work

AGING_MS = 60_000
"""What one step of priority is worth, in time of waiting."""
_BIAS_MS = 1 << 40
"""Keeps ranks above zero for any priority and any time since 1970."""
GRANTS_AT_ONCE = 256
"""Grants of a lock in one go; when more could follow (readers behind a writer), a Wake goes on with them."""
GRANTS_PER_COMMAND = 4096
"""Of all locks: the end of a session may free a thousand, each with its readers."""

EXCLUSIVE, SHARED, SEMAPHORE = "exclusive", "shared", "semaphore"
MODES = (EXCLUSIVE, SHARED, SEMAPHORE)


class Lock(Struct, frozen=True, array_like=True):
    """A lock that is held, waited for or still delayed; without a row it is free.

    mode: of its holders; used: permits they take; permits: of a semaphore. head: no place in the queue
    sorts below it. token: of the newest grant. free_at_ms: nobody gets it earlier. due: of its row in `due`.
    """

    mode: str = ""
    holders: int = 0
    used: int = 0
    permits: int = 0
    waiting: int = 0
    head: bytes = b""
    token: int = 0
    free_at_ms: int = 0
    due_ms: int = 0
    revision: int = 0


class Ask(Struct, frozen=True, array_like=True):
    """One lease, or the ticket it was before (`token` 0). number: unlike any other's; asked: number of its last
    command; rank, number: its place in the queue. since_ms: when it was granted, or asked for. hold: how many
    times its session has it. ticket_ttl_ms 0: kept as long as the session."""

    session: str
    number: int
    asked: int
    owner: str
    mode: str
    weight: int
    rank: int
    since_ms: int
    token: int = 0
    hold: int = 0
    priority: int = 0
    lock_delay_ms: int = 0
    ticket_ttl_ms: int = 0
    metadata: Any = None


class Ref(Struct, frozen=True, array_like=True):
    """A row that leads to an Ask."""

    lease: str


LOCKS = Table("lock", Lock)
ASKS = Table("ask", Ask)
"""By space, lock and lease id."""
HOLDERS = Table("lease", Ref)
"""By space, lock and token: what a guard and a check look up."""
QUEUE = Table("wait", Ref)
"""By space, lock, rank and number."""

KIND = "lock"
"""Of rows in the index by session, and in `due`."""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def holder(view: LedgerView, space: str, name: str, token: int) -> str | None:
    """The lease whose token this is, None when it is not (or no longer) one of this lock's."""
    if not 0 < token <= NUMBER:
        return None
    row = HOLDERS.get(view, space, name, token)
    return None if row is None else row.lease


def holders(view: LedgerView, space: str, name: str, limit: int) -> list[tuple[str, Ask]]:
    """Leases of a lock, oldest first."""
    return _asks(view, space, name, HOLDERS.page(view, pack(space, name), limit=limit))


def waiting(view: LedgerView, space: str, name: str, limit: int) -> list[tuple[str, Ask]]:
    """Tickets of a lock, next first."""
    lock = LOCKS.get(view, space, name) or Lock()
    prefix = pack(space, name)
    return _asks(view, space, name, QUEUE.page(view, prefix, start=prefix + lock.head, limit=limit))


def _asks(view: LedgerView, space: str, name: str, rows: list[tuple[bytes, Ref]]) -> list[tuple[str, Ask]]:
    found = ((row.lease, ASKS.get(view, space, name, row.lease)) for _, row in rows)
    return [(lease, ask) for lease, ask in found if ask is not None]


def position(view: LedgerView, space: str, name: str, lock: Lock, ask: Ask, limit: int) -> int | None:
    """How many are before a ticket, plus one; None when more than `limit` are."""
    own = _place(ask)
    prefix = pack(space, name)
    if not QUEUE.page(view, prefix, start=prefix + own + b"\0", limit=1):
        return lock.waiting
    lo = prefix + lock.head
    before = view.rows(QUEUE.name, lo, prefix + own, limit=limit)
    return None if len(before) == limit else len(before) + 1


def can_take(lock: Lock, mode: str, weight: int, time_ms: int) -> bool:
    """Whether the lock, were nobody waiting, could be granted now."""
    if lock.free_at_ms > time_ms:
        return False
    if not lock.holders:
        return mode != SEMAPHORE or weight <= lock.permits
    if lock.mode != mode or mode == EXCLUSIVE:
        return False
    return mode == SHARED or lock.used + weight <= lock.permits


def rank_of(time_ms: int, priority: int) -> int:
    return time_ms + _BIAS_MS - priority * AGING_MS


# ── changing ────────────────────────────────────────────────────────────────────────────────────────────────


def grant(work: Work, space: str, name: str, lock: Lock, lease: str, ask: Ask) -> Lock:
    """Make an ask a holder. Its place in the queue, if it had one, must be gone."""
    token = work.number()
    ask = replace(ask, token=token, hold=1, since_ms=work.time_ms)
    work.put(ASKS, space, name, lease, value=ask)
    work.put(HOLDERS, space, name, token, value=Ref(lease))
    lock = replace(
        lock,
        mode=ask.mode,
        holders=lock.holders + 1,
        used=lock.used + ask.weight,
        token=token,
        revision=token,
    )
    change = "elected" if space == ELECTION else "granted"
    work.tell(space, name, change, token, lease=lease, owner=ask.owner, token=token, mode=ask.mode)
    return lock


def enqueue(work: Work, space: str, name: str, lock: Lock, lease: str, ask: Ask) -> Lock:
    """Give an ask its place."""
    place = _place(ask)
    work.put(ASKS, space, name, lease, value=ask)
    work.put(QUEUE, space, name, place, value=Ref(lease))
    head = min(place, lock.head) if lock.waiting else place
    return replace(lock, waiting=lock.waiting + 1, head=head, revision=ask.number)


def advance(work: Work, space: str, name: str, lock: Lock) -> Lock:
    """Grant the lock to those at the head of the queue that can have it now."""
    prefix = pack(space, name)
    for _ in range(min(GRANTS_AT_ONCE, GRANTS_PER_COMMAND - work.grants)):
        if not lock.waiting or lock.free_at_ms > work.time_ms:
            return lock
        key, ref = QUEUE.page(work, prefix, start=prefix + lock.head, limit=1)[0]
        lock = replace(lock, head=key[len(prefix) :])
        ask = ASKS.get(work, space, name, ref.lease)
        assert ask is not None, "a place in a queue leads to its ask"
        if not can_take(lock, ask.mode, ask.weight, work.time_ms):
            return lock
        work.remove(QUEUE, space, name, _place(ask))
        lock = grant(work, space, name, replace(lock, waiting=lock.waiting - 1), ref.lease, ask)
        work.grants += 1
    return _come_back(work, space, name, lock, work.time_ms)


def drop(work: Work, space: str, name: str, lease: str, ask: Ask, change: str, *, lost: bool) -> None:
    """Take a lease or a ticket away and pass on what that makes free. `lost`: its holder did not want that."""
    lock = LOCKS.get(work, space, name)
    assert lock is not None, "a lock that is asked for has a row"
    work.remove(ASKS, space, name, lease)
    number = work.number()
    if ask.token:
        work.remove(HOLDERS, space, name, ask.token)
        left = lock.holders - 1
        mode = lock.mode if left else ""
        lock = replace(lock, holders=left, used=lock.used - ask.weight, mode=mode, revision=number)
        if lost and ask.lock_delay_ms:
            lock = replace(lock, free_at_ms=max(lock.free_at_ms, work.time_ms + ask.lock_delay_ms))
    else:
        work.remove(QUEUE, space, name, _place(ask))
        lock = replace(lock, waiting=lock.waiting - 1, revision=number)
    work.tell(space, name, change, number, lease=lease, owner=ask.owner, token=ask.token or None)
    sessions.let_go(work, ask.session, KIND, space, name)
    settle(work, space, name, lock)


def settle(work: Work, space: str, name: str, lock: Lock) -> None:
    """Pass on what is free, and store the lock, or forget it when nobody has to do with it any more."""
    lock = advance(work, space, name, lock)
    if lock.free_at_ms > work.time_ms:
        lock = _come_back(work, space, name, lock, lock.free_at_ms)
    elif not lock.holders and not lock.waiting:
        work.remove(LOCKS, space, name)
        return
    work.put(LOCKS, space, name, value=lock)


def wake(work: Work, at_ms: int, place: str, name: str, row: due.Due) -> None:
    """The time noted in a lock's `due` row has come: grant what had to wait for it."""
    lock = LOCKS.get(work, place, name)
    if lock is not None and lock.due_ms == at_ms:
        settle(work, place, name, replace(lock, due_ms=0))


def release_held(work: Work, names: tuple[str, str], held: sessions.Held, lost: bool) -> None:
    """A session ends: what it holds or waits for of one lock goes."""
    space, name = names
    ask = ASKS.get(work, space, name, held.ref)
    assert ask is not None, "the index by session leads to its ask"
    drop(work, space, name, held.ref, ask, "expired" if lost else "released", lost=lost)


def _come_back(work: Work, space: str, name: str, lock: Lock, at_ms: int) -> Lock:
    if lock.due_ms == at_ms:
        return lock
    if lock.due_ms:
        due.cancel(work, lock.due_ms, KIND, space, name)
    due.note(work, at_ms, KIND, space, name)
    return replace(lock, due_ms=at_ms)


def _place(ask: Ask) -> bytes:
    return pack(ask.rank, ask.number)
