"""One node's Raft group with nobody on the other side: the test plays the peers, frame by frame."""

from collections.abc import Sequence
from typing import Any

from raftspine.cluster import raft_envelope
from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_engine import NO_OP, REGULAR
from raftspine.cluster.raft_group import RaftGroup
from raftspine.cluster.raft_types import RaftLimits, RaftTiming
from raftspine.model import GroupId, NodeId
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, VirtualClock, VirtualLoop
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal
from tests.support.raft_cluster import Machine, Watch, command

GROUP = GroupId(0)


def entry(term: int, request: str = "", key: str = "k") -> list[Any]:
    """An entry as it travels: one append of `request` to a list, or the leader's no-op."""
    if not request:
        return [term, NO_OP]
    return [term, REGULAR + raft_envelope.pack(1, [command(request, "append", key, request)])]


class Puppet:
    """Group 0 on node `a`; the other voters are `b`, `c`, … up to `size`."""

    def __init__(self, loop: VirtualLoop, size: int = 3, limits: RaftLimits | None = None) -> None:
        self.loop = loop
        self.void: list[str] = []
        self.names = [NodeId(name) for name in "abcde"[:size]]
        self.disk = SimDisk(loop, Dice(1))
        self.journal = Journal.open(Wal.open(self.disk.directory("raft"), segment_bytes=1 << 20))
        self.machine = Machine(NodeId("a"), loop, Dice(2), Watch())
        self.log = self.journal.create(GROUP, tuple(self.names[1:] + self.names[:1]))
        self.group = RaftGroup(
            NodeId("a"),
            self.log,
            self.machine,
            loop,
            clock=VirtualClock(loop),
            entropy=Dice(3),
            timing=RaftTiming(),
            limits=limits or RaftLimits(),
            void=self.void.append,
        )
        self.engine = self.group.engine

    async def hear(self, source: str, kind: int, term: int, *fields: Any) -> list[Sequence[Any]]:
        """Deliver a frame, let the node work and sync; returns what it answered, as (peer, kind, term, …)."""
        frame = [GROUP, kind, term, *fields]
        assert frames.well_formed(frame), frame
        self.group.deliver(NodeId(source), frame)
        return await self.turn()

    async def turn(self, *, beat: bool = False) -> list[Sequence[Any]]:
        self.group.stir()
        self.group.turn(beat)
        sent = self._take()
        if self.journal.dirty:
            await self.journal.commit()
            self.group.stir()
            self.group.turn(False)
            sent += self._take()
        return sent

    def _take(self) -> list[Sequence[Any]]:
        out = [(peer, *frame[1:]) for peer, frame in self.group.express + self.group.held]
        self.group.express, self.group.held = [], []
        return out

    async def feed(self, leader: str, term: int, previous: int, previous_term: int, commit: int, *sent: Any) -> Any:
        """An append from a leader; returns the answer to it: (stored?, previous, wanted)."""
        answers = await self.hear(leader, frames.APPEND, term, previous, previous_term, commit, list(sent))
        answer = next(answer for answer in answers if answer[1] == frames.APPENDED)
        return answer[3:]

    async def elect(self) -> int:
        """Make this node leader with the others' votes; returns its term."""
        while not self.engine.campaigns:
            await self.pause(0.1)
            sent = await self.turn()
            ballots = [out for out in sent if out[1] == frames.PREVOTE]
            for out in ballots[: len(self.names) // 2]:
                await self.hear(out[0], frames.PREVOTED, out[2], out[3], True)
        for peer in self.names[1 : 1 + len(self.names) // 2]:
            await self.hear(peer, frames.VOTED, self.engine.term)
        assert self.engine.leads
        return self.engine.term

    async def pause(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.call_later(seconds, future.set_result, None)
        await future

    def terms(self) -> list[int]:
        return [row[2] for row in self.log.rows[1:]]
