"""Whom to ask for a shard group, and for how long to believe it.

A replica knows its leader from the log; any other node knows only what it was told. Both can be wrong for as
long as an election takes, so the rule: a belief is used until someone contradicts it, a refusal that names
another leader is followed at once, and never more than `HURRY` times in a row. Without the bound, two nodes
that each believe in the other would send a request round in circles; without following at once, every
failover would cost each request a full recheck interval.
"""

from raftspine.errors import SpineError
from raftspine.model import GroupId, NodeId
from raftspine.ports import ReplicatedLog, Rpc
from raftspine.services.topology import Topology

HURRY = 2
"""How often a request follows a change of leader at once before it waits for news: a hint, and a hint's hint."""


class Leaders:
    """This node's beliefs about who leads. `whom` is on the path of every strong operation."""

    def __init__(self, node: NodeId, log: ReplicatedLog, rpc: Rpc, topology: Topology) -> None:
        self._node = node
        self._log = log
        self._rpc = rpc
        self._topology = topology
        self._hints: dict[GroupId, NodeId] = {}

    def leader(self, group: GroupId) -> NodeId | None:
        """The leader as far as this node knows."""
        if self._topology.holds(group):
            return self._log.leader(group)
        return self._hints.get(group)

    def whom(self, group: GroupId, hops: int) -> tuple[NodeId | None, int]:
        """Whom to ask now, and how often that node may pass the question on: a replica asks the leader
        itself, any other node asks a replica that may have to pass it on (`hops`). None: nobody can be
        asked."""
        if self._topology.holds(group):
            leader = self._log.leader(group)
            if leader is None or leader == self._node:
                self._hints.pop(group, None)
                return leader, 0
            return self._hints.get(group, leader), 0
        hint = self._hints.get(group)
        if hint is not None and self._rpc.connected(hint):
            return hint, hops
        replicas = self.replicas(group)
        return (replicas[0] if replicas else None), hops

    def replicas(self, group: GroupId) -> list[NodeId]:
        """Replicas of a group this node can talk to now, preferred ones first."""
        return [n for n in self._topology.replicas(group) if n != self._node and self._rpc.connected(n)]

    def learn(self, group: GroupId, asked: NodeId | None, error: SpineError) -> None:
        """Take up the leader that a refusal names, and forget the one who refused."""
        if self._hints.get(group) == asked:
            self._hints.pop(group, None)
        named = error.details.get("leader")
        if named not in (None, asked, self._node) and named in self._topology.replicas(group):
            self._hints[group] = named

    def forget(self, group: GroupId) -> None:
        """The log itself has news: what others said is out of date."""
        self._hints.pop(group, None)
