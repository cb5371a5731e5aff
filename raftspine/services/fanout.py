"""Turns many small writes into few messages, and counts who has them.

A write is acknowledged when W of its group's replicas hold it. All writes of one loop turn travel to a peer in one
message and share one commit of this node's log; the acknowledgement of the message acknowledges them all. Without
this a write would cost a message and an fsync of its own, and the store would be an order of magnitude slower.

A write that cannot reach W any more fails at once (`no_quorum`, with how many hold it and `indeterminate`): it may
still spread to the others later, because what some replicas hold is not rolled back. Each replica's answer counts
once, whatever the links do.
"""

from asyncio import Future, get_running_loop
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from raftspine.errors import NoSpace, SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Engine, Rpc


class Write:
    """One write under way: how many replicas hold it, and how many still may. `beaten` are encoded records of
    replicas in which it lost against a concurrent version its coordinator had not seen."""

    __slots__ = ("acked", "beaten", "future", "needed", "open", "owner", "settled")

    def __init__(self, owner: "Fanout", needed: int, replicas: int, future: "Future[None]") -> None:
        self.owner = owner
        self.needed = needed
        self.open = replicas
        self.acked = 0
        self.beaten: tuple[bytes, ...] = ()
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
                        "indeterminate": self.acked > 0,
                        **({"cause": error.code} if error else {}),
                    },
                    retry_after_ms=500,
                )
            )

    def _settle(self) -> None:
        self.settled = True
        self.owner.inflight -= 1


class Fanout:
    """Pushes versions to the other replicas of their groups and settles the writes that wait for them."""

    def __init__(self, engine: Engine, rpc: Rpc, *, timeout_ms: int, max_inflight: int = 20_000) -> None:
        self._engine = engine
        self._rpc = rpc
        self._timeout = timeout_ms / 1000
        self._max_inflight = max_inflight
        self._batch = 0
        self._turn: list[Write] = []
        self._commit: Future[None] | None = None
        self._out: dict[NodeId, tuple[list[tuple[int, bytes]], list[Write]]] = {}
        self._sent: dict[NodeId, dict[int, list[Write]]] = {}
        self.inflight = 0
        self.on_failure: Callable[[str], None] = lambda reason: None
        rpc.serve("ring.ack", self._acked)
        rpc.on_link(self._link)

    def start(self, group: GroupId, version: bytes, peers: Iterable[NodeId], needed: int) -> Write:
        """Send a version that this replica has just staged; the write's future resolves at `needed` holders.

        `peers` are the other replicas, `version` is encoded once for all. Raises Unavailable(`overloaded`)."""
        if self.inflight >= self._max_inflight:
            raise Unavailable("too many writes are under way", code="overloaded", retry_after_ms=100)
        loop = get_running_loop()
        if not self._turn:
            self._commit = self._engine.commit()
            loop.call_soon(self._flush)
        entry = (group, version)
        targets = tuple(peers)
        write = Write(self, needed, len(targets) + 1, loop.create_future())
        self._turn.append(write)
        for peer in targets:
            out = self._out.get(peer)
            if out is None:
                out = self._out[peer] = ([], [])
            out[0].append(entry)
            out[1].append(write)
        return write

    def reachable(self, peers: Iterable[NodeId]) -> int:
        """How many of these peers have a link now."""
        return sum(1 for peer in peers if self._rpc.connected(peer))

    def _flush(self) -> None:
        writes, self._turn = self._turn, []
        out, self._out = self._out, {}
        commit, self._commit = self._commit, None
        assert commit is not None, "a turn with writes has a commit"
        commit.add_done_callback(partial(self._committed, writes))
        self._batch = batch = self._batch + 1
        for peer, (entries, waiting) in out.items():
            if self._rpc.cast(peer, "ring.push", (batch, entries)):
                self._sent.setdefault(peer, {})[batch] = waiting
            else:
                for write in waiting:
                    write.fail()
        get_running_loop().call_later(self._timeout, self._expire, batch, writes)

    def _committed(self, writes: list[Write], commit: "Future[None]") -> None:
        error = commit.exception()
        for write in writes:
            if error is None:
                write.ack()
            else:
                write.fail(error if isinstance(error, SpineError) else NoSpace(str(error)))

    def _acked(self, peer: NodeId, body: Any) -> None:
        batch, failed, beaten = body
        waiting = self._sent.get(peer, {}).pop(batch, None)
        if waiting is None:
            return
        for place, record in beaten:
            waiting[place].beaten += (record,)
        if not failed:
            for write in waiting:
                write.ack()
            return
        refused = set(failed)
        for place, write in enumerate(waiting):
            if place in refused:
                write.fail()
            else:
                write.ack()

    def _link(self, peer: NodeId, up: bool) -> None:
        if not up:
            for waiting in self._sent.pop(peer, {}).values():
                for write in waiting:
                    write.fail()

    def _expire(self, batch: int, writes: list[Write]) -> None:
        for waiting in self._sent.values():
            waiting.pop(batch, None)
        late = Unavailable("the other replicas did not answer in time", code="timeout")
        for write in writes:
            if not write.settled:
                write.open = 1
                write.fail(late)
