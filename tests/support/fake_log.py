"""A Raft log without Raft: one list of entries per group, shared by the replicas in this process.

It keeps the contract of `ports.ReplicatedLog` and lets a test place each thing that goes wrong on a real one:
a group without a leader, a leader that cannot commit, a replica that lags, a commit whose answer is lost.
"""

import asyncio
from asyncio import Future
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import LogStatus, Position


class Applies(Protocol):
    """The part of a state machine that the fake drives."""

    def apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]: ...


class Entry(NamedTuple):
    at: Position
    time_ms: int
    commands: tuple[bytes, ...]


class FakeCluster:
    """What the replicas share: the entries, who leads, and what is broken."""

    def __init__(self, nodes: Sequence[str], groups: Sequence[int] = (0,)) -> None:
        self.nodes = [NodeId(n) for n in nodes]
        self.groups = [GroupId(g) for g in groups]
        self.entries: dict[GroupId, list[Entry]] = defaultdict(list)
        self.leaders: dict[GroupId, NodeId | None] = dict.fromkeys(self.groups, self.nodes[0])
        self.term = 1
        self.time_ms = 1_000
        self.logs: dict[NodeId, FakeLog] = {}
        self.lagging: set[NodeId] = set()
        self.stalled = False
        """The leader has no majority: nothing commits, no barrier passes."""
        self.beliefs: dict[NodeId, NodeId] = {}
        """Whom a replica takes for the leader, where that is not the leader."""
        self.refusals: dict[NodeId, SpineError] = {}
        """What a replica answers to every proposal."""
        self.lose_answers = 0
        """How many of the next proposals commit but answer Unknown."""

    def log(self, node: str, machine: Applies) -> "FakeLog":
        made = self.logs[NodeId(node)] = FakeLog(self, NodeId(node), machine)
        return made

    def elect(self, group: int, node: str | None) -> None:
        """Another leader in a new term (None: no leader)."""
        self.term += 1
        self.leaders[GroupId(group)] = None if node is None else NodeId(node)

    def spread(self) -> None:
        """Have every replica that does not lag apply what it has not yet applied."""
        for node, log in self.logs.items():
            if node not in self.lagging:
                log.catch_up()


class FakeLog:
    """One node's `ports.ReplicatedLog`. Proposals of one loop turn become one entry."""

    def __init__(self, cluster: FakeCluster, node: NodeId, machine: Applies) -> None:
        self._cluster = cluster
        self._node = node
        self._machine = machine
        self._batch: dict[GroupId, list[tuple[bytes, Future[Any]]]] = {}
        self._waiting: list[tuple[GroupId, int, Future[None]]] = []
        self.applied: dict[GroupId, int] = defaultdict(int)
        self.rounds = 0

    def propose(self, group: GroupId, command: bytes) -> "Future[Any]":
        future: Future[Any] = asyncio.get_running_loop().create_future()
        if (refusal := self._cluster.refusals.get(self._node)) is not None:
            future.set_exception(refusal)
        if future.done() or not self._leads(group, future):
            return future
        batch = self._batch.get(group)
        if batch is None:
            batch = self._batch[group] = []
            asyncio.get_running_loop().call_soon(self._commit, group)
        batch.append((command, future))
        return future

    def _leads(self, group: GroupId, future: "Future[Any]") -> bool:
        leader = self._cluster.leaders.get(group)
        if leader != self._node:
            details = {"leader": leader}
            future.set_exception(Unavailable("not the leader", code="no_leader", details=details))
        return leader == self._node

    def _commit(self, group: GroupId) -> None:
        batch = self._batch.pop(group)
        if self._cluster.stalled:
            return
        entries = self._cluster.entries[group]
        commands = tuple(command for command, _ in batch)
        self._cluster.time_ms += 1
        entries.append(Entry(Position(len(entries) + 1, self._cluster.term), self._cluster.time_ms, commands))
        results = self.catch_up()[group]
        self._cluster.spread()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if self._cluster.lose_answers:
                self._cluster.lose_answers -= 1
                future.set_exception(Unknown("leadership was lost meanwhile"))
            else:
                future.set_result(result)

    def catch_up(self) -> dict[GroupId, list[Any]]:
        """Apply all entries not applied here; the last entry's results by group."""
        last: dict[GroupId, list[Any]] = {}
        for group, entries in self._cluster.entries.items():
            for entry in entries[self.applied[group] :]:
                last[group] = self._machine.apply(group, entry.at, entry.time_ms, entry.commands)
                self.applied[group] = entry.at.index
        for group, index, waiter in self._waiting:
            if not waiter.done() and self.applied[group] >= index:
                waiter.set_result(None)
        self._waiting = [entry for entry in self._waiting if not entry[2].done()]
        return last

    def read_index(self, group: GroupId) -> "Future[int]":
        future: Future[int] = asyncio.get_running_loop().create_future()
        if self._leads(group, future):
            self.rounds += 1
            asyncio.get_running_loop().call_soon(self._confirm, group, future)
        return future

    def _confirm(self, group: GroupId, future: "Future[int]") -> None:
        if not self._cluster.stalled and not future.done() and self._leads(group, future):
            future.set_result(len(self._cluster.entries[group]))

    def wait_applied(self, group: GroupId, index: int) -> "Future[None]":
        future: Future[None] = asyncio.get_running_loop().create_future()
        if self.applied[group] >= index:
            future.set_result(None)
        else:
            self._waiting.append((group, index, future))
        return future

    def leader(self, group: GroupId) -> NodeId | None:
        return self._cluster.beliefs.get(self._node, self._cluster.leaders.get(group))

    def status(self, group: GroupId) -> LogStatus:
        leader = self._cluster.leaders.get(group)
        last = len(self._cluster.entries[group])
        return LogStatus(
            group,
            "leader" if leader == self._node else "follower",
            leader,
            self._cluster.term,
            last,
            self.applied[group],
            last,
            tuple(self._cluster.nodes),
        )

    def groups(self) -> tuple[GroupId, ...]:
        return tuple(self._cluster.groups)
