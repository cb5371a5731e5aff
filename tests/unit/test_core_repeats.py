"""What is said again: what is new, and what has lasted for a while."""

from raftspine.core.repeats import AGAIN_SECONDS, Repeats


def test_the_same_is_said_once_a_minute_and_news_at_once() -> None:
    repeats = Repeats()
    said = [now for now in range(200) if repeats.due("a", "down", float(now))]
    assert said == [0, 60, 120, 180]
    assert repeats.due("b", "down", 181.0), "of each subject by itself"
    assert repeats.due("a", "full", 181.0)
    assert repeats.due("a", "down", 182.0)


def test_what_was_over_is_news() -> None:
    repeats = Repeats()
    assert repeats.due("a", None, 1.0)
    assert not repeats.due("a", None, AGAIN_SECONDS)
    repeats.over("a")
    repeats.over("never said")
    assert repeats.due("a", None, AGAIN_SECONDS)
