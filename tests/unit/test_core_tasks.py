"""Tasks, simple gates and transactions rule by rule, as log entries."""

from typing import Any

import pytest

from raftspine.core.ledger import due, gates, lock_queue, sessions, task_rows
from raftspine.core.ledger.commands import Condition, DeleteMemory, GetMemory, Guard, PatchMemory, PutMemory
from raftspine.core.ledger.lock_commands import AcquireLock, ExpireSession, OpenSession, ReleaseLock, Wake
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.task_commands import (
    ClaimTasks,
    Compare,
    CompleteTask,
    DeleteGate,
    EnqueueTask,
    ExtendTask,
    FailTask,
    PassGate,
    Picture,
    PutGate,
    RemoveTask,
    RequeueTask,
    Txn,
)
from raftspine.model import Memory, RingRecord
from tests.support.ledger_store import LedgerLog

TTL = 30_000
Q = "builds"


@pytest.fixture
def log() -> LedgerLog:
    return LedgerLog()


def put(log: LedgerLog, id: str, **more: Any) -> Outcome:
    return log.do(EnqueueTask(Q, id, **{"payload": {"for": id}, **more}))


def claim(log: LedgerLog, name: str = "c", count: int = 1, **more: Any) -> list[dict[str, Any]]:
    outcome = log.do(ClaimTasks(Q, name, count, **{"ttl_ms": TTL, **more}))
    assert outcome.status is Status.DONE, outcome
    tasks: list[dict[str, Any]] = outcome.result["tasks"]
    return tasks


def expire(log: LedgerLog, session: str) -> Outcome:
    row = sessions.read(log.store, session)
    assert row is not None
    return log.do(ExpireSession(session, row.number, row.renewed, log.term))


def state(log: LedgerLog, id: str) -> str | None:
    task = task_rows.read(log.store, Q, id)
    return None if task is None else task.state


# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_are_claimed_in_order_and_finished_once(log: LedgerLog) -> None:
    for id in ("a", "b", "c"):
        assert put(log, id).result == {"id": id, "state": "ready", "deduplicated": False}
    one, two = claim(log, "w1", 2)
    assert (one["id"], two["id"], one["payload"], one["attempt"]) == ("a", "b", {"for": "a"}, 1)
    assert one["token"] < two["token"] and one["session"] == "~w1/0"
    done = log.do(CompleteTask(Q, "a", one["token"], "built"))
    assert done.result == {"first": True, "result": "built", "written": []}
    late = log.do(CompleteTask(Q, "a", one["token"], "again"))
    assert late.result == {"first": False, "result": "built", "written": []}
    assert log.effects == []
    assert log.do(CompleteTask(Q, "b", two["token"] + 1)).status is Status.NOT_CURRENT
    assert log.do(CompleteTask(Q, "z", 1)).status is Status.ABSENT
    assert sessions.read(log.store, "~w1/0") is None


def test_an_expired_claim_goes_back_to_its_place(log: LedgerLog) -> None:
    put(log, "a")
    put(log, "b")
    (first,) = claim(log, "w1")
    expire(log, first["session"])
    assert log.do(CompleteTask(Q, "a", first["token"], "late")).status is Status.NOT_CURRENT
    (second,) = claim(log, "w2")
    assert (second["id"], second["attempt"]) == ("a", 2) and second["token"] > first["token"]
    assert log.do(CompleteTask(Q, "a", second["token"], "done")).result["first"]
    late = log.do(CompleteTask(Q, "a", first["token"], "late")).result
    assert (late["first"], late["result"]) == (False, "done")


def test_attempts_run_out_and_can_be_given_back(log: LedgerLog) -> None:
    put(log, "a", max_attempts=2)
    (one,) = claim(log)
    expire(log, one["session"])
    (two,) = claim(log)
    assert log.do(FailTask(Q, "a", two["token"], "boom")).result["state"] == "dead"
    assert claim(log) == []
    ((_, id, task),) = task_rows.dead_letters(log.store, Q, 0, 10)
    assert (id, task.error, task.attempts) == ("a", "boom", 2)
    assert log.do(RequeueTask(Q, "a")).result == {"state": "ready"}
    assert log.do(RequeueTask(Q, "a")).status is Status.WRONG_STATE
    assert task_rows.dead_letters(log.store, Q, 0, 10) == []
    assert claim(log)[0]["attempt"] == 1


def test_a_failure_backs_off_and_doubles(log: LedgerLog) -> None:
    put(log, "a", backoff_ms=1000)
    for delay in (1000, 2000, 4000):
        (one,) = claim(log)
        failed = log.do(FailTask(Q, "a", one["token"], "no"))
        assert failed.result == {"state": "delayed", "not_before_ms": log.time_ms + delay}
        assert claim(log) == [] and due.next_due(log.store) == log.time_ms + delay
        log.time_ms += delay
        log.do(Wake())
    (one,) = claim(log)
    assert log.do(FailTask(Q, "a", one["token"], delay_ms=0)).result["state"] == "ready"
    (one,) = claim(log)
    assert log.do(FailTask(Q, "a", one["token"], retry=False)).result["state"] == "dead"


def test_a_task_waits_for_its_time(log: LedgerLog) -> None:
    put(log, "later", not_before_ms=log.time_ms + 5000)
    put(log, "now")
    assert [task["id"] for task in claim(log, count=5)] == ["now"]
    log.do(Wake())
    assert state(log, "later") == "delayed"
    log.time_ms += 5000
    log.do(Wake())
    assert [task["id"] for task in claim(log, count=5)] == ["later"]


def test_priority_first_and_age_outweighs_it(log: LedgerLog) -> None:
    put(log, "old")
    log.time_ms += lock_queue.AGING_MS // 2
    put(log, "high", priority=1)
    log.time_ms += lock_queue.AGING_MS
    put(log, "late", priority=1)
    assert [task["id"] for task in claim(log, count=5)] == ["high", "old", "late"]


def test_a_dedupe_key_answers_with_the_unfinished_task(log: LedgerLog) -> None:
    put(log, "a", dedupe="nightly")
    assert put(log, "b", dedupe="nightly").result == {"id": "a", "state": "ready", "deduplicated": True}
    (one,) = claim(log)
    assert put(log, "b", dedupe="nightly").result["state"] == "claimed"
    log.do(CompleteTask(Q, "a", one["token"]))
    assert put(log, "b", dedupe="nightly").result == {"id": "b", "state": "ready", "deduplicated": False}
    assert put(log, "b").status is Status.EXISTS


def test_a_dead_task_given_back_does_not_take_a_key_another_has(log: LedgerLog) -> None:
    put(log, "a", dedupe="k", max_attempts=1)
    log.do(FailTask(Q, "a", claim(log)[0]["token"]))
    put(log, "b", dedupe="k")
    log.do(RequeueTask(Q, "a"))
    assert put(log, "c", dedupe="k").result["id"] == "b"
    log.do(RemoveTask(Q, "a"))
    assert put(log, "c", dedupe="k").result["id"] == "b"
    log.do(RemoveTask(Q, "b"))
    assert put(log, "c", dedupe="k").result["id"] == "c"


def test_a_completion_writes_its_memories_or_nothing(log: LedgerLog) -> None:
    then = (PutMemory("m", Memory("done"), expected=Condition(absent=True)), PutMemory("n", Memory(1)))
    put(log, "a", then=then)
    (one,) = claim(log)
    log.do(PutMemory("m", Memory("mine")))
    refused = log.do(CompleteTask(Q, "a", one["token"]))
    assert (refused.status, refused.id, log.effects) == (Status.VERSION_CONFLICT, "m", [])
    assert state(log, "a") == "claimed" and log.store.strong("n") is None
    log.do(DeleteMemory("m"))
    more = (PutMemory("o", Memory(2)),)
    done = log.do(CompleteTask(Q, "a", one["token"], then=more, agent="worker"))
    assert [row["id"] for row in done.result["written"]] == ["m", "n", "o"]
    record = log.store.strong("m")
    assert record is not None and record.memory is not None and record.memory.updated_by == "worker"
    twice = log.do(EnqueueTask(Q, "b", then=(*then, *then)))
    assert twice.status is Status.INVALID


def test_a_completion_that_must_see_the_ring_first_is_not_remembered(log: LedgerLog) -> None:
    log.do(PutMemory("m", Memory(1)))
    demoted = log.do(PutMemory("m", Memory(2), demote=True)).ring
    assert demoted is not None
    put(log, "a", then=(PutMemory("m", Memory(3)),))
    (one,) = claim(log)
    blind = CompleteTask(Q, "a", one["token"], request=b"k" * 16)
    assert log.do(blind).status is Status.RING_BEHIND
    seen = Picture("m", RingRecord((demoted,), {demoted.origin: demoted.seq}))
    done = log.do(CompleteTask(Q, "a", one["token"], pictures=(seen,), request=b"k" * 16))
    assert done.result["first"]


def test_a_claim_is_extended_while_it_is_current(log: LedgerLog) -> None:
    put(log, "a")
    (one,) = claim(log)
    row = sessions.read(log.store, one["session"])
    assert row is not None
    extended = log.do(ExtendTask(Q, "a", one["token"], 60_000))
    assert extended.result == {"session": one["session"], "ttl_ms": 60_000}
    assert log.do(ExpireSession(one["session"], row.number, row.renewed, log.term)).status is Status.OVERTAKEN
    assert log.do(ExtendTask(Q, "a", one["token"] + 1)).status is Status.NOT_CURRENT
    log.do(OpenSession("s", TTL))
    put(log, "b")
    (two,) = claim(log, session="s", ttl_ms=0)
    assert log.do(ExtendTask(Q, "b", two["token"], 60_000)).status is Status.INVALID
    assert log.do(ExtendTask(Q, "b", two["token"])).result == {"session": "s", "ttl_ms": TTL}


def test_a_result_is_forgotten_after_a_day_and_an_empty_queue_leaves_no_row(log: LedgerLog) -> None:
    put(log, "a", dedupe="k")
    log.do(CompleteTask(Q, "a", claim(log)[0]["token"], "r"))
    log.time_ms += task_rows.DONE_KEPT_MS - 1
    log.do(Wake())
    assert state(log, "a") == "done"
    log.time_ms += 1
    log.do(Wake())
    assert {name for name, rows in log.store.tables.items() if rows} == {"event"}


def test_what_one_claim_answers_is_bounded(log: LedgerLog) -> None:
    for i in range(20):
        assert put(log, f"t{i:02}", payload="x" * 65_000).status is Status.DONE
    assert len(claim(log, count=64)) == 17
    assert put(log, "big", payload="x" * 70_000).status is Status.INVALID


def test_a_claimed_task_is_not_removed_and_a_ready_one_is(log: LedgerLog) -> None:
    put(log, "a")
    put(log, "b")
    claim(log)
    assert log.do(RemoveTask(Q, "a")).status is Status.WRONG_STATE
    assert log.do(RemoveTask(Q, "b")).status is Status.DELETED
    assert claim(log) == []


def test_deep_payloads_are_refused_before_they_are_encoded(log: LedgerLog) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    assert put(log, "a", payload=deep).status is Status.INVALID


# ── gates ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gate_lets_through_as_many_as_it_says(log: LedgerLog) -> None:
    assert log.do(PassGate("prod", "p0")).status is Status.GATE_CLOSED
    log.do(PutGate("prod", "open", 2))
    one, two, three = log.entry(*(PassGate("prod", f"p{i}") for i in (1, 2, 3)))
    assert (one.result["uses_left"], two.result["uses_left"], three.status) == (1, 0, Status.GATE_CLOSED)
    assert one.result["token"] < two.result["token"]
    log.do(PutGate("prod", "closed"))
    assert log.do(PassGate("prod", "p4")).reason == "the gate is closed"
    log.do(PutGate("prod", "open"))
    assert log.do(PassGate("prod", "p5")).result["uses_left"] is None
    assert log.do(DeleteGate("prod")).status is Status.DELETED
    assert log.do(PassGate("prod", "p6")).status is Status.GATE_CLOSED
    assert log.do(DeleteGate("prod")).status is Status.ABSENT


def test_a_repeated_pass_consumes_one_use(log: LedgerLog) -> None:
    log.do(PutGate("prod", "open", 1))
    command = PassGate("prod", "p", request=b"k" * 16)
    assert log.do(command) == log.do(command)


def test_a_gate_closes_at_its_time_with_or_without_a_wake(log: LedgerLog) -> None:
    log.do(PutGate("prod", "open", expires_at_ms=log.time_ms + 1000))
    log.time_ms += 1000
    assert log.do(PassGate("prod", "late")).status is Status.GATE_CLOSED
    log.do(Wake())
    gate = gates.show(log.store, "prod")
    assert gate is not None and (gate.state, gate.reason) == ("closed", "expired")
    log.do(PutGate("prod", "open", expires_at_ms=log.time_ms + 1000))
    log.do(PutGate("prod", "open"))
    assert due.next_due(log.store) is None
    assert log.do(PutGate("prod", "open", expires_at_ms=log.time_ms)).status is Status.INVALID
    assert log.do(PutGate("prod", "ajar")).status is Status.INVALID


# ── transactions ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_takes_one_branch_whole(log: LedgerLog) -> None:
    version = log.do(PutMemory("a", Memory(1))).version
    txn = Txn(
        (Compare("a", version=version), Compare("b", exists=False)),
        (PutMemory("a", Memory(2)), PutMemory("b", Memory(3))),
        (GetMemory("a"),),
    )
    first = log.do(txn)
    assert first.result["succeeded"]
    assert [row["status"] for row in first.result["results"]] == ["changed", "created"]
    second = log.do(txn)
    assert not second.result["succeeded"]
    (got,) = second.result["results"]
    assert got["memory"]["content"] == 2 and got["version"] == first.result["results"][0]["version"]


def test_a_refused_operation_takes_its_branch_with_it(log: LedgerLog) -> None:
    log.do(PutMemory("a", Memory(1)))
    refused = log.do(
        Txn(then=(PutMemory("b", Memory(1)), PutMemory("a", Memory(2), expected=Condition(absent=True))))
    )
    assert (refused.status, refused.result["op"], log.effects) == (Status.VERSION_CONFLICT, 1, [])
    assert log.store.strong("b") is None
    same = Txn(then=(PutMemory("a", Memory(1)), DeleteMemory("a")))
    assert log.do(same).status is Status.INVALID
    absent = log.do(Txn(then=(DeleteMemory("z"), PatchMemory("y", {"content": 1}))))
    assert [row["status"] for row in absent.result["results"]] == ["absent", "absent"]


def test_a_transaction_sees_locks_and_is_fenced(log: LedgerLog) -> None:
    lease = log.do(AcquireLock("l", "x", ttl_ms=TTL))
    token = lease.result["token"]
    assert log.do(Txn((Compare(lock="l", token=token),))).result["succeeded"]
    assert not log.do(Txn((Compare(lock="l"),))).result["succeeded"]
    log.do(ReleaseLock("l", "x", token))
    assert log.do(Txn((Compare(lock="l"),))).result["succeeded"]
    assert not log.do(Txn((Compare(lock="l", token=token),))).result["succeeded"]
    assert log.do(Txn(guards=(Guard("l", token),))).status is Status.FENCED


def test_what_a_transaction_reads_is_bounded(log: LedgerLog) -> None:
    log.do(PutMemory("m", Memory("x" * (1 << 20))))
    assert log.do(Txn(then=(GetMemory("m"),) * 3)).status is Status.DONE
    log.do(PutMemory("n", Memory(1)))
    before = log.store.copy().replicated()
    refused = log.do(Txn(then=(PutMemory("n", Memory(2)), *(GetMemory("m"),) * 4)))
    assert refused.status is Status.TOO_MANY and log.store.replicated() == before


def test_all_of_then_counts(log: LedgerLog) -> None:
    tags = tuple(f"{number:0250}" for number in range(1100))
    assert put(log, "a", then=(PutMemory("m", Memory(1, tags=tags)),)).status is Status.INVALID
    ring = RingRecord((), {f"origin-{number}": 1 for number in range(9)})
    assert put(log, "a", then=(PutMemory("m", Memory(1), ring=ring),)).status is Status.INVALID
