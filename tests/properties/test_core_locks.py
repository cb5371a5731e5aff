"""Sessions and locks against a dumb twin: dictionaries and lists, searched from end to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raftspine.core.ledger import events, fence, lock_queue, locks, sessions
from raftspine.core.ledger.commands import Guard, PutMemory
from raftspine.core.ledger.lock_commands import (
    LOCK,
    AcquireAll,
    AcquireLock,
    BreakLock,
    CloseSession,
    ExpireSession,
    ExpireTicket,
    OpenSession,
    ReleaseLock,
    RenewSession,
    Wake,
)
from raftspine.core.ledger.lock_queue import AGING_MS, LOCKS
from raftspine.core.ledger.outcomes import Status
from raftspine.model import Memory
from tests.support.ledger_pair import LedgerPair

NAMES = ("l1", "l2")
ALL_NAMES = ("l1", "l2", "l3")
SESSIONS = ("s1", "s2", "s3")
LEASES = ("a", "b", "c", "d")
TTL = 30_000
DELAY = 5_000


@dataclass
class TwinAsk:
    lease: str
    session: str
    mode: str
    weight: int
    score: float  # what the queue is ordered by: time of asking, less the worth of the priority
    order: int
    delay: int
    token: int = 0
    hold: int = 0


@dataclass
class TwinLock:
    holders: list[TwinAsk] = field(default_factory=list)
    queue: list[TwinAsk] = field(default_factory=list)
    free_at: int = 0
    permits: int = 0

    def fits(self, mode: str, weight: int, now: int) -> bool:
        if self.free_at > now:
            return False
        if mode == "semaphore":
            ours = all(ask.mode == mode for ask in self.holders)
            return ours and sum(ask.weight for ask in self.holders) + weight <= self.permits
        if mode == "shared":
            return all(ask.mode == mode for ask in self.holders)
        return not self.holders


class Twin:
    """Everything as plainly as it can be said. Tokens are the machine's; the twin only says who gets one."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.locks: dict[str, TwinLock] = {}
        self.orders = 0

    def ask(self, name: str, session: str) -> TwinAsk | None:
        lock = self.locks.get(name, TwinLock())
        return next((ask for ask in lock.holders + lock.queue if ask.session == session), None)

    def settle(self, name: str, now: int) -> None:
        lock = self.locks[name]
        lock.queue.sort(key=lambda ask: (ask.score, ask.order))
        while lock.queue and lock.fits(lock.queue[0].mode, lock.queue[0].weight, now):
            ask = lock.queue.pop(0)
            ask.hold = 1
            lock.holders.append(ask)
        if not lock.holders and not lock.queue and lock.free_at <= now:
            del self.locks[name]

    def drop(self, name: str, ask: TwinAsk, now: int, *, lost: bool) -> None:
        lock = self.locks[name]
        if ask in lock.holders:
            lock.holders.remove(ask)
            if lost and ask.delay:
                lock.free_at = max(lock.free_at, now + ask.delay)
        else:
            lock.queue.remove(ask)
        if ask.session.startswith("~") and not self.holdings(ask.session):
            self.sessions.discard(ask.session)
        self.settle(name, now)

    def holdings(self, session: str) -> list[str]:
        return [name for name in sorted(self.locks) if self.ask(name, session) is not None]

    def end(self, session: str, now: int, *, lost: bool) -> None:
        for name in self.holdings(session):
            ask = self.ask(name, session)
            assert ask is not None
            self.drop(name, ask, now, lost=lost)
        self.sessions.discard(session)

    def waits_for(self) -> dict[str, set[str]]:
        """Who waits for whom: a place waits for the holders and for all places before it."""
        edges: dict[str, set[str]] = {}
        for lock in self.locks.values():
            queue = sorted(lock.queue, key=lambda ask: (ask.score, ask.order))
            for place, ask in enumerate(queue):
                ahead = [other.session for other in lock.holders + queue[:place]]
                edges.setdefault(ask.session, set()).update(ahead)
        return edges

    def reaches(self, start: set[str], goal: str) -> bool:
        edges, seen = self.waits_for(), set(start)
        while True:
            wider = seen.union(*(edges.get(session, set()) for session in seen))
            if wider == seen:
                return goal in seen
            seen = wider


class LocksAndTwin(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.log = LedgerPair()
        self.twin = Twin()
        self.highest = 0
        self.seen_events = 0
        self.requests = 0

    @property
    def now(self) -> int:
        return self.log.time_ms

    # ── time, leaders, snapshots ────────────────────────────────────────────────────────────────────────────

    @rule(ms=st.sampled_from([1, DELAY, AGING_MS // 2, AGING_MS]))
    def time_passes(self, ms: int) -> None:
        self.log.time_ms += ms

    @rule()
    def another_leader(self) -> None:
        self.log.term += 1

    @rule()
    def a_replica_is_restored(self) -> None:
        self.log.restore()

    @rule()
    def wake(self) -> None:
        self.log.do(Wake())
        for name in sorted(self.twin.locks):
            if 0 < self.twin.locks[name].free_at <= self.now:
                self.twin.settle(name, self.now)

    @precondition(lambda self: self.log.asked)
    @rule(number=st.integers(0, 50))
    def a_request_is_repeated(self, number: int) -> None:
        self.log.again(number)

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────

    @rule(id=st.sampled_from(SESSIONS))
    def open(self, id: str) -> None:
        assert self.log.do(OpenSession(id, TTL)).created == (id not in self.twin.sessions)
        self.twin.sessions.add(id)

    @rule(id=st.sampled_from(SESSIONS))
    def close(self, id: str) -> None:
        held = self.twin.holdings(id)
        assert self.log.do(CloseSession(id)).result == {"released": len(held)}
        self.twin.end(id, self.now, lost=False)

    @precondition(lambda self: self.twin.sessions)
    @rule(data=st.data(), late=st.sampled_from(["", "", "", "term", "renewed", "acquired"]))
    def expire(self, data: st.DataObject, late: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.twin.sessions)))
        row = sessions.read(self.log.one, id)
        assert row is not None
        if late == "renewed":
            assert self.log.do(RenewSession(id)).status is Status.DONE
        if late == "acquired" and not id.startswith("~"):
            self.log.do(AcquireLock("elsewhere", "e", id))
            self.log.do(ReleaseLock("elsewhere", "e", all=True, token=self._token_elsewhere()))
        term = self.log.term - (late == "term")
        outcome = self.log.do(ExpireSession(id, row.number, row.renewed, term))
        if late and not (late == "acquired" and id.startswith("~")):
            assert outcome.status is Status.OVERTAKEN
            return
        assert outcome.result == {"released": len(self.twin.holdings(id))}
        self.twin.end(id, self.now, lost=True)

    def _token_elsewhere(self) -> int:
        ((_, ask),) = lock_queue.holders(self.log.one, LOCK, "elsewhere", 2)
        return ask.token

    # ── locks ───────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        name=st.sampled_from(NAMES),
        lease=st.sampled_from(LEASES),
        session=st.sampled_from(["", "", *SESSIONS]),
        mode=st.sampled_from(["exclusive", "exclusive", "shared", "semaphore"]),
        permits=st.sampled_from([0, 2, 2, 3]),
        weight=st.sampled_from([1, 1, 2]),
        priority=st.sampled_from([0, 0, 0, 1, 2]),
        queue=st.booleans(),
        delay=st.sampled_from([0, 0, DELAY]),
        same_entry=st.booleans(),
        asked=st.booleans(),
    )
    def acquire(
        self,
        name: str,
        lease: str,
        session: str = "",
        mode: str = "exclusive",
        permits: int = 0,
        weight: int = 1,
        priority: int = 0,
        queue: bool = True,
        delay: int = 0,
        same_entry: bool = False,
        asked: bool = False,
    ) -> None:
        self.requests += 1
        command = AcquireLock(
            name,
            lease,
            session,
            ttl_ms=TTL,
            mode=mode,
            permits=permits,
            weight=weight,
            priority=priority,
            lock_delay_ms=delay,
            queue=queue,
            request=b"%016d" % self.requests if asked else b"",
        )
        expected = self._predict(command)
        outcome = self.log.do(command, same_entry=same_entry)
        assert outcome.status is expected, (outcome, expected)
        ask = self.twin.ask(name, sessions.named(session, lease))
        if outcome.status is Status.GRANTED:
            assert ask is not None and ask.hold == outcome.result["hold"] and ask.lease == outcome.result["lease"]
        if outcome.status is Status.QUEUED:
            assert ask is not None and ask.lease == outcome.result["ticket"]
            queued = sorted(self.twin.locks[name].queue, key=lambda ask: (ask.score, ask.order))
            assert outcome.result["position"] == queued.index(ask) + 1

    @rule(name=st.sampled_from(NAMES), lease=st.sampled_from(LEASES), priority=st.sampled_from([0, 0, 1]))
    def stand_in_line(self, name: str, lease: str, priority: int) -> None:
        """What most clients do; said again so that queues get long."""
        self.acquire(name, lease, priority=priority, delay=DELAY)

    @rule(name=st.sampled_from(NAMES), lease=st.sampled_from(LEASES))
    def read_in_line(self, name: str, lease: str) -> None:
        self.acquire(name, lease, mode="shared")

    @rule(
        name=st.sampled_from(NAMES), session=st.sampled_from(SESSIONS), mode=st.sampled_from(["exclusive", "shared"])
    )
    def a_session_wants_another(self, name: str, session: str, mode: str) -> None:
        """Sessions that hold one lock and wait for another: what circles are made of."""
        self.open(session)
        self.acquire(name, f"of {session}", session, mode)

    @precondition(lambda self: self.twin.locks)
    @rule(data=st.data())
    def the_holder_releases(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.twin.locks)))
        for ask in self.twin.locks[name].holders[:1]:
            self.release(name, ask.lease, True, 0)

    def _predict(self, command: AcquireLock) -> Status:
        """The status, by the rules as the documentation tells them; what is granted or queued enters the twin."""
        twin, name, now = self.twin, command.name, self.now
        session = command.session or "~" + command.lease
        if command.session and command.session not in twin.sessions:
            return Status.SESSION_GONE
        lock = twin.locks.get(name, TwinLock())
        if any(a.lease == command.lease and a.session != session for a in lock.holders + lock.queue):
            return Status.INVALID
        mine = twin.ask(name, session)
        if mine is not None:
            if mine.mode != command.mode or (mine.mode == "semaphore" and mine.weight != command.weight):
                return Status.DEADLOCK
            if mine in lock.holders:
                mine.hold += mine.lease != command.lease
                return Status.GRANTED
            twin.settle(name, now)
            return Status.GRANTED if mine.hold else Status.QUEUED
        weight, permits = 1, lock.permits
        if command.mode == "semaphore":
            weight, permits = command.weight, lock.permits or command.permits
            if command.permits not in (0, permits) or weight > permits:
                return Status.INVALID
        score = now - command.priority * AGING_MS
        twin.orders += 1
        ask = TwinAsk(command.lease, session, command.mode, weight, score, twin.orders, command.lock_delay_ms)
        trial = TwinLock(list(lock.holders), [*lock.queue], lock.free_at, permits)
        gets = not trial.queue and trial.fits(ask.mode, weight, now)
        if command.queue and not gets:
            ahead = {a.session for a in trial.holders}
            ahead |= {a.session for a in trial.queue if (a.score, a.order) < (score, ask.order)}
            if twin.holdings(session) and twin.reaches(ahead, session):
                return Status.DEADLOCK
        if not command.queue and not gets and not self._would_get(trial, ask):
            return Status.LOCK_HELD
        lock.permits = permits
        lock.queue.append(ask)
        twin.locks[name] = lock
        twin.sessions.add(session)
        twin.settle(name, now)
        return Status.GRANTED if ask.hold else Status.QUEUED

    def _would_get(self, lock: TwinLock, new: TwinAsk) -> bool:
        """Whether the newcomer is granted when the queue moves on, on a copy."""
        holders = list(lock.holders)
        for ask in sorted([*lock.queue, new], key=lambda ask: (ask.score, ask.order)):
            now = TwinLock(holders, [], lock.free_at, lock.permits)
            if not now.fits(ask.mode, ask.weight, self.now):
                return False
            if ask is new:
                return True
            holders.append(ask)
        return False

    @rule(
        names=st.lists(st.sampled_from(ALL_NAMES), min_size=1, max_size=3),
        lease=st.sampled_from(LEASES),
        session=st.sampled_from(["", *SESSIONS]),
        wait=st.booleans(),
    )
    def acquire_all(self, names: list[str], lease: str, session: str, wait: bool) -> None:
        command = AcquireAll(tuple(names), lease, session, ttl_ms=TTL, wait=wait)
        expected = self._predict_all(command)
        outcome = self.log.do(command)
        assert outcome.status is expected, (outcome, expected)

    def _predict_all(self, command: AcquireAll) -> Status:
        twin, session, names = self.twin, command.session or "~" + command.lease, sorted(set(command.names))
        if command.session and session not in twin.sessions:
            return Status.SESSION_GONE
        held = False
        for name in names:
            lock, mine = twin.locks.get(name, TwinLock()), twin.ask(name, session)
            if mine is not None and mine.mode != "exclusive":
                return Status.DEADLOCK
            if mine in lock.holders or (mine is None and not lock.queue and lock.fits("exclusive", 1, self.now)):
                continue
            held = True
            holding = {ask.session for ask in lock.holders}
            if command.wait and twin.holdings(session) and twin.reaches(holding, session):
                return Status.DEADLOCK
        if held:
            return Status.LOCK_HELD
        for name in names:
            lock = twin.locks.get(name, TwinLock())
            if any(ask.lease == command.lease and ask.session != session for ask in lock.holders + lock.queue):
                return Status.INVALID
        for name in names:
            assert self._predict(AcquireLock(name, command.lease, command.session, ttl_ms=TTL)) is Status.GRANTED
        return Status.GRANTED

    @rule(
        name=st.sampled_from(NAMES),
        lease=st.sampled_from(LEASES),
        all=st.booleans(),
        wrong=st.sampled_from([0, 0, 0, 1]),
    )
    def release(self, name: str, lease: str, all: bool, wrong: int) -> None:
        lock = self.twin.locks.get(name, TwinLock())
        ask = next((a for a in lock.holders + lock.queue if a.lease == lease), None)
        stored = lock_queue.ASKS.get(self.log.one, LOCK, name, lease)
        assert (ask is None) == (stored is None)
        token = 0 if stored is None else stored.token
        outcome = self.log.do(ReleaseLock(name, lease, token + wrong, all))
        if ask is None or wrong:
            assert outcome.status is Status.NOT_CURRENT
        elif ask in lock.holders and ask.hold > 1 and not all:
            ask.hold -= 1
            assert outcome.result == {"hold": ask.hold}
        else:
            assert outcome.result == {"hold": 0}
            self.twin.drop(name, ask, self.now, lost=False)

    @rule(name=st.sampled_from(NAMES), current=st.booleans())
    def a_ticket_lapses(self, name: str, current: bool) -> None:
        queue = self.twin.locks.get(name, TwinLock()).queue
        if not queue:
            return
        ask = queue[0]
        stored = lock_queue.ASKS.get(self.log.one, LOCK, name, ask.lease)
        assert stored is not None
        outcome = self.log.do(ExpireTicket(name, ask.lease, stored.asked - (not current), self.log.term))
        assert outcome.status is (Status.DONE if current else Status.OVERTAKEN)
        if current:
            self.twin.drop(name, ask, self.now, lost=True)

    @rule(name=st.sampled_from(NAMES))
    def an_operator_breaks(self, name: str) -> None:
        holders = list(self.twin.locks.get(name, TwinLock()).holders)
        outcome = self.log.do(BreakLock(name, "why", agent="root"))
        if not holders:
            assert outcome.status is Status.NOT_CURRENT
            return
        assert [broken["lease"] for broken in outcome.result["broken"]] == [ask.lease for ask in holders]
        for ask in holders:
            self.twin.drop(name, ask, self.now, lost=True)

    @rule(name=st.sampled_from(NAMES), token=st.integers(0, 1 << 20), use_current=st.booleans())
    def a_guarded_write(self, name: str, token: int, use_current: bool) -> None:
        current = {ask.token for _, ask in lock_queue.holders(self.log.one, LOCK, name, 10)}
        if use_current and current:
            token = max(current)
        outcome = self.log.do(PutMemory("m", Memory(token), guards=(Guard(name, token),)))
        assert (outcome.status is Status.FENCED) == (token not in current)
        assert (fence.refused(self.log.one, "m", (Guard(name, token),)) is None) == (token in current)

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_log_holds_what_the_twin_holds(self) -> None:
        store = self.log.one
        for name in ALL_NAMES:
            lock, row = self.twin.locks.get(name), LOCKS.get(store, LOCK, name)
            assert (lock is None) == (row is None), name
            if lock is None or row is None:
                continue
            held = lock_queue.holders(store, LOCK, name, 100)
            assert [(lease, ask.session, ask.hold) for lease, ask in held] == [
                (ask.lease, ask.session, ask.hold) for ask in lock.holders
            ]
            queue = sorted(lock.queue, key=lambda ask: (ask.score, ask.order))
            assert [lease for lease, _ in lock_queue.waiting(store, LOCK, name, 100)] == [a.lease for a in queue]
            assert (row.holders, row.waiting) == (len(lock.holders), len(lock.queue))
            assert row.used == sum(ask.weight for ask in lock.holders)

    @invariant()
    def nobody_holds_what_they_may_not(self) -> None:
        store = self.log.one
        for name in NAMES:
            held = [ask for _, ask in lock_queue.holders(store, LOCK, name, 100)]
            modes = {ask.mode for ask in held}
            assert len(modes) <= 1 and (modes != {"exclusive"} or len(held) == 1)
            for ask in held:
                assert sessions.read(store, ask.session) is not None, "no grant to a session that ended"
                assert locks.check(store, LOCK, name, ask.token) is not None

    @invariant()
    def tokens_rise_and_are_given_once(self) -> None:
        for number, event in events.read(self.log.one, self.seen_events + 1, 1000):
            self.seen_events = number
            if event.change == "granted":
                assert event.data["token"] > self.highest
                self.highest = event.data["token"]

    @invariant()
    def sessions_agree(self) -> None:
        stored = {id for id, _ in sessions.page(self.log.one, "", 100)}
        assert stored == self.twin.sessions
        self.log.check_index_by_session()


LocksAndTwin.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestLocksAndTwin = pytest.mark.timeout(900)(LocksAndTwin.TestCase)  # a counterexample takes minutes to shrink


def test_outcomes_have_no_memory_of_the_order_of_sets() -> None:
    """Names are put in order before they are taken, so replicas with other hash seeds agree."""
    log = LedgerPair()
    names = tuple(f"n{i}" for i in range(40))
    tokens: Any = log.do(AcquireAll(names, "x", ttl_ms=TTL)).result["tokens"]
    assert list(tokens) == sorted(names) and list(tokens.values()) == sorted(tokens.values())
