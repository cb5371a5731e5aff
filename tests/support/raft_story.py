"""One seed, one run: clients against a simulated Raft cluster while everything that can fail does, then the
verdict."""

import asyncio
import contextlib
from typing import Any

from raftspine.checkers.history import Operation
from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import REGISTER
from raftspine.cluster.raft_host import RaftLimits
from raftspine.errors import SpineError, Unknown
from raftspine.model import GroupId, MemberId, node_of
from raftspine.ports import AddLearner, Change, Members, Promote, Remove
from raftspine.sim.loop import Dice, VirtualLoop, run
from raftspine.sim.net import Weather
from tests.support.raft_cluster import Cluster, Node, Violation, command

LINKS = Weather(stragglers=0.01)
DATAGRAMS = Weather(datagrams=True, loss=0.05, duplicates=0.05, stragglers=0.05)

SMALL = RaftLimits(compact_entries=40, compact_bytes=20_000, keep_entries=8, append_entries=16, window=4)
"""Limits at which a short run compacts, rotates its journal and needs snapshots."""


class Mender:
    """Has each member that lost its disk replaced by the one its node is now, one change at a time."""

    def __init__(self, cluster: Cluster, group: int) -> None:
        self.cluster = cluster
        self.group = GroupId(group)

    async def mend(self) -> None:
        async with asyncio.timeout(120.0):
            while True:
                leader = self.cluster.leader(self.group)
                if leader is not None and leader.host is not None:
                    members = leader.host.members(self.group)
                    change = self._next(members, leader)
                    if change is None and set(members.voters) <= self._living():
                        return
                    with contextlib.suppress(SpineError, TimeoutError):
                        if change is not None:
                            async with asyncio.timeout(2.0):
                                await leader.host.change(self.group, change)
                await self.cluster.pause(0.1)

    def _living(self) -> set[MemberId]:
        return {node.member for node in self.cluster.nodes.values()}

    def _next(self, members: Members, leader: Node) -> Change | None:
        living = self._living()
        for learner in members.learners:
            if learner not in living:
                return Remove(learner)
        for voter in members.voters:
            if voter not in living:
                heir = self.cluster.nodes[node_of(voter)].member
                if heir not in (*members.voters, *members.learners):
                    return AddLearner(heir)
                return Remove(voter) if leader.host is not None and leader.host.caught_up(self.group, heir) else None
        return Promote(members.learners[0], len(members.voters)) if members.learners else None


class Story:
    def __init__(
        self, loop: VirtualLoop, *, nodes: int, datagrams: bool, seconds: float, disk_faults: bool, membership: bool
    ) -> None:
        self.loop = loop
        self.dice = loop.dice.fork()
        weather = DATAGRAMS if datagrams else LINKS
        spares = 2 if membership else 0
        self.cluster = Cluster(
            loop, nodes, groups=2, weather=weather, limits=SMALL, rotate_bytes=30_000, spares=spares
        )
        self.membership = membership
        self.seconds = seconds
        self.disk_faults = disk_faults
        self.histories: dict[tuple[int, str], list[Operation]] = {}
        self.acknowledged: dict[tuple[int, str], list[Any]] = {}
        self.appended: dict[tuple[int, str], list[Any]] = {}
        self.done = False
        self.tasks: list[asyncio.Task[None]] = []

    async def tell(self) -> dict[str, int]:
        cluster = self.cluster
        cluster.start()
        for node in cluster.nodes.values():
            node.disk.on_sync = lambda node=node: self._maybe_crash(node)
        clients = [self._client(number, self.dice.fork()) for number in range(5)]
        work = [*clients, self._nemesis(), self._observer()]
        if self.membership:
            work += [self._rearranging(group, self.dice.fork()) for group in range(2)]
            work.append(self._losing_disks(self.dice.fork()))
        self.tasks = [self.loop.create_task(each) for each in work]
        try:
            await cluster.pause(self.seconds)
            self.done = True
            async with asyncio.timeout(60.0):
                await asyncio.gather(*self.tasks)
        finally:
            for task in self.tasks:
                task.cancel()
        for node in cluster.nodes.values():
            node.disk.on_sync = None
            node.disk.full = node.disk.broken = False
            if node.host is None:
                node.start()
        if self.membership:
            await asyncio.gather(*(Mender(cluster, group).mend() for group in range(2)))
        await cluster.settled()
        cluster.check_members()
        self._verdict()
        for name in ("snapshots sent", "snapshots installed", "crashes"):
            cluster.watch.counts.setdefault(name, 0)
        return cluster.watch.counts

    def _verdict(self) -> None:
        for (group, _), history in self.histories.items():
            verdict = linearizable(history, REGISTER)
            if not verdict.ok:
                raise Violation(f"group {group}: {verdict.reason}: {verdict.window}")
        for (group, key), values in self.acknowledged.items():
            stored = self.cluster.taking_part(group)[0].machine.state(group).lists.get(key, [])
            for value in values:
                if stored.count(value) != 1:
                    raise Violation(f"acknowledged {value} is {stored.count(value)} times in {key}: {stored}")
        for (group, key), values in self.appended.items():
            stored = self.cluster.taking_part(group)[0].machine.state(group).lists.get(key, [])
            if len(set(stored)) != len(stored) or not set(stored) <= set(values):
                raise Violation(f"list {key} of group {group} holds what nobody appended once: {stored}")
        for node in self.cluster.nodes.values():
            for group in node.host.groups() if node.host else ():
                status = node.host.status(group) if node.host else None
                if status is not None and status.role == "halted":
                    raise Violation(f"{node.name} halted group {group}: {status.reason}")

    # ── those who work ─────────────────────────────────────────────────────────────────────────────────────

    async def _observer(self) -> None:
        while not self.done:
            self.cluster.check_leaders()
            self.cluster.check_members()
            await self.cluster.pause(0.02)

    async def _client(self, number: int, dice: Dice) -> None:
        count = 0
        while not self.done:
            count += 1
            group = dice.below(2)
            span = int(self.loop.time() / 3)
            kind = dice.choice(("write", "append", "read", "read"))
            key = f"{'list' if kind == 'append' else 'register'}-{span}-{dice.below(2)}"
            value = f"{number}.{count}"
            start = self.loop.time()
            if kind == "read":
                ok, result = await self._read(group, key, dice)
                if ok:
                    self._remember(group, key, "read", start, self.loop.time(), result)
            else:
                if kind == "append":
                    self.appended.setdefault((group, key), []).append(value)
                outcome = await self._write(group, command(value, kind, key, value), dice)
                self._note(group, key, kind, value, start, outcome)
            await self.cluster.pause(dice.uniform(0.0, 0.02))

    def _note(self, group: int, key: str, kind: str, value: str, start: float, outcome: str) -> None:
        self.cluster.watch.count(outcome)
        if kind == "append":
            if outcome == "done":
                self.acknowledged.setdefault((group, key), []).append(value)
        elif outcome != "refused":
            end = self.loop.time() if outcome == "done" else None
            self._remember(group, key, "write", start, end, value)

    def _remember(self, group: int, key: str, kind: str, start: float, end: float | None, value: Any) -> None:
        operation = Operation(
            process=str(value).partition(".")[0] if kind == "write" else "reader",
            key=key,
            kind=kind,
            input=value if kind == "write" else None,
            output=value if kind == "read" else None,
            invoked_at=int(start * 1e9),
            completed_at=None if end is None else int(end * 1e9),
            outcome="unknown" if end is None else "ok",
        )
        self.histories.setdefault((group, key), []).append(operation)

    def _some_node(self, group: int, dice: Dice) -> Node | None:
        leader = self.cluster.leader(group)
        if leader is not None and dice.chance(0.85):
            return leader
        up = [node for node in self.cluster.nodes.values() if node.host is not None]
        return dice.choice(up) if up else None

    async def _write(self, group: int, data: bytes, dice: Dice) -> str:
        """done | unknown | refused. The same request is tried again until its deadline."""
        deadline, unknown = self.loop.time() + 4.0, False
        while self.loop.time() < deadline:
            node = self._some_node(group, dice)
            try:
                if node is not None and node.host is not None:
                    async with asyncio.timeout(1.0):
                        await node.host.propose(GroupId(group), data)
                    return "done"
            except (Unknown, TimeoutError):
                unknown = True
            except SpineError:
                pass
            await self.cluster.pause(dice.uniform(0.01, 0.1))
        return "unknown" if unknown else "refused"

    async def _read(self, group: int, key: str, dice: Dice) -> tuple[bool, Any]:
        node = self._some_node(group, dice)
        if node is None or node.host is None:
            return False, None
        host = node.host
        try:
            async with asyncio.timeout(1.0):
                index = await host.read_index(GroupId(group))
                await host.wait_applied(GroupId(group), index)
        except (SpineError, TimeoutError):
            return False, None
        if node.host is not host:
            return False, None
        self.cluster.watch.count("reads")
        return True, node.machine.state(group).registers.get(key)

    # ── those who hinder ───────────────────────────────────────────────────────────────────────────────────

    def _maybe_crash(self, node: Node) -> None:
        if not self.done and self.dice.chance(0.0015):
            self.loop.call_soon(self._crash, node)

    def _crash(self, node: Node) -> None:
        if node.host is not None:
            node.crash(power=self.dice.chance(0.7))
            self.loop.call_later(self.dice.uniform(0.05, 2.0), self._restart, node)

    def _restart(self, node: Node) -> None:
        if node.host is None:
            node.start()

    async def _nemesis(self) -> None:
        dice = self.dice.fork()
        faults = [self._partition, self._one_way, self._reset, self._power_cut, self._crash_one, self._move]
        if self.disk_faults:
            faults.append(self._bad_disk)
        await self.cluster.pause(1.0)
        while not self.done:
            await dice.choice(faults)(dice)
            await self.cluster.pause(dice.uniform(0.1, 1.0))

    def _target(self, dice: Dice) -> Node:
        leader = self.cluster.leader(dice.below(2))
        if leader is not None and dice.chance(0.5):
            return leader
        return dice.choice(list(self.cluster.nodes.values()))

    async def _partition(self, dice: Dice) -> None:
        names = list(self.cluster.names)
        dice.shuffle(names)
        size = 1 + dice.below(len(names) - 1)
        heal = self.cluster.network.partition(names[:size], names[size:])
        await self.cluster.pause(dice.uniform(0.2, 3.0))
        heal()

    async def _one_way(self, dice: Dice) -> None:
        one = self._target(dice).name
        outward = dice.chance(0.5)
        ways = [(one, other) if outward else (other, one) for other in self.cluster.names if other != one]
        for way in ways:
            self.cluster.network.cut(*way)
        await self.cluster.pause(dice.uniform(0.2, 3.0))
        for way in ways:
            self.cluster.network.heal(*way)

    async def _reset(self, dice: Dice) -> None:
        one = self._target(dice).name
        for other in self.cluster.names:
            if other != one:
                self.cluster.network.reset(one, other)

    async def _crash_one(self, dice: Dice) -> None:
        self._crash(self._target(dice))

    async def _power_cut(self, dice: Dice) -> None:
        for node in self.cluster.nodes.values():
            if dice.chance(0.7):
                self._crash(node)

    async def _move(self, dice: Dice) -> None:
        group = dice.below(2)
        leader = self.cluster.leader(group)
        if leader is not None and leader.host is not None:
            others = [name for name in self.cluster.names if name != leader.name]
            to = GroupId(group), dice.choice(others)
            work = leader.host.step_down_all() if dice.chance(0.3) else leader.host.transfer(*to)
            with contextlib.suppress(TimeoutError):  # the node may be killed meanwhile, and the dead answer nobody
                async with asyncio.timeout(3.0):
                    await work

    # ── those who rearrange ────────────────────────────────────────────────────────────────────────────────

    async def _rearranging(self, group: int, dice: Dice) -> None:
        """Changes of members, sensible or not, at whatever moment."""
        while not self.done:
            await self.cluster.pause(dice.uniform(0.0, 0.6))
            leader = self.cluster.leader(group)
            if leader is None or leader.host is None:
                continue
            change = self._some_change(leader.host.members(GroupId(group)), dice)
            try:
                async with asyncio.timeout(dice.uniform(0.1, 2.0)):
                    await leader.host.change(GroupId(group), change)
                self.cluster.watch.count(f"done: {type(change).__name__}")
            except (SpineError, TimeoutError):
                self.cluster.watch.count("changes refused or unknown")

    def _some_change(self, members: Members, dice: Dice) -> Change:
        present = [*members.voters, *members.learners]
        # A member that will not come back must not be let in again, and its place is taken by who came after it.
        living = [node.member for node in self.cluster.nodes.values()]
        absent = [member for member in living if member not in present]
        stale = [member for member in present if member not in living]
        if stale and dice.chance(0.5):
            return Remove(stale[0])
        if members.learners and dice.chance(0.6):
            return Promote(dice.choice(list(members.learners)), dice.below(4))
        if absent and dice.chance(0.7):
            return AddLearner(dice.choice(absent))
        return Remove(dice.choice(present if len(members.voters) > 3 else [*members.learners, *members.voters[:1]]))

    async def _losing_disks(self, dice: Dice) -> None:
        """Now and then a node loses all it has, when its groups can bear that: it is a failure for good."""
        while not self.done:
            await self.cluster.pause(dice.uniform(1.0, 4.0))
            node = dice.choice(list(self.cluster.nodes.values()))
            if node.host is not None and self._expendable(node):
                node.crash(power=True)
                node.lose_disk()
                await self.cluster.pause(dice.uniform(0.05, 1.0))
                node.start()

    def _expendable(self, node: Node) -> bool:
        """Whether every group keeps a majority that lost nothing, by whatever members any live node goes by."""
        living = {each.member for each in self.cluster.nodes.values()} - {node.member}
        for each in self.cluster.nodes.values():
            if each.host is None:
                return False
            for group in range(2):
                status = each.host.status(GroupId(group))
                left = sum(voter in living for voter in status.voters)
                if status.changing or (status.voters and (left < 2 or left <= len(status.voters) // 2)):
                    return False
        return True

    async def _bad_disk(self, dice: Dice) -> None:
        node = self._target(dice)
        kind = dice.choice(("full", "broken"))
        setattr(node.disk, kind, True)
        self.cluster.watch.count("disk faults")
        await self.cluster.pause(dice.uniform(0.2, 2.0))
        setattr(node.disk, kind, False)


def tell(
    seed: int,
    *,
    nodes: int = 3,
    datagrams: bool = False,
    seconds: float = 12.0,
    disk_faults: bool = True,
    membership: bool = False,
) -> Any:
    """Run one seed. With `membership`, two more nodes come and go, and now and then one loses its disk. Returns
    counts; raises Violation, or whatever went wrong."""

    async def main(loop: VirtualLoop) -> dict[str, int]:
        story = Story(
            loop,
            nodes=nodes,
            datagrams=datagrams,
            seconds=seconds,
            disk_faults=disk_faults,
            membership=membership,
        )
        return await story.tell()

    return run(main, seed=seed)
