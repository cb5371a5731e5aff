"""Vectors against their twin: a plain set of dots."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from raftspine.core.dots import Vector

dots = st.sets(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), max_size=20)


def vector(content: set[tuple[str, int]]) -> Vector:
    made = Vector()
    for origin, seq in content:
        made.add(origin, seq)
    return made


def content(of: Vector) -> set[tuple[str, int]]:
    return {(o, s) for o in "abc" for s in range(1, 30) if of.covers(o, s)}


@given(dots)
def test_it_holds_exactly_what_was_added_and_stays_minimal(some: set[tuple[str, int]]) -> None:
    made = vector(some)
    assert content(made) == some
    assert all(through > 0 for through in made.base.values())
    for origin, extras in made.extras.items():
        assert extras
        assert min(extras) > made.base.get(origin, 0) + 1
    assert all(not made.add(o, s) for o, s in some)
    assert {o: made.highest(o) for o in "abc"} == {o: max([s for p, s in some if p == o], default=0) for o in "abc"}


@given(dots, st.sampled_from("abc"), st.integers(0, 9))
def test_advance_covers_everything_below(some: set[tuple[str, int]], origin: str, through: int) -> None:
    made = vector(some)
    made.advance(origin, through)
    assert made == vector(some | {(origin, s) for s in range(1, through + 1)})


@given(dots, dots)
def test_join_dominates_and_missing_are_those_of_sets(a: set[tuple[str, int]], b: set[tuple[str, int]]) -> None:
    mine, theirs = vector(a), vector(b)
    assert mine.dominates(theirs) == (a >= b)
    ranges = mine.missing(theirs)
    assert {(o, s) for o, lo, hi in ranges for s in range(lo, hi + 1)} == b - a
    assert ranges == sorted(ranges)
    for (o1, _, hi), (o2, lo, _) in pairwise(ranges):
        assert o1 != o2 or lo > hi + 1, "adjacent ranges are one"
    mine.join(theirs)
    assert mine == vector(a | b)
    assert theirs == vector(b)


@given(st.lists(dots, min_size=1, max_size=4))
def test_meet_is_what_all_cover_without_a_gap(sets: list[set[tuple[str, int]]]) -> None:
    met = Vector.meet(vector(s) for s in sets)
    assert not met.extras
    expected = {o: next(n for n in range(30) if not all((o, n + 1) in s for s in sets)) for o in "abc"}
    assert met.base == {o: n for o, n in expected.items() if n}


@given(dots, dots)
def test_wire_and_digest_say_the_same_for_the_same_content(a: set[tuple[str, int]], b: set[tuple[str, int]]) -> None:
    made = vector(a)
    assert Vector.from_wire(made.to_wire()) == made
    assert Vector(made.base, made.extras) == made
    reverse = Vector()
    for origin, seq in sorted(a, reverse=True):
        reverse.add(origin, seq)
    assert reverse.digest() == made.digest()
    assert len(made.digest()) == 8
    assert (vector(b).digest() == made.digest()) == (a == b)


@given(dots)
def test_a_copy_shares_nothing(some: set[tuple[str, int]]) -> None:
    made = vector(some)
    twin = made.copy()
    assert twin == made
    twin.add("a", 20)
    twin.advance("b", 20)
    assert made == vector(some)
