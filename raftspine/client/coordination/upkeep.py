"""Keeping something alive, and knowing when it can no longer be believed to be.

Everything held by a TTL (a lock, an office, a claim, a session) is kept by the same loop. The rules:

* A holder believes in what it holds until one TTL after it *sent* the last request that was confirmed, and not a
  moment longer. The store counts from when it heard that request, which was later; so the holder always gives up
  first, whatever the network did to the answer (Gray and Cheriton, "Leases", SOSP 1989, section 3).
* What was believed once and is so no longer stays lost: a renewal that is confirmed after the end does not revive it,
  because the work it protected has been told to stop.
* A renewal that is late is told (jeopardy) while there is still time; a renewal that is refused is a loss at once.

Time is the event loop's, which is monotonic. A process that was stopped finds the end behind it when it wakes, and
loses before it asks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from raftspine.errors import Conflict, LeaseLost, NotFound, SpineError

RETRY_S = 0.25
"""Between renewals that failed: the request has already been to every node, with its own pauses."""

log = logging.getLogger("raftspine.client")


class Grant(NamedTuple):
    """What a confirmed request gives: seconds from when it was sent."""

    ttl_s: float
    renew_after_s: float


Renew = Callable[[float], Awaitable[Grant]]
"""Asks for another TTL, within so many seconds. Raises the SpineError of the answer."""


def grant(answer: dict[str, Any]) -> Grant:
    """The lifetime in a reply of the store."""
    return Grant(answer["ttl_remaining_ms"] / 1000, answer["renew_after_ms"] / 1000)


class Upkeep:
    """One thing that is kept. `what` names it in messages. Callbacks run on the event loop: `jeopardy` when a renewal
    is late, each time anew; `lost` once, at the loss."""

    def __init__(
        self,
        what: str,
        renew: Renew,
        *,
        jeopardy: Callable[[], None] | None = None,
        lost: Callable[[LeaseLost], None] | None = None,
    ) -> None:
        self.what = what
        self.error: LeaseLost | None = None
        """Why it was lost; None while it is not."""
        self._loop = asyncio.get_running_loop()
        self._renew = renew
        self._jeopardy = jeopardy
        self._lost = lost
        self._until = self._renew_at = self._loop.time()
        self._late: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None
        self._told = False
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def begin(self, sent_at: float, given: Grant) -> None:
        """Believe in a grant that was asked for at `sent_at` (loop time), and keep it from now on."""
        self.believe(sent_at, given)
        self._task = self._loop.create_task(self._keep(), name=f"upkeep of {self.what}")

    def believe(self, sent_at: float, given: Grant) -> None:
        """A request sent at `sent_at` (loop time) was confirmed."""
        if self.error is not None:
            return
        self._until = sent_at + given.ttl_s
        self._renew_at = sent_at + given.renew_after_s
        self._told = False
        self._stop_timers()
        late_at = min(sent_at + 2 * given.renew_after_s, self._until)
        self._late = self._loop.call_at(late_at, self._tell_jeopardy)
        self._end = self._loop.call_at(self._until, self._run_out)

    def remaining(self) -> float:
        """Seconds for which it can still be believed; 0 once it is lost or given back. Callable from any thread."""
        if self.error is not None or self._ended:
            return 0.0
        return max(0.0, self._until - self._loop.time())

    def ensure(self) -> None:
        """Raises LeaseLost unless it can be believed now."""
        if self.error is not None:
            raise again(self.error)
        if self.remaining() <= 0:
            raise LeaseLost(f"{self.what} is not held any more")

    def lose(self, error: LeaseLost) -> None:
        """Somebody has found out that it is gone."""
        if self.error is not None or self._ended:
            return
        self.error = error
        self._stop_timers()
        log.warning("lost: %s", error.message)
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()
        if self._lost is not None:
            guarded(self._lost, error)

    async def end(self) -> None:
        """Stop keeping it. What becomes of it is the caller's business."""
        self._ended = True
        self._stop_timers()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        while self.error is None:
            await asyncio.sleep(max(0.0, self._renew_at - self._loop.time()))
            sent_at = self._loop.time()
            left = self._until - sent_at
            if left <= 0:
                self._run_out()
                return
            try:
                given = await self._renew(left)
            except (Conflict, NotFound) as error:
                self.lose(LeaseLost(f"{self.what}: {error.message}", details=error.details))
                return
            except SpineError as error:
                log.warning("renewal of %s failed, %.1f s left: %s", self.what, self.remaining(), error.message)
                self._tell_jeopardy()
                self._renew_at = self._loop.time() + RETRY_S
            else:
                self.believe(sent_at, given)

    def _run_out(self) -> None:
        self.lose(LeaseLost(f"{self.what} could not be renewed in time"))

    def _tell_jeopardy(self) -> None:
        """Once between two confirmations."""
        if self._told or self._jeopardy is None or self.error is not None:
            return
        self._told = True
        guarded(self._jeopardy)

    def _stop_timers(self) -> None:
        for timer in (self._late, self._end):
            if timer is not None:
                timer.cancel()


class Body:
    """The code that what is held protects: the task that entered, which is cancelled at the loss.

    As in asyncio.timeout, a cancellation of ours becomes our exception where the body ends, and one that came from
    elsewhere stays one: `Task.uncancel` counts, so the two are told apart even when both arrive.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("what is held can be entered only from within a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._cancelled = False
        self._left = False

    @property
    def mine(self) -> bool:
        """Whether the running task is the one that entered."""
        return asyncio.current_task() is self._task

    def stop(self) -> None:
        """Cancel the body, unless it has ended, or is itself where the loss was found out."""
        if not self._left and not self._cancelled and not self.mine:
            self._cancelled = True
            self._task.cancel()

    def leave(self, error: LeaseLost | None, raised: BaseException | None) -> None:
        """The body has ended with `raised`. Raises LeaseLost where the loss, and nothing else, is why."""
        self._left = True
        foreign = self._cancelled and self._task.uncancel() > self._cancelling
        if error is None or foreign:
            return
        if raised is None or (self._cancelled and isinstance(raised, asyncio.CancelledError)):
            raise again(error) from raised


def again(error: LeaseLost) -> LeaseLost:
    """The same loss, for another place to raise it: one exception object raised twice would gather both traces."""
    return LeaseLost(error.message, details=error.details)


def guarded(callback: Callable[..., None], *arguments: Any) -> None:
    """Run somebody else's code where an exception would end the upkeep."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("a callback of the client failed")
