"""Merging by example: who wins, who is reported, and what pruning must not do."""

from raftspine.core.merge import floor, fresh, join, mint, prune_context, put, winner
from raftspine.model import Dot, Memory, RingRecord, Version


def version(
    origin: str, seq: int, stamp: int, context: dict[str, int] | None = None, request: bytes = b""
) -> Version:
    return Version("x", origin, seq, stamp, context or {}, Memory(f"{origin}{seq}"), request)


def record(*versions: Version) -> RingRecord:
    merged: RingRecord | None = None
    for one in versions:
        merged = put(merged, one).record
    assert merged is not None
    return merged


def test_the_first_write_is_the_record() -> None:
    first = version("a", 1, 10)
    assert put(None, first) == (RingRecord((first,), {"a": 1}), (), True)
    assert floor(None) == 0


def test_a_write_over_the_record_replaces_it_and_nobody_loses() -> None:
    old = record(version("a", 1, 10))
    new = mint(old, "x", "b", 1, 11, None, deps=((3, "c", 4),))
    assert new.context == {"a": 1}
    assert new.deps == ((3, "c", 4),)
    assert put(old, new) == (RingRecord((new,), {"a": 1, "b": 1}), (), True)


def test_of_two_concurrent_writes_the_higher_stamp_is_shown_and_the_other_reported_once() -> None:
    low, high = version("a", 1, 10), version("b", 1, 20)
    for first, second in ((low, high), (high, low)):
        merged = put(record(first), second)
        assert merged.record.versions == (high, low)
        assert merged.losers == (low,)
        assert put(merged.record, second).losers == ()
    third = version("c", 1, 30)
    assert put(record(low, high), third).losers == (high,)


def test_equal_stamps_are_ordered_by_origin() -> None:
    assert winner(record(version("b", 1, 10), version("a", 1, 10))).origin == "b"


def test_one_request_minted_twice_is_no_conflict() -> None:
    first, again = version("a", 1, 10, request=b"r"), version("b", 1, 20, request=b"r")
    merged = put(record(first), again)
    assert merged.losers == ()
    assert merged.record.versions == (again, first)


def test_a_covered_version_is_inert() -> None:
    old = version("a", 1, 10)
    now = put(record(old), version("b", 1, 20, {"a": 1})).record
    assert put(now, old) == (now, (), False)


def test_pruning_waits_until_the_live_versions_are_everywhere() -> None:
    """All have seen a1, one has not seen b1 that replaced it: dropping a1 from the context would revive it."""
    old = version("a", 1, 10)
    here = put(record(old), version("b", 1, 20, {"a": 1})).record
    assert prune_context(here, lambda origin, seq: origin == "a") is here
    pruned = prune_context(here, lambda origin, seq: True)
    assert pruned.context == {"b": 1}
    assert [v.context for v in pruned.versions] == [{}]
    assert prune_context(pruned, lambda origin, seq: True) is pruned


def test_pruning_keeps_the_origin_of_a_log() -> None:
    moved = record(version("log-3", 1, 10))
    here = put(moved, version("b", 1, 20, {"log-3": 1})).record
    assert prune_context(here, lambda origin, seq: True).context == {"log-3": 1, "b": 1}


def test_a_late_record_brings_nothing_back_after_pruning() -> None:
    old = version("a", 1, 10)
    late = record(old)
    here = put(late, version("b", 1, 20, {"a": 1})).record
    pruned = prune_context(here, lambda origin, seq: True)
    assert {v.dot for v in join(pruned, late).record.versions} == {Dot("b", 1), Dot("a", 1)}, "what fresh is for"
    kept = fresh(pruned, late, lambda origin, seq: True)
    assert join(pruned, kept).record.versions == pruned.versions
    assert fresh(None, late, lambda origin, seq: False) is late
