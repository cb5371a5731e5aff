"""The point in a group's log that a linearizable read must wait for, asked once for many readers.

A read is linearizable when it is served from a state that contains everything acknowledged before the read began. The
leader proves such a point with a heartbeat round; asking for one round per read would cost more messages than the
writes. So all readers of one loop turn share a round, those that come while it is under way share the next (one
question per group at a time), and the rule that keeps this right is: **a reader never joins a round that has already
been sent**. A round that started before the reader did may prove a point that is older than a write the reader's
client has seen acknowledged; sharing it is the classic stale read.

A round is a short chain of callbacks and never a task: index from the leader (here or one hop away), wait until this
replica has applied it, wake the readers. It fails as a whole; whether to try again is the reader's decision, because
only the reader knows its deadline.
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from functools import partial
from typing import Any

from raftspine.errors import SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, ReplicatedLog

AskIndex = Callable[[GroupId], "Future[int]"]


class _Round:
    """One question to the leader, the readers that share it, and when it was sent (monotonic seconds)."""

    __slots__ = ("group", "sent", "waiters")

    def __init__(self, group: GroupId) -> None:
        self.group = group
        self.sent = 0.0
        self.waiters: list[Future[int]] = []

    def succeed(self, index: int) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(index)

    def fail(self, error: BaseException) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Barriers:
    """Read barriers of all groups for the readers on this node.

    `ask` starts one question to whoever knows (see StrongPath) and `holds` says whether this node keeps a
    replica, which then has to apply the index before the readers go on. `current_at` maps a group to the
    monotonic second at which this replica was last known to be current.
    """

    def __init__(self, log: ReplicatedLog, clock: Clock, *, ask: AskIndex, holds: Callable[[GroupId], bool]) -> None:
        self._log = log
        self._now = clock.monotonic
        self._ask = ask
        self._holds = holds
        self._open: dict[GroupId, _Round] = {}
        self._asking: set[GroupId] = set()
        self.current_at: dict[GroupId, float] = {}
        self.rounds_total = 0

    def join(self, group: GroupId, loop: AbstractEventLoop) -> "Future[int]":
        """A future of this reader's own: the index, once this replica has applied it. Fails with whatever the
        round failed with."""
        waiter: Future[int] = loop.create_future()
        self.refresh(group, loop).append(waiter)
        return waiter

    def refresh(self, group: GroupId, loop: AbstractEventLoop) -> "list[Future[int]]":
        """Have a round sent at the end of this turn even if nobody waits for it; returns those who do."""
        waiting = self._open.get(group)
        if waiting is None:
            waiting = self._open[group] = _Round(group)
            if group not in self._asking:
                self._asking.add(group)
                loop.call_soon(self._send, group)
        return waiting.waiters

    def _send(self, group: GroupId) -> None:
        this = self._open.pop(group)  # from here on a new reader opens the next round
        this.sent = self._now()
        self.rounds_total += 1
        try:
            asked = self._ask(group)
        except SpineError as error:
            self._next(group)
            this.fail(error)
            return
        asked.add_done_callback(partial(self._indexed, this))

    def _next(self, group: GroupId) -> None:
        """A question was answered: put the one that gathered meanwhile, if any."""
        if group in self._open:
            asyncio.get_running_loop().call_soon(self._send, group)
        else:
            self._asking.discard(group)

    def _indexed(self, this: _Round, asked: "Future[int]") -> None:
        self._next(this.group)
        error = _error(asked)
        if error is not None:
            this.fail(error)
            return
        index = asked.result()
        if not self._holds(this.group):
            this.succeed(index)
            return
        applied = self._log.wait_applied(this.group, index)
        if applied.done():
            self._applied(this, index, applied)
        else:
            applied.add_done_callback(partial(self._applied, this, index))

    def _applied(self, this: _Round, index: int, applied: "Future[None]") -> None:
        error = _error(applied)
        if error is not None:
            this.fail(error)
            return
        self.current_at[this.group] = max(this.sent, self.current_at.get(this.group, 0.0))
        this.succeed(index)


def _error(future: "Future[Any]") -> BaseException | None:
    if future.cancelled():
        return Unavailable("the log gave up this read barrier", code="no_leader")
    return future.exception()


def no_leader(group: GroupId, leader: NodeId | None = None) -> Unavailable:
    """Nothing was proposed here; `details.leader` is who to ask instead, where that is known."""
    if leader is None:
        message = f"shard group {group} has no leader now"
    else:
        message = f"{leader} leads shard group {group}, and could not be asked from here"
    return Unavailable(message, code="no_leader", details={"group": group, "leader": leader}, retry_after_ms=500)
