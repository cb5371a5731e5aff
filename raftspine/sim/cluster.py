"""Whole nodes on virtual time, disks and links: what production runs, minus the machine.

Each node is a real `Node` (both paths, real PySyncObj, real ledger, real log format) on a simulated world. A
crash leaves a node's old life behind as a ghost: its timers may still fire, but whatever it holds (transport,
files, tree) no longer reaches anything, exactly as a dead process no longer writes.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Any

from raftspine.config import Config, Consistency, Partitioning, Replication, Storage, Timing
from raftspine.core.routing import Override
from raftspine.model import Member, Model, NodeId, Role
from raftspine.node import Node, Sizes, World
from raftspine.ports import FrozenView
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import VirtualClock, VirtualLoop
from raftspine.sim.net import Network, Weather
from raftspine.sim.tree import SimTree

SECRET = b"the simulated cluster's secret"
READY_SECONDS = 60.0

OVERRIDES = (
    Override(frozenset({"critical", "lock"}), Model.STRONG),
    Override(frozenset({"thread"}), Model.CAUSAL),
    Override(frozenset({"metric"}), Model.EVENTUAL),
)
"""What tags ask for in a simulated cluster: one of each model, the rest read-your-writes."""


class _Held:
    """One life's hold on a node's tree; dead with that life."""

    def __init__(self, tree: SimTree) -> None:
        self._tree = tree
        self.dead = False

    def get(self, key: bytes) -> bytes | None:
        return self._tree.get(key)

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return self._tree.scan(lo, hi, limit=limit, reverse=reverse)

    def apply(self, rows: dict[bytes, bytes | None]) -> "Future[None]":
        return asyncio.get_running_loop().create_future() if self.dead else self._tree.apply(rows)

    def freeze(self) -> FrozenView:
        return self._tree.freeze()

    def used_ratio(self) -> float:
        return self._tree.used_ratio()

    def close(self) -> None:
        if not self.dead:
            self._tree.close()


class SimHost:
    """A machine of the cluster: what outlives its node's process."""

    def __init__(self, cluster: "SimCluster", id: NodeId) -> None:
        dice = cluster.dice.fork()
        self.id = id
        self.dice = dice
        self.disk = SimDisk(cluster.loop, dice.fork())
        self.tree = SimTree(cluster.loop)
        self.clock = VirtualClock(
            cluster.loop, offset_ms=int(dice.uniform(-200, 200)), rate=dice.uniform(0.999, 1.001)
        )
        self.node: Node | None = None
        self.lives = 0
        self._ghosts: list[Node] = []
        """Dead nodes. A task of theirs may wait for its dead disk for ever; were it collected during the run, by a
        collector that keeps no seed, the loop would complain of it."""
        self.points: dict[str, int] = {}
        """How often each named step (ports.CrashPoint) was passed, in all lives."""
        self.on_point: Callable[[SimHost, str], None] | None = None
        """Called at each of them: the place to `crash`."""
        self._cluster = cluster
        self._hold: _Held | None = None

    @property
    def up(self) -> bool:
        return self.node is not None

    async def _open_links(self) -> None:
        """Joining the network has done it."""

    def start(self) -> Node:
        """A new life of this machine's node. Raises what a real start would."""
        hold = self._hold = _Held(self.tree)
        self.lives += 1
        world = World(
            clock=self.clock,
            entropy=self.dice.fork(),
            secret=SECRET,
            transport=self._cluster.network.join(self.id),
            data_log=self.disk.directory("data"),
            raft_log=self.disk.directory("raft"),
            tree=hold,
            staging=self.disk.directory("staging"),
            open_links=self._open_links,
            folder=f"/simulated/{self.id}",
            passed=partial(self._passed, self.lives),
            sizes=self._cluster.sizes,
        )
        node = self.node = Node(self._cluster.config, self.id, world)
        if self._cluster.on_start is not None:
            self._cluster.on_start(node)
        node.start()
        return node

    def _passed(self, life: int, point: str) -> None:
        """The node has come to a named step; the ghost of an earlier life has not."""
        if life == self.lives and self.node is not None:
            self.points[point] = self.points.get(point, 0) + 1
            if self.on_point is not None:
                self.on_point(self, point)

    def crash(self, *, power: bool) -> None:
        """The process dies at once; with `power`, the page cache with it."""
        node, self.node = self.node, None
        if node is None:
            return
        self._cluster.network.leave(self.id)
        self.disk.crash(power=power)
        self.tree.crash()
        if self._hold is not None:
            self._hold.dead = True
        node.kill()
        self._ghosts.append(node)

    def wipe(self) -> None:
        """A dead node loses its store and keeps its Raft journal: what a replica of the ring alone can heal."""
        assert self.node is None, "crash it first"
        self.disk.erase("data")
        self.tree = SimTree(self._cluster.loop)


class SimCluster:
    """`nodes` machines named a, b, c …, all of whose chance comes from the loop's seed; the last `gateways` of them
    keep no data. `on_start` is shown each node before it starts."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        nodes: int = 3,
        groups: int = 4,
        durability: str = "always",
        strategy: str = "id",
        gateways: int = 0,
        weather: Weather | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.loop = loop
        self.sizes = sizes or Sizes()
        self.dice = loop.dice
        self.on_start: Callable[[Node], None] | None = None
        self.network = Network(loop, self.dice.fork(), weather)
        ids = [NodeId(chr(ord("a") + n)) for n in range(nodes)]
        holders = nodes - gateways
        factor = min(3, holders)
        roles = dict(zip(ids, [Role.PRIMARY] * holders + [Role.GATEWAY] * gateways, strict=True))
        self.config = Config(
            name="simulated",
            members=tuple(Member(id, f"host-{id}", 8788, 8798, zone=f"zone-{id}", role=roles[id]) for id in ids),
            consistency=Consistency(overrides=OVERRIDES),
            replication=Replication(factor, factor // 2 + 1),
            secret=SECRET,
            partitioning=Partitioning(strategy=strategy, shard_groups=groups),
            storage=Storage(durability=durability),
            timing=Timing(),
        )
        self.hosts = {id: SimHost(self, id) for id in ids}

    @property
    def ids(self) -> list[NodeId]:
        return list(self.hosts)

    def live(self) -> list[SimHost]:
        return [host for host in self.hosts.values() if host.up]

    async def start(self) -> None:
        """Start all nodes and wait until each is ready."""
        for host in self.hosts.values():
            host.start()
        await self.until(lambda: all(self.ready(host) for host in self.hosts.values()), "all nodes are ready")

    def ready(self, host: SimHost) -> bool:
        return host.node is not None and host.node.overview.ready()[0]

    async def until(self, holds: Any, what: str, seconds: float = READY_SECONDS) -> None:
        """Wait for a condition of the simulated cluster. AssertionError when it does not come."""
        ends = self.loop.time() + seconds
        while not holds():
            if self.loop.time() > ends:
                raise AssertionError(f"not within {seconds} virtual seconds: {what}\n{self.describe()}")
            await asyncio.sleep(0.05)

    def describe(self) -> str:
        """Each node's own account, for a run that went wrong."""
        lines = [f"t={self.loop.time():.3f}"]
        for id, host in self.hosts.items():
            if host.node is None:
                lines.append(f"{id}: down")
                continue
            ok, reasons = host.node.overview.ready()
            lines.append(f"{id}: {'ready' if ok else '; '.join(reasons)}")
            lines += [f"    {status}" for status in host.node.overview.log_statuses()]
        return "\n".join(lines)

    def shut(self) -> None:
        """End the run: every node dies."""
        for host in self.hosts.values():
            host.crash(power=False)
