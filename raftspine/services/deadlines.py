"""How long to wait for a future, and how to wait for one of many.

`asyncio.timeout` costs 4 µs an operation and `asyncio.shield` 2 µs or more, each as much as the operation it
guards; the strong path awaits one future per request, so it pays for a bare timer instead (1 µs). The rule: a
wait ends by its result, by its deadline (`Late`) or by the caller's own cancellation, and the three are never
mistaken for each other. Mistaking a deadline for a cancellation would swallow a shutdown; the other way
round, a lost connection would be reported to the client as "outcome unknown".
"""

import asyncio
from asyncio import AbstractEventLoop, CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


LEAST_SECONDS = 0.001
"""The shortest wait for news. Who waits for what is left of a deadline on a clock that runs a little slower than the
loop's would else wait for ever less, and in the end not at all, in a loop that never yields to time."""


class Late(Exception):
    """The deadline passed first. Never leaves the services: it is turned into Unavailable or Unknown there."""


async def within(future: "Future[T]", seconds: float, loop: AbstractEventLoop) -> T:
    """The future's result; Late after `seconds`. The future is cancelled then, so it must not be shared."""
    if future.done():
        return future.result()
    timer = loop.call_later(seconds, future.cancel)
    try:
        return await future
    except CancelledError:
        # A cancelled task cancels what it awaits too: only when nobody asked this task to end was it the timer.
        task = asyncio.current_task(loop)
        if task is None or task.cancelling():
            raise
        raise Late from None
    finally:
        timer.cancel()


class Bell:
    """A condition that many may wait for and that rings again and again (a leader changed, a link came up).

    A waiter has a future of its own, so its deadline or cancellation takes nothing from the others.
    """

    def __init__(self) -> None:
        self._waiters: list[Future[None]] = []

    def ring(self, *_: Any) -> None:
        """Wake everyone who waits now. Takes and ignores arguments, so that it can be handed out as a callback."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def next(self, loop: AbstractEventLoop) -> "Future[None]":
        """Resolves when it rings next. Take it before looking at the condition, and no ring is missed."""
        waiter: Future[None] = loop.create_future()
        self._waiters.append(waiter)
        return waiter

    async def heard(self, seconds: float, loop: AbstractEventLoop, waiter: "Future[None] | None" = None) -> bool:
        """True when it rang (since `waiter` was taken, or from now on); False after `seconds`."""
        if waiter is None:
            waiter = self.next(loop)
        try:
            await within(waiter, max(seconds, LEAST_SECONDS), loop)
        except Late:
            return False
        finally:
            if waiter.cancelled():
                self._waiters = [each for each in self._waiters if each is not waiter]
        return True
