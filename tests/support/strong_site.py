"""Nodes with the strong path on them, over the fake log and the fake links."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from raftspine.core.ledger.commands import PutMemory, encode
from raftspine.model import GroupId, Member, Memory, NodeId, StrongRecord, Table, Version
from raftspine.services.ledger_host import LedgerHost
from raftspine.services.strong import StrongPath, StrongTiming
from raftspine.services.topology import Topology
from tests.support.fake_engine import DictEngine
from tests.support.fake_log import FakeCluster
from tests.support.fake_rpc import FakeNet

GROUP = GroupId(0)


class ManualClock:
    """Follows the loop when it is given one, else stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def wall_ms(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now


class NoRing:
    def adopt(self, group: GroupId, version: Version) -> None:
        raise AssertionError("nothing is demoted in these stories")

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        pass


def table(replicas: Sequence[str], members: Sequence[str], groups: int) -> Table:
    kept = tuple(NodeId(n) for n in replicas)
    return Table(
        epoch=1,
        cluster_id="c1",
        strategy="id",
        members=tuple(Member(NodeId(n), "127.0.0.1", 1, 2) for n in members),
        groups=(kept,) * groups,
        meta=kept,
    )


class Site:
    """One node: replica of every group when it is among the replicas, else a gateway."""

    def __init__(self, node: str, world: "World") -> None:
        self.node = NodeId(node)
        self.engine = DictEngine()
        self.host = LedgerHost(self.engine, NoRing(), on_table=lambda _: None)
        self.log = world.cluster.log(node, self.host)
        self.rpc = world.net.rpc(node)
        self.topology = Topology(self.node, self.engine)
        self.topology.adopt(world.table)
        self.strong = StrongPath(self.node, self.log, self.rpc, self.topology, self.engine, world.clock, world.timing)


class World:
    """A cluster of sites. `members` beyond `replicas` are gateways."""

    def __init__(
        self,
        replicas: str = "abc",
        members: str = "abc",
        *,
        groups: int = 1,
        clock: Any = None,
        recheck_ms: int = 5,
    ) -> None:
        self.cluster = FakeCluster(list(replicas), range(groups))
        self.net = FakeNet()
        self.clock = clock or ManualClock()
        self.timing = StrongTiming(timeout_ms=2000, recheck_ms=recheck_ms, round_ms=1000, election_ms=1000)
        self.table = table(replicas, members, groups)
        self.sites = {n: Site(n, self) for n in members}

    def __getitem__(self, node: str) -> Site:
        return self.sites[node]

    def elect(self, node: str | None, group: int = 0) -> None:
        """A new leader, of which every replica's host hears."""
        self.cluster.elect(group, node)
        for site in self.sites.values():
            site.strong.leader_changed(GroupId(group), None if node is None else NodeId(node))

    def count(self, method: str) -> int:
        return sum(1 for _, _, each in self.net.calls if each == method)


def put(id: str, content: Any = "x", **fields: Any) -> bytes:
    return encode(PutMemory(id, Memory(content, tags=("critical",)), **fields))


async def until(condition: Callable[[], Any], turns: int = 1000) -> None:
    """Let the loop turn until something holds; fails when it does not within so many turns."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("what was waited for did not happen")


async def settle(turns: int = 20) -> None:
    """Let everything that can happen without time passing happen."""
    for _ in range(turns):
        await asyncio.sleep(0)
