"""Turns many small writes into few messages, and counts who has them.

A write is acknowledged when W of its group's replicas hold it. Writes travel to a peer together, one message under
way at a time, and those of one loop turn share one commit of this node's log; the acknowledgement of the message
acknowledges them all. Without this a write would cost a message and an fsync of its own, and the store would be an
order of magnitude slower.

A write that cannot reach W any more fails at once (`no_quorum`, with how many hold it and `indeterminate`): it may
still spread to the others later, because what some replicas hold is not rolled back. Each replica's answer counts
once, whatever the links do. This node's own answer is the commit its rows went into: a turn of this module may span
two of the engine's, and a write must not be acknowledged by the one before its own.
"""

from asyncio import Future, TimerHandle, get_running_loop
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from raftspine.errors import NoSpace, SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Engine, Rpc

LONGEST_WAIT_SECONDS = 0.002
"""How long what is to be sent to a peer waits for the answer to what was sent before (Nagle's rule): under load a
message then carries many writes, and without load nothing waits."""


class Write:
    """One write under way: how many replicas hold it, and how many still may. `told` is what replicas said they
    held that its coordinator had not seen: encoded records, or nothing (b"") where the log keeps the id."""

    __slots__ = ("acked", "future", "needed", "open", "owner", "settled", "told")

    def __init__(self, owner: "Fanout", needed: int, replicas: int, future: "Future[None]") -> None:
        self.owner = owner
        self.needed = needed
        self.open = replicas
        self.acked = 0
        self.told: tuple[bytes, ...] = ()
        self.settled = False
        self.future = future
        owner.inflight += 1

    def ack(self) -> None:
        self.acked += 1
        self.open -= 1
        if self.acked >= self.needed and not self.settled:
            self._settle()
            if not self.future.done():
                self.future.set_result(None)

    def fail(self, error: SpineError | None = None) -> None:
        self.open -= 1
        if self.acked + self.open >= self.needed or self.settled:
            return
        self._settle()
        self.owner.on_failure(error.code if error else "peers")
        if not self.future.done():
            self.future.set_exception(
                Unavailable(
                    f"{self.acked} of the {self.needed} replicas a write needs hold it",
                    code="no_quorum",
                    details={
                        "acked": self.acked,
                        "needed": self.needed,
                        "indeterminate": True,  # staged here and perhaps sent; neither is ever taken back
                        **({"cause": error.code} if error else {}),
                    },
                    retry_after_ms=500,
                )
            )

    def _settle(self) -> None:
        self.settled = True
        self.owner.inflight -= 1


class _Batch:
    """What gathers for one peer: encoded versions with their groups, and the writes that wait for them."""

    __slots__ = ("entries", "timer", "writes")

    def __init__(self) -> None:
        self.entries: list[tuple[int, bytes]] = []
        self.writes: list[Write] = []
        self.timer: TimerHandle | None = None


class Fanout:
    """Pushes versions to the other replicas of their groups and settles the writes that wait for them."""

    def __init__(self, engine: Engine, rpc: Rpc, *, timeout_ms: int, max_inflight: int = 20_000) -> None:
        self._engine = engine
        self._rpc = rpc
        self._timeout = timeout_ms / 1000
        self._max_inflight = max_inflight
        self._batch = 0
        self._commit: Future[None] | None = None
        self._committing: list[Write] = []
        self._out: dict[NodeId, _Batch] = {}
        self._sent: dict[NodeId, dict[int, list[Write]]] = {}
        self.inflight = 0
        self.on_failure: Callable[[str], None] = lambda reason: None
        rpc.serve("ring.ack", self._acked)
        rpc.on_link(self._link)

    def start(self, group: GroupId, version: bytes, peers: Iterable[NodeId], needed: int) -> Write:
        """Send a version that this replica has just staged; the write's future resolves at `needed` holders.

        `peers` are the other replicas, `version` is encoded once for all. Never refuses: see `check_room`."""
        loop = get_running_loop()
        commit = self._engine.commit()
        if commit is not self._commit:
            self._commit, self._committing = commit, []
            commit.add_done_callback(partial(self._committed, self._committing))
            loop.call_later(self._timeout, self._expire, self._committing)
        entry = (group, version)
        targets = tuple(peers)
        write = Write(self, needed, len(targets) + 1, loop.create_future())
        self._committing.append(write)
        for peer in targets:
            out = self._out.get(peer)
            if out is None:
                out = self._out[peer] = _Batch()
                if self._sent.get(peer):
                    out.timer = loop.call_later(LONGEST_WAIT_SECONDS, self._push, peer)
                else:
                    loop.call_soon(self._push, peer)
            out.entries.append(entry)
            out.writes.append(write)
        return write

    def check_room(self) -> None:
        """To be asked before a version is staged, because what is staged spreads, whatever its writer is told. Raises
        Unavailable(`overloaded`)."""
        if self.inflight >= self._max_inflight:
            raise Unavailable("too many writes are under way", code="overloaded", retry_after_ms=100)

    def reachable(self, peers: Iterable[NodeId]) -> int:
        """How many of these peers have a link now."""
        return sum(map(self._rpc.connected, peers))

    def _push(self, peer: NodeId) -> None:
        """Send a peer what has gathered for it."""
        out = self._out.pop(peer, None)
        if out is None:
            return
        if out.timer is not None:
            out.timer.cancel()
        self._batch += 1
        if self._rpc.cast(peer, "ring.push", (self._batch, out.entries)):
            self._sent.setdefault(peer, {})[self._batch] = out.writes
            get_running_loop().call_later(self._timeout, self._forget, peer, self._batch)
        else:
            for write in out.writes:
                write.fail()

    def _forget(self, peer: NodeId, batch: int) -> None:
        """The peer has not answered in time; its writes have expired with or without it."""
        self._sent.get(peer, {}).pop(batch, None)

    def _committed(self, writes: list[Write], commit: "Future[None]") -> None:
        error = commit.exception()
        for write in writes:
            if error is None:
                write.ack()
            else:
                write.fail(error if isinstance(error, SpineError) else NoSpace(str(error)))

    def _acked(self, peer: NodeId, body: Any) -> None:
        batch, failed, told, why = body
        under_way = self._sent.get(peer, {})
        waiting = under_way.pop(batch, None)
        if not under_way:
            self._push(peer)
        if waiting is None:
            return
        for place, record in told:
            waiting[place].told += (record,)
        if not failed:
            for write in waiting:
                write.ack()
            return
        refused, error = set(failed), Unavailable(f"{peer} refused", code=why)
        for place, write in enumerate(waiting):
            if place in refused:
                write.fail(error)
            else:
                write.ack()

    def _link(self, peer: NodeId, up: bool) -> None:
        if not up:
            for waiting in self._sent.pop(peer, {}).values():
                for write in waiting:
                    write.fail()

    def _expire(self, writes: list[Write]) -> None:
        late = Unavailable("the other replicas did not answer in time", code="timeout")
        for write in writes:
            if not write.settled:
                write.open = 1
                write.fail(late)
