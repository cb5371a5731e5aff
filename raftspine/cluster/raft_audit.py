"""Whether the replicas of a group came to the same state, and what a replica does that did not.

Raft makes replicas apply the same entries; that they came to the same state rests on hardware and on code that is
deterministic. When one of them did not, every later answer from it is wrong and looks right. So the state machine
keeps a hash over all effects (`ports.Mark`, one per boundary), voters tell each other their marks, and each judges
itself:

    voters that report the same bounds            this replica is
    a majority of all voters has my digest        sound; others that differ are named
    a majority of all voters has another one      wrong: quarantined until a snapshot has replaced its state
    digests differ, and none has a majority       disputed: quarantined until a majority is known (a voter that has
                                                  not spoken is waited for a little before)

Nobody is ever believed by rank: a leader that differs is the wrong one, and with two replicas, or with three
different digests, nobody is. The log itself is not in doubt, so both kinds go on storing, acknowledging and voting;
else a faulty replica would take the majority with it. A wrong one applies nothing more, never campaigns, and gives
leadership up. A disputed one may lead, for the missing voter must catch up to be heard, but shows nothing and answers
nobody.

A doubt is stored and survives a restart. A dispute ends when a majority of voters agrees with this replica on a mark
of the same stretch of history; being wrong ends with a snapshot from a leader that is not in doubt, and only so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_types import GroupLog
from raftspine.model import MemberId
from raftspine.ports import Doubt, Mark, StateMachine

REPEAT_TICKS = 10
"""Marks are told when they are new, and again every so many ticks of the audit: frames may be lost."""

PATIENCE_TICKS = 3
"""How long two that differ wait for a third's account before they stop answering: it is on its way, as a rule, and a
sound leader should not fall silent because the odd one was heard first."""

KEPT = 8
"""Marks of a peer that are remembered: as many as a state machine tells."""

SOUND, DISPUTED, WRONG = range(3)
"""A replica's standing, as it tells it. The marks of one that knows itself wrong speak against nobody."""

_Bounds = tuple[int, int]

log = structlog.get_logger(__name__)


class Audit:
    """One replica's judgement of itself. `doubted` is called when it came to doubt."""

    def __init__(
        self,
        me: MemberId,
        group_log: GroupLog,
        machine: StateMachine,
        voters: Callable[[], tuple[MemberId, ...]],
        emit: Callable[..., None],
        doubted: Callable[[], None],
    ) -> None:
        self._me = me
        self._log = group_log
        self._machine = machine
        self._voters = voters
        self._emit = emit
        self._doubted = doubted
        self._reports: dict[MemberId, dict[_Bounds, bytes]] = {}
        self._standing: dict[MemberId, int] = {}
        self._told: Sequence[Mark] = ()
        self._ticks = 0
        self._open: dict[_Bounds, int] = {}
        """Differences that not all voters have spoken on, and the tick they were first seen in."""
        self._named: set[MemberId] = set()
        """Those that are known to differ, and were told of."""
        self.divergences = 0
        """How often a replica, this one or another, was found to differ."""
        self.stored = True
        """Whether the present doubt, or its absence, has been handed to the state machine to keep."""
        self.doubt = machine.doubt(group_log.group)

    @property
    def wrong(self) -> bool:
        return self.doubt is not None and self.doubt.wrong

    @property
    def standing(self) -> int:
        return SOUND if self.doubt is None else WRONG if self.doubt.wrong else DISPUTED

    def sound(self, peer: MemberId) -> bool:
        """Whether nothing is known against a peer's state."""
        return self._standing.get(peer, SOUND) == SOUND

    def reload(self) -> None:
        """The state was replaced: what the machine says now holds."""
        self.doubt = self._machine.doubt(self._log.group)
        self.stored = True
        self._named.discard(self._me)

    # ── telling ────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, term: int) -> None:
        """Tell the other voters what is new, everything now and then, and judge."""
        marks = self._machine.marks(self._log.group)
        self._ticks += 1
        if marks and (list(marks) != list(self._told) or self._ticks % REPEAT_TICKS == 0):
            self._told = tuple(marks)
            for peer in self._voters():
                if peer != self._me:
                    self._emit(peer, frames.MARKS, term, [list(mark) for mark in marks], self.standing)
        self.judge()

    def ask_for_snapshot(self, term: int, leader: MemberId | None) -> None:
        """Ask the leading member for its state, if this one is wrong and nothing is known against the leader's."""
        doubt = self.doubt
        if doubt is None or not doubt.wrong or leader is None or leader == self._me:
            return
        report = self._reports.get(leader)
        if report is None or not self.sound(leader):
            return
        if report.get((doubt.mark.below, doubt.mark.since)) != doubt.mark.digest:
            self._emit(leader, frames.SNAPSHOT_WANTED, term)

    def heard(self, peer: MemberId, marks: Sequence[Sequence[Any]], standing: int) -> None:
        """A peer's account of itself, which replaces what it said before."""
        self._reports[peer] = {(below, since): digest for below, since, digest in marks[-KEPT:]}
        if standing == WRONG and self._name(peer):
            log.error("a replica says that it differs", group=self._log.group, replica=peer)
        elif standing == SOUND and self._standing.get(peer) == WRONG:
            self._named.discard(peer)
        self._standing[peer] = standing
        self.judge()

    # ── judging ────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self) -> None:
        """Compare what is known, oldest first."""
        if not self._reports or self._me not in self._voters():
            return
        for mine in self._machine.marks(self._log.group):
            if self.wrong:
                return
            bounds = (mine.below, mine.since)
            told = {
                voter: self._reports[voter][bounds]
                for voter in self._voters()
                if voter != self._me and bounds in self._reports.get(voter, ()) and self._standing.get(voter) != WRONG
            }
            if told:
                self._compare(mine, told)

    def _compare(self, mine: Mark, told: dict[MemberId, bytes]) -> None:
        voters = len(self._voters())
        digests = [mine.digest, *told.values()]
        agreed = next((digest for digest in digests if 2 * digests.count(digest) > voters), None)
        if agreed is None:
            if any(digest != mine.digest for digest in told.values()) and self.doubt is None:
                seen = self._open.setdefault((mine.below, mine.since), self._ticks)
                if len(digests) < voters and self._ticks - seen < PATIENCE_TICKS:
                    return
                self._name(self._me)
                self._begin(Doubt(False, mine, self._text("replicas differ and none has a majority", mine, told)))
        elif agreed != mine.digest:
            self._name(self._me)
            self._begin(Doubt(True, mine, self._text("this replica differs from the majority", mine, told)))
        else:
            self._open.pop((mine.below, mine.since), None)
            for voter, digest in told.items():
                if digest != mine.digest and self._name(voter):
                    log.error(
                        "a replica differs", group=self._log.group, replica=voter, index=mine.below,
                        digest=digest.hex(), majority=mine.digest.hex(),
                    )  # fmt: skip
            doubt = self.doubt
            if doubt is not None and doubt.mark.since == mine.since and doubt.mark.below <= mine.below:
                log.warning("a majority agrees with this replica again", group=self._log.group, index=mine.below)
                self.doubt, self.stored = None, False
                self._named.discard(self._me)

    def _name(self, voter: MemberId) -> bool:
        """Count a divergence; False when it was counted before."""
        if voter in self._named:
            return False
        self._named.add(voter)
        self.divergences += 1
        return True

    def _begin(self, doubt: Doubt) -> None:
        self.doubt, self.stored = doubt, False
        self._open.clear()
        log.error(
            "this replica is quarantined", group=self._log.group, wrong=doubt.wrong, index=doubt.mark.below,
            digest=doubt.mark.digest.hex(), why=doubt.text,
        )  # fmt: skip
        self._doubted()

    def _text(self, what: str, mine: Mark, told: dict[MemberId, bytes]) -> str:
        said = ", ".join(f"{voter} {digest.hex()}" for voter, digest in told.items())
        return f"{what} below entry {mine.below}: {self._me} {mine.digest.hex()}, {said}"
