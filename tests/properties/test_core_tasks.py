"""Tasks, gates, fences and transactions against a dumb twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raftspine.core.ledger import events, fence, sessions, task_rows
from raftspine.core.ledger.commands import Condition, DeleteMemory, PutMemory
from raftspine.core.ledger.lock_commands import CloseSession, ExpireSession, OpenSession, RaiseFence, Wake
from raftspine.core.ledger.lock_queue import AGING_MS
from raftspine.core.ledger.outcomes import Status
from raftspine.core.ledger.task_commands import (
    ClaimTasks,
    Compare,
    CompleteTask,
    EnqueueTask,
    ExtendTask,
    FailTask,
    PassGate,
    PutGate,
    RemoveTask,
    RequeueTask,
    Txn,
)
from raftspine.model import Memory
from tests.support.ledger_pair import LedgerPair

QUEUES = ("q1", "q2")
IDS = ("a", "b", "c")
MEMORIES = ("m", "n")
TTL = 30_000


@dataclass
class TwinTask:
    state: str
    score: int
    order: int
    priority: int
    max_attempts: int
    backoff: int
    dedupe: str
    then: tuple[str, ...]
    due: int = 0
    attempts: int = 0
    token: int = 0
    session: str = ""
    result: Any = None


class TasksAndTwin(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.log = LedgerPair()
        self.tasks: dict[tuple[str, str], TwinTask] = {}
        self.memories: dict[str, Any] = {}
        self.gates: dict[str, tuple[str, int | None, int]] = {}
        self.fence = 0
        self.session_open = False
        self.orders = 0
        self.requests = 0
        self.completed: dict[tuple[str, str, int], int] = {}
        self.seen_events = 0

    @property
    def now(self) -> int:
        return self.log.time_ms

    def request(self) -> bytes:
        self.requests += 1
        return b"%016d" % self.requests

    # ── time, leaders, snapshots ────────────────────────────────────────────────────────────────────────────

    @rule(ms=st.sampled_from([1, 1000, AGING_MS, task_rows.DONE_KEPT_MS]))
    def time_passes(self, ms: int) -> None:
        self.log.time_ms += ms

    @rule()
    def a_replica_is_restored(self) -> None:
        self.log.restore()

    @rule()
    def wake(self) -> None:
        self.log.do(Wake())
        for key, task in list(self.tasks.items()):
            if task.state == "delayed" and task.due <= self.now:
                task.state = "ready"
            elif task.state == "done" and task.due <= self.now:
                del self.tasks[key]
        for name, (state, uses, expires_at) in self.gates.items():
            if state == "open" and 0 < expires_at <= self.now:
                self.gates[name] = ("closed", uses, 0)

    @precondition(lambda self: self.log.asked)
    @rule(number=st.integers(0, 50))
    def a_request_is_repeated(self, number: int) -> None:
        if self.now < 1_000_000 + 20 * 3600 * 1000:  # while the log remembers it
            self.log.again(number)

    @rule()
    def open_session(self) -> None:
        self.log.do(OpenSession("s", TTL))
        self.session_open = True

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        queue=st.sampled_from(["q1", "q1", "q2"]),
        id=st.sampled_from(IDS),
        priority=st.sampled_from([0, 0, 1]),
        delay=st.sampled_from([0, 0, 1000]),
        max_attempts=st.sampled_from([0, 1, 2]),
        backoff=st.sampled_from([0, 1000]),
        dedupe=st.sampled_from(["", "", "k"]),
        then=st.sampled_from([(), (), ("m",), ("m", "n")]),
    )
    def enqueue(
        self,
        queue: str,
        id: str,
        priority: int,
        delay: int,
        max_attempts: int,
        backoff: int,
        dedupe: str,
        then: tuple[str, ...],
    ) -> None:
        start = self.now + delay
        command = EnqueueTask(
            queue,
            id,
            f"payload of {id}",
            priority,
            start if delay else 0,
            max_attempts,
            backoff,
            dedupe,
            tuple(PutMemory(name, Memory(id), expected=Condition(absent=True)) for name in then),
            request=self.request(),
        )
        twins = [
            other
            for (where, other), task in self.tasks.items()
            if where == queue and dedupe and task.dedupe == dedupe and task.state in ("ready", "delayed", "claimed")
        ]
        outcome = self.log.do(command)
        if twins:
            assert outcome.result["deduplicated"] and outcome.result["id"] in twins
            return
        if (queue, id) in self.tasks:
            assert outcome.status is Status.EXISTS
            return
        self.orders += 1
        state = "delayed" if delay else "ready"
        assert outcome.result == {"id": id, "state": state, "deduplicated": False}
        score = start - priority * AGING_MS
        self.tasks[queue, id] = TwinTask(
            state, score, self.orders, priority, max_attempts, backoff, dedupe, then, due=start
        )

    @rule(queue=st.sampled_from(["q1", "q1", "q2"]), count=st.integers(1, 3), own=st.booleans())
    def claim(self, queue: str, count: int, own: bool) -> None:
        request = self.request()
        session = "" if own or not self.session_open else "s"
        outcome = self.log.do(ClaimTasks(queue, request.decode(), count, "ann", TTL, session, request=request))
        ready = [(key, task) for key, task in self.tasks.items() if key[0] == queue and task.state == "ready"]
        ready.sort(key=lambda row: (row[1].score, row[1].order))
        assert [told["id"] for told in outcome.result["tasks"]] == [id for (_, id), _ in ready[:count]]
        for (_, task), told in zip(ready, outcome.result["tasks"], strict=False):
            task.state, task.token, task.session = "claimed", told["token"], told["session"]
            task.attempts += 1
            assert told["attempt"] == task.attempts and told["payload"] == f"payload of {told['id']}"

    def pick(self, data: st.DataObject, *states: str) -> tuple[tuple[str, str], TwinTask] | None:
        found = sorted(key for key, task in self.tasks.items() if task.state in states)
        if not found:
            return None
        key = data.draw(st.sampled_from(found))
        return key, self.tasks[key]

    @rule(data=st.data(), stale=st.sampled_from([False, False, True]))
    def complete(self, data: st.DataObject, stale: bool) -> None:
        picked = self.pick(data, "claimed", "done", "ready")
        if picked is None:
            return
        self.finish(*picked, stale=stale)

    def finish(self, key: tuple[str, str], task: TwinTask, *, stale: bool = False) -> None:
        self.requests += 1
        token = task.token - stale
        outcome = self.log.do(CompleteTask(*key, token, self.requests))
        if task.state == "done":
            assert outcome.result == {"first": False, "result": task.result, "written": []}
        elif stale or task.state == "ready":
            assert outcome.status is Status.NOT_CURRENT
        elif any(name in self.memories for name in task.then):
            assert outcome.status is Status.VERSION_CONFLICT
        else:
            assert outcome.result["first"] and [row["id"] for row in outcome.result["written"]] == list(task.then)
            self.memories |= dict.fromkeys(task.then, key[1])
            task.state, task.result, task.due = "done", self.requests, self.now + task_rows.DONE_KEPT_MS

    @rule(data=st.data(), retry=st.booleans(), delay=st.sampled_from([None, None, 0, 500]))
    def fail(self, data: st.DataObject, retry: bool, delay: int | None) -> None:
        picked = self.pick(data, "claimed", "dead")
        if picked is None:
            return
        self.give_up(*picked, retry=retry, delay=delay)

    def give_up(self, key: tuple[str, str], task: TwinTask, *, retry: bool, delay: int | None) -> None:
        outcome = self.log.do(FailTask(*key, task.token, "oops", retry, delay))
        if task.state == "dead":
            assert outcome.status is Status.NOT_CURRENT
            return
        pause = task.backoff * 2 ** (task.attempts - 1) if delay is None else delay
        self.give_back(task, pause, retry=retry)
        assert outcome.result["state"] == task.state

    def give_back(self, task: TwinTask, pause: int, *, retry: bool) -> None:
        if not retry or (task.max_attempts and task.attempts >= task.max_attempts):
            task.state = "dead"
        else:
            task.state, task.due = ("delayed", self.now + pause) if pause else ("ready", 0)

    @rule(data=st.data(), end=st.sampled_from(["expire", "close", "extended"]))
    def a_claim_ends(self, data: st.DataObject, end: str) -> None:
        picked = self.pick(data, "claimed")
        if picked is None:
            return
        self.end_claim(*picked, end)

    def end_claim(self, key: tuple[str, str], task: TwinTask, end: str) -> None:
        row = sessions.read(self.log.one, task.session)
        assert row is not None
        if end == "close":
            self.log.do(CloseSession(task.session))
        else:
            if end == "extended":
                assert self.log.do(ExtendTask(*key, task.token)).status is Status.DONE
            outcome = self.log.do(ExpireSession(task.session, row.number, row.renewed, self.log.term))
            if end == "extended":
                assert outcome.status is Status.OVERTAKEN
                return
        ended = task.session
        self.session_open = self.session_open and ended != "s"
        for other in self.tasks.values():
            if other.state == "claimed" and other.session == ended:
                self.give_back(other, 0, retry=True)

    @rule(
        id=st.sampled_from(IDS),
        max_attempts=st.sampled_from([0, 2]),
        dedupe=st.sampled_from(["", "k"]),
        then=st.sampled_from([(), ("m", "n")]),
        ends=st.lists(st.sampled_from(["complete", "fail", "expire", "close", "wait"]), max_size=3),
    )
    def a_worker(self, id: str, max_attempts: int, dedupe: str, then: tuple[str, ...], ends: list[str]) -> None:
        """What most tasks go through, so that the rare is often met on the way."""
        self.enqueue("q1", id, 0, 0, max_attempts, 0, dedupe, then)
        for end in ends:
            self.claim("q1", 1, True)
            claimed = [(key, task) for key, task in self.tasks.items() if task.state == "claimed"]
            for key, task in claimed[-1:]:
                if end == "complete":
                    self.finish(key, task)
                elif end == "fail":
                    self.give_up(key, task, retry=True, delay=0)
                elif end != "wait":
                    self.end_claim(key, task, end)

    @rule(queue=st.sampled_from(["q1", "q1", "q2"]), id=st.sampled_from(IDS))
    def requeue(self, queue: str, id: str) -> None:
        task = self.tasks.get((queue, id))
        outcome = self.log.do(RequeueTask(queue, id))
        if task is None or task.state != "dead":
            assert outcome.status is (Status.ABSENT if task is None else Status.WRONG_STATE)
            return
        self.orders += 1
        task.state, task.attempts, task.order = "ready", 0, self.orders
        task.score = self.now - task.priority * AGING_MS
        others = [t for (where, _), t in self.tasks.items() if where == queue and t is not task]
        if any(t.dedupe == task.dedupe and t.state in ("ready", "delayed", "claimed") for t in others):
            task.dedupe = ""  # another has the key, and keeps it

    @rule(queue=st.sampled_from(["q1", "q1", "q2"]), id=st.sampled_from(IDS))
    def remove(self, queue: str, id: str) -> None:
        task = self.tasks.get((queue, id))
        outcome = self.log.do(RemoveTask(queue, id))
        if task is None:
            assert outcome.status is Status.ABSENT
        elif task.state == "claimed":
            assert outcome.status is Status.WRONG_STATE
        else:
            assert outcome.status is Status.DELETED
            del self.tasks[queue, id]

    # ── memories, gates, fences ─────────────────────────────────────────────────────────────────────────────

    @rule(id=st.sampled_from(MEMORIES))
    def delete_memory(self, id: str) -> None:
        self.log.do(DeleteMemory(id))
        self.memories.pop(id, None)

    @rule(
        compare=st.dictionaries(st.sampled_from(MEMORIES), st.booleans(), max_size=2),
        then=st.lists(st.tuples(st.sampled_from(MEMORIES), st.booleans()), max_size=2),
        otherwise=st.lists(st.tuples(st.sampled_from(MEMORIES), st.booleans()), max_size=2),
    )
    def txn(self, compare: dict[str, bool], then: list[tuple[str, bool]], otherwise: list[tuple[str, bool]]) -> None:
        self.requests += 1
        content = self.requests
        branches = [
            tuple(PutMemory(id, Memory(content), expected=Condition(absent=absent)) for id, absent in ops)
            for ops in (then, otherwise)
        ]
        compares = tuple(Compare(id, exists=exists) for id, exists in compare.items())
        outcome = self.log.do(Txn(compares, *branches, request=self.request()))
        if any(len({id for id, _ in ops}) != len(ops) for ops in (then, otherwise)):
            assert outcome.status is Status.INVALID
            return
        succeeded = all((id in self.memories) == exists for id, exists in compare.items())
        branch = then if succeeded else otherwise
        if any(absent and id in self.memories for id, absent in branch):
            assert outcome.status is Status.VERSION_CONFLICT
            return
        assert outcome.result["succeeded"] == succeeded
        self.memories |= dict.fromkeys([id for id, _ in branch], content)

    @rule(
        name=st.sampled_from(["g", "h"]),
        state=st.sampled_from(["open", "open", "closed"]),
        uses=st.sampled_from([None, 0, 1, 2]),
        expires_in=st.sampled_from([0, 0, 1000]),
    )
    def put_gate(self, name: str, state: str, uses: int | None, expires_in: int) -> None:
        expires_at = self.now + expires_in if expires_in else 0
        self.log.do(PutGate(name, state, uses, expires_at))
        self.gates[name] = (state, uses, expires_at)

    @rule(name=st.sampled_from(["g", "h"]))
    def pass_gate(self, name: str) -> None:
        state, uses, expires_at = self.gates.get(name, ("closed", None, 0))
        request = self.request()
        outcome = self.log.do(PassGate(name, request.decode(), request=request))
        if state != "open" or uses == 0 or 0 < expires_at <= self.now:
            assert outcome.status is Status.GATE_CLOSED
            return
        left = None if uses is None else uses - 1
        assert outcome.result["uses_left"] == left
        self.gates[name] = (state, left, expires_at)

    @rule(token=st.integers(1, 9))
    def raise_fence(self, token: int) -> None:
        outcome = self.log.do(RaiseFence("r", token))
        assert (outcome.status is Status.STALE_TOKEN) == (token < self.fence)
        self.fence = max(self.fence, token)
        assert fence.highest(self.log.one, "r") == self.fence == outcome.result["highest"]

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_log_holds_what_the_twin_holds(self) -> None:
        store = self.log.one
        for queue in QUEUES:
            stored = dict(task_rows.page(store, queue, "", 100))
            mine = {id: task for (where, id), task in self.tasks.items() if where == queue}
            assert {id: (row.state, row.attempts) for id, row in stored.items()} == {
                id: (task.state, task.attempts) for id, task in mine.items()
            }
            row = task_rows.counts(store, queue)
            for state in ("ready", "delayed", "claimed", "done", "dead"):
                assert getattr(row, state) == sum(task.state == state for task in mine.values())
            dead = {id for _, id, _ in task_rows.dead_letters(store, queue, 0, 100)}
            assert dead == {id for id, task in mine.items() if task.state == "dead"}
        found = {id: record.memory.content for id, record in store.strongs.items() if record.memory is not None}
        assert found == self.memories

    @invariant()
    def a_task_completes_at_most_once(self) -> None:
        """Between being enqueued and removed, in the history that watchers see."""
        for number, event in events.read(self.log.one, self.seen_events + 1, 1000):
            self.seen_events = number
            if event.kind != "task":
                continue
            key = (event.data["queue"], event.data["id"], 0)
            if event.change == "completed":
                self.completed[key] = self.completed.get(key, 0) + 1
                assert self.completed[key] == 1
            elif event.change in ("removed", "forgotten"):
                self.completed.pop(key, None)

    @invariant()
    def sessions_agree(self) -> None:
        self.log.check_index_by_session()
        claimed = {task.session for task in self.tasks.values() if task.state == "claimed"}
        stored = {id for id, _ in sessions.page(self.log.one, "", 100)}
        assert stored == claimed | ({"s"} if self.session_open else set())


TasksAndTwin.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestTasksAndTwin = pytest.mark.timeout(900)(TasksAndTwin.TestCase)  # a counterexample takes minutes to shrink
