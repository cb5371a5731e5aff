"""Linearizability: histories with known verdicts, one table per model."""

import pytest

from raftspine.checkers.history import Operation
from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import CAS_REGISTER, COUNTER, LOCK, MODELS, QUEUE, REGISTER, Model, with_expiries
from tests.support.histories import op


def w(start: int, end: int | None, value: object, **more: object) -> Operation:
    return op(start, end, "write", value, **more)


def r(start: int, end: int | None, value: object, **more: object) -> Operation:
    return op(start, end, "read", None, value, **more)


REGISTERS = [
    ("a write is read", [w(0, 1, 1), r(2, 3, 1)], "ok"),
    ("a stale read", [w(0, 1, 1), r(2, 3, None)], "violation"),
    ("an unknown write takes effect late", [w(0, None, 1), r(2, 3, None), r(4, 5, 1)], "ok"),
    ("an unknown write is not undone", [w(0, None, 1), r(2, 3, 1), r(4, 5, None)], "violation"),
    ("concurrent writes in either order", [w(0, 9, 1), w(0, 9, 2), r(1, 2, 2), r(3, 4, 1)], "ok"),
    ("but not in both", [w(0, 2, 1), w(0, 9, 2), r(1, 2, 2), r(3, 4, 1), r(5, 6, 2)], "violation"),
    ("a read from the future", [r(0, 1, 5), w(2, 3, 5)], "violation"),
    ("a read of what nobody wrote", [w(0, 1, 1), r(2, 3, 7)], "violation"),
    ("a failed write never happens", [w(0, 1, 1), w(2, 3, 2, outcome="fail"), r(4, 5, 2)], "violation"),
    ("a delete is a write", [w(0, 1, 1), op(2, 3, "delete"), r(4, 5, None)], "ok"),
    ("a deleted value returns", [w(0, 1, 1), op(2, 3, "delete"), r(4, 5, 1)], "violation"),
    ("an unanswered read says nothing", [w(0, 1, 1), r(2, None, None)], "ok"),
    ("true is not one", [w(0, 1, True), r(2, 3, 1)], "violation"),
    ("equal times are no order", [w(0, 5, 1), r(5, 6, None)], "ok"),
    ("lists and objects are values", [w(0, 1, {"a": [1]}), r(2, 3, {"a": [1]})], "ok"),
    ("keys are judged apart", [w(0, 1, 1), r(2, 3, 1), r(2, 3, 1, key="y")], "violation"),
    ("an operation it does not know", [op(0, 1, "swap", 1)], "unknown"),
]


def cas(start: int, end: int | None, expected: object, value: object, version: str | None = None) -> Operation:
    output = {"refused": True} if version is None else {"version": version}
    return op(start, end, "cas", {"expected": expected, "value": value}, output if end is not None else None)


def put(start: int, end: int | None, value: object, version: str | None = None) -> Operation:
    return op(start, end, "write", {"value": value}, None if version is None else {"version": version})


def see(start: int, end: int, value: object, version: str) -> Operation:
    return op(start, end, "read", None, {"value": value, "version": version})


VERSIONS = [
    ("a swap from the version that is there", [put(0, 1, 1, "a"), cas(2, 3, "a", 2, "b"), see(4, 5, 2, "b")], "ok"),
    ("two swaps from one version", [put(0, 1, 1, "a"), cas(2, 9, "a", 2, "b"), cas(2, 9, "a", 3, "c")], "violation"),
    ("one of them refused", [put(0, 1, 1, "a"), cas(2, 9, "a", 2, "b"), cas(2, 9, "a", 3)], "ok"),
    ("both refused, and nobody else", [put(0, 1, 1, "a"), cas(2, 9, "a", 2), cas(2, 9, "a", 3)], "violation"),
    ("refused because of an unknown one", [put(0, 1, 1, "a"), cas(2, None, "a", 2), cas(3, 4, "a", 3)], "ok"),
    ("the unknown one's version is learnt", [put(0, None, 1), see(1, 2, 1, "a"), cas(3, 4, "a", 2, "b")], "ok"),
    ("and does not change", [put(0, None, 1), see(1, 2, 1, "a"), see(3, 4, 1, "b")], "violation"),
    ("nor is it another write's", [put(0, 1, 1, "a"), put(2, None, 2), see(3, 4, 2, "a")], "violation"),
    ("create where nothing is", [cas(0, 1, None, 1, "a"), cas(2, 3, None, 2)], "ok"),
    ("create twice", [cas(0, 1, None, 1, "a"), cas(2, 3, None, 2, "b")], "violation"),
    ("delete, then create again", [cas(0, 1, None, 1, "a"), op(2, 3, "delete"), cas(4, 5, None, 2, "b")], "ok"),
    ("delete by version", [put(0, 1, 1, "a"), cas(2, 3, "a", None, "-"), op(4, 5, "read", None, None)], "ok"),
]


def add(start: int, end: int | None, amount: int, total: int | None = None) -> Operation:
    return op(start, end, "add", amount, total)


COUNTERS = [
    ("adds in order", [add(0, 1, 1, 1), add(2, 3, 2, 3), r(4, 5, 3)], "ok"),
    ("adds that are not told the total", [add(0, 9, 1), add(0, 9, 1), r(10, 11, 2)], "ok"),
    ("a refused add", [add(0, 1, 1, 1), op(2, 3, "add", 1, {"refused": True}), r(4, 5, 1)], "ok"),
    ("a lost add", [add(0, 1, 1), add(2, 3, 1), r(4, 5, 1)], "violation"),
    ("an add done twice", [add(0, 1, 1), r(2, 3, 2)], "violation"),
    ("an unknown add, not yet and then", [add(0, None, 5), r(2, 3, 0), r(4, 5, 5)], "ok"),
    ("many unknown adds", [*(add(n, None, 1) for n in range(40)), r(100, 101, 23), r(102, 103, 40)], "ok"),
    ("more than were asked for", [*(add(n, None, 1) for n in range(40)), r(100, 101, 41)], "violation"),
]


def acquire(start: int, end: int | None, lease: str, token: int | None = None, ttl: int | None = None) -> Operation:
    output = None if end is None else {"refused": True} if token is None else {"token": token}
    return op(start, end, "acquire", {"lease": lease, "ttl_ns": ttl}, output)


def release(start: int, end: int | None, lease: str) -> Operation:
    return op(start, end, "release", {"lease": lease})


def check(start: int, end: int, token: int, valid: bool) -> Operation:
    return op(start, end, "check", {"token": token}, {"valid": valid})


LOCKS = [
    ("one after the other", [acquire(0, 1, "a", 1), release(2, 3, "a"), acquire(4, 5, "b", 2)], "ok"),
    ("two holders", [acquire(0, 1, "a", 1), acquire(2, 3, "b", 2)], "violation"),
    ("a token twice", [acquire(0, 1, "a", 1), release(2, 3, "a"), acquire(4, 5, "b", 1)], "violation"),
    ("held, and so refused", [acquire(0, 1, "a", 1), acquire(2, 3, "b"), check(4, 5, 1, True)], "ok"),
    ("refused though free", [acquire(0, 1, "a", 1), release(2, 3, "a"), acquire(4, 5, "b")], "violation"),
    (
        "taken over after its time",
        [acquire(0, 1, "a", 1, 50), acquire(60, 61, "b", 2), check(62, 63, 1, False)],
        "ok",
    ),
    ("taken over before its time", [acquire(0, 1, "a", 1, 50), acquire(20, 21, "b", 2)], "violation"),
    (
        "renewed, so not to be taken over",
        [
            acquire(0, 1, "a", 1, 50),
            op(40, 41, "renew", {"lease": "a", "term": 1, "ttl_ns": 50}),
            acquire(60, 61, "b", 2),
        ],
        "violation",
    ),
    ("an unknown release frees it", [acquire(0, 1, "a", 1), release(2, None, "a"), acquire(4, 5, "b", 2)], "ok"),
    ("an unknown acquire holds it", [acquire(0, None, "a"), acquire(2, 3, "b"), check(4, 5, 1, True)], "ok"),
    (
        "a token nobody holds is not valid",
        [acquire(0, 1, "a", 1), release(2, 3, "a"), check(4, 5, 1, True)],
        "violation",
    ),
]


def push(start: int, end: int | None, item: object) -> Operation:
    return op(start, end, "push", item)


def pop(start: int, end: int | None, item: object = None) -> Operation:
    return op(start, end, "pop", None, item)


QUEUES = [
    ("in order", [push(0, 1, 1), push(2, 3, 2), pop(4, 5, 1), pop(6, 7, 2), pop(8, 9)], "ok"),
    ("out of order", [push(0, 1, 1), push(2, 3, 2), pop(4, 5, 2)], "violation"),
    ("concurrent pushes in either order", [push(0, 9, 1), push(0, 9, 2), pop(10, 11, 2), pop(12, 13, 1)], "ok"),
    ("handed out twice", [push(0, 1, 1), pop(2, 3, 1), pop(4, 5, 1)], "violation"),
    ("empty though something is there", [push(0, 1, 1), pop(2, 3)], "violation"),
    ("taken by an unknown pop", [push(0, 1, 1), push(2, 3, 2), pop(4, None), pop(5, 6, 2)], "ok"),
    ("an unknown push arrives late", [push(0, None, 1), pop(2, 3), pop(4, 5, 1)], "ok"),
]

TABLES = [(REGISTER, REGISTERS), (CAS_REGISTER, VERSIONS), (COUNTER, COUNTERS), (LOCK, LOCKS), (QUEUE, QUEUES)]


@pytest.mark.parametrize(
    ("model", "history", "status"),
    [
        pytest.param(model, history, status, id=f"{model.name}: {text}")
        for model, table in TABLES
        for text, history, status in table
    ],
)
def test_known_verdicts(model: Model, history: list[Operation], status: str) -> None:
    verdict = linearizable(with_expiries(history) if model is LOCK else history, model)
    assert verdict.status == status, verdict


def test_every_model_has_good_and_bad_histories() -> None:
    for model in MODELS.values():
        table = next(table for tried, table in TABLES if tried is model)
        assert {status for _, _, status in table} >= {"ok", "violation"}


def test_the_window_holds_what_matters_and_the_reason_says_why() -> None:
    history = [w(n * 10, n * 10 + 5, n) for n in range(50)] + [r(n * 10 + 6, n * 10 + 8, n) for n in range(50)]
    stale = r(307, 308, 12, process="late", node="spine-2")
    verdict = linearizable([*history, stale], REGISTER)
    assert verdict.status == "violation"
    assert verdict.judged == 101
    assert stale in verdict.window
    assert len(verdict.window) <= 3, verdict.window
    assert "late read x -> 12 on spine-2" in verdict.reason
    assert "could only be 30" in verdict.reason


def test_what_is_not_of_the_model_is_not_judged() -> None:
    verdict = linearizable([put(0, 1, 1, "a"), r(2, 3, 1)], CAS_REGISTER)
    assert verdict.status == "unknown"
    assert "not operations of a cas-register" in verdict.reason


def test_beyond_its_budget_it_does_not_guess() -> None:
    history = [add(0, 1000, n, None) for n in range(1, 15)] + [r(1001, 1002, 1)]
    verdict = linearizable(history, COUNTER, budget=500)
    assert verdict.status == "unknown"
    assert "500" in verdict.reason
