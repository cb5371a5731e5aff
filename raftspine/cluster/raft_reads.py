"""Linearizable reads without a log entry (ReadIndex, Raft thesis §6.4).

A leader may have been replaced without knowing. Before it tells a reader how far to wait it must be confirmed
by a majority *after* the reader asked, so every round has a number never used before and only echoes of that
number or a later one count. A reused number lets an echo from before the question confirm a leader that has
fallen since.

All reads of a turn share a round, and those that come while one is under way share the next: under load a round
then serves many, and a read waits for two rounds at most. A round is put to as many followers as it needs, those who
confirmed the last one; should one of them have failed since, the next heartbeat puts it to all. The index is the
commit index when the round began, and the leader must have applied an entry of its own term, because before that it
may not know what is committed.
"""

from asyncio import Future
from collections import deque
from typing import NamedTuple

from raftspine.errors import SpineError
from raftspine.model import NodeId


class _Round(NamedTuple):
    context: int
    commit: int
    readers: "list[Future[int]]"


class Reads:
    """The reads one group's leader has promised an answer."""

    def __init__(self, voters: tuple[NodeId, ...] = ()) -> None:
        self._echoed: dict[NodeId, int] = {}
        self.take_members(voters)
        self._waiting: list[Future[int]] = []
        self._rounds: deque[_Round] = deque()
        self.context = 0
        """Number of the newest round; grows for the life of the process, whatever the term."""

    def take_members(self, voters: tuple[NodeId, ...]) -> None:
        """The voters but for this node. A round under way is confirmed by a majority of those there are at the end:
        successive majorities share a member, so none can have elected another leader unseen."""
        self._needed = (len(voters) + 1) // 2
        self._echoed = {voter: self._echoed.get(voter, 0) for voter in voters}

    @property
    def pending(self) -> bool:
        return bool(self._waiting or self._rounds)

    def add(self, reader: "Future[int]") -> None:
        self._waiting.append(reader)

    def begin(self, commit: int) -> bool:
        """Open a round for the reads that wait, unless one is under way; whether one was opened (and must be
        announced)."""
        if not self._waiting or self._rounds:
            return False
        self.context += 1
        self._rounds.append(_Round(self.context, commit, self._waiting))
        self._waiting = []
        return True

    def witnesses(self) -> tuple[NodeId, ...]:
        """Whom to ask to confirm the newest round: just enough of those who confirmed the one before, if there are
        enough of them, else everybody."""
        prompt = [peer for peer, echoed in self._echoed.items() if echoed >= self.context - 1]
        return tuple(prompt[: self._needed] if len(prompt) >= self._needed else self._echoed)

    def echo(self, peer: NodeId, context: int) -> None:
        """A follower confirmed us in the present term, having seen `context`."""
        if self._echoed.get(peer, context) < context <= self.context:
            self._echoed[peer] = context

    def settle(self) -> None:
        """Answer the rounds that a majority has confirmed."""
        if not self._rounds:
            return
        confirmed = self.context
        if self._needed:
            confirmed = sorted(self._echoed.values(), reverse=True)[self._needed - 1]
        while self._rounds and self._rounds[0].context <= confirmed:
            done = self._rounds.popleft()
            for reader in done.readers:
                if not reader.done():
                    reader.set_result(done.commit)

    def fail(self, error: SpineError) -> None:
        """Leadership is gone: nobody can be told anything."""
        for reader in [*self._waiting, *(reader for done in self._rounds for reader in done.readers)]:
            if not reader.done():
                reader.set_exception(error)
        self._waiting = []
        self._rounds.clear()
