"""What an operation reads does not depend on how much else there is: rows counted, not time."""

from collections.abc import Callable
from typing import Any

import pytest

from raftspine.core.ledger import fence, gate_requests, gate_steps, locks, sessions
from raftspine.core.ledger.commands import Guard, PutMemory
from raftspine.core.ledger.gate_commands import AdmitRequest, CompleteRequest, EndRequest, RequestGate
from raftspine.core.ledger.gate_policy import Policy
from raftspine.core.ledger.lock_commands import LOCK, AcquireLock, ExpireSession, OpenSession, ReleaseLock, Wake
from raftspine.core.ledger.task_commands import ClaimTasks, CompleteTask, EnqueueTask, PutGate
from raftspine.model import Memory
from tests.support.ledger_store import LedgerLog

TTL = 30_000


def filled(count: int) -> LedgerLog:
    """A group with `count` held locks, a tenth as many waiters on one of them, sessions and tasks."""
    log = LedgerLog()
    for i in range(0, count, 100):
        log.entry(*(AcquireLock(f"lock-{n:06}", f"lease-{n}", ttl_ms=TTL) for n in range(i, i + 100)))
    for i in range(count // 10):
        log.do(AcquireLock("lock-000000", f"waiter-{i}", ttl_ms=TTL, queue=True))
        log.do(EnqueueTask("q", f"task-{i:06}"))
    return log


def token(log: LedgerLog, name: str) -> int:
    shown = locks.show(log.store, LOCK, name, 1)
    assert shown is not None
    return shown.holders[0][1].token


def expire(log: LedgerLog, id: str) -> ExpireSession:
    row = sessions.read(log.store, id)
    assert row is not None
    return ExpireSession(id, row.number, row.renewed, log.term)


OPERATIONS: dict[str, Callable[[LedgerLog], Any]] = {
    "open": lambda log: OpenSession("s", TTL),
    "acquire": lambda log: AcquireLock("free", "new", ttl_ms=TTL),
    "refused": lambda log: AcquireLock("lock-000001", "new", ttl_ms=TTL),
    "stand in line": lambda log: AcquireLock("lock-000000", "new", ttl_ms=TTL, queue=True),
    "ask again": lambda log: AcquireLock("lock-000000", "waiter-0", ttl_ms=TTL, queue=True),
    "release": lambda log: ReleaseLock("lock-000005", "lease-5", token(log, "lock-000005")),
    "hand on": lambda log: ReleaseLock("lock-000000", "lease-0", token(log, "lock-000000")),
    "expire": lambda log: expire(log, "~lease-7"),
    "expire and hand on": lambda log: expire(log, "~lease-0"),
    "guarded write": lambda log: PutMemory("m", Memory(1), guards=(Guard("lock-000009", token(log, "lock-000009")),)),
    "claim": lambda log: ClaimTasks("q", "c", 1, ttl_ms=TTL),
    "complete": lambda log: CompleteTask("q", *_claimed(log)),
    "wake": lambda log: Wake(),
}


def _claimed(log: LedgerLog) -> tuple[str, int]:
    (task,) = log.do(ClaimTasks("q", "c", 1, ttl_ms=TTL)).result["tasks"]
    return task["id"], task["token"]


@pytest.fixture(scope="module")
def sizes() -> tuple[LedgerLog, LedgerLog]:
    return filled(100), filled(10_000)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_command_reads_as_much_among_many_as_among_few(sizes: tuple[LedgerLog, LedgerLog], operation: str) -> None:
    costs = []
    for log in sizes:
        kept = log.store
        log.store = kept.copy()
        command = OPERATIONS[operation](log)
        log.store.reads = 0
        log.do(command)
        costs.append((log.store.reads, len(log.effects)))
        log.store = kept
    assert costs[0] == costs[1] and costs[0][0] < 60


def test_a_read_costs_as_much_among_many_as_among_few(sizes: tuple[LedgerLog, LedgerLog]) -> None:
    costs = []
    for log in sizes:
        log.store.reads = 0
        current = token(log, "lock-000003")
        assert locks.check(log.store, LOCK, "lock-000003", current) is not None
        assert fence.refused(log.store, "m", (Guard("lock-000003", current),)) is None
        assert len(locks.page(log.store, LOCK, "lock-", "lock-000010", 10)) == 10
        assert len(sessions.page(log.store, "", 10)) == 10
        costs.append(log.store.reads)
    assert costs[0] == costs[1]


def _gate(live: int, ended: int) -> LedgerLog:
    """A gate through which one is, while others wait for their turn or have had it."""
    log = LedgerLog()
    log.do(PutGate("g", "open", policy=Policy(), agent="ops"))
    for i in range(live):
        log.do(RequestGate("g", f"live-{i}", "d", agent="ann"))
        log.do(AdmitRequest("g", f"live-{i}", "d", True, agent="ann"))
    for i in range(ended):
        log.do(RequestGate("g", f"ended-{i}", "d", agent="ann"))
        log.do(EndRequest("g", f"ended-{i}", True, agent="ops"))
    return log


def _reads(log: LedgerLog, *commands: Any) -> int:
    log.store.reads = 0
    for command in commands:
        log.do(command)
    return log.store.reads


def test_the_end_of_a_request_costs_as_much_behind_many_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_steps, "ENDED_KEPT", 5)
    asked = RequestGate("g", "new", "d", agent="ann"), EndRequest("g", "new", True, agent="ops")
    assert _reads(_gate(3, 9), *asked) == _reads(_gate(200, 9), *asked) < 80


def test_a_queue_that_lapses_at_once_costs_so_much_for_each_place() -> None:
    costs = []
    for places in (100, 400):
        log = _gate(places + 1, 0)
        row = gate_requests.read(log.store, "g", "live-0")
        assert row is not None
        log.time_ms += 600_000
        costs.append(_reads(log, CompleteRequest("g", "live-0", row.token, True, agent="ann")))
    assert costs[1] < 5 * costs[0], "not with its square"
