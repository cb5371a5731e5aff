"""Where histories end, and repeated requests."""

import pytest

from raftspine.checkers import promises
from raftspine.checkers.history import Operation
from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import REGISTER
from tests.support.histories import op


def w(start: int, end: int | None, value: object, **more: object) -> Operation:
    return op(start, end, "write", value, process="w", **more)


def final(value: object, node: str = "n1", **more: object) -> Operation:
    return op(100, 101, "final", None, value, node=node, **more)


SAME = "convergence"
LOST = "no_lost_write"
ZOMBIE = "no_zombie"
ONCE = "exactly_once"
BOUNDS = "counter_bounds"

KEYED = {"info": {"idempotency_key": "k"}}

CASES = [
    (SAME, "agree", [final(1), final(1, "n2"), final(None, key="y")], "ok"),
    (SAME, "disagree", [final(1), final(2, "n2")], "violation"),
    (SAME, "one has nothing", [final(1), final(None, "n2")], "violation"),
    (SAME, "one is silent", [final(1), op(100, 101, "final", node="n2", outcome="fail")], "unknown"),
    (LOST, "shown", [w(0, 1, 1), final(1)], "ok"),
    (LOST, "gone", [w(0, 1, 1), final(None)], "violation"),
    (LOST, "another is shown", [w(0, 1, 1), w(2, 3, 2), final(1)], "violation"),
    (LOST, "superseded", [w(0, 1, 1), w(2, 3, 2), final(2)], "ok"),
    (LOST, "perhaps superseded", [w(0, 1, 1), w(2, None, 2), final(2)], "ok"),
    (LOST, "concurrent, and all gone", [w(0, 9, 1), w(0, 9, 2), final(None)], "violation"),
    (LOST, "over a chain", [w(0, 5, 1), w(4, 9, 2), w(8, 12, 3), op(1, 6, "delete"), final(None)], "ok"),
    (LOST, "an unknown write removes nothing", [w(0, 1, 1), w(2, None, 2), final(None)], "violation"),
    (LOST, "a failed write supersedes nothing", [w(0, 1, 1), w(2, 3, 2, outcome="fail"), final(None)], "violation"),
    (LOST, "a failed write may be missing", [w(0, 1, 1, outcome="fail"), final(None)], "ok"),
    (LOST, "deleted", [w(0, 1, 1), op(2, 3, "delete"), final(None)], "ok"),
    (LOST, "a lost delete", [w(0, 1, 1), op(2, 3, "delete"), final(1)], "violation"),
    (ZOMBIE, "gone for good", [w(0, 1, 1), op(2, 3, "delete", process="w"), final(None)], "ok"),
    (ZOMBIE, "it returns", [w(0, 1, 1), op(2, 3, "delete", process="w"), final(None), final(1, "n2")], "violation"),
    (ZOMBIE, "made anew", [w(0, 1, 1), op(2, 3, "delete", process="w"), w(4, 5, 2), final(2)], "ok"),
    (ZOMBIE, "the delete did not know it", [w(0, 9, 1), op(2, 3, "delete", process="d"), final(1)], "ok"),
    (ZOMBIE, "an unknown delete", [w(0, 1, 1), op(2, None, "delete", process="w"), final(1)], "ok"),
    (ONCE, "one answer", [w(0, 1, 1, output="v1", **KEYED), w(2, 3, 1, output="v1", **KEYED)], "ok"),
    (ONCE, "two answers", [w(0, 1, 1, output="v1", **KEYED), w(2, 3, 1, output="v2", **KEYED)], "violation"),
    (ONCE, "an answer and a doubt", [w(0, None, 1, **KEYED), w(2, 3, 1, output="v2", **KEYED)], "ok"),
    (BOUNDS, "exact", [op(0, 1, "add", 2), op(2, 3, "add", 3), op(4, 5, "read", None, 5)], "ok"),
    (BOUNDS, "an unknown add", [op(0, None, "add", 2), op(2, 3, "read", None, 0), final(2)], "ok"),
    (BOUNDS, "a refused add", [op(0, 1, "add", 2, {"refused": True}), final(0)], "ok"),
    (BOUNDS, "too few", [op(0, 1, "add", 2), op(2, 3, "read", None, 1)], "violation"),
    (BOUNDS, "too many", [op(0, 1, "add", 2), final(4)], "violation"),
]


@pytest.mark.parametrize(
    ("checker", "history", "status"), [pytest.param(c, h, s, id=f"{c}: {text}") for c, text, h, s in CASES]
)
def test_known_verdicts(checker: str, history: list[Operation], status: str) -> None:
    verdict = getattr(promises, checker)(history)
    assert verdict.status == status, verdict
    assert (verdict.status == "ok") == (verdict.reason == "")


def test_the_conflict_log_keeps_a_loser() -> None:
    history = [w(0, 9, 1), w(0, 9, 2), final(2)]
    assert promises.no_lost_write(history).ok, "each may have superseded the other"
    alone = [w(0, 1, 1), final(2)]
    assert promises.no_lost_write(alone).status == "violation"
    assert promises.no_lost_write(alone, {"x": [1]}).ok
    assert promises.no_lost_write(alone, {"x": None}).status == "unknown"


def test_a_repeat_that_took_effect_again_is_found_by_the_object_itself() -> None:
    first, again = w(0, 1, 1, **KEYED), w(10, 11, 1, **KEYED)
    other = w(4, 5, 2)
    seen_once = op(20, 21, "read", None, 2)
    seen_twice = op(20, 21, "read", None, 1)
    assert linearizable(promises.merged([first, other, again, seen_once]), REGISTER).ok
    assert linearizable(promises.merged([first, other, again, seen_twice]), REGISTER).status == "violation"
