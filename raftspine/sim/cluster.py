"""Whole nodes on virtual time, disks and links: what production runs, minus the machine.

Each node is a real `Node` (both paths, real PySyncObj, real ledger, real log format) on a simulated world, and a
process of its own on the loop (`loop.Owner`): it can be stopped with all its timers, and what runs in it ends with
it. What a dead life still holds (transport, files, tree) no longer reaches anything.

A node can also die at a named point: it names some steps itself (ports.CrashPoint), and the simulated disk, tree and
links name every moment just before and just after something leaves the process or becomes durable. Between two of
these nothing can be told apart from outside, so these are all the places at which a crash can matter.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from raftspine.cluster.raft_group import RaftGroup
from raftspine.config import Config, Consistency, Partitioning, Replication, Storage, Timing
from raftspine.core.routing import Override
from raftspine.model import GroupId, Member, Model, NodeId, Role
from raftspine.node import Node, Sizes, World
from raftspine.ports import FrozenView
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Killed, Owner, VirtualClock, VirtualLoop, owner_name
from raftspine.sim.narration import Narration
from raftspine.sim.net import Network, Weather
from raftspine.sim.tree import SimTree

T = TypeVar("T")

SECRET = b"the simulated cluster's secret"
READY_SECONDS = 60.0
CALL_SECONDS = 8.0

OVERRIDES = (
    Override(frozenset({"critical", "lock"}), Model.STRONG),
    Override(frozenset({"thread"}), Model.CAUSAL),
    Override(frozenset({"metric"}), Model.EVENTUAL),
)
"""What tags ask for in a simulated cluster: one of each model, the rest read-your-writes."""


class Lost(Exception):
    """The node died or did not answer: nobody knows what became of the call."""


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


class Image(NamedTuple):
    """A machine's disk at one moment."""

    data: dict[str, bytes]
    raft: dict[str, bytes]
    tree: dict[bytes, bytes]


@dataclass
class Trap:
    """Where a node is to die, or `act` instead: at the `left`-th passing of a point whose name begins so."""

    point: str
    left: int
    power: bool
    act: Callable[[], None] | None = None


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
        self.owner: Owner | None = None
        self._outside = copy_context()
        self.trap: Trap | None = None
        self.points: dict[str, int] = {}
        """How often each step that a node names itself (ports.CrashPoint) was passed, in all lives."""
        self.on_point: Callable[[SimHost, str], None] | None = None
        """Called at each of them: another place to `crash`."""
        self.disk_failed = False
        """Whether this disk ever refused anything: a node may then stop a group, and say so."""
        self._cluster = cluster
        self._hold: _Held | None = None
        self._calls: dict[Future[Any], None] = {}

    @property
    def up(self) -> bool:
        return self.node is not None

    @property
    def paused(self) -> bool:
        return self.owner is not None and self.owner.paused

    async def _open_links(self) -> None:
        """Joining the network has done it."""

    # ── life and death ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Node | None:
        """A new life of this machine's node; None when it died while it started. Raises what a real start would."""
        self.lives += 1
        self.owner = Owner(self._cluster.loop, self.id)
        try:
            return self.owner.context.copy().run(self._begin, self.owner)
        except Killed:
            return None
        except BaseException:
            self._end(power=False)
            raise

    def _begin(self, owner: Owner) -> Node:
        self.disk.at = self.tree.at = self.pass_point
        hold = self._hold = _Held(self.tree)
        world = World(
            clock=self.clock,
            entropy=self.dice.fork(),
            secret=SECRET,
            transport=self._cluster.network.join(self.id, owner, self.pass_point),
            data_log=self.disk.directory("data"),
            raft_log=self.disk.directory("raft"),
            tree=hold,
            staging=self.disk.directory("staging"),
            open_links=self._open_links,
            folder=f"/simulated/{self.id}",
            passed=self._passed,
            sizes=self._cluster.sizes,
        )
        node = Node(self._cluster.config, self.id, world)
        self.node = node
        self._cluster.narration.tell(self.id, "starts")
        for shown in self._cluster.on_start:
            shown(node)
        node.start()
        node.void.add_done_callback(lambda _: self._begin_anew(node), context=self._outside.copy())
        return node

    def _begin_anew(self, node: Node) -> None:
        """As the process would: a node that found itself void ends and starts again."""
        if self.node is node:
            self.crash(power=False, why="is void and begins anew")
            self.start()

    def crash(self, *, power: bool, why: str = "") -> None:
        """The process dies at once; with `power`, the page cache with it."""
        if self.node is not None:
            self._cluster.narration.tell(self.id, why or ("loses power" if power else "is killed"))
            self._end(power=power)

    def _end(self, *, power: bool) -> None:
        node, self.node = self.node, None
        if node is not None:
            for told in self._cluster.on_end:
                told(self, node)
        if self.owner is not None:
            self.owner.kill()
        self.disk.at = self.tree.at = self.trap = None
        self._cluster.network.leave(self.id)
        self.disk.crash(power=power)
        self.tree.crash()
        if self._hold is not None:
            self._hold.dead = True
        if node is not None:
            node.kill()
        calls, self._calls = self._calls, {}
        for call in calls:
            if not call.done():
                call.set_exception(Lost())

    def _passed(self, point: str) -> None:
        """The node has come to a step that it names itself; the ghost of an earlier life comes nowhere."""
        if owner_name() != self.id or self.owner is None or self.owner.dead:
            return
        self.points[point] = self.points.get(point, 0) + 1
        if self.on_point is not None:
            self._outside.copy().run(self.on_point, self, point)  # whoever listens is no part of the node
        self.pass_point(point)

    def pass_point(self, point: str) -> None:
        """A named point was reached; where a trap is set, this is the node's last."""
        trap = self.trap
        if trap is None or not point.startswith(trap.point):
            return
        trap.left -= 1
        if trap.left > 0:
            return
        self.trap = None
        self._cluster.narration.tell(self.id, f"reaches the point `{point}`")
        if trap.act is not None:
            trap.act()
            return
        if self.node is None:  # it dies while it starts
            self._end(power=trap.power)
        self.crash(power=trap.power)
        raise Killed

    def pause(self) -> None:
        """SIGSTOP: timers, tasks and sockets stand still, and time does not."""
        if self.owner is not None and self.up and not self.owner.paused:
            self.owner.pause()
            self._cluster.network.silence(self.id)

    def resume(self) -> None:
        """SIGCONT."""
        if self.owner is not None and self.owner.paused:
            self._cluster.network.unsilence(self.id)
            self.owner.resume()

    def wipe(self, *, store: bool = True, journal: bool = True) -> None:
        """A dead node loses its store, its Raft journal, or both."""
        assert self.node is None, "crash it first"
        if store:
            self.disk.erase("data")
            self.tree = SimTree(self._cluster.loop)
        if journal:
            self.disk.erase("raft")

    def image(self) -> "Image":
        """What a backup of a dead node would hold."""
        assert self.node is None, "crash it first"
        return Image(self.disk.image("data"), self.disk.image("raft"), self.tree.rows())

    def restore(self, image: "Image") -> None:
        """Put an older image in place of what a dead node has, as a restored machine does."""
        assert self.node is None, "crash it first"
        self.disk.restore("data", image.data)
        self.disk.restore("raft", image.raft)
        self.tree = SimTree(self._cluster.loop, rows=image.tree)

    # ── being asked ─────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Have the node's process do this, as a request over HTTP would. Fails with Lost when the process dies or
        has not answered within CALL_SECONDS."""
        loop = self._cluster.loop
        answer: Future[T] = loop.create_future()
        if self.owner is None or not self.up:
            work.close()
            answer.set_exception(Lost())
            return answer
        task = loop.create_task(work, context=self.owner.context.copy())
        self._calls[answer] = None
        timer = loop.call_later(CALL_SECONDS, self._late, answer)

        def done(task: "asyncio.Task[T]") -> None:
            timer.cancel()
            self._calls.pop(answer, None)
            error = None if task.cancelled() else task.exception()
            if answer.done():
                return
            if task.cancelled() or isinstance(error, Killed):
                answer.set_exception(Lost())
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        task.add_done_callback(done, context=copy_context())
        return answer

    def _late(self, answer: "Future[Any]") -> None:
        self._calls.pop(answer, None)
        if not answer.done():
            answer.set_exception(Lost())


def raft_groups(node: Node) -> list[RaftGroup]:
    """A node's groups as the Raft driver has them; for those who watch, not for those who use."""
    return list(node.raft._groups.values())


class SimCluster:
    """`nodes` machines named a, b, c …, all of whose chance comes from the loop's seed; the last `gateways` of them
    keep no data. Each of `on_start` is shown a node before it starts, each of `on_end` a host and the node it loses,
    before anything of it is gone."""

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
        narration: Narration | None = None,
    ) -> None:
        self.loop = loop
        self.sizes = sizes or Sizes()
        self.dice = loop.dice
        self.narration = narration or Narration(loop.time)
        self.on_start: list[Callable[[Node], None]] = []
        self.on_end: list[Callable[[SimHost, Node], None]] = []
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

    def leader(self, group: GroupId) -> SimHost | None:
        """The machine whose node leads a group in the highest term."""
        best: tuple[int, SimHost] | None = None
        for host in self.live():
            if host.node is not None and group in host.node.raft.groups():
                status = host.node.raft.status(group)
                if status.role == "leader" and (best is None or status.term > best[0]):
                    best = (status.term, host)
        return None if best is None else best[1]

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
            lines.append(f"{id}: {'stopped' if host.paused else 'ready' if ok else '; '.join(reasons)}")
            lines += [f"    {status}" for status in host.node.overview.log_statuses()]
        return "\n".join(lines)

    def shut(self) -> None:
        """End the run: every node dies."""
        for host in self.hosts.values():
            host.crash(power=False)
