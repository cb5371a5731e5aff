"""Links between nodes in one process, with the contract of `ports.Rpc` and faults a test can place.

Bodies and answers pass through msgpack, as on a real link, so that a handler meets lists where the caller had
tuples.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import Any

import msgspec

from raftspine.errors import Unavailable, Unknown
from raftspine.model import NodeId
from raftspine.ports import Handler

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class FakeNet:
    """All nodes' links. `calls` lists (from, to, method) in order of sending."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, FakeRpc] = {}
        self.down: set[NodeId] = set()
        self.lose_replies: dict[str, int] = {}
        """How many of the next replies per method are lost after the handler ran; the caller learns
        Unknown."""
        self.mute: set[str] = set()
        """Methods whose replies never come, nor any sign of it."""
        self.calls: list[tuple[NodeId, NodeId, str]] = []

    def rpc(self, node: str) -> "FakeRpc":
        made = self.nodes[NodeId(node)] = FakeRpc(self, NodeId(node))
        return made

    def cut(self, node: str) -> None:
        self.down.add(NodeId(node))
        self._tell(NodeId(node), up=False)

    def join(self, node: str) -> None:
        self.down.discard(NodeId(node))
        self._tell(NodeId(node), up=True)

    def _tell(self, node: NodeId, *, up: bool) -> None:
        for each, rpc in self.nodes.items():
            for changed in rpc.listeners:
                if each != node:
                    changed(node, up)


class FakeRpc:
    """One node's end."""

    def __init__(self, net: FakeNet, node: NodeId) -> None:
        self._net = net
        self._node = node
        self._tasks: set[Future[Any]] = set()
        self.handlers: dict[str, Handler] = {}
        self.listeners: list[Callable[[NodeId, bool], None]] = []

    def serve(self, method: str, handler: Handler) -> None:
        assert method not in self.handlers
        self.handlers[method] = handler

    def call(self, peer: NodeId, method: str, body: Any, *, timeout_ms: int, bulk: bool = False) -> "Future[Any]":
        loop = asyncio.get_running_loop()
        future: Future[Any] = loop.create_future()
        if not self.connected(peer):
            future.set_exception(Unavailable(f"no link to {peer}", code="peer_down"))
            return future
        self._net.calls.append((self._node, peer, method))
        timer = loop.call_later(timeout_ms / 1000, _fail, future, Unknown("no answer in time"))
        future.add_done_callback(lambda _: timer.cancel())
        loop.call_soon(self._deliver, peer, method, _encode(body), future)
        return future

    def _deliver(self, peer: NodeId, method: str, body: bytes, answer: "Future[Any]") -> None:
        work = asyncio.ensure_future(self._net.nodes[peer]._run(self._node, method, body))
        self._tasks.add(work)

        def done(_: "Future[Any]") -> None:
            self._tasks.discard(work)
            if work.cancelled() or answer.done() or method in self._net.mute:
                return
            if self._net.lose_replies.get(method, 0) > 0:
                self._net.lose_replies[method] -= 1
                answer.set_exception(Unknown("the link broke before the answer"))
            elif (error := work.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(_decode(work.result()))

        work.add_done_callback(done)

    async def _run(self, sender: NodeId, method: str, body: bytes) -> bytes:
        if method not in self.handlers:
            raise Unavailable(f"{self._node} does not serve {method}", code="not_ready")
        result = self.handlers[method](sender, _decode(body))
        if result is not None and hasattr(type(result), "__await__"):
            result = await result
        return _encode(result)

    def cast(self, peer: NodeId, method: str, body: Any, *, bulk: bool = False) -> bool:
        if not self.connected(peer):
            return False
        asyncio.get_running_loop().call_soon(
            self._net.nodes[peer].handlers[method], self._node, _decode(_encode(body))
        )
        return True

    def connected(self, peer: NodeId) -> bool:
        return peer in self._net.nodes and not {peer, self._node} & self._net.down

    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None:
        self.listeners.append(changed)


def _fail(future: "Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
