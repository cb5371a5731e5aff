"""A clock's stamps never repeat or fall, whatever the wall clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftspine.core.hlc import Hlc, ms_of, stamp_of
from raftspine.errors import Rejected

walls = st.integers(1_700_000_000_000, 1_700_000_000_050)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), walls, st.integers(0, 2**58)),
        st.tuples(st.just("observe"), walls, st.integers(0, 2**58)),
    ),
    max_size=40,
)


@given(steps)
def test_stamps_rise_above_everything_seen(script: list[tuple[str, int, int]]) -> None:
    """Everything but what lies further ahead than anybody accepts; the walls here differ by less than that."""
    clock = Hlc()
    highest = 0
    for kind, now_ms, value in script:
        acceptable = ms_of(value) - now_ms <= clock.max_drift_ms
        if kind == "tick":
            stamp = clock.tick(now_ms, floor=value)
            assert stamp >= stamp_of(now_ms)
            assert ms_of(stamp) - now_ms <= clock.max_drift_ms + 1
            if ms_of(highest) - now_ms < clock.max_drift_ms:
                assert stamp > highest
            if ms_of(value) - now_ms < clock.max_drift_ms:
                assert stamp > value
            highest = stamp
        elif acceptable:
            clock.observe(value, now_ms)
            highest = clock.last
            assert value <= highest or ms_of(highest) - now_ms <= clock.max_drift_ms
        else:
            with pytest.raises(Rejected) as caught:
                clock.observe(value, now_ms)
            assert caught.value.code == "clock_drift"
            assert clock.last == highest
        assert clock.drift_ms == max(0, ms_of(clock.last) - now_ms)


@given(st.integers(60_000, 10**9), st.integers(0, 1000))
def test_a_clock_that_was_ahead_is_believed_again_once_it_is_set_right(ahead_ms: int, later_ms: int) -> None:
    now_ms = 1_700_000_000_000
    wrong, peer = Hlc(), Hlc()
    written = wrong.tick(now_ms + ahead_ms)
    with pytest.raises(Rejected):
        peer.observe(written, now_ms)
    peer.observe(wrong.tick(now_ms + later_ms, floor=written), now_ms + later_ms)
    assert peer.drift_ms == 0


def test_replacing_a_record_from_the_future_does_not_move_the_clock_there() -> None:
    """A quorum read shows what one replica stored while its clock was an hour ahead."""
    now_ms = 1_700_000_000_000
    clock, peer = Hlc(), Hlc()
    peer.observe(clock.tick(now_ms, floor=stamp_of(now_ms + 3_600_000)), now_ms)
    peer.observe(clock.tick(now_ms + 1), now_ms + 1)
