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
    clock = Hlc()
    highest = 0
    for kind, now_ms, value in script:
        if kind == "tick":
            stamp = clock.tick(now_ms, floor=value)
            assert stamp > highest
            assert stamp > value
            assert stamp >= stamp_of(now_ms)
            highest = stamp
        elif value <= clock.last or ms_of(value) - now_ms <= clock.max_drift_ms:
            clock.observe(value, now_ms)
            highest = max(highest, value)
        else:
            with pytest.raises(Rejected) as caught:
                clock.observe(value, now_ms)
            assert caught.value.code == "clock_drift"
            assert clock.last == highest
        assert clock.drift_ms == max(0, ms_of(clock.last) - now_ms)
