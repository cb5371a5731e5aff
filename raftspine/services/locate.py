"""In which shard group an id lies where the key space is not cut by id.

Cut by agent or by tag, the group follows from what a memory says, but everybody asks by id. The rule: a memory
stays in the group it was first stored in, and an operation looks for it there before it computes a group of its
own. Were only this node's groups looked at, a node that lags or holds other groups would say "not found", or store
the id a second time beside the first. So N-W+1 replicas of every group are asked, which is what these strategies
cost; the default one never comes here. Two creations of one id at the same moment under different agents can still
end in two groups.
"""

import asyncio
from typing import Any

from raftspine.core.quorum import read_quorum
from raftspine.errors import SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Rpc
from raftspine.services.replica import RingReplica
from raftspine.services.topology import Topology

METHOD = "ring.where"


class Locator:
    """Finds ids, and answers for the groups held here."""

    def __init__(
        self, replica: RingReplica, topology: Topology, rpc: Rpc, *, write_quorum: int, timeout_ms: int
    ) -> None:
        self._replica = replica
        self._topology = topology
        self._rpc = rpc
        self._write_quorum = write_quorum
        self._timeout_ms = timeout_ms
        rpc.serve(METHOD, self._serve)

    async def find(self, id: str, agent_id: str, tags: tuple[str, ...]) -> GroupId:
        """The group that keeps the id, else the one it belongs to. Raises Unavailable(`no_quorum`) when it was not
        found and too few replicas of some group could be asked."""
        computed = self._topology.group_of(id, agent_id, tags)
        here = self._here(id)
        if here:
            return computed if computed in here else here[0]
        peers = {peer for group in self._topology.group_ids() for peer in self._topology.replicas(group)}
        live = [peer for peer in sorted(peers) if self._rpc.connected(peer)]
        calls = [self._rpc.call(peer, METHOD, id, timeout_ms=self._timeout_ms) for peer in live]
        found: set[int] = set()
        answered: set[NodeId] = set()
        for peer, answer in zip(live, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, SpineError):
                    raise answer
                continue
            answered.add(peer)
            found.update(answer)
        if found:
            return computed if computed in found else GroupId(min(found))
        self._check_asked(answered)
        return computed

    def _check_asked(self, answered: set[NodeId]) -> None:
        for group in self._topology.group_ids():
            replicas = self._topology.replicas(group)
            n = len(replicas)
            needed = read_quorum(n, min(self._write_quorum, n))
            asked = sum(1 for node in replicas if node in answered) + int(self._replica.holds(group))
            if asked < needed:
                raise Unavailable(
                    f"to look for an id, {needed} replicas of shard group {group} are needed and {asked} answered",
                    code="no_quorum",
                    retry_after_ms=500,
                )

    def _here(self, id: str) -> list[GroupId]:
        replica = self._replica
        return [
            group
            for group in replica.groups()
            if replica.record(group, id) is not None or replica.strong(group, id) is not None
        ]

    def _serve(self, peer: NodeId, body: Any) -> list[int]:
        return [int(group) for group in self._here(body)]
