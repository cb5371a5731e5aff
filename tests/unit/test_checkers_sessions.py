"""Session guarantees and causal consistency: one short story per promise, kept and broken."""

import pytest

from raftspine.checkers.history import Operation
from raftspine.checkers.sessions import GUARANTEES, judge
from tests.support.histories import op

RYW, MR, MW, WFR, CAUSAL = GUARANTEES


def w(time: int, session: str, key: str, value: object, outcome: str = "ok") -> Operation:
    end = None if outcome == "unknown" else time + 1
    return op(time, end, "write", value, key=key, process=session, session=session, outcome=outcome)


def r(time: int, session: str, key: str, value: object = None) -> Operation:
    return op(time, time + 1, "read", None, value, key=key, process=session, session=session)


def d(time: int, session: str, key: str, outcome: str = "ok") -> Operation:
    return op(time, time + 1, "delete", key=key, process=session, session=session, outcome=outcome)


def h(time: int, giver: str, taker: str) -> Operation:
    return op(time, time + 1, "handover", giver, process=taker, session=taker)


STORIES = [
    ("own write read", [w(0, "a", "x", 1), r(2, "a", "x", 1)], set()),
    ("own write missed", [w(0, "a", "x", 1), r(2, "a", "x")], {RYW, CAUSAL}),
    ("own older write read", [w(0, "a", "x", 1), w(2, "a", "x", 2), r(4, "a", "x", 1)], {RYW, CAUSAL}),
    ("another session may be behind", [w(0, "a", "x", 1), r(2, "b", "x")], set()),
    ("a concurrent winner", [w(0, "a", "x", 1), w(1, "b", "x", 2), r(4, "a", "x", 2), r(6, "b", "x", 2)], set()),
    ("an unknown write may be missing", [w(0, "a", "x", 1, "unknown"), r(2, "a", "x")], set()),
    (
        "but not once it was seen",
        [w(0, "a", "x", 1, "unknown"), r(2, "a", "x", 1), r(4, "a", "x")],
        {MR, CAUSAL},
    ),
    ("own delete", [w(0, "a", "x", 1), d(2, "a", "x"), r(4, "a", "x")], set()),
    ("own delete missed", [w(0, "a", "x", 1), d(2, "a", "x"), r(4, "a", "x", 1)], {RYW, CAUSAL}),
    ("somebody else's delete", [w(0, "a", "x", 1), d(1, "b", "x"), r(4, "a", "x")], set()),
    ("an unknown delete", [w(0, "a", "x", 1), d(2, "a", "x", "unknown"), r(4, "a", "x"), r(6, "a", "x")], set()),
    ("a failed delete", [w(0, "a", "x", 1), d(2, "a", "x", "fail"), r(4, "a", "x")], {RYW, CAUSAL}),
    ("back in time", [w(0, "a", "x", 1), w(2, "a", "x", 2), r(4, "b", "x", 2), r(6, "b", "x", 1)], {MR, CAUSAL}),
    ("gone again", [w(0, "a", "x", 1), r(2, "b", "x", 1), r(4, "b", "x")], {MR, CAUSAL}),
    ("two writes in order", [w(0, "a", "x", 1), w(2, "a", "y", 2), r(4, "b", "y", 2), r(6, "b", "x", 1)], set()),
    ("the first one missed", [w(0, "a", "x", 1), w(2, "a", "y", 2), r(4, "b", "y", 2), r(6, "b", "x")], {MW, CAUSAL}),
    (
        "an answer without its question",
        [w(0, "a", "x", 1), r(2, "b", "x", 1), w(4, "b", "y", 2), r(6, "c", "y", 2), r(8, "c", "x")],
        {WFR, CAUSAL},
    ),
    ("a token handed over", [w(0, "a", "x", 1), h(2, "a", "b"), r(4, "b", "x", 1)], set()),
    ("and not honoured", [w(0, "a", "x", 1), h(2, "a", "b"), r(4, "b", "x")], {CAUSAL}),
    ("handed over before the write", [r(0, "a", "x"), h(2, "a", "b"), w(4, "a", "x", 1), r(6, "b", "x")], set()),
    (
        "over two hands",
        [w(0, "a", "x", 1), h(2, "a", "b"), w(4, "b", "y", 2), h(6, "b", "c"), r(8, "c", "x")],
        {CAUSAL},
    ),
    ("what nobody wrote", [r(0, "a", "x", 9)], set(GUARANTEES)),
    ("what had failed", [w(0, "a", "x", 1, "fail"), r(2, "a", "x", 1)], set(GUARANTEES)),
    (
        "a circle",
        [
            op(0, 1, "read", None, 2, key="y", session="a"),
            op(2, 9, "write", 1, key="x", session="a"),
            op(0, 1, "read", None, 1, key="x", session="b"),
            op(2, 9, "write", 2, key="y", session="b"),
        ],
        set(GUARANTEES),
    ),
]


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize(("story", "broken"), [pytest.param(s, b, id=text) for text, s, b in STORIES])
def test_each_guarantee_accuses_what_breaks_it_and_nothing_else(
    story: list[Operation], broken: set[str], guarantee: str
) -> None:
    verdict = judge(story, guarantee)
    assert verdict.status == ("violation" if guarantee in broken else "ok"), verdict
    if guarantee in broken:
        assert verdict.reason and verdict.window


def test_what_a_session_read_is_not_older_than_its_write_unless_reading_counts() -> None:
    """Under read-your-writes two writers' versions are ordered by the store, not by what one of them had read."""
    story = [w(0, "b", "x", 1), r(2, "a", "x", 1), w(4, "a", "x", 2), r(6, "a", "x", 1)]
    assert judge(story, RYW).status == "violation"
    assert judge(story, RYW, by_reading=False).ok


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        ([w(0, "a", "x", 1), w(2, "b", "x", 1)], "written twice"),
        ([op(0, 9, "write", 1, session="a"), op(5, 7, "read", None, 1, session="a")], "two things at once"),
    ],
)
def test_it_says_so_when_it_cannot_judge(story: list[Operation], reason: str) -> None:
    verdict = judge(story, CAUSAL)
    assert verdict.status == "unknown"
    assert reason in verdict.reason
