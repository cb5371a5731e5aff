"""Several RaftHosts in one process on virtual time, over the real journal and write-ahead log, with a state
machine that keeps watch: every entry applied anywhere is compared with what the others applied, and
counted."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import msgspec

from raftspine.cluster.raft_host import RaftHost, RaftLimits, RaftTiming
from raftspine.cluster.rpc import Rpcs
from raftspine.model import GroupId, MemberId, NodeId
from raftspine.ports import Doubt, Mark, Members, Position
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, VirtualClock, VirtualLoop
from raftspine.sim.net import Network, Weather
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal

_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.decode

CHUNK = 600


class Violation(AssertionError):
    """The cluster did what Raft forbids."""


class Watch:
    """What all nodes together have applied, and who led when."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.leaders: dict[tuple[int, int], MemberId] = {}
        self.members: dict[int, dict[int, tuple[int, Members]]] = {}
        """Committed changes of members by group and index, with their terms."""
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def applied(self, node: NodeId, group: int, at: Position, content: bytes) -> None:
        mine = (at.term, content)
        known = self.entries.setdefault((group, at.index), mine)
        if known != mine:
            raise Violation(f"{node} applied another entry {at} in group {group}: {mine} but elsewhere {known}")

    def leads(self, member: MemberId, group: int, term: int) -> None:
        known = self.leaders.setdefault((group, term), member)
        if known != member:
            raise Violation(f"{member} and {known} both lead term {term} of group {group}")
        changes = self.members.get(group, {})
        if changes:
            decided, members = changes[max(changes)]
            if term > decided and member in members.removed:
                raise Violation(f"{member} leads term {term} of group {group} after its removal in term {decided}")

    def decided(self, member: MemberId, group: int, index: int, term: int, members: Members) -> None:
        """A change of members is committed and applied at `member`."""
        changes = self.members.setdefault(group, {})
        known = changes.setdefault(index, (term, members))
        if known != (term, members):
            raise Violation(f"{member} has other members at {index} of group {group}: {members} and {known}")
        self.count("changes of members seen")


class State:
    """One group's replicated state: registers, lists, and the answers to requests already applied."""

    def __init__(self) -> None:
        self.position = Position(0, 0)
        self.time_ms = 0
        self.registers: dict[str, Any] = {}
        self.lists: dict[str, list[Any]] = {}
        self.answers: dict[str, Any] = {}

    def dump(self) -> bytes:
        return _pack([list(self.position), self.time_ms, self.registers, self.lists, self.answers])

    @classmethod
    def load(cls, data: bytes) -> "State":
        state = cls()
        position, state.time_ms, state.registers, state.lists, state.answers = _unpack(data)
        state.position = Position(*position)
        return state

    def run(self, command: bytes) -> Any:
        request, kind, key, value = _unpack(command)
        if request in self.answers:
            return self.answers[request]
        answer: Any = None
        if kind == "write":
            self.registers[key] = value
        elif kind == "append":
            self.lists.setdefault(key, []).append(value)
            answer = len(self.lists[key])
        self.answers[request] = answer
        return answer


class Machine:
    """A state machine as the storage engine makes it: applied in memory, on disk a little later, at a crash
    back to something between the last flush and now."""

    def __init__(self, node: NodeId, loop: VirtualLoop, dice: Dice, watch: Watch) -> None:
        self.node = node
        self.loop = loop
        self.dice = dice
        self.watch = watch
        self.states: dict[int, State] = {}
        self.stored: dict[int, bytes] = {}
        self.fail_at: Callable[[int, Position], Exception | None] | None = None

    def state(self, group: int) -> State:
        return self.states.setdefault(group, State())

    def crash(self, *, power: bool) -> None:
        if not power or self.dice.chance(0.3):
            self._store()
        self.states = {group: State.load(data) for group, data in self.stored.items()}

    def forget(self) -> None:
        self.states, self.stored = {}, {}

    def _store(self) -> None:
        self.stored = {group: state.dump() for group, state in self.states.items()}

    # ports.StateMachine

    def position(self, group: GroupId) -> Position:
        return self.state(group).position

    def apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]:
        if self.fail_at is not None and (error := self.fail_at(group, at)) is not None:
            raise error
        state = self.state(group)
        if at.index <= state.position.index:
            raise Violation(f"{self.node} applies entry {at} of group {group} again, it is at {state.position}")
        if time_ms < state.time_ms:
            raise Violation(f"{self.node}: the leader's time went back in group {group} at {at}")
        self.watch.applied(self.node, group, at, _pack(commands))
        results = [state.run(command) for command in commands]
        state.position, state.time_ms = at, time_ms
        return results

    async def snapshot(self, group: GroupId) -> tuple[Position, AsyncIterator[bytes]]:
        state = self.state(group)
        data = state.dump()

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]

        self.watch.count("snapshots sent")
        return state.position, chunks()

    async def install(self, group: GroupId, at: Position, chunks: Iterable[bytes]) -> None:
        await asyncio.sleep(self.dice.uniform(0.001, 0.05))
        state = State.load(b"".join(chunks))
        if state.position != at:
            raise Violation(f"{self.node}: the snapshot says {state.position}, its header {at}")
        if at.index < self.state(group).position.index:
            raise Violation(f"{self.node}: a snapshot at {at} replaces {self.state(group).position}")
        self.states[group] = state
        self.stored[group] = state.dump()
        self.watch.count("snapshots installed")

    def marks(self, group: GroupId) -> Sequence[Mark]:
        return ()

    def doubt(self, group: GroupId) -> Doubt | None:
        return None

    async def set_doubt(self, group: GroupId, doubt: Doubt | None) -> None:
        raise AssertionError("nobody can doubt a machine without marks")

    async def flush(self) -> None:
        as_of_now = {group: state.dump() for group, state in self.states.items()}
        await asyncio.sleep(self.dice.uniform(0.001, 0.3))
        for group, data in as_of_now.items():
            # A snapshot installed meanwhile is on disk already, and newer.
            if group not in self.stored or State.load(data).position > State.load(self.stored[group]).position:
                self.stored[group] = data


class Node:
    """One node through all its lives."""

    def __init__(self, cluster: "Cluster", name: NodeId) -> None:
        self.cluster = cluster
        self.name = name
        dice = cluster.dice.fork()
        self.dice = dice
        self.disk = SimDisk(cluster.loop, dice.fork())
        self.machine = Machine(name, cluster.loop, dice.fork(), cluster.watch)
        self.member = MemberId(name)
        self.void: list[str] = []
        self.clock = VirtualClock(cluster.loop, offset_ms=dice.below(4000) - 2000, rate=dice.uniform(0.98, 1.02))
        self.host: RaftHost | None = None

    def start(self) -> None:
        wal = Wal.open(self.disk.directory("raft"), segment_bytes=1 << 20)
        journal = Journal.open(wal, rotate_bytes=self.cluster.rotate_bytes)
        transport = self.cluster.network.join(self.name)
        rpc = Rpcs(transport, self.clock, self.dice.fork())
        host = RaftHost(
            self.name,
            clock=self.clock,
            entropy=self.dice.fork(),
            rpc=rpc,
            journal=journal,
            machine=self.machine,
            staging=self.disk.directory("staging"),
            timing=self.cluster.timing,
            limits=self.cluster.limits,
            loop=self.cluster.loop,
            on_void=self.void.append,
        )
        host.member = self.member
        for group in range(self.cluster.groups):
            founders = self.cluster.voters(group)
            host.add_group(GroupId(group), founders if self.member in founders else ())
        host.on_leader_change(lambda group, leader: self.cluster.check_leaders())
        host.start()
        self.host = host

    def lose_disk(self) -> None:
        """All it had is gone; its next life is another member. Only while it is down."""
        assert self.host is None, "crash it first"
        self.disk.erase("raft")
        self.machine.forget()
        self.void.clear()
        self.member = MemberId(NodeId(f"{self.name}~{self.dice.token_bytes(4).hex()}"))
        self.cluster.watch.count("disks lost")

    def crash(self, *, power: bool = True) -> None:
        if self.host is None:
            return
        self.host.kill()
        self.host = None
        self.cluster.network.leave(self.name)
        self.disk.crash(power=power)
        self.disk.full = self.disk.broken = False
        self.machine.crash(power=power)
        self.cluster.watch.count("crashes")


class Cluster:
    """`size` nodes, each a voter of every group."""

    def __init__(
        self,
        loop: VirtualLoop,
        size: int,
        *,
        groups: int = 1,
        weather: Weather | None = None,
        timing: RaftTiming | None = None,
        limits: RaftLimits | None = None,
        rotate_bytes: int = 64 << 20,
        spares: int = 0,
    ) -> None:
        self.loop = loop
        self.dice = loop.dice
        self.groups = groups
        self.timing = timing or RaftTiming()
        self.limits = limits or RaftLimits()
        self.rotate_bytes = rotate_bytes
        self.watch = Watch()
        self.network = Network(loop, self.dice.fork(), weather)
        self.founders = [NodeId(f"n{number}") for number in range(1, size + 1)]
        self.names = [*self.founders, *(NodeId(f"s{number}") for number in range(1, spares + 1))]
        self.nodes = {name: Node(self, name) for name in self.names}

    def voters(self, group: int) -> tuple[NodeId, ...]:
        shift = group % len(self.founders)
        return tuple(self.founders[shift:] + self.founders[:shift])

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def hosts(self) -> list[RaftHost]:
        return [node.host for node in self.nodes.values() if node.host is not None]

    def check_leaders(self) -> None:
        for node in self.nodes.values():
            if node.host is not None:
                for group in node.host.groups():
                    status = node.host.status(group)
                    if status.role == "leader":
                        self.watch.leads(node.member, group, status.term)
                        if node.member not in status.voters:
                            raise Violation(f"{node.member} leads group {group} and is none of its voters: {status}")

    def check_members(self) -> None:
        """What the live nodes have applied of changes of members must be the same everywhere."""
        for node in self.nodes.values():
            for held in node.host._groups.values() if node.host is not None else ():
                for index, members in held.configurations._known[1:]:
                    if index <= held.engine.applied:
                        self.watch.decided(node.member, held.group, index, held.log.term_at(index), members)
        for group in range(self.groups):
            self._check_chain(group)

    def _check_chain(self, group: int) -> None:
        """Successive members share a majority: at most one voter differs."""
        changes = sorted(self.watch.members.get(group, {}).items())
        chain = [Members(self.voters(group)), *(members for _, (_, members) in changes)]
        for before, after in itertools.pairwise(chain):
            if len({*before.voters} ^ {*after.voters}) > 1:
                raise Violation(f"group {group} went from {before} to {after} in one step")

    def leader(self, group: int = 0) -> Node | None:
        """The live leader of the highest term."""
        best: tuple[int, Node] | None = None
        for node in self.nodes.values():
            if node.host is not None:
                status = node.host.status(GroupId(group))
                if status.role == "leader" and (best is None or status.term > best[0]):
                    best = (status.term, node)
        return None if best is None else best[1]

    async def until(self, holds: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Wait for a condition on virtual time."""
        deadline = self.loop.time() + seconds
        while not (value := holds()):
            if self.loop.time() > deadline:
                raise AssertionError(f"not within {seconds} s: {self.describe()}")
            await asyncio.sleep(0.01)
        return value

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def settled(self, seconds: float = 30.0) -> None:
        """All nodes up, and each group's replicas equal."""
        await self.until(self._equal, seconds)

    async def settled_among(self, names: Sequence[NodeId]) -> None:
        """As `settled` for group 0, while the others are down."""

        def equal() -> bool:
            leader = self.leader()
            if leader is None:
                return False
            last = leader.host.status(GroupId(0)).last
            return all(self.nodes[name].host.status(GroupId(0)).applied == last for name in names)

        await self.until(equal)

    def _equal(self) -> bool:
        if any(node.host is None for node in self.nodes.values()):
            return False
        for group in range(self.groups):
            leader = self.leader(group)
            if leader is None:
                return False
            first = leader.host.status(GroupId(group))
            taking_part = self.taking_part(group)
            statuses = [node.host.status(GroupId(group)) for node in taking_part]
            if len(taking_part) < len({*first.voters, *first.learners}):
                return False
            if sum(status.role == "leader" for status in statuses) != 1:
                return False
            if any(s.applied != first.last or s.voters != first.voters or s.changing for s in statuses):
                return False
            if len({node.machine.state(group).dump() for node in taking_part}) != 1:
                return False
        return True

    def taking_part(self, group: int) -> list[Node]:
        """The live nodes that are voters or learners as the leader has it."""
        leader = self.leader(group)
        status = leader.host.status(GroupId(group))
        members = {*status.voters, *status.learners}
        return [node for node in self.nodes.values() if node.host is not None and node.member in members]

    def describe(self) -> str:
        lines = []
        for name, node in self.nodes.items():
            if node.host is None:
                lines.append(f"{name}: down")
            else:
                lines += [f"{name}: {node.host.status(group)}" for group in node.host.groups()]
        return "\n".join(lines)


def command(request: str, kind: str, key: str, value: Any = None) -> bytes:
    return _pack([request, kind, key, value])
