"""Time that passes only when nobody has anything to do, and chance that repeats: one seed in, one run out.

A distributed fault is worth nothing if it cannot be played again. The loop here is an ordinary asyncio loop
whose clock stands still while callbacks run and jumps to the next timer when none is ready; so an hour of
elections takes a second, and no run depends on how fast the machine is. It waits for nothing outside itself:
code that opens a socket or starts a thread does not belong on it and fails.

An exception in a callback ends the run instead of going to a log nobody reads.
"""

import asyncio
from collections.abc import Callable, Coroutine, MutableSequence, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Dice:
    """Repeatable chance (SplitMix64, Steele et al. 2014), also a ports.Entropy.

    Not the standard library's generator: its sequences are not promised to stay the same, and a seed that
    found a bug must find it again in five years.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self.bits() >> 11) / (1 << 53)

    def token_bytes(self, n: int) -> bytes:
        words = [self.bits().to_bytes(8, "big") for _ in range((n + 7) // 8)]
        return b"".join(words)[:n]

    def below(self, bound: int) -> int:
        """Uniform in 0 … bound - 1."""
        return int(self.random() * bound)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffle(self, items: MutableSequence[Any]) -> None:
        for place in range(len(items) - 1, 0, -1):
            other = self.below(place + 1)
            items[place], items[other] = items[other], items[place]

    def fork(self) -> "Dice":
        """Independent dice, so that one part drawing more does not shift another's luck."""
        return Dice(self.bits())


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set: whatever is awaited will never come."""


class _Idle:
    """Stands where the loop polls its sockets: idle time is skipped."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits, and no timer will ever wake one")
        if timeout > 0:
            self._loop.skip()
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop on virtual time. `faults` collects what went wrong in callbacks that nobody awaits."""

    def __init__(self, seed: int = 0) -> None:
        self._virtual_now = 0.0
        super().__init__()
        self._selector = _Idle(self)
        self.dice = Dice(seed)
        self.faults: list[BaseException] = []
        self.set_exception_handler(self._collect)

    def time(self) -> float:
        """Seconds since the run began."""
        return self._virtual_now

    def skip(self) -> None:
        """Jump to the earliest timer. Called when nothing is ready."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if scheduled:
            self._virtual_now = max(self._virtual_now, scheduled[0].when())

    def _collect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(error if error is not None else RuntimeError(context.get("message", "unknown")))
        self.stop()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Wakes a loop that sleeps in its poll; this one never does."""


class VirtualClock:
    """A node's ports.Clock on a virtual loop: its wall clock may be off, and both may run fast or slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, offset_ms: int = 0, rate: float = 1.0) -> None:
        self._time = loop.time
        self.offset_ms = offset_ms
        self.rate = rate

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.offset_ms + int(self._time() * self.rate * 1000)

    def monotonic(self) -> float:
        return self._time() * self.rate


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Run `main(loop)` on a virtual loop of its own. Raises what it raised, or the first fault in a callback."""
    loop = VirtualLoop(seed)
    runner = asyncio.Runner(loop_factory=lambda: loop)
    try:
        return runner.run(main(loop))
    except RuntimeError:
        if loop.faults:
            raise loop.faults[0] from None
        raise
    finally:
        _close(runner, loop)
        if loop.faults:
            raise loop.faults[0]


def _close(runner: asyncio.Runner, loop: VirtualLoop) -> None:
    """End what is left. A dead node's worker may wait for its dead disk, uncancellably and for ever: it is let go."""
    try:
        runner.close()
    except Stuck:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
