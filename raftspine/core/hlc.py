"""Stamps that respect cause and effect although wall clocks do not.

The rule: a stamp is wall milliseconds and a 16-bit counter in one integer, each new one is above everything
this node has issued or seen, and a stamp from too far in the future is refused. Without the first half a
write could lose against the one it replaces because its node's clock is behind; without the second, one
node with a wrong clock would pull every other node's stamps along and win every conflict for years.

The first half yields to the second. Once a wall clock was ahead and has been set right, this node's own last stamp,
or that of a record to be replaced, may lie further ahead than any peer accepts; a stamp above it would be refused by
all of them for as long as the clock was wrong by. So no new stamp follows what lies that far ahead. Replacing is
decided by dots and contexts, not by stamps, so a lower stamp than the replaced one's costs nothing there.

Source: Kulkarni et al., "Logical Physical Clocks" (2014).
"""

from raftspine.errors import Rejected

COUNTER_BITS = 16
MAX_DRIFT_MS = 10_000


def stamp_of(ms: int) -> int:
    """The lowest stamp of a millisecond."""
    return ms << COUNTER_BITS


def ms_of(stamp: int) -> int:
    """The wall milliseconds a stamp claims."""
    return stamp >> COUNTER_BITS


class Hlc:
    """One node's hybrid logical clock. Time is an argument; the clock itself only remembers."""

    __slots__ = ("_now_ms", "last", "max_drift_ms")

    def __init__(self, max_drift_ms: int = MAX_DRIFT_MS) -> None:
        self.max_drift_ms = max_drift_ms
        self.last = 0
        self._now_ms = 0

    def tick(self, now_ms: int, floor: int = 0) -> int:
        """A new stamp above every earlier one and above `floor` (the stamp of the record being written), as far as
        these are not more than `max_drift_ms` ahead of `now_ms`.

        A full counter carries into the milliseconds, so the order holds at any rate of writing.
        """
        self._now_ms = now_ms
        horizon = (now_ms + self.max_drift_ms) << COUNTER_BITS
        last = self.last if self.last < horizon else 0
        if last < floor < horizon:
            last = floor
        stamp = now_ms << COUNTER_BITS
        if stamp <= last:
            stamp = last + 1
        self.last = stamp
        return stamp

    def observe(self, stamp: int, now_ms: int) -> None:
        """Take note of a stamp from elsewhere. Rejected(`clock_drift`) when it is more than `max_drift_ms`
        ahead of `now_ms`; the clock is then unchanged and the carrier of the stamp must not be stored."""
        self._now_ms = now_ms
        ahead_ms = (stamp >> COUNTER_BITS) - now_ms
        if ahead_ms > self.max_drift_ms:
            raise Rejected(
                f"a stamp lies {ahead_ms} ms in the future, more than the {self.max_drift_ms} ms allowed",
                code="clock_drift",
                details={"ahead_ms": ahead_ms, "max_drift_ms": self.max_drift_ms},
            )
        if stamp > self.last or self.last >> COUNTER_BITS > now_ms + self.max_drift_ms:
            self.last = stamp

    @property
    def drift_ms(self) -> int:
        """How far this clock runs ahead of the wall clock it was last shown; 0 when it does not."""
        return max(0, (self.last >> COUNTER_BITS) - self._now_ms)
