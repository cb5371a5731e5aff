"""What watchers are told: numbered without gaps, once, and no longer than the window."""

from typing import Any

import pytest

from raftspine.core.ledger import events
from raftspine.core.ledger.commands import DeleteMemory, PutMemory
from raftspine.core.ledger.lock_commands import AcquireLock, ReleaseLock
from raftspine.core.ledger.memory_commands import Condition
from raftspine.core.ledger.task_commands import EnqueueTask, PassGate, PutGate, Txn
from raftspine.model import Memory
from tests.support.ledger_store import LedgerLog


@pytest.fixture
def log() -> LedgerLog:
    return LedgerLog()


def told(log: LedgerLog, start: int = 1) -> list[tuple[int, str, str, str]]:
    rows = events.read(log.store, start, 1000)
    return [(number, event.kind, event.key, event.change) for number, event in rows]


def put(content: Any, **more: Any) -> PutMemory:
    return PutMemory("m", Memory(content, tags=("t",)), **more)


def test_every_change_is_told_once_in_order(log: LedgerLog) -> None:
    log.do(put(1))
    log.do(put(1))
    log.do(put(2, request=b"k" * 16))
    log.do(put(2, request=b"k" * 16))
    log.do(put(3, expected=Condition("s-3-1-0")))
    log.do(DeleteMemory("m"))
    first = log.do(AcquireLock("l", "a", ttl_ms=30_000))
    log.do(AcquireLock("l", "b", ttl_ms=30_000, queue=True))
    log.do(ReleaseLock("l", "a", first.result["token"]))
    log.do(PutGate("g", "open", 1))
    log.do(PassGate("g", "p"))
    log.do(PassGate("g", "q"))
    log.do(EnqueueTask("q", "t"))
    assert told(log) == [
        (1, "memory", "m", "created"),
        (2, "memory", "m", "changed"),
        (3, "memory", "m", "deleted"),
        (4, "lock", "l", "granted"),
        (5, "lock", "l", "released"),
        (6, "lock", "l", "granted"),
        (7, "gate", "g", "opened"),
        (8, "gate", "g", "passed"),
        (9, "task", "q/t", "ready"),
    ]
    assert told(log, 8) == told(log)[7:]
    assert events.window(log.store) == events.Window(1, 9)


def test_an_event_says_where_it_stands_and_what_a_watcher_filters_by(log: LedgerLog) -> None:
    log.entry(put(1), PutMemory("n", Memory(2, namespace="team")))
    log.do(PutMemory("m", Memory(2, tags=("u",))))
    log.do(PutMemory("m", Memory(3), demote=True))
    found = [event for _, event in events.read(log.store, 1, 10)]
    assert [(event.index, event.sub) for event in found] == [(1, 0), (1, 1), (2, 0), (3, 0)]
    assert [event.revision for event in found] == ["s-3-1-0", "s-3-1-1", "s-3-2-0", "r-log-3-1"]
    assert found[1].data["namespace"] == "team"
    assert found[2].data["tags"] == ["t", "u"], "who watches a tag hears of its loss"
    assert found[3].change == "demoted"


def test_a_transaction_tells_of_each_memory(log: LedgerLog) -> None:
    log.do(Txn(then=(put(1), PutMemory("n", Memory(2)))))
    assert told(log) == [(1, "memory", "m", "created"), (2, "memory", "n", "created")]


def test_the_window_is_bounded_by_count_and_says_where_it_begins(
    log: LedgerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 10)
    monkeypatch.setattr(events, "TRIM_EVERY", 1)
    for n in range(30):
        log.do(put(n))
    assert events.window(log.store) == events.Window(21, 30)
    assert [number for number, *_ in told(log)] == list(range(21, 31))
    assert len(log.store.tables["event"]) == 10


def test_the_window_is_looked_at_now_and_then(log: LedgerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 10)
    sizes = []
    for n in range(4 * events.TRIM_EVERY):
        log.do(put(n))
        sizes.append(len(log.store.tables["event"]))
    assert max(sizes) < 10 + 2 * events.TRIM_EVERY and sizes[-1] == 10
    assert log.store.counter(events.FIRST) == 4 * events.TRIM_EVERY - 9


def test_the_window_is_bounded_by_age_and_shrinks_step_by_step(
    log: LedgerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TRIM_EVERY", 1)
    for n in range(10):
        log.do(put(n))
    log.time_ms += events.KEPT_MS + 1
    log.do(put("late"))
    assert events.window(log.store) == events.Window(3, 11)
    for n in range(10):
        log.do(put(n))
    assert events.window(log.store) == events.Window(11, 21)


def test_what_happens_in_one_entry_after_the_window_moved_is_still_numbered_on(
    log: LedgerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TRIM_EVERY", 1)
    log.entry(*(put(n) for n in range(5)))
    log.time_ms += events.KEPT_MS + 1
    log.entry(*(put(n) for n in range(5)))
    numbers = [number for number, *_ in told(log)]
    window = events.window(log.store)
    assert numbers == list(range(window.first, window.last + 1)) and window.last == 10
