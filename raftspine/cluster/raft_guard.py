"""The rules every frame must pass before the engine may act on it.

The engine trusts what it is told: it counts a vote twice, takes an answer from an older term for a current
one, cuts entries that do not conflict, and calls a tail committed that nobody compared. Each check below
closes one of these (numbers: design/strong-path.md §1), and each has a test that loses data without it:

    1   entries are cut only where a term differs             4   answers count in their own term only
    5   commit never passes what this leader has verified     6   a member's vote counts once, others' never
    13  PreVote, and voters stay loyal to a leader they hear  16  a conflict is jumped over by its whole term

A frame that contradicts a committed entry cannot come from a correct node: the group stops, with the reason.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_engine import Engine
from raftspine.cluster.raft_flow import Flow
from raftspine.cluster.raft_reads import Reads
from raftspine.cluster.raft_types import GroupLog, RaftTiming, Row
from raftspine.model import NodeId
from raftspine.ports import Clock, Entropy, Members

_LONG_AGO = float("-inf")

_QUIET = frozenset({frames.HEARTBEAT, frames.HEARTBEAT_ECHO, frames.APPEND, frames.APPENDED, frames.COMMITTED})
"""Kinds that by themselves give the engine nothing to do in its next turn; the rules know the exceptions."""


class Guard:
    """Judges the frames of one group, and decides when its engine may campaign."""

    def __init__(
        self,
        me: NodeId,
        log: GroupLog,
        *,
        clock: Clock,
        entropy: Entropy,
        timing: RaftTiming,
        emit: Callable[..., None],
        halt: Callable[[str], None],
        superseded: Callable[[int], None],
        void: Callable[[str], None],
    ) -> None:
        self._me = me
        self._log = log
        self._voters: tuple[NodeId, ...] = ()
        self._blank = True
        self._now = clock.monotonic
        self._chance = entropy.random
        self._patience = timing.election_min_ms / 1000
        self._emit = emit
        self._halt = halt
        self._superseded = superseded
        self._void = void
        self.stirred = True
        """Whether something happened that the engine or the flow must see; taken back by the driver."""
        self._leader_heard = _LONG_AGO
        self._votes: tuple[int, set[NodeId]] = (0, set())
        self._ballot = 0
        self._granted: set[NodeId] = set()
        self._ballot_term = -1
        self._next_ballot = _LONG_AGO
        self._forced_until = _LONG_AGO
        self._rules: dict[int, Callable[..., None]] = {
            frames.HEARTBEAT: self._heartbeat,
            frames.HEARTBEAT_ECHO: self._echo,
            frames.APPEND: self._append,
            frames.APPENDED: self._appended,
            frames.VOTE: self._vote,
            frames.VOTED: self._voted,
            frames.PREVOTE: self._prevote,
            frames.PREVOTED: self._prevoted,
            frames.STALE: self._stale,
            frames.TIMEOUT_NOW: self._timeout_now,
            frames.COMMITTED: self._committed,
            frames.DENIED: self._denied,
        }

    def attach(self, engine: Engine, flow: Flow, reads: Reads) -> None:
        """The engine asks its driver while it is being made, so it comes second."""
        self._engine = engine
        self._flow = flow
        self._reads = reads

    def deliver(self, source: NodeId, frame: Sequence[Any]) -> None:
        """Act on a well-formed frame from a member of this group."""
        if frame[1] not in _QUIET:
            self.stirred = True
        self._rules[frame[1]](source, *frame[2:])

    def take_members(self, members: Members, *, removed: bool) -> None:
        """Who counts from now on; `removed`: this node has been told that it does not any more."""
        self._voters = () if removed else members.voters
        self._blank = removed or not members.voters

    @property
    def votes(self) -> bool:
        """Whether this node counts in its group, as far as it knows."""
        return self._me in self._voters

    # ── campaigning ────────────────────────────────────────────────────────────────────────────────────────

    def leader_alive(self) -> bool:
        return self._engine.leads or self._now() - self._leader_heard < self._patience

    def leader_spoke(self) -> None:
        self._leader_heard = self._now()

    def forced(self) -> bool:
        """The leader itself asked us to take over, so loyalty to it is no reason to refuse."""
        return self._now() < self._forced_until

    def may_campaign(self) -> bool:
        """Asked when an election is due. Only a node that a majority would vote for may raise the term: one
        that was merely cut off would otherwise depose a healthy leader on its return."""
        now, engine = self._now(), self._engine
        if not self.votes:
            return False
        if len(self._voters) == 1 or self.forced():
            return True
        in_time = now < self._next_ballot and self._ballot_term == engine.term
        if in_time and len(self._granted) + 1 > len(self._voters) // 2:
            self._granted = set()
            self._next_ballot = _LONG_AGO
            return True
        if not in_time:
            self._ballot += 1
            self._granted, self._ballot_term = set(), engine.term
            self._next_ballot = now + self._patience * (0.3 + 0.4 * self._chance())
            for peer in self._voters:
                if peer == self._me:
                    continue
                self._emit(peer, frames.PREVOTE, engine.term, self._ballot, self._log.last, self._log.last_term)
        return False

    def _prevote(self, source: NodeId, term: int, ballot: int, last: int, last_term: int) -> None:
        current, log = self._engine.term, self._log
        up_to_date = (last_term, last) >= (log.last_term, log.last)
        granted = term >= current and up_to_date and not self._blank and not self.leader_alive()
        self._emit(source, frames.PREVOTED, current, ballot, granted)

    def _prevoted(self, source: NodeId, term: int, ballot: int, granted: bool) -> None:
        if term > self._engine.term:
            self._engine.adopt(term, source)
        elif granted and source in self._voters and ballot == self._ballot and self._ballot_term == self._engine.term:
            self._granted.add(source)

    def _vote(self, source: NodeId, term: int, last: int, last_term: int, by_leader: bool) -> None:
        loyal = self.leader_alive() and source != self._engine.leader
        if term < self._engine.term:
            self._emit(source, frames.STALE, self._engine.term)
            return
        if term > self._engine.term and loyal and not by_leader:
            return
        if self._blank:  # it holds nothing by which to judge a candidate, or is none of the group's any more
            return
        self._engine.vote_wanted(source, term, last, last_term)

    def _voted(self, source: NodeId, term: int) -> None:
        if term != self._engine.term:
            return
        if self._votes[0] != term:
            self._votes = (term, set())
        if source in self._voters and source not in self._votes[1]:
            self._votes[1].add(source)
            self._engine.vote_given(source, term)

    def _timeout_now(self, source: NodeId, term: int) -> None:
        if self.votes and term == self._engine.term and source == self._engine.leader:
            self._forced_until = self._now() + self._patience
            self._engine.campaign_now(source, term)

    def _stale(self, source: NodeId, term: int) -> None:
        if term > self._engine.term:
            self._engine.adopt(term, source)

    # ── following ──────────────────────────────────────────────────────────────────────────────────────────

    def from_leader(self, source: NodeId, term: int) -> bool:
        """Whether the sender leads a term that is not over; one that does not know better is told."""
        if term < self._engine.term:
            self._emit(source, frames.STALE, self._engine.term)
            return False
        self.leader_spoke()
        return True

    def _heartbeat(self, source: NodeId, term: int, commit: int, context: int) -> None:
        if self.from_leader(source, term):
            # The leader names only what this very log has acknowledged in its term.
            self._engine.follow(source, term, commit)
            self._emit(source, frames.HEARTBEAT_ECHO, term, context)

    def _committed(self, source: NodeId, term: int, commit: int) -> None:
        if self.from_leader(source, term):
            self._engine.follow(source, term, commit)

    def _append(
        self, source: NodeId, term: int, previous: int, previous_term: int, commit: int, sent: list[Any]
    ) -> None:
        if not self.from_leader(source, term):
            return
        log, end = self._log, previous + len(sent)
        if not log.members.voters:
            self._refuse(source, term, previous, 0)  # blank: what entries would be applied to is not here
            return
        if previous > log.last:
            self._refuse(source, term, previous, log.last + 1)
            return
        if previous < log.base:
            if end <= log.base:  # all of it is committed here and has left the log
                self._confirm(source, term, previous, log.base, 0)
                return
            if sent[log.base - previous - 1][0] != log.term_at(log.base):
                self._halt(f"{source} sent another entry for the committed index {log.base}")
                return
            sent, previous = sent[log.base - previous :], log.base
        elif log.term_at(previous) != previous_term:
            self._conflict(source, term, previous)
            return
        self._take(source, term, previous, commit, sent)

    def _denied(self, source: NodeId, term: int, index: int) -> None:
        """The leader has our word for an entry that we then said we do not hold. It may have misread an answer that
        was under way for long, so we look: what was acknowledged in a term is not cut in that term."""
        if self.from_leader(source, term) and term == self._engine.term and index > self._log.last:
            self._void(
                f"{source} leads term {term} of group {self._log.group} and has this node's word for entry {index}, "
                f"but the journal here ends at {self._log.last}: the disk was rolled back"
            )

    def _take(self, source: NodeId, term: int, previous: int, commit: int, sent: list[Any]) -> None:
        """`previous` is shared: skip what is here already, cut at the first difference, append the rest."""
        log, at, asked = self._log, previous, previous
        for entry_term, _ in sent:
            if at >= log.last or log.term_at(at + 1) != entry_term:
                break
            at += 1
        end = previous + len(sent)
        rest = sent[at - previous :]
        if not rest:
            self._confirm(source, term, asked, end, min(commit, end))
            return
        if at < log.last:
            if at < self._engine.commit:
                self._halt(f"{source} leads term {term} without the committed entry {at + 1}")
                return
            self._superseded(at + 1)
        rows: list[Row] = [(command, at + 1 + place, t) for place, (t, command) in enumerate(rest)]
        self._engine.store(source, term, min(commit, end), at, rows)
        self._emit(source, frames.APPENDED, term, True, asked, end + 1)

    def _confirm(self, source: NodeId, term: int, previous: int, end: int, commit: int) -> None:
        self._engine.follow(source, term, commit)
        self._emit(source, frames.APPENDED, term, True, previous, end + 1)

    def _refuse(self, source: NodeId, term: int, previous: int, wanted: int) -> None:
        self._engine.follow(source, term, 0)
        self._emit(source, frames.APPENDED, term, False, previous, wanted)

    def _conflict(self, source: NodeId, term: int, previous: int) -> None:
        """Suggest the first entry of the whole differing term: one round trip for it, however long it is."""
        log, commit = self._log, self._engine.commit
        if previous <= commit:
            self._halt(f"{source} leads term {term} without the committed entry {previous}")
            return
        wrong, wanted = log.term_at(previous), previous
        while wanted - 1 > max(log.base, commit) and log.term_at(wanted - 1) == wrong:
            wanted -= 1
        self._refuse(source, term, previous, wanted)

    # ── leading ────────────────────────────────────────────────────────────────────────────────────────────

    def _current_answer(self, source: NodeId, term: int) -> bool:
        if term > self._engine.term:
            self._engine.adopt(term, source)
        return term == self._engine.term and self._engine.leads

    def _appended(self, source: NodeId, term: int, stored: bool, previous: int, wanted: int) -> None:
        if not self._current_answer(source, term):
            return
        if stored:
            self.stirred = self._flow.stored(source, wanted, self._now()) or self.stirred
        else:
            self.stirred = True
            self._flow.refused(source, previous, wanted, self._now())

    def _echo(self, source: NodeId, term: int, context: int) -> None:
        if self._current_answer(source, term):
            self._engine.heard(source)
            self._reads.echo(source, context)
            self._reads.settle()
