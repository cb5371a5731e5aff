"""The clocks of the strong path: who has not been heard of, and what has come due.

The machine has no clock, so the leader of each shard group watches for it and *proposes*: that a session has
expired, that a place in a queue has lapsed, that something noted for later is due. The log decides. The rules
that make a TTL a lower bound:

* A timer starts when its session's row is written, as this node applies it, and in full when this node takes
  office or finds that its own loop stood still: whoever was not listening may not say that nobody spoke.
* A renewal is acknowledged only with a quorum's proof, asked for after the renewal arrived, that this node still
  leads, and after the session was found open in what is applied behind that proof. Until then its timer runs on.
* A renewal that meets an expiry already proposed waits for the log's word on it. An expiry carries what was known
  of the session, and the term; the machine refuses one that is overtaken (core/ledger/sessions.py).

Timers are one heap per group that is led, with lazy deletion: a hundred thousand sessions cost a hundred thousand
entries and no tasks, and a tick costs what is due.
"""

from asyncio import AbstractEventLoop, Future, TimerHandle, get_running_loop
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

import structlog

from raftspine.core.ledger import commands, due, lock_queue, sessions
from raftspine.core.ledger.lock_commands import ExpireSession, ExpireTicket, Wake
from raftspine.core.ledger.outcomes import Outcome
from raftspine.core.ledger.sessions import Session
from raftspine.core.ledger.state import SetRow
from raftspine.core.ledger.tables import unpack
from raftspine.errors import NotFound, SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, Engine, ReplicatedLog
from raftspine.services.ledger_host import Stored

TICK_SECONDS = 0.1
STALLED_SECONDS = 1.0
"""A tick this much late means that the process stood still, and renewals wait unread in its sockets."""
PROPOSED_AT_ONCE = 64
"""Proposals of one group in one tick; the rest follow in the next."""
AGAIN_SECONDS = 0.5
"""Pause after a proposal that failed."""
PAGE = 512

Key: TypeAlias = tuple[str, ...]
"""Of a timer: `(session,)`, or `(space, lock, lease)` for a place in a queue."""

log = structlog.get_logger(__name__)


class _Office:
    """What a leader knows of one group. `timers`: deadline (monotonic seconds) and length of each. `heap` orders
    them; of each key one entry counts, that of the time in `queued`, and it is never later than the deadline.
    `proposed`: expiries on their way. `due_ms`: log time of the next row that
    comes due."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.timers: dict[Key, tuple[float, float]] = {}
        self.heap: list[tuple[float, Key]] = []
        self.queued: dict[Key, float] = {}
        self.proposed: dict[Key, Future[Any]] = {}
        self.due_ms: int | None = None
        self.waking = False
        self.scanned: str | None = ""
        """Sessions up to this id have timers; None: all have."""

    def start(self, key: Key, seconds: float, now: float) -> None:
        self.look(key, now + seconds, seconds)

    def look(self, key: Key, ends: float, seconds: float) -> None:
        """Set a timer of this length to end then."""
        self.timers[key] = (ends, seconds)
        queued = self.queued.get(key)
        if queued is None or ends < queued:
            self._queue(key, ends)  # else the entry there is comes first, and finds the new end

    def _queue(self, key: Key, at: float) -> None:
        self.queued[key] = at
        heappush(self.heap, (at, key))

    def restart_all(self, now: float) -> None:
        self.timers = {key: (now + seconds, seconds) for key, (_, seconds) in self.timers.items()}
        self.queued = {key: ends for key, (ends, _) in self.timers.items()}
        self.heap = [(ends, key) for key, ends in self.queued.items()]
        heapify(self.heap)

    def ended(self, now: float, most: int) -> list[Key]:
        """The timers that have run out, at most `most`."""
        found: list[Key] = []
        while self.heap and self.heap[0][0] <= now and len(found) < most:
            at, key = heappop(self.heap)
            if self.queued.get(key) != at:
                continue
            del self.queued[key]
            timer = self.timers.get(key)
            if timer is None or key in self.proposed:
                continue
            if timer[0] > now:
                self._queue(key, timer[0])
            else:
                found.append(key)
        return found


class Keeper:
    """The timers of all groups this node leads. `observe` is to be called with the rows of each applied entry,
    `leader_changed` with each change of leadership."""

    def __init__(
        self,
        node: NodeId,
        log: ReplicatedLog,
        engine: Engine,
        clock: Clock,
        *,
        on_expired: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._node = node
        self._log = log
        self._engine = engine
        self._clock = clock
        self._on_expired = on_expired
        self._offices: dict[GroupId, _Office] = {}
        self._ticked = clock.monotonic()
        self._loop: AbstractEventLoop
        self._timer: TimerHandle | None = None
        self._tables: dict[str, Callable[[GroupId, _Office, SetRow], None]] = {
            sessions.SESSIONS.name: self._session_row,
            lock_queue.ASKS.name: self._ask_row,
            due.DUE.name: self._due_row,
        }

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """From the loop that drives this node."""
        self._loop = get_running_loop()
        self._ticked = self._clock.monotonic()
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def stop(self) -> None:
        """No timer fires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._offices.clear()

    def leader_changed(self, group: GroupId, leader: NodeId | None) -> None:
        """Take office with every timer in full, or leave it."""
        if leader != self._node:
            self._offices.pop(group, None)
            return
        term = self._log.status(group).term
        office = self._offices.get(group)
        if office is None or office.term != term:
            office = self._offices[group] = _Office(term)
            office.due_ms = due.next_due(Stored(self._engine, group))

    # ── what the log says ───────────────────────────────────────────────────────────────────────────────────

    def observe(self, group: GroupId, rows: Sequence[SetRow]) -> None:
        """Rows an entry has just written."""
        office = self._offices.get(group)
        if office is None:
            return
        for row in rows:
            take = self._tables.get(row.table)
            if take is not None:
                take(group, office, row)

    def _session_row(self, group: GroupId, office: _Office, row: SetRow) -> None:
        key = (str(unpack(row.key, str)[0]),)
        if row.value is None:
            office.timers.pop(key, None)
        else:
            office.start(key, sessions.SESSIONS.decode(row.value).ttl_ms / 1000, self._clock.monotonic())

    def _ask_row(self, group: GroupId, office: _Office, row: SetRow) -> None:
        space, name, lease = unpack(row.key, str, str, str)
        ask = None if row.value is None else lock_queue.ASKS.decode(row.value)
        if ask is not None and ask.token:
            self._granted(group, office, ask.session)
        if ask is None or ask.token or not ask.ticket_ttl_ms:
            office.timers.pop((space, name, lease), None)
        else:
            office.start((space, name, lease), ask.ticket_ttl_ms / 1000, self._clock.monotonic())

    def _granted(self, group: GroupId, office: _Office, session: str) -> None:
        """A lease begins with a full TTL, also when its holder had waited for most of one."""
        row = sessions.read(Stored(self._engine, group), session)
        if row is not None:
            office.start((session,), row.ttl_ms / 1000, self._clock.monotonic())

    def _due_row(self, group: GroupId, office: _Office, row: SetRow) -> None:
        at_ms = int(unpack(row.key, int)[0])
        if row.value is not None and (office.due_ms is None or at_ms < office.due_ms):
            office.due_ms = at_ms

    # ── the tick ────────────────────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        now = self._clock.monotonic()
        late, self._ticked = now - self._ticked - TICK_SECONDS, now
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        if late > STALLED_SECONDS:
            log.warning("this node stood still; all timers start again", seconds=round(late, 1))
            for office in self._offices.values():
                office.restart_all(now)
        for group, office in list(self._offices.items()):
            if office.scanned is not None:
                self._scan(group, office, now)
            for key in office.ended(now, PROPOSED_AT_ONCE):
                self._expire(group, office, key, now)
            if office.due_ms is not None and office.due_ms <= self._clock.wall_ms() and not office.waking:
                self._wake(group, office)

    def _scan(self, group: GroupId, office: _Office, now: float) -> None:
        """Give timers to what was there before this node led, a page a tick. Rows written since have theirs
        already."""
        assert office.scanned is not None, "the caller looked"
        page = sessions.page(Stored(self._engine, group), office.scanned, PAGE)
        for id, row in page:
            if (id,) not in office.timers:
                office.start((id,), row.ttl_ms / 1000, now)
        office.scanned = page[-1][0] if len(page) == PAGE else None
        if office.scanned is None:
            self._scan_tickets(group, office, now)

    def _scan_tickets(self, group: GroupId, office: _Office, now: float) -> None:
        start = b""
        while True:
            page = lock_queue.ASKS.page(Stored(self._engine, group), b"", start=start, limit=PAGE)
            for key, ask in page:
                place = unpack(key, str, str, str)
                if not ask.token and ask.ticket_ttl_ms and place not in office.timers:
                    office.start(place, ask.ticket_ttl_ms / 1000, now)
            if len(page) < PAGE:
                return
            start = page[-1][0] + b"\0"

    def _expire(self, group: GroupId, office: _Office, key: Key, now: float) -> None:
        view = Stored(self._engine, group)
        command: ExpireSession | ExpireTicket
        if len(key) == 1:
            row = sessions.read(view, key[0])
            if row is None:
                office.timers.pop(key, None)
                return
            command = ExpireSession(key[0], row.number, row.renewed, office.term)
        else:
            space, name, lease = key
            ask = lock_queue.ASKS.get(view, space, name, lease)
            if ask is None or ask.token:
                office.timers.pop(key, None)
                return
            command = ExpireTicket(name, lease, ask.asked, office.term, space)
        proposed = office.proposed[key] = self._log.propose(group, commands.encode(command))
        proposed.add_done_callback(lambda done: self._decided(group, office, key, done))

    def _decided(self, group: GroupId, office: _Office, key: Key, done: "Future[Any]") -> None:
        del office.proposed[key]
        outcome = _outcome(done)
        if outcome is not None and outcome.status == "done":
            self._on_expired("session" if len(key) == 1 else "ticket")
            log.info("expired", group=group, what="/".join(key))
        if key in office.timers:
            # Not expired: overtaken, or not decided. Look again after a while, whichever it was; later, when the log
            # has heard of the session meanwhile.
            ends, seconds = office.timers[key]
            pause = seconds if outcome is not None else AGAIN_SECONDS
            office.look(key, max(ends, self._clock.monotonic() + pause), seconds)

    def _wake(self, group: GroupId, office: _Office) -> None:
        office.waking = True
        proposed = self._log.propose(group, commands.encode(Wake()))
        proposed.add_done_callback(lambda done: self._woken(group, office, done))

    def _woken(self, group: GroupId, office: _Office, done: "Future[Any]") -> None:
        def over() -> None:
            office.waking = False

        if _outcome(done) is None:
            self._loop.call_later(AGAIN_SECONDS, over)
        else:
            office.due_ms = due.next_due(Stored(self._engine, group))
            over()

    # ── renewal ─────────────────────────────────────────────────────────────────────────────────────────────

    async def renew(self, group: GroupId, id: str) -> Session:
        """Hear of a session, at its group's leader: it lives for another TTL from now. NotFound when it is not
        open (any more); Unavailable where this node does not lead, or could not prove that it does."""
        key = (id,)
        while True:
            office = self._office(group)
            expiry = office.proposed.get(key)
            if expiry is not None:
                await _settled(expiry, self._loop)
                continue
            index = await self._log.read_index(group)
            await self._log.wait_applied(group, index)
            if self._offices.get(group) is office and key not in office.proposed:
                break
        row = sessions.read(Stored(self._engine, group), id)
        if row is None:
            raise NotFound("the session has ended", details={"session": id})
        office.start(key, row.ttl_ms / 1000, self._clock.monotonic())
        return row

    def remaining_ms(self, group: GroupId, id: str) -> int | None:
        """How long a session lives if nothing is heard of it, at least; None where this node does not lead the
        group or has not met the session yet."""
        office = self._offices.get(group)
        timer = None if office is None else office.timers.get((id,))
        return None if timer is None else max(0, int((timer[0] - self._clock.monotonic()) * 1000))

    def counts(self) -> tuple[int, int]:
        """Sessions and tickets with a timer on this node."""
        keys = [len(key) for office in self._offices.values() for key in office.timers]
        return keys.count(1), len(keys) - keys.count(1)

    def _office(self, group: GroupId) -> _Office:
        office = self._offices.get(group)
        if office is None:
            leader = self._log.leader(group)
            raise Unavailable(
                f"this node does not lead shard group {group}",
                code="no_leader",
                details={"group": group, "leader": leader},
            )
        return office


def _outcome(done: "Future[Any]") -> Outcome | None:
    """What a proposal came to; None when it failed, which the log of this group has a word on already."""
    if done.cancelled():
        return None
    error = done.exception()
    if error is None:
        outcome: Outcome = done.result()[0]
        return outcome
    if not isinstance(error, SpineError):
        log.error("an expiry could not be proposed", exc_info=error)
    return None


async def _settled(future: "Future[Any]", loop: AbstractEventLoop) -> None:
    """Wait for somebody else's future without cancelling it or hearing its error."""
    waiter: Future[None] = loop.create_future()

    def over(_: "Future[Any]") -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(over)
    await waiter
