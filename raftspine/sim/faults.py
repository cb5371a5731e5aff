"""What can go wrong, as a table: a name, how often, how long, and a function that does it and undoes it again.

A fault gets the scene, dice of its own and its length, strikes, waits, and leaves the world as it found it.
Several may be at work at once; one whose victim is down already has nothing to do. A new fault is a function and
a row of `FAULTS`; the plan draws from the table, `--faults` narrows it down.

What a fault may do is bounded by what the store promises. Its links are authenticated and ordered, so none forges
or doubles a message (net.py). With `durability: interval` a write is safe in two page caches, not on two disks,
so two power losses in a row are too many for it; `Scene.take_power` keeps them apart and kills the process
instead. And a node may lose its disk for good only while its peers are whole.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from raftspine.errors import Corrupt, Misuse, SpineError
from raftspine.model import META_GROUP, GroupId, NodeId
from raftspine.sim.cluster import Lost, SimCluster, SimHost, Trap
from raftspine.sim.loop import Dice
from raftspine.sim.plan import Kind
from raftspine.sim.tree import DELAY_SECONDS

RESTART_SECONDS = 0.5
"""Pause between attempts to start a node whose disk refuses it."""

APART_SECONDS = 4.0
"""Between two losses of what was not on disk everywhere: time to sync, and to catch up with the others."""

POINTS = (
    "before writing to raft",
    "after writing to raft",
    "before syncing raft",
    "after syncing raft",
    "before writing to data",
    "after writing to data",
    "after syncing data",
    "before removing from",
    "after removing from",
    "after a checkpoint",
    "before sending raft",
    "after sending raft",
    "after receiving raft",
    "before sending ring.push",
    "after sending ring.push",
    "after receiving ring.push",
    "before sending ring.ack",
    "after sending ring.ack",
    "before sending strong.propose",
    "after sending strong.propose",
    "after receiving strong.propose",
    "before sending an answer",
    "after sending an answer",
    "after receiving ring.vectors",
    "after receiving ring.pull",
    "compaction:",
    "journal:",
    "snapshot:",
)
"""Named points (beginnings of their names) at which a process can be made to die or to stop: the simulated world's,
and those that a node names itself."""

READ_POINTS = ("after receiving strong.read_index", "after sending strong.read_index", "after sending raft")
"""Where a read barrier is under way."""


class Refused(Exception):
    """A node does not start on its own disk."""


class Scene:
    """What faults act on. `broken(rule, what)` ends the run: a promise was not kept."""

    def __init__(self, cluster: SimCluster, broken: Callable[[str, str], BaseException]) -> None:
        self.cluster = cluster
        self._broken = broken
        self._forgot_at = float("-inf")
        self._calm = cluster.network.weather
        self._changes: list[dict[str, Any]] = []

    @property
    def now(self) -> float:
        return self.cluster.loop.time()

    def tell(self, what: str) -> None:
        self.cluster.narration.tell("fault", what)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # ── victims ───────────────────────────────────────────────────────────────────────────────────────────────

    def hosts(self) -> list[SimHost]:
        return list(self.cluster.hosts.values())

    def victim(self, dice: Dice) -> SimHost | None:
        """A live node, as often as not one that leads."""
        wants_leader, place = dice.chance(0.5), dice.random()
        group = GroupId(dice.below(self.cluster.config.partitioning.shard_groups))
        leader = self.cluster.leader(META_GROUP if dice.chance(0.1) else group)
        if wants_leader and leader is not None:
            return leader
        live = self.cluster.live()
        return live[int(place * len(live))] if live else None

    def two(self, dice: Dice) -> tuple[NodeId, NodeId]:
        ids = self.cluster.ids
        dice.shuffle(ids)
        return ids[0], ids[1]

    # ── weather ───────────────────────────────────────────────────────────────────────────────────────────────

    def change_weather(self, change: dict[str, Any], *, over: bool = False) -> None:
        """Weather on top of what is there, or gone again; the order in which several end does not matter."""
        if over:
            self._changes = [other for other in self._changes if other is not change]
        else:
            self._changes.append(change)
        weather = self._calm
        for each in self._changes:
            weather = weather._replace(**each)
        self.cluster.network.weather = weather

    # ── death and return ──────────────────────────────────────────────────────────────────────────────────────

    def take_power(self, host: SimHost) -> None:
        """A power loss, if the cluster's durability bears one now; else the process is killed."""
        bears = self.cluster.config.storage.durability == "always" or self.may_forget(host)
        if bears:
            self._forgot_at = self.now
        host.crash(power=bears)

    def may_forget(self, host: SimHost) -> bool:
        """Whether this node may lose what is not on disk on a majority yet."""
        others = [other for other in self.hosts() if other is not host]
        whole = len(others) >= 2 and all(other.up for other in others)
        return whole and self.now - self._forgot_at > APART_SECONDS

    def whole(self) -> bool:
        """Whether every node is up, ready and in step with the others, so that any one of them can be spared."""
        return all(host.up and self.cluster.ready(host) and self._level(host) for host in self.hosts())

    def _level(self, host: SimHost) -> bool:
        """Whether a node has told and been told all, as far as it knows."""
        node = host.node
        if node is None or not all(node.replica.level(group) for group in node.replica.groups()):
            return False
        behind = any(node.overview.pending_dots(peer) for peer in node.overview.peer_ids())
        return not behind and all(one.applied >= one.commit for one in node.overview.log_statuses())

    def forgets(self) -> None:
        self._forgot_at = self.now

    async def revive(self, host: SimHost) -> None:
        """Start a node that is down, again and again while its disk refuses."""
        while not host.up:
            try:
                host.start()
            except Corrupt as error:
                raise self._broken("own disk", f"{host.id} does not start: {error.message}") from error
            except (OSError, SpineError) as error:
                self.cluster.narration.tell(host.id, f"does not start: {error}")
            if not host.up:
                await self.wait(RESTART_SECONDS)


Act = Callable[[Scene, Dice, float], Awaitable[None]]


class Fault(NamedTuple):
    kind: Kind
    act: Act


FAULTS: dict[str, Fault] = {}


def _fault(weight: int, lasts: tuple[float, float], *, nodes: int = 1) -> Callable[[Act], Act]:
    """A row of the table; the function's name is the fault's."""

    def add(act: Act) -> Act:
        name = act.__name__.replace("_", "-")
        FAULTS[name] = Fault(Kind(name, weight, lasts, nodes), act)
        return act

    return add


def kinds(names: str | None = None) -> tuple[Kind, ...]:
    """The table as the plan draws from it; only these faults when `names` (comma-separated) are given. Misuse for a
    name that is not in it."""
    wanted = list(FAULTS) if names is None else [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in FAULTS]
    if unknown:
        raise Misuse(f"unknown faults: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return tuple(FAULTS[name].kind for name in wanted)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────


@_fault(4, (0.05, 3.0))
async def crash(scene: Scene, dice: Dice, lasts: float) -> None:
    host = scene.victim(dice)
    if host is not None:
        host.crash(power=False)
        await scene.wait(lasts)
        await scene.revive(host)


@_fault(6, (0.05, 3.0))
async def power_loss(scene: Scene, dice: Dice, lasts: float) -> None:
    host = scene.victim(dice)
    if host is not None:
        scene.take_power(host)
        await scene.wait(lasts)
        await scene.revive(host)


@_fault(2, (0.05, 1.0))
async def power_loss_everywhere(scene: Scene, dice: Dice, lasts: float) -> None:
    power = scene.cluster.config.storage.durability == "always"
    victims = scene.cluster.live()
    scene.tell("all nodes lose power" if power else "all processes are killed")
    for host in victims:
        host.crash(power=power)
    await scene.wait(lasts)
    await asyncio.gather(*(scene.revive(host) for host in victims))


@_fault(8, (0.5, 2.0))
async def crash_at_point(scene: Scene, dice: Dice, lasts: float) -> None:
    """Death just before or just after something leaves the process or becomes durable."""
    host, point, count = scene.victim(dice), dice.choice(POINTS), 1 + dice.below(4)
    if host is None:
        return
    power = dice.chance(0.6) and (scene.cluster.config.storage.durability == "always" or scene.may_forget(host))
    host.trap = Trap(point, count, power)
    ends = scene.now + lasts
    while host.up and scene.now < ends:
        await scene.wait(0.02)
    host.trap = None
    if not host.up:
        if power:
            scene.forgets()
        await scene.wait(dice.uniform(0.02, 1.0))
        await scene.revive(host)


@_fault(2, (0.02, 0.3))
async def crash_while_starting(scene: Scene, dice: Dice, lasts: float) -> None:
    """Death, and death again among the first things the next life does."""
    host, point = scene.victim(dice), dice.choice(POINTS)
    if host is None:
        return
    host.crash(power=False)
    await scene.wait(lasts)
    if not host.up:
        host.trap = Trap(point, 1, False)
        await scene.revive(host)
        await scene.wait(0.3)
        host.trap = None
        await scene.revive(host)


@_fault(1, (1.0, 3.0))
async def restart_storm(scene: Scene, dice: Dice, lasts: float) -> None:
    """Nodes die one after the other, some before the last one is back."""
    ends = scene.now + lasts
    scene.tell("a storm of restarts begins")
    returns: list[Awaitable[None]] = []

    async def come_back(host: SimHost, after: float) -> None:
        await scene.wait(after)
        await scene.revive(host)

    while scene.now < ends:
        host = scene.victim(dice)
        if host is not None:
            host.crash(power=False)
            returns.append(asyncio.ensure_future(come_back(host, dice.uniform(0.02, 0.5))))
        await scene.wait(dice.uniform(0.05, 0.4))
    await asyncio.gather(*returns)


@_fault(2, (0.1, 1.0))
async def planned_restart(scene: Scene, dice: Dice, lasts: float) -> None:
    """What an operator does: leadership is handed over, everything is flushed and closed."""
    host = scene.victim(dice)
    if host is None or host.node is None:
        return
    node = host.node
    scene.cluster.narration.tell(host.id, "is asked to stop")
    try:
        await host.call(node.stop())
    except (Lost, SpineError, OSError) as error:
        scene.cluster.narration.tell(host.id, f"did not stop in peace: {error or type(error).__name__}")
    if host.node is node:
        host.crash(power=False, why="ends")
    await scene.wait(lasts)
    await scene.revive(host)


@_fault(1, (0.1, 1.0), nodes=2)
async def handover(scene: Scene, dice: Dice, lasts: float) -> None:
    host = scene.victim(dice)
    if host is None or host.node is None:
        return
    scene.cluster.narration.tell(host.id, "hands all its groups over")
    try:
        await host.call(host.node.raft.step_down_all())
    except (Lost, SpineError):
        scene.cluster.narration.tell(host.id, "died while handing over")


@_fault(4, (0.1, 4.0))
async def pause(scene: Scene, dice: Dice, lasts: float) -> None:
    host = scene.victim(dice)
    if host is not None:
        await _stand_still(scene, host, lasts)


@_fault(3, (0.3, 3.0), nodes=2)
async def pause_in_read(scene: Scene, dice: Dice, lasts: float) -> None:
    """A leader stops while it is being asked whether it still leads, and answers when that has changed."""
    host, point, count = scene.victim(dice), dice.choice(READ_POINTS), 1 + dice.below(3)
    if host is None:
        return

    reached = asyncio.Event()

    def stop() -> None:
        host.pause()
        reached.set()

    host.trap = Trap(point, count, False, stop)
    await asyncio.wait([asyncio.ensure_future(reached.wait())], timeout=1.0)
    host.trap = None
    if reached.is_set():
        scene.cluster.narration.tell(host.id, f"stands still for {lasts:.2f} s")
        await scene.wait(lasts)
        if host.paused:
            host.resume()
            scene.cluster.narration.tell(host.id, "goes on")


async def _stand_still(scene: Scene, host: SimHost, seconds: float) -> None:
    owner = host.owner
    if host.paused or owner is None:
        return
    scene.cluster.narration.tell(host.id, f"stands still for {seconds:.2f} s")
    host.pause()
    await scene.wait(seconds)
    if host.owner is owner and owner.paused:
        host.resume()
        scene.cluster.narration.tell(host.id, "goes on")


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _cut(scene: Scene, ways: list[tuple[NodeId, NodeId]], lasts: float, what: str) -> None:
    scene.tell(f"{what}, for {lasts:.2f} s")
    network = scene.cluster.network
    for way in ways:
        network.cut(*way)
    await scene.wait(lasts)
    for way in ways:
        network.heal(*way)
    scene.tell(f"healed: {what}")


def _between(one: list[NodeId], other: list[NodeId]) -> list[tuple[NodeId, NodeId]]:
    return [way for a in one for b in other for way in ((a, b), (b, a))]


@_fault(4, (0.2, 4.0), nodes=2)
async def partition(scene: Scene, dice: Dice, lasts: float) -> None:
    """Two sides, of any size."""
    ids = scene.cluster.ids
    dice.shuffle(ids)
    split = 1 + dice.below(len(ids) - 1)
    left, right = ids[:split], ids[split:]
    await _cut(scene, _between(left, right), lasts, f"{' '.join(left)} | {' '.join(right)}")


@_fault(3, (0.2, 4.0), nodes=2)
async def leader_alone(scene: Scene, dice: Dice, lasts: float) -> None:
    host = scene.victim(dice)
    if host is not None:
        others = [id for id in scene.cluster.ids if id != host.id]
        await _cut(scene, _between([host.id], others), lasts, f"{host.id} is alone")


@_fault(3, (0.2, 4.0), nodes=3)
async def bridge(scene: Scene, dice: Dice, lasts: float) -> None:
    """Two sides that cannot talk, and one node that talks to both."""
    ids = scene.cluster.ids
    dice.shuffle(ids)
    middle, rest = ids[0], ids[1:]
    left, right = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    await _cut(scene, _between(left, right), lasts, f"{' '.join(left)} | {' '.join(right)}, bridged by {middle}")


@_fault(3, (0.2, 4.0), nodes=2)
async def one_way(scene: Scene, dice: Dice, lasts: float) -> None:
    a, b = scene.two(dice)
    await _cut(scene, [(a, b)], lasts, f"nothing from {a} reaches {b}")


@_fault(2, (0.2, 4.0), nodes=2)
async def deaf_or_mute(scene: Scene, dice: Dice, lasts: float) -> None:
    """A node hears all and is heard by none, or the other way round."""
    host, mute = scene.victim(dice), dice.chance(0.5)
    if host is not None:
        others = [id for id in scene.cluster.ids if id != host.id]
        ways = [(host.id, id) if mute else (id, host.id) for id in others]
        await _cut(scene, ways, lasts, f"{host.id} is {'mute' if mute else 'deaf'}")


@_fault(4, (0.0, 0.0), nodes=2)
async def reset(scene: Scene, dice: Dice, lasts: float) -> None:
    """A connection breaks with what was on it; one, or all of a node."""
    a, b = scene.two(dice)
    every = dice.chance(0.3)
    scene.tell(f"all connections of {a} break" if every else f"the connection of {a} and {b} breaks")
    for other in scene.cluster.ids:
        if other != a and (every or other == b):
            scene.cluster.network.reset(a, other)


@_fault(2, (0.5, 4.0), nodes=2)
async def delay_storm(scene: Scene, dice: Dice, lasts: float) -> None:
    """Everything takes long, and some of it very long."""
    longest = dice.uniform(0.05, 0.6)
    await _weather(scene, lasts, f"links are slow, up to {longest:.2f} s", delay=(0.001, longest))


@_fault(2, (0.5, 4.0), nodes=2)
async def retransmissions(scene: Scene, dice: Dice, lasts: float) -> None:
    """Packets are lost: messages, and all behind them, wait up to a second."""
    share = dice.uniform(0.02, 0.2)
    await _weather(scene, lasts, f"{share:.0%} of messages are held up", stragglers=share)


@_fault(2, (0.5, 4.0), nodes=2)
async def slow_lane(scene: Scene, dice: Dice, lasts: float) -> None:
    """One lane falls behind the other: bulk behind consensus, or consensus behind bulk."""
    lag = dice.uniform(0.1, 0.8)
    bulk = dice.chance(0.5)
    name = "bulk" if bulk else "consensus"
    await _weather(scene, lasts, f"{name} lags {lag:.2f} s", lag=(0.0, lag) if bulk else (lag, 0.0))


async def _weather(scene: Scene, lasts: float, what: str, **change: Any) -> None:
    scene.tell(f"{what}, for {lasts:.2f} s")
    scene.change_weather(change)
    await scene.wait(lasts)
    scene.change_weather(change, over=True)
    scene.tell(f"over: {what}")


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────


@_fault(2, (0.2, 3.0))
async def disk_full(scene: Scene, dice: Dice, lasts: float) -> None:
    """Log and tree take nothing, until somebody makes room."""
    host = scene.victim(dice)
    if host is not None:
        host.disk_failed = True
        scene.cluster.narration.tell(host.id, f"has a full disk for {lasts:.2f} s")
        host.disk.full = host.tree.full = True
        await scene.wait(lasts)
        host.disk.full = host.tree.full = False
        scene.cluster.narration.tell(host.id, "has room again")


async def _disk(scene: Scene, dice: Dice, lasts: float, fault: str, what: str) -> None:
    host = scene.victim(dice)
    if host is not None:
        host.disk_failed = True
        scene.cluster.narration.tell(host.id, f"{what} for {lasts:.2f} s")
        setattr(host.disk, fault, True)
        await scene.wait(lasts)
        setattr(host.disk, fault, False)
        scene.cluster.narration.tell(host.id, "has a good disk again")


@_fault(2, (0.05, 2.0))
async def write_errors(scene: Scene, dice: Dice, lasts: float) -> None:
    await _disk(scene, dice, lasts, "refuses", "cannot write")


@_fault(2, (0.05, 2.0))
async def sync_errors(scene: Scene, dice: Dice, lasts: float) -> None:
    """Syncs fail, and what they were for is never written, whatever later ones say."""
    await _disk(scene, dice, lasts, "broken", "cannot sync")


@_fault(3, (0.3, 4.0))
async def slow_disk(scene: Scene, dice: Dice, lasts: float) -> None:
    host, times = scene.victim(dice), dice.uniform(10, 300)
    if host is not None:
        scene.cluster.narration.tell(host.id, f"has a disk {times:.0f} times slower for {lasts:.2f} s")
        host.disk.slowness, host.tree.delay_seconds = times, 0.3
        await scene.wait(lasts)
        host.disk.slowness, host.tree.delay_seconds = 1.0, DELAY_SECONDS


@_fault(2, (0.1, 1.5), nodes=3)
async def wipe(scene: Scene, dice: Dice, lasts: float) -> None:
    """A node comes back without its store, its Raft journal or both, and has to rejoin as another member; now and
    then it dies again on the way. A loss for good, so only when the others have all there is."""
    host = scene.victim(dice)
    store, journal = dice.choice(((True, True), (True, True), (True, False), (False, True)))
    if host is None or not scene.may_forget(host) or not scene.whole():
        return
    scene.forgets()
    host.crash(power=True)
    lost = " and ".join(what for what, gone in (("store", store), ("Raft journal", journal)) if gone)
    scene.cluster.narration.tell(host.id, f"loses its {lost}")
    host.wipe(store=store, journal=journal)
    await scene.wait(lasts)
    await scene.revive(host)
    while dice.chance(0.3):
        await scene.wait(dice.uniform(0.0, 2.0))
        host.crash(power=False)
        await scene.wait(dice.uniform(0.02, 0.5))
        await scene.revive(host)


# ── clocks ────────────────────────────────────────────────────────────────────────────────────────────────────


@_fault(2, (0.5, 4.0))
async def clock_jump(scene: Scene, dice: Dice, lasts: float) -> None:
    """A wall clock goes forward or back, within what the store allows nodes to differ."""
    await _jump(scene, dice, lasts, dice.below(8000) + 200)


@_fault(1, (0.5, 3.0))
async def clock_jump_far(scene: Scene, dice: Dice, lasts: float) -> None:
    """The same, beyond what is allowed: the node's writes are refused until its clock is right."""
    await _jump(scene, dice, lasts, dice.below(15_000) + 11_000)


async def _jump(scene: Scene, dice: Dice, lasts: float, ms: int) -> None:
    host = dice.choice(scene.hosts())
    ms = ms if dice.chance(0.5) else -ms
    scene.cluster.narration.tell(host.id, f"its clock jumps by {ms} ms for {lasts:.2f} s")
    host.clock.offset_ms += ms
    await scene.wait(lasts)
    host.clock.offset_ms -= ms
    scene.cluster.narration.tell(host.id, "its clock is set right")


@_fault(2, (1.0, 5.0))
async def clock_skew(scene: Scene, dice: Dice, lasts: float) -> None:
    """Both clocks of a node run fast or slow."""
    host, rate = dice.choice(scene.hosts()), dice.uniform(0.7, 1.4)
    scene.cluster.narration.tell(host.id, f"its clock runs {rate:.2f} times as fast for {lasts:.2f} s")
    host.clock.rate = rate
    await scene.wait(lasts)
    host.clock.rate = 1.0
