"""One question to several replicas, answered by the first that are enough.

The rule: each replica is asked once and so counts once, and no more are asked than are needed, because a read that
asks everybody costs the cluster three reads. A replica that fails is replaced by the next at once, one that is silent
for a quarter of the timeout likewise, without being given up: a node that hangs keeps its links for seconds, and
without this every read that asks it first would wait out its whole timeout.
"""

from asyncio import Future, TimerHandle, get_running_loop
from collections.abc import Sequence
from typing import Any

from raftspine.errors import SpineError, Unavailable
from raftspine.model import NodeId
from raftspine.ports import Rpc

PATIENCE = 0.25
"""Share of the timeout after which others are asked as well. A replica that is up answers within a few milliseconds,
so with timeouts of seconds a hedge is rare, and so is the load that it adds."""


class Poll:
    """One question under way; `future` resolves with the answers, or fails with Unavailable(`no_quorum`)."""

    __slots__ = (
        "_answers",
        "_body",
        "_everyone",
        "_method",
        "_needed",
        "_open",
        "_rpc",
        "_spare",
        "_timeout_ms",
        "_timer",
        "future",
    )

    def __init__(
        self,
        rpc: Rpc,
        peers: Sequence[NodeId],
        method: str,
        body: Any,
        needed: int,
        *,
        timeout_ms: int,
        everyone: bool = False,
    ) -> None:
        """Ask the first `needed` of `peers` (`everyone`: all of them, and wait for all)."""
        self._rpc = rpc
        self._method = method
        self._body = body
        self._needed = needed
        self._everyone = everyone
        self._timeout_ms = timeout_ms
        self._spare = list(peers)
        self._open = 0
        self._answers: list[Any] = []
        self._timer: TimerHandle | None = None
        self.future: Future[list[Any]] = get_running_loop().create_future()
        self._ask(len(peers) if everyone else needed)
        self._conclude()
        if self._spare and not self.future.done():
            self._wait()

    def _ask(self, count: int) -> None:
        now, self._spare = self._spare[:count], self._spare[count:]
        self._open += len(now)
        for peer in now:
            call = self._rpc.call(peer, self._method, self._body, timeout_ms=self._timeout_ms)
            call.add_done_callback(self._heard)

    def _heard(self, call: "Future[Any]") -> None:
        self._open -= 1
        error = None if call.cancelled() else call.exception()
        if self.future.done():
            return
        if error is None and not call.cancelled():
            self._answers.append(call.result())
        elif error is None or isinstance(error, SpineError):
            self._ask(1)
        else:
            self._end()
            self.future.set_exception(error)
            return
        self._conclude()

    def _conclude(self) -> None:
        """End when there are answers enough, or too few are left to give them."""
        missing = self._needed - len(self._answers)
        if missing > self._open + len(self._spare):
            self._end()
            self.future.set_exception(self._refusal())
        elif self._open == 0 if self._everyone else missing <= 0:
            self._end()
            self.future.set_result(self._answers)

    def _wait(self) -> None:
        self._timer = get_running_loop().call_later(self._timeout_ms / 1000 * PATIENCE, self._hedge)

    def _hedge(self) -> None:
        """For each answer that is missing ask one replica more."""
        self._timer = None
        if self.future.done():
            return
        self._ask(self._needed - len(self._answers))
        if self._spare:
            self._wait()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refusal(self) -> Unavailable:
        needed, answered = self._needed + 1, len(self._answers) + 1
        return Unavailable(
            f"a read needs {needed} replicas and {answered} answered",
            code="no_quorum",
            details={"answered": answered, "needed": needed},
            retry_after_ms=500,
        )
