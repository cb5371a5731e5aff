"""Hands an operation to a node that holds its shard group: one hop, marked, with the caller's deadline.

The whole request travels (who asks, its token, its preconditions) and the whole answer comes back, so that a
gateway behaves like any replica. An operation that arrives marked and does not belong here is refused with the
epoch the receiver knows: two nodes that disagree about the table must not pass a request to and fro.
"""

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from raftspine.errors import Misdirected, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Rpc
from raftspine.services.topology import Topology
from raftspine.services.values import Answer, Ask, Draft, Expect, ListQuery, Loser, Page, Patch

if TYPE_CHECKING:
    from raftspine.services.memories import Memories

METHOD = "memories.forward"
READS = frozenset({"get", "conflicts"})

_encode = msgspec.msgpack.Encoder().encode


class Forwarder:
    """Sends operations to a replica of their group, and carries out those that other nodes send here."""

    def __init__(self, rpc: Rpc, topology: Topology, *, timeout_ms: int) -> None:
        self._rpc = rpc
        self._topology = topology
        self._timeout_ms = timeout_ms
        self._memories: Memories | None = None
        rpc.serve(METHOD, self._serve)

    def offer(self, memories: "Memories") -> None:
        """The service that carries out what arrives."""
        self._memories = memories

    async def put(self, group: GroupId, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        return msgspec.msgpack.decode(await self._send(group, "put", ask, id, draft, expect), type=Answer)

    async def patch(self, group: GroupId, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        return msgspec.msgpack.decode(await self._send(group, "patch", ask, id, patch, expect), type=Answer)

    async def delete(self, group: GroupId, ask: Ask, id: str, expect: Expect) -> Answer:
        return msgspec.msgpack.decode(await self._send(group, "delete", ask, id, None, expect), type=Answer)

    async def get(self, group: GroupId, ask: Ask, id: str) -> Answer:
        return msgspec.msgpack.decode(await self._send(group, "get", ask, id), type=Answer)

    async def conflicts(self, group: GroupId, ask: Ask, id: str) -> list[Loser]:
        return msgspec.msgpack.decode(await self._send(group, "conflicts", ask, id), type=list[Loser])

    async def page(self, peer: NodeId, ask: Ask, query: ListQuery, groups: list[GroupId]) -> Page:
        """A page of some groups, from a node that holds them. Raises Unavailable, also when no answer came."""
        body = ("page", _encode(ask), "", _encode(query), list(groups))
        try:
            reply = await self._rpc.call(peer, METHOD, body, timeout_ms=self._timeout_ms)
        except Unknown as error:
            raise _unread(error) from error
        return msgspec.msgpack.decode(reply, type=Page)

    async def _send(
        self, group: GroupId, op: str, ask: Ask, id: str, value: Any = None, expect: Expect | None = None
    ) -> bytes:
        """The first replica's answer. The next one is asked when the last certainly did nothing, and for a read also
        when its answer was lost; a write whose fate is not known is never made again elsewhere."""
        body = (op, _encode(structs.replace(ask, group=group)), id, _encode(value), _encode(expect))
        refused: SpineError | None = None
        for peer in self._topology.replicas(group):
            if not self._rpc.connected(peer):
                continue
            try:
                reply: bytes = await self._rpc.call(peer, METHOD, body, timeout_ms=self._timeout_ms)
            except Unknown as error:
                if op not in READS:
                    raise
                refused = _unread(error)
            except Unavailable as error:
                if error.details.get("indeterminate"):
                    raise
                refused = error
            except Misdirected as error:
                refused = error
            else:
                return reply
        raise refused or Unavailable(
            f"no replica of shard group {group} can be reached", code="no_quorum", retry_after_ms=500
        )

    async def _serve(self, peer: NodeId, body: Any) -> bytes:
        op, ask_data, id, value, extra = body
        memories = self._memories
        if memories is None:
            raise Unavailable("this node is still starting", code="not_ready", retry_after_ms=200)
        ask = msgspec.msgpack.decode(ask_data, type=Ask)
        if op == "page":
            query = msgspec.msgpack.decode(value, type=ListQuery)
            return _encode(await memories.local_page(ask, query, [GroupId(group) for group in extra]))
        if op == "get":
            return _encode(await memories.get(ask, id))
        if op == "conflicts":
            return _encode(await memories.conflicts(ask, id))
        expect = msgspec.msgpack.decode(extra, type=Expect)
        if op == "put":
            return _encode(await memories.put(ask, id, msgspec.msgpack.decode(value, type=Draft), expect))
        if op == "patch":
            return _encode(await memories.patch(ask, id, msgspec.msgpack.decode(value, type=Patch), expect))
        return _encode(await memories.delete(ask, id, expect))


def _unread(error: Unknown) -> Unavailable:
    """A read that got no answer did no harm."""
    return Unavailable(error.message, code="no_quorum", details=error.details, retry_after_ms=500)
