"""One seed, one run: a cluster under load and faults, and what must hold of it.

The loads (load.py) are small and made to be judged. Faults come from the seed: crashes with and without power loss,
cuts in one or both directions, resets. At the end all is healed, and then:

* nothing acknowledged is lost, on either path, and nothing deleted comes back;
* a session never read or listed less than it had written;
* a counter shows every acknowledged increment, and at most the unknown ones beside them;
* of concurrent writes each is shown, was seen by what replaced it, or is in the conflict log;
* all replicas of a group hold the same ring records, vectors and strong state, their indexes say what their records
  say, and their vectors what their rows say.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from raftspine import codec
from raftspine.model import GroupId, RingRecord
from raftspine.node import Node
from raftspine.sim import coordination
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster
from raftspine.sim.load import Counters, Load, Moving, Report, Sessions, Shared, Stage, Violation
from raftspine.sim.loop import VirtualLoop
from raftspine.sim.net import Weather
from raftspine.storage import keys, memories

__all__ = ["Report", "Violation", "play"]


LOADS: dict[str, tuple[Callable[[Stage], Load], ...]] = {
    "memories": (Sessions, Moving, Shared, Counters),
    "coordination": coordination.LOADS,
}


def play(seed: int, seconds: float = 20.0, *, nodes: int = 3, load: str = "memories") -> Report:
    """Run one seed under the loads of that name. Raises Violation, or whatever a node raised where nobody caught
    it."""

    async def main(loop: VirtualLoop) -> Report:
        return await _Run(SimCluster(loop, nodes=nodes, weather=_weather(loop)), seed, seconds, LOADS[load]).go()

    return virtual.run(main, seed=seed)


def _weather(loop: VirtualLoop) -> Weather:
    """Links like TCP; some runs have slow ones."""
    slow = loop.dice.chance(0.3)
    return Weather(delay=(0.0003, 0.03 if slow else 0.003), stragglers=0.01 if slow else 0.001, give_up=2.0)


class _Run:
    def __init__(
        self, cluster: SimCluster, seed: int, seconds: float, loads: Sequence[Callable[[Stage], Load]]
    ) -> None:
        self.cluster = cluster
        self.dice = cluster.dice.fork()
        self.report = Report(seed, seconds)
        self.stage = Stage(cluster, self.dice, self.report)
        self.loads: list[Load] = [load(self.stage) for load in loads]

    async def go(self) -> Report:
        cluster = self.cluster
        await cluster.start()
        self.stage.ends = cluster.loop.time() + self.report.seconds
        for load in self.loads:
            await load.start()
        await asyncio.gather(self._faults(), *(work for load in self.loads for work in load.workers()))
        await self._judge()
        self.report.messages = cluster.network.delivered
        cluster.shut()
        return self.report

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _faults(self) -> None:
        """One fault after the other, each healed before long; never more machines down than a majority bears, but
        now and then all at once."""
        while not self.stage.over():
            await self.stage.pause(0.5, 3.0)
            fault = self.dice.choice(
                (self._crash, self._crash, self._crash_all, self._part, self._one_way, self._reset)
            )
            await fault()

    def _count(self, fault: str) -> None:
        self.report.faults[fault] = self.report.faults.get(fault, 0) + 1

    async def _crash(self) -> None:
        host = self.dice.choice(list(self.cluster.hosts.values()))
        power = self.dice.chance(0.6)
        self._count("power losses" if power else "crashes")
        host.crash(power=power)
        await self.stage.pause(0.05, 3.0)
        host.start()

    async def _crash_all(self) -> None:
        if self.dice.chance(0.6):
            return
        self._count("losses of all nodes")
        for host in self.cluster.hosts.values():
            host.crash(power=True)
        await self.stage.pause(0.05, 1.0)
        for host in self.cluster.hosts.values():
            host.start()

    async def _part(self) -> None:
        ids = self.cluster.ids
        self.dice.shuffle(ids)
        split = 1 + self.dice.below(len(ids) - 1)
        self._count("partitions")
        heal = self.cluster.network.partition(ids[:split], ids[split:])
        await self.stage.pause(0.2, 4.0)
        heal()

    async def _one_way(self) -> None:
        a, b = self.dice.choice(self.cluster.ids), self.dice.choice(self.cluster.ids)
        if a != b:
            self._count("one-way cuts")
            self.cluster.network.cut(a, b)
            await self.stage.pause(0.2, 4.0)
            self.cluster.network.heal(a, b)

    async def _reset(self) -> None:
        a, b = self.dice.choice(self.cluster.ids), self.dice.choice(self.cluster.ids)
        if a != b:
            self._count("resets")
            self.cluster.network.reset(a, b)

    # ── judgement ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        """Everything is healed; the cluster has to come to rest, in agreement, with all that was acknowledged."""
        cluster = self.cluster
        for host in cluster.hosts.values():
            if not host.up:
                host.start()
        await cluster.until(lambda: all(cluster.ready(host) for host in cluster.hosts.values()), "all are ready")
        await cluster.until(self._linked, "all links are up")
        try:
            await cluster.until(lambda: self._differing() is None, "all replicas agree")
        except AssertionError as error:
            raise Violation(f"seed {self.report.seed}: {self._differing()}\n{error}") from None
        for host in cluster.live():
            assert host.node is not None, "live hosts have a node"
            self._check_rows(host.node)
            for load in self.loads:
                await load.judge(host)

    def _linked(self) -> bool:
        ids = self.cluster.ids
        return all(self.cluster.network.up(a, b) for a in ids for b in ids if a < b)

    def _differing(self) -> str | None:
        """Where two replicas of a group differ; None when they agree."""
        nodes = [host.node for host in self.cluster.live() if host.node is not None]
        for group in nodes[0].topology.group_ids():
            holders = [node for node in nodes if node.replica.holds(group)]
            first = _state(holders[0], group)
            for node in holders[1:]:
                if node.replica.vector(group) != holders[0].replica.vector(group):
                    return f"{node.id} and {holders[0].id} have seen different writes of group {group}"
                other = _state(node, group)
                for key in sorted(first.keys() | other.keys()):
                    if _content(first.get(key)) != _content(other.get(key)):
                        return f"{holders[0].id} and {node.id} differ at {key!r}:\n{first.get(key)}\n{other.get(key)}"
                if _ledger(node, group) != _ledger(holders[0], group):
                    return f"{holders[0].id} and {node.id} keep different rows of coordination in group {group}"
        return None

    def _check_rows(self, node: Node) -> None:
        """The index rows must follow from the records, and the vector from the rows it would be loaded from."""
        for group in node.replica.groups():
            wanted = set()
            for key, record in _state(node, group).items():
                id = keys.id_of_record(key)
                if key[:1] == keys.RING:
                    rows = memories.ring_rows(group, id, None, record)
                else:
                    rows = memories.strong_rows(group, id, None, record)
                wanted |= {index for index, _ in rows[1:]}
            found = {key for key, _ in node.engine.scan(*keys.span(keys.INDEX, group), limit=100_000)}
            if found != wanted:
                raise self.stage.broken(f"{node.id} group {group}: index rows {sorted(found ^ wanted)} are wrong")
            if memories.load_vector(node.engine, group) != node.replica.vector(group):
                raise self.stage.broken(f"{node.id} group {group}: the vector is not what its rows add up to")


def _state(node: Node, group: GroupId) -> dict[bytes, Any]:
    """A replica's ring and strong records of a group. Decoded, because equal contexts may be stored in any order."""
    rows: dict[bytes, Any] = {}
    for kind, decode in ((keys.RING, codec.decode_ring), (keys.STRONG, codec.decode_strong)):
        for key, data in node.engine.scan(*keys.span(kind, group), limit=100_000):
            rows[key] = decode(data)
    return rows


def _ledger(node: Node, group: GroupId) -> list[tuple[bytes, bytes]]:
    """Counters and the rows of coordination, byte for byte."""
    return node.engine.scan(*keys.span(keys.LEDGER, group), limit=100_000)


def _content(record: Any) -> Any:
    """What replicas must agree on. The joint context of a ring record may name a version that fell to a promotion on
    one replica and never entered the record on another; its dot is in both vectors."""
    return record.versions if isinstance(record, RingRecord) else record
