"""Lists and their cycles: each of Adya's phenomena by hand, and the graph they are found in."""

import pytest

from raftspine.checkers.append import serializable
from raftspine.checkers.graph import Edge, Graph
from raftspine.checkers.history import Operation
from tests.support.histories import op


def t(start: int, end: int | None, *steps: tuple[str, str, object], outcome: str = "") -> Operation:
    asked = [[kind, key, None if kind == "read" else value] for kind, key, value in steps]
    return op(start, end, "txn", asked, None if end is None else [list(step) for step in steps], outcome=outcome)


def a(key: str, element: int) -> tuple[str, str, object]:
    return "append", key, element


def r(key: str, *elements: int) -> tuple[str, str, object]:
    return "read", key, list(elements)


GOOD = [
    ("one after the other", [t(0, 1, a("x", 1)), t(2, 3, a("x", 2)), t(4, 5, r("x", 1, 2))]),
    ("concurrent, either order", [t(0, 9, a("x", 1)), t(0, 9, a("x", 2)), t(10, 11, r("x", 2, 1))]),
    ("several keys", [t(0, 1, a("x", 1), a("y", 1)), t(2, 3, r("x", 1), r("y", 1), a("x", 2))]),
    ("an unknown append seen later", [t(0, None, a("x", 1)), t(2, 3, r("x")), t(4, 5, r("x", 1))]),
    ("reads its own", [t(0, 1, a("x", 1), r("x", 1), a("x", 2), r("x", 1, 2))]),
    ("single operations", [op(0, 1, "append", 1), op(2, 3, "read", None, [1])]),
]

BAD = [
    (
        "disagree about the order",
        [t(0, 9, a("x", 1)), t(0, 9, a("x", 2)), t(10, 11, r("x", 1, 2)), t(10, 11, r("x", 2, 1))],
    ),
    ("which nobody appended", [t(0, 1, r("x", 7))]),
    ("twice", [t(0, 1, a("x", 1)), t(2, 3, r("x", 1, 1))]),
    ("G1a", [t(0, 1, a("x", 1), outcome="fail"), t(2, 3, r("x", 1))]),
    ("G1b", [t(0, 9, a("x", 1), a("x", 2)), t(1, 8, r("x", 1)), t(10, 11, r("x", 1, 2))]),
    ("internal", [t(0, 1, a("x", 1), r("x"))]),
    (
        "G0,",
        [
            t(0, 9, a("x", 1), a("y", 1)),
            t(0, 9, a("x", 2), a("y", 2)),
            t(10, 11, r("x", 1, 2)),
            t(10, 11, r("y", 2, 1)),
        ],
    ),
    ("G0-realtime", [t(0, 1, a("x", 1)), t(2, 3, a("x", 2)), t(4, 5, r("x", 2, 1))]),
    ("G1c,", [t(0, 9, a("x", 1), r("y", 1)), t(0, 9, a("y", 1), r("x", 1))]),
    (
        "G-single,",
        [t(0, 9, a("x", 1), a("y", 1)), t(0, 9, r("x", 1), r("y")), t(10, 11, r("y", 1))],
    ),
    ("G-single-realtime", [t(0, 1, a("x", 1)), t(2, 3, r("x")), t(4, 5, r("x", 1))]),
    ("G-single-realtime", [t(0, 1, a("x", 1)), t(2, 3, r("x"))]),
    ("G2,", [t(0, 9, r("x"), a("y", 1)), t(0, 9, r("y"), a("x", 1)), t(10, 11, r("x", 1), r("y", 1))]),
]


@pytest.mark.parametrize("history", [pytest.param(history, id=text) for text, history in GOOD])
def test_good_histories(history: list[Operation]) -> None:
    assert serializable(history).ok


@pytest.mark.parametrize(("phenomenon", "history"), [pytest.param(*case, id=case[0]) for case in BAD])
def test_bad_histories_are_named_and_shown(phenomenon: str, history: list[Operation]) -> None:
    verdict = serializable(history)
    assert verdict.status == "violation"
    assert phenomenon in verdict.reason, verdict.reason
    assert verdict.window and set(map(id, verdict.window)) <= set(map(id, history))


def test_it_says_so_when_it_cannot_judge() -> None:
    assert serializable([t(0, 1, a("x", 1)), t(2, 3, a("x", 1))]).status == "unknown"
    assert serializable([op(0, 1, "write", 1)]).status == "unknown"
    assert serializable([op(0, 1, "txn", 3, 3)]).status == "unknown"


def test_ten_thousand_transactions_are_no_problem() -> None:
    history = []
    lists: dict[str, list[int]] = {}
    for n in range(10_000):
        key = f"k{n % 50}"
        if n % 3:
            history.append(t(n * 2, n * 2 + 3, ("read", key, list(lists.get(key, [])))))
        else:
            lists.setdefault(key, []).append(n)
            history.append(t(n * 2, n * 2 + 1, a(key, n)))
    assert serializable(history).ok
    history.append(t(30_000, 30_001, r("k0")))
    assert "G-single-realtime" in serializable(history).reason


def test_components_of_a_long_ring_and_of_a_chain() -> None:
    ring = Graph(5000, (Edge(n, (n + 1) % 5000, "ww") for n in range(5000)))
    assert ring.components() == [list(range(5000))]
    assert len(ring.cycle(ring.components()[0])) == 5000
    chain = Graph(5000, (Edge(n, n + 1, "ww") for n in range(4999)))
    assert chain.components() == []
