"""Time that passes only when nobody has anything to do, and chance that repeats: one seed in, one run out.

A distributed fault is worth nothing if it cannot be played again. The loop here is an ordinary asyncio loop
whose clock stands still while callbacks run and jumps to the next timer when none is ready; so an hour of
elections takes a second, and no run depends on how fast the machine is. It waits for nothing outside itself:
code that opens a socket or starts a thread does not belong on it and fails.

Several processes share the loop, and each may be stopped or killed: what runs in the context of an `Owner` waits
while that owner is paused and is never run once it is dead, as the timers, sockets and threads of a real process.

An exception in a callback ends the run instead of going to a log nobody reads.
"""

import asyncio
import gc
from asyncio import Handle, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine, MutableSequence, Sequence
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1

MANY_STEPS = 1000
"""Callbacks at a stretch before stopping is considered; as many stretches at one moment are a run that hangs."""

LAST_SECONDS = 0.1
"""How long, in virtual time, the tasks of a run may take to end when they are cancelled."""


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


class Owner:
    """A process on the loop. `context` is what its callbacks and tasks run in, and all that these start."""

    __slots__ = ("_loop", "context", "dead", "held", "name", "paused")

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.held: list[Handle] = []
        """What came due while it was paused, in order; and what came due after its death, which never runs."""
        self._loop = loop
        loop.owners.append(self)
        self.context = copy_context()
        self.context.run(_OWNER.set, self)

    def pause(self) -> None:
        """As SIGSTOP: nothing of it runs, time goes on."""
        self.paused = True
        self._loop.someone_is_absent = True

    def resume(self) -> None:
        """As SIGCONT: all that came due meanwhile happens now, in the order in which it was due."""
        self.paused = False
        if not self.dead:
            held, self.held = self.held, []
            self._loop.put_back(held)

    def kill(self) -> None:
        """As SIGKILL: nothing of it runs any more."""
        self.dead = True
        self._loop.someone_is_absent = True


_OWNER: ContextVar[Owner] = ContextVar("owner")


def owner_name() -> str:
    """Whose code is running: a process's name, or "world" for what is not one of them."""
    owner = _OWNER.get(None)
    return "world" if owner is None else owner.name


class _Handle(Handle):
    """A Handle without its debugging. The base class's slots are filled here; it knows no other way to be lean."""

    def __init__(self, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._loop = loop
        self._repr = None

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = None, ()


class _Timer(TimerHandle):
    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._loop = loop
        self._repr = None
        self._when = when
        self._scheduled = True

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = None, ()


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set, or time no longer passes: whatever is awaited will never come."""


class Killed(BaseException):
    """Thrown into code that runs in a process at the moment of its death, so that it gets no further. No exception
    that anybody catches; the loop lets it pass."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop on virtual time. `faults` collects what went wrong in callbacks that nobody awaits.

    Timers due at the same moment run in the order in which they were set; asyncio promises none."""

    def __init__(self, seed: int = 0) -> None:
        self._now = 0.0
        super().__init__()
        self._queue: deque[Any] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_count = 0
        self.dice = Dice(seed)
        self.faults: list[BaseException] = []
        self._ends = float("inf")
        self._steps = 0
        self.owners: list[Owner] = []
        self.someone_is_absent = False
        """Whether any owner was ever paused or killed; spares all others a look-up at every step."""
        self.set_exception_handler(self._collect)

    def time(self) -> float:
        """Seconds since the run began."""
        return self._now

    def fail(self, error: BaseException) -> None:
        """End the run with this error, wherever the call comes from: code that catches everything cannot hide it."""
        self.faults.append(error)
        self.stop()

    def put_back(self, handles: list[Handle]) -> None:
        """Have these run next, before whatever is due."""
        self._queue.extendleft(reversed(handles))

    # ── asyncio's, made lean ───────────────────────────────────────────────────────────────────────────────

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when, callback, args, self, context)
        self._timer_count += 1
        heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """A cancelled timer is passed over when its time comes."""

    def _run_once(self) -> None:
        """All that is ready, and all that this makes ready; or, when nothing is, the next moment."""
        queue = self._queue
        if not queue:
            self._pass_time()
        self._steps += 1
        if self._steps > MANY_STEPS:  # a million
            raise Stuck("time no longer passes: callbacks make each other ready for ever")
        for _ in range(MANY_STEPS):
            if not queue:
                return
            handle = queue.popleft()
            if handle._cancelled or (self.someone_is_absent and self._withheld(handle)):
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 (asyncio's own rule: nothing escapes a callback unheard)
                self.call_exception_handler({"exception": error, "handle": handle})
            handle = None
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _pass_time(self) -> None:
        """Jump to the earliest timer and make ready all that are due then."""
        timers, queue = self._timers, self._queue
        while timers and timers[0][2]._cancelled:
            heappop(timers)
        if not timers or timers[0][0] > self._ends:
            if self._stopping:  # type: ignore[attr-defined]
                return
            raise Stuck("every task waits, and no timer will ever wake one")
        if timers[0][0] > self._now:
            self._now = timers[0][0]
            self._steps = 0
        while timers and timers[0][0] <= self._now:
            queue.append(heappop(timers)[2])

    def _withheld(self, handle: Any) -> bool:
        """Whether the owner of this callback is not there to run it."""
        owner = handle._context.get(_OWNER)
        if owner is None or not (owner.dead or owner.paused):
            return False
        owner.held.append(handle)
        return True

    def release_all(self) -> None:
        """For the end of a run: what is left may run a little longer, so that its tasks can end."""
        self.someone_is_absent = False
        self._ends = self._now + LAST_SECONDS
        for owner in self.owners:
            self.put_back(owner.held)
            owner.held = []

    def _collect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed):
            return
        self.fail(error if error is not None else RuntimeError(context.get("message", "unknown")))

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Wakes a loop that sleeps in its poll; this one never does."""


class VirtualClock:
    """A node's ports.Clock on a virtual loop: its wall clock may be off and jump, and both may run fast or slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, offset_ms: int = 0, rate: float = 1.0) -> None:
        self._time = loop.time
        self.offset_ms = offset_ms
        self._rate = rate
        self._since = self._at = 0.0

    @property
    def rate(self) -> float:
        """Seconds of this clock in one of the loop's."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        """Run faster or slower from now on; neither clock jumps."""
        self._at, self._since, self._rate = self.monotonic(), self._time(), rate

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.offset_ms + int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return self._at + (self._time() - self._since) * self._rate


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Run `main(loop)` on a virtual loop of its own. Raises what it raised, or the first fault in a callback.

    Meanwhile the cyclic collector rests: what it would end, and when, depends on everything else in the process."""
    loop = VirtualLoop(seed)
    runner = asyncio.Runner(loop_factory=lambda: loop)
    collecting = gc.isenabled()
    gc.disable()
    try:
        return runner.run(main(loop))
    except RuntimeError:
        if loop.faults:
            raise loop.faults[0] from None
        raise
    finally:
        faults = list(loop.faults)  # what the dead do while they are buried is nobody's fault
        _close(runner, loop)
        if collecting:
            gc.enable()
        if faults:
            raise faults[0]


def _close(runner: asyncio.Runner, loop: VirtualLoop) -> None:
    """End what is left. A dead node's worker may wait for its dead disk, uncancellably and for ever: it is let go."""
    loop.release_all()
    try:
        runner.close()
    except (Stuck, RuntimeError):
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
