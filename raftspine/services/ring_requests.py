"""The ring's memory of Idempotency-Keys, asked and changed by quorum.

A ring write leaves its request's digest on every replica that stores it, so N-W+1 replicas of a group are sure to
meet an acknowledged one; a void row on W replicas is sure to be met by every later coordinator that asks N-W+1. What
this cannot do is stop a coordinator that asked before the void arrived: see requests.py for what that means.
"""

import asyncio
from typing import Any

from raftspine.core.version_text import ring_version_text
from raftspine.errors import SpineError, Unavailable
from raftspine.model import GroupId, NodeId, Path
from raftspine.ports import Engine, Rpc
from raftspine.services.requests import DONE, VOID, Trace
from raftspine.services.ring import RingPath
from raftspine.services.topology import Topology
from raftspine.storage import memories as rows

ASK = "ring.request"
PUT_VOID = "ring.void"


class QuorumRequests:
    """`RingRequests` over all shard groups, from any node."""

    def __init__(self, ring: RingPath, topology: Topology, engine: Engine, rpc: Rpc, *, timeout_ms: int) -> None:
        self._ring = ring
        self._topology = topology
        self._engine = engine
        self._rpc = rpc
        self._timeout_ms = timeout_ms
        rpc.serve(ASK, self._serve_ask)
        rpc.serve(PUT_VOID, self._serve_void)

    async def find(self, digest: bytes) -> Trace | None:
        """Done where one replica remembers the write; void where every group says so; else None."""
        groups = self._topology.group_ids()
        found = await asyncio.gather(*(self._group(group, digest, ASK) for group in groups))
        for answers in found:
            for request in answers:
                if request is not None and not request.void:
                    return _done(request)
        voided = all(any(request is not None for request in answers) for answers in found)
        return Trace(VOID, Path.RING) if found and voided else None

    async def void(self, digest: bytes) -> Trace | None:
        """Leave a void row on W replicas of each group; the trace of a write that came first."""
        groups = self._topology.group_ids()
        for answers in await asyncio.gather(*(self._group(group, digest, PUT_VOID) for group in groups)):
            for request in answers:
                if request is not None and not request.void:
                    return _done(request)
        return None

    async def _group(self, group: GroupId, digest: bytes, method: str) -> list[rows.RingRequest | None]:
        """One group's answers: from N-W+1 replicas to a question, from W to a void."""
        peers = self._topology.peers(group)
        n = len(self._topology.replicas(group))
        w = min(self._ring.write_quorum, n)
        needed = w if method == PUT_VOID else n - w + 1
        answers: list[Any] = []
        if self._topology.holds(group):
            serve = self._void_here if method == PUT_VOID else self._find_here
            answers.append(await serve(group, digest))
        calls = [self._rpc.call(peer, method, (group, digest), timeout_ms=self._timeout_ms) for peer in peers]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, SpineError):
                    raise answer
            else:
                answers.append(None if answer is None else rows.RingRequest(*answer))
        if len(answers) < needed:
            raise Unavailable(
                f"{needed} replicas of shard group {group} must answer and {len(answers)} did",
                code="no_quorum",
                retry_after_ms=500,
            )
        return answers

    async def _find_here(self, group: GroupId, digest: bytes) -> rows.RingRequest | None:
        return rows.ring_request(self._engine, group, digest)

    async def _void_here(self, group: GroupId, digest: bytes) -> rows.RingRequest | None:
        found = rows.ring_request(self._engine, group, digest)
        if found is None:
            self._engine.stage([rows.ring_void_row(group, digest)])
            await self._engine.commit(durable=True)
            found = rows.ring_request(self._engine, group, digest)
        return found

    async def _serve_ask(self, peer: NodeId, body: Any) -> Any:
        found = await self._find_here(GroupId(body[0]), body[1])
        return None if found is None else tuple(found)

    async def _serve_void(self, peer: NodeId, body: Any) -> Any:
        found = await self._void_here(GroupId(body[0]), body[1])
        return None if found is None else tuple(found)


def _done(request: rows.RingRequest) -> Trace:
    version = ring_version_text(request.origin, request.seq)
    return Trace(DONE, Path.RING, request.id or None, version, 201 if request.created else 200)
