"""Leadership goes to a node that can use it.

A leader whose store takes no writes (disk or map full, a disk that fails) refuses each proposal before it is made, so
its log stays quiet, nothing fails in it, and it would lead for ever: a third of all strong memories could not be
written, although two nodes have room. So while its store is read-only, a node hands each group it leads to a
connected replica that says it takes writes. Where none does, it stays in office and serves reads.
"""

import asyncio
from typing import Any, Protocol

import structlog

from raftspine.errors import SpineError
from raftspine.model import GroupId, NodeId, node_of
from raftspine.ports import Engine, LogStatus, Rpc

CHECK_SECONDS = 0.25
ASK_MS = 500
WRITABLE = "store.writable"

log = structlog.get_logger(__name__)


class _Log(Protocol):
    def groups(self) -> tuple[GroupId, ...]: ...
    def status(self, group: GroupId) -> LogStatus: ...
    async def transfer(self, group: GroupId, to: NodeId) -> bool: ...


class StepAside:
    """The worker of one node; `run` never returns."""

    def __init__(self, node: NodeId, engine: Engine, raft: _Log, rpc: Rpc) -> None:
        self._node = node
        self._engine = engine
        self._raft = raft
        self._rpc = rpc
        rpc.serve(WRITABLE, self._serve)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._engine.read_only() is not None:
                await self.round()

    async def round(self) -> None:
        """Offer each led group to the replicas that can lead it, until one has taken it."""
        led = [status for group in self._raft.groups() if (status := self._raft.status(group)).leader == self._node]
        peers = sorted({node_of(voter) for status in led for voter in status.voters} - {self._node})
        able = {peer for peer in peers if await self._takes_writes(peer)}
        await asyncio.gather(*(self._hand_over(status, able) for status in led))

    async def _hand_over(self, status: LogStatus, able: set[NodeId]) -> None:
        for node in map(node_of, status.voters):
            if node in able and await self._raft.transfer(status.group, node):
                log.info("led elsewhere while this store takes no writes", group=status.group, to=node)
                return

    async def _takes_writes(self, peer: NodeId) -> bool:
        if not self._rpc.connected(peer):
            return False
        try:
            return bool(await self._rpc.call(peer, WRITABLE, None, timeout_ms=ASK_MS))
        except SpineError:
            return False

    def _serve(self, peer: NodeId, body: Any) -> bool:
        return self._engine.read_only() is None
