"""One group on one node: callers on one side, the guarded engine on the other, the state machine between
them.

Nothing here runs a caller's code inside the engine: futures are resolved, and the loop calls back afterwards.
The state machine is total; should it raise after all, the group stops where it is, with the reason, and is
not tried again, because a second try on one replica alone is how replicas diverge. Only NoSpace, which it
raises before it has changed anything, is waited out, and leadership given up meanwhile.

A leader's time never goes back: it starts from the newest stamp in its log, whatever its clock says.
"""

import heapq
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raftspine.cluster import raft_envelope, raft_frames, raft_history, raft_members
from raftspine.cluster.raft_audit import Audit
from raftspine.cluster.raft_engine import MEMBERS, NO_OP, REGULAR, Engine
from raftspine.cluster.raft_flow import RETRY_HEARTBEATS, Flow
from raftspine.cluster.raft_guard import Guard
from raftspine.cluster.raft_members import Configurations
from raftspine.cluster.raft_proposals import Proposals, fail
from raftspine.cluster.raft_reads import Reads
from raftspine.cluster.raft_types import GroupLog, RaftLimits, RaftTiming
from raftspine.errors import NoSpace, SpineError, Unavailable
from raftspine.model import MemberId, NodeId, node_of
from raftspine.ports import (
    Change,
    Clock,
    Doubt,
    Entropy,
    LogStatus,
    Members,
    Position,
    Promote,
    Remove,
    SnapshotProgress,
    StateMachine,
)

Outgoing = tuple[MemberId, Sequence[Any]]
"""A frame and the member it is for."""

NEARLY = 64
"""Entries a follower may lag behind and still count as caught up; it gets them within a round or two."""


class Handover(NamedTuple):
    """Leadership is being given to `to`; proposals wait until `until` (monotonic seconds) at most. `ended`
    resolves with whether this node has stopped leading."""

    to: MemberId
    until: float
    ended: "Future[bool]"


class RaftGroup:
    """See the module. Driven by RaftHost: `turn` once per loop turn in which something happened."""

    def __init__(
        self,
        me: MemberId,
        log: GroupLog,
        machine: StateMachine,
        loop: AbstractEventLoop,
        *,
        clock: Clock,
        entropy: Entropy,
        timing: RaftTiming,
        limits: RaftLimits,
        void: Callable[[str], None],
    ) -> None:
        self.group = log.group
        self.me = me
        self.log = log
        self.configurations = Configurations(log)
        self.peers: tuple[MemberId, ...] = ()
        """The voters and learners but for this node."""
        self.ignored_frames = 0
        """Frames from members that do not count here (any more)."""
        self.held: list[Outgoing] = []
        """Frames that must not leave before the journal is on disk …"""
        self.express: list[Outgoing] = []
        """… and those that may (raft_frames.py says why)."""
        self.halted: str | None = None
        self.stalled: str | None = None
        self.installing = False
        self.handover: Handover | None = None
        self.known_leader: NodeId | None = None
        self.sending: dict[MemberId, SnapshotProgress] = {}
        """Snapshots on their way to followers: entries above their index must stay for what comes after."""

        self._machine = machine
        self._loop = loop
        self._clock = clock
        self._limits = limits
        self._patience = timing.election_max_ms / 1000
        self._check_quorum = timing.check_quorum_ms / 1000
        self._proposals = Proposals(log.group, loop, limits)
        self._reads = Reads()
        self._awaited: list[tuple[int, int, Future[None]]] = []
        self._awaited_count = 0
        self._office: int | None = None
        self._ousted_at: float | None = None
        self._asked_successor = False

        applied = machine.position(log.group).index if log.members.voters else log.base
        self.applied_ms = raft_history.newest_stamp(log, applied)
        """The newest leader time among applied entries."""
        self._stamp_ms = self.applied_ms
        self.audit = Audit(me, log, machine, lambda: self.members.voters, self.emit, self._doubted)
        self._guard = Guard(
            me,
            log,
            clock=clock,
            entropy=entropy,
            timing=timing,
            emit=self.emit,
            halt=self.halt,
            superseded=self._proposals.superseded,
            void=void,
        )
        self.engine = Engine(
            me,
            log,
            applied,
            self,
            self.members,
            clock=clock,
            entropy=entropy,
            timing=timing,
            apply_entries=limits.apply_entries,
        )
        retry_seconds = RETRY_HEARTBEATS * timing.heartbeat_ms / 1000
        self.flow = Flow(self.engine, log, self.emit, limits, retry_seconds)
        self._guard.attach(self.engine, self.flow, self._reads)
        self._members_changed = False
        self._take_members()

    # ── asked from above ───────────────────────────────────────────────────────────────────────────────────

    def propose(self, command: bytes) -> "Future[Any]":
        """Queue a command for this turn's entry."""
        if self.shut or not self.engine.leads:
            return self._failed(self.not_leading())
        return self._proposals.submit(command)

    def read_index(self) -> "Future[int]":
        if self.shut or not self.engine.leads:
            return self._failed(self.not_leading())
        reader: Future[int] = self._loop.create_future()
        self._reads.add(reader)
        return reader

    def wait_applied(self, index: int) -> "Future[None]":
        if self.doubt is not None or (self.engine.applied < index and self.halted is not None):
            return self._failed(self.not_leading())
        waiter: Future[None] = self._loop.create_future()
        if self.engine.applied >= index:
            waiter.set_result(None)
        else:
            self._awaited_count += 1
            heapq.heappush(self._awaited, (index, self._awaited_count, waiter))
        return waiter

    def _failed(self, error: SpineError) -> "Future[Any]":
        future: Future[Any] = self._loop.create_future()
        future.set_exception(error)
        return future

    def not_leading(self) -> Unavailable:
        """Why nothing can be proposed here, and whom to ask instead."""
        text = f"this node does not lead group {self.group}"
        if self.halted is not None:
            text = f"group {self.group} is halted here: {self.halted}"
        elif self.doubt is not None:
            text = f"group {self.group} is quarantined here: {self.doubt.text}"
        return Unavailable(text, code="no_leader", details={"group": self.group, "leader": self.leader})

    def status(self, reason: str | None) -> LogStatus:
        """`reason`: what keeps the whole node from taking part, if anything."""
        engine = self.engine
        members = self.members
        role = "leader" if engine.leads else "candidate" if engine.campaigns else "follower"
        if not self._guard.votes:
            role = "removed" if self.removed else "learner"
        return LogStatus(
            self.group,
            "halted" if self.halted is not None else role,
            self.leader,
            engine.term,
            engine.commit,
            engine.applied,
            self.log.last,
            members.voters,
            self.halted or reason or (self.doubt.text if self.doubt is not None else self.stalled),
            self.doubt is not None,
            tuple(self.sending.values()),
            members.learners,
            self.configurations.index > engine.commit,
        )

    @property
    def doubt(self) -> Doubt | None:
        """Why this replica's state is not shown to anybody (raft_audit.py)."""
        return self.audit.doubt

    @property
    def shut(self) -> bool:
        """Whether nothing may be asked of this replica."""
        return self.halted is not None or self.audit.doubt is not None

    @property
    def leader(self) -> NodeId | None:
        """The node that leads."""
        member = self.engine.leader
        return None if self.halted is not None or member is None else node_of(member)

    @property
    def unfinished(self) -> bool:
        """Whether committed entries on disk wait to be applied."""
        engine = self.engine
        ready = min(engine.commit, self.log.durable) > engine.applied
        able = self.halted is None and self.stalled is None and not self.installing
        return ready and able and not self.audit.wrong

    @property
    def unapplied(self) -> bool:
        """Whether committed entries wait to be applied, on disk or not."""
        return self.engine.commit > self.engine.applied

    @property
    def waiting(self) -> bool:
        """Whether proposals wait for an entry that nothing holds up any more."""
        proposals = self._proposals
        return proposals.queued and not proposals.entered and self.handover is None and self.engine.leads

    def needs_turn(self, beat: bool) -> bool:
        """Whether the slow timer has to turn this group."""
        if self.halted is not None:
            return False
        if self.engine.leads or self.stalled is not None:
            return beat
        if self._proposals.entered or self._proposals.queued:
            return True
        return self.engine.election_due and self._guard.votes

    # ── who takes part ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def members(self) -> Members:
        """Who takes part as this log has it, committed or not; nobody while it is blank."""
        return self.configurations.current

    @property
    def removed(self) -> bool:
        """Whether this node knows that it takes part no more."""
        if self.configurations.index >= self.log.removed_at:
            return self.me in self.members.removed
        return True

    def change(self, change: Change, linked: Callable[[MemberId], bool]) -> "Future[Members]":
        """See ports.ReplicatedLog. `linked`: whether a member's node can be reached."""
        try:
            members = self._next_members(change, linked)
        except SpineError as error:
            return self._failed(error)
        index = self.engine.propose_members(raft_envelope.pack_members(members))
        self._settle_members()
        return self._proposals.enter_alone(index, self.engine.term)

    def _next_members(self, change: Change, linked: Callable[[MemberId], bool]) -> Members:
        engine = self.engine
        if self.halted is not None or not engine.leads:
            raise self.not_leading()
        if engine.commit < max(self.configurations.index, engine.own_term_index) or self.handover is not None:
            text = f"group {self.group} is in the middle of a change of members, or of leaders"
            raise Unavailable(text, code="change_in_progress", retry_after_ms=200)
        members = raft_members.after(self.members, change)
        if isinstance(change, Remove) and change.member == self.me:
            raise Unavailable(
                f"the leader of group {self.group} does not remove itself; hand leadership over and ask the next",
                code="no_leader",
                details={"group": self.group, "leader": self.leader},
            )
        if isinstance(change, Promote) and not self.caught_up(change.member):
            text = f"{change.member} has too little of group {self.group}'s log yet"
            raise Unavailable(text, code="not_caught_up", retry_after_ms=500)
        if not raft_members.decides(
            members, lambda voter: voter == self.me or (linked(voter) and self.answers(voter))
        ):
            text = f"after this change no majority of group {self.group} could be asked"
            raise Unavailable(text, code="no_quorum", retry_after_ms=500)
        return members

    def answers(self, peer: MemberId) -> bool:
        """At the leader: whether a follower has answered lately."""
        return self.engine.silence(peer) < self._check_quorum

    def caught_up(self, peer: MemberId) -> bool:
        """At the leader: whether a follower has about all there is, and answers."""
        near = self.engine.match(peer) >= max(self.log.last - NEARLY, self.log.base, 1)
        return self.engine.leads and near and self.answers(peer)

    def grown(self, command: bytes, index: int) -> None:
        self.configurations.grown(command, index)
        self._members_changed = True

    def shortened(self, index: int) -> None:
        self.configurations.shortened(index)
        self._members_changed = True

    def _settle_members(self) -> None:
        """After the engine has changed the log: not before, it is in the middle of using what would change."""
        if self._members_changed:
            self._members_changed = False
            self._take_members()

    def _take_members(self) -> None:
        members, me = self.members, self.me
        others = tuple(voter for voter in members.voters if voter != me)
        self.peers = (*others, *(learner for learner in members.learners if learner != me))
        self.engine.take_members(members)
        self.flow.take_members(self.peers)
        self._reads.take_members(others)
        if self.engine.leads:
            self._reads.settle()  # fewer may be needed now, and nobody be left to answer
        self._guard.take_members(members, removed=self.removed)
        if self.handover is not None and self.handover.to not in others:
            self._end_handover(left=False)

    def _committed_members(self, index: int) -> None:
        """A change is committed: who has just left is told, once; if that is lost, its next request is answered."""
        gone = self.members.removed[-1:]
        if self.engine.leads and index == self.configurations.index and gone and gone[0] not in self.peers:
            self.emit(gone[0], raft_frames.REMOVED, self.engine.term, index)

    def _told_removed(self, index: int) -> None:
        """A member has it committed that this node takes part no more: remember it for good, unless what is here is
        newer."""
        if index > max(self.configurations.index, self.log.removed_at):
            self.log.remove(index)
            self.engine.resign()
            self._take_members()
            self.stir()

    # ── the turn ───────────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, source: NodeId, frame: Sequence[Any]) -> None:
        """A well-formed frame for this group. Answers count only from members. Requests are heard from others too,
        because a node that is behind has not heard of its group's newest members; who has left is told so."""
        if self.halted is not None:
            return
        kind = frame[1]
        if kind == raft_frames.REMOVED:
            self._told_removed(frame[3])
            return
        if source not in self.peers:
            former = kind not in raft_frames.ANSWERS and self._is_former(source, frame)
            if former:
                self.emit(source, raft_frames.REMOVED, self.engine.term, self.configurations.index)
            if former or kind in raft_frames.ANSWERS or self._is_intruder(kind):
                self.ignored_frames += 1
                return
        if kind == raft_frames.MARKS:
            self.audit.heard(source, frame[3], frame[4])
            return
        if kind == raft_frames.SNAPSHOT_WANTED:
            if self.engine.leads and self.doubt is None:
                self.flow.snapshots_wanted.append(source)
            return
        if kind == raft_frames.TIMEOUT_NOW and self.doubt is not None:
            return  # whoever asks does not know: this replica has nothing to show as a leader
        if self.installing and frame[1] == raft_frames.APPEND:
            self._guard.from_leader(source, frame[2])
            return  # the log is about to be replaced; the leader asks again
        self._guard.deliver(source, frame)
        self._settle_members()

    def _is_intruder(self, kind: int) -> bool:
        """Whether a request comes from somebody who, member or not, has no business here while a leader is heard:
        only without one does it matter that a candidate may be a member this node has not heard of."""
        return kind not in raft_frames.LEADERS and self._guard.leader_alive()

    def _is_former(self, source: MemberId, frame: Sequence[Any]) -> bool:
        """Whether a candidate has left this group for good. One that has been let in again since holds the entry that
        says so, and all before it, so its log is not behind ours; a leader's has been compared by a majority."""
        if frame[1] not in (raft_frames.VOTE, raft_frames.PREVOTE):
            return False
        if source not in self.members.removed or self.configurations.index > self.engine.commit:
            return False
        last, last_term = frame[-3:-1] if frame[1] == raft_frames.VOTE else frame[-2:]
        return bool((last_term, last) < (self.log.last_term, self.log.last))

    def turn(self, beat: bool) -> None:
        """Append what was proposed, let the engine work, address the followers, answer who is owed one."""
        if self.halted is not None:
            self.known_leader = None
            return
        engine = self.engine
        if not (beat or self._busy()):
            if engine.leads:
                self._begin_reads()
            self.known_leader = self.leader
            return
        self._guard.stirred = False
        if engine.leads:
            self._take_office()
            self._enter()
        engine.turn()
        if engine.leads and self.halted is None:
            self._take_office()
            if (
                len(self.members.voters) > 1
            ):  # with its voters to ask, what was applied just now makes room for the next entry at once
                self._enter()
            self._lead(beat)
        else:
            self._follow()
        self._wake_awaited()
        self.known_leader = self.leader

    def _busy(self) -> bool:
        """Whether a turn would change anything: a heartbeat or a second acknowledgement often does not."""
        if self._guard.stirred or self.unfinished or self._proposals.queued:
            return True
        if self.engine.leads:
            return self.engine.wants_beat or self.handover is not None
        office_ends = self._office is not None or self._reads.pending
        return office_ends or self._proposals.entered or self.engine.election_due

    def stir(self) -> None:
        """Something changed that only a turn can act on."""
        self._guard.stirred = True

    def _enter(self) -> None:
        """Close an entry over what waits, unless one is under way: what comes meanwhile makes up the next, so that
        the cost of a round is shared by as many as there are (group commit). A long queue does not wait."""
        if self.handover is None and (not self._proposals.entered or self._proposals.many):
            self._proposals.enter(self._append, self.engine.term)

    def _append(self, commands: list[bytes]) -> int:
        self._stamp_ms = max(self._stamp_ms, self._clock.wall_ms())
        return self.engine.propose(raft_envelope.pack(self._stamp_ms, commands))

    def _take_office(self) -> None:
        """First turn of a term this node leads: nothing known of an earlier one holds."""
        if self._office != self.engine.term:
            self._office, self._ousted_at = self.engine.term, None
            self._end_handover(left=False)
            self._stamp_ms = max(self._stamp_ms, raft_history.newest_stamp(self.log, self.log.last))
            self.engine.take_members(self.members)
            self.flow.begin()

    def _lead(self, beat: bool) -> None:
        engine, now = self.engine, self._clock.monotonic()
        self._begin_reads()
        beat, engine.wants_beat = beat or engine.wants_beat, False
        self.flow.run(now, beat=beat, context=self._reads.context)
        if self.handover is not None:
            self._hand_over(self.handover, now)

    def _begin_reads(self) -> None:
        """Open a read round, if reads wait for one. It rests on its echoes alone, so the engine need not be asked."""
        engine, reads = self.engine, self._reads
        if engine.applied >= engine.own_term_index and reads.begin(engine.commit):
            self.flow.confirm(reads.witnesses(), reads.context)
            reads.settle()  # a sole voter is its own majority

    def _follow(self) -> None:
        self._leave_office()
        if self._reads.pending:
            self._reads.fail(self.not_leading())
        if self._proposals.queued:
            self._proposals.refuse(self.not_leading())
        if self._proposals.entered:
            now = self._clock.monotonic()
            self._ousted_at = now if self._ousted_at is None else self._ousted_at
            if now - self._ousted_at > self._patience:
                self._proposals.abandon("leadership was lost and the outcome did not become known")

    def _leave_office(self) -> None:
        self._office = None
        self._end_handover(left=True)

    def _wake_awaited(self) -> None:
        applied = self.engine.applied
        while self._awaited and self._awaited[0][0] <= applied:
            waiter = heapq.heappop(self._awaited)[2]
            if not waiter.done():
                waiter.set_result(None)

    # ── asked by the engine ────────────────────────────────────────────────────────────────────────────────

    def emit(self, peer: NodeId, kind: int, term: int, *fields: Any) -> None:
        frame = (self.group, kind, term, *fields)
        (self.held if kind in raft_frames.HELD else self.express).append((peer, frame))

    def may_campaign(self) -> bool:
        able = not self.installing and self.halted is None and self.stalled is None and not self.audit.wrong
        return able and self._guard.may_campaign()

    def forced(self) -> bool:
        return self._guard.forced()

    def apply(self, index: int, term: int, command: bytes) -> bool:
        """Apply one entry. False when it cannot be: the group has halted, stalled, or awaits a snapshot."""
        if self.halted is not None or self.installing or self.audit.wrong:
            return False
        kind = command[:1]
        results: list[Any] | None = []
        if kind == REGULAR:
            results = self._apply_commands(Position(index, term), command[1:])
        elif kind == MEMBERS:
            results = [self.configurations.at(index)]
            self._committed_members(index)
        elif kind != NO_OP:
            self.halt(f"entry {index} is of a kind this version does not know: {kind!r}")
            return False
        if results is None:
            return False
        self._proposals.applied(index, term, results)
        return True

    def _apply_commands(self, at: Position, payload: bytes) -> list[Any] | None:
        try:
            time_ms, commands = raft_envelope.unpack(payload)
            results = self._machine.apply(self.group, at, time_ms, commands)
            if len(results) != len(commands):
                raise ValueError(f"{len(results)} results for {len(commands)} commands")
        except NoSpace as error:
            self.stalled = f"entry {at.index} waits for space: {error.message}"
            if self.engine.leads and len(self.members.voters) > 1:
                self.engine.resign()  # another replica may have room
            return None
        except Exception as error:  # noqa: BLE001 (whatever it is, a second try here alone would diverge)
            self.halt(f"entry {at.index} cannot be applied: {type(error).__name__}: {error}")
            return None
        self.stalled = None
        self.applied_ms = max(self.applied_ms, time_ms)
        return results

    # ── endings ────────────────────────────────────────────────────────────────────────────────────────────

    def halt(self, reason: str) -> None:
        """Stop this group on this node for good, and say why. Other groups, and other replicas, go on."""
        if self.halted is None:
            self.halted = reason
            self.engine.resign()
            self.held.clear()
            self.end(f"the group halted: {reason}")

    def _doubted(self) -> None:
        """This replica's state may be wrong: whoever waits for it is sent away."""
        refusal = self.not_leading()
        self._proposals.refuse(refusal)
        self._reads.fail(refusal)
        if self.audit.wrong:
            self._proposals.abandon("this replica's state differs from the others'")
        fail((waiter for _, _, waiter in self._awaited), refusal)
        self._awaited.clear()
        self.stir()

    def resign(self, error: SpineError, reason: str) -> None:
        """Stop leading because the journal cannot be written; nothing that waited may be acknowledged."""
        if self.engine.leads:
            self.engine.resign()
        self._leave_office()
        self.held.clear()
        self.express.clear()
        self.known_leader = self.leader
        self._proposals.refuse(error)
        self._reads.fail(error)
        self._proposals.abandon(reason)

    def end(self, reason: str) -> None:
        """Answer everybody: this group will not do so any more."""
        refusal = self.not_leading()
        self._end_handover(left=True)
        self._proposals.refuse(refusal)
        self._reads.fail(refusal)
        self._proposals.abandon(reason)
        fail((waiter for _, _, waiter in self._awaited), refusal)
        self._awaited.clear()

    # ── leadership on purpose ──────────────────────────────────────────────────────────────────────────────

    def begin_handover(self, to: MemberId, until: float) -> Handover | None:
        """Give leadership to the voter `to` as soon as it has everything. None when not leading or already giving."""
        if not self.engine.leads or self.halted is not None or self.handover is not None:
            return None
        if to == self.me or to not in self.members.voters:
            return None
        self.handover, self._asked_successor = Handover(to, until, self._loop.create_future()), False
        return self.handover

    def _hand_over(self, handover: Handover, now: float) -> None:
        if now >= handover.until:
            self._end_handover(left=False)
        elif not self._asked_successor and self.flow.caught_up(handover.to):
            self._asked_successor = True
            self.engine.hand_over(handover.to)

    def _end_handover(self, *, left: bool) -> None:
        if self.handover is not None and not self.handover.ended.done():
            self.handover.ended.set_result(left)
        self.handover = None

    # ── snapshots and compaction ───────────────────────────────────────────────────────────────────────────

    def leader_spoke(self, source: NodeId, term: int) -> bool:
        """Whether a snapshot's sender, a node, leads the present term and has said so by a frame, which names the
        member; the chunk counts as a heartbeat."""
        leader = self.engine.leader
        if self.halted is not None or self.engine.leads or leader is None or node_of(leader) != source:
            return False
        if term != self.engine.term or not self._guard.from_leader(leader, term):
            return False
        self.engine.follow(leader, term, 0)
        return True

    def holds(self, at: Position) -> bool:
        """Whether a snapshot at this place would add nothing."""
        if not self.log.members.voters:
            return False
        return at.index <= max(self.engine.commit, self.log.base) or raft_history.contains(self.log, at)

    def installed(self, at: Position, time_ms: int, members: Members) -> None:
        """The state machine was replaced: entries above `at` stay unless they contradict it."""
        log = self.log
        self._proposals.covered(at.index)
        self.applied_ms = max(self.applied_ms, time_ms)
        if raft_history.contains(log, at) and log.members.voters:
            log.rebase(at.index, at.term, self.applied_ms, members)
        else:
            self._proposals.superseded(at.index)
            log.reset(at.index, at.term, self.applied_ms, members)
        self.engine.jump(at.index)
        self.configurations.reload()
        self._take_members()
        self.audit.reload()
        self._wake_awaited()

    @property
    def oversized(self) -> bool:
        return raft_history.oversized(self.log, self._limits)

    def compact(self, stored: int) -> bool:
        """Drop entries at or below `stored`, a position the state machine has on disk, but for a tail."""
        dropped = raft_history.compact(
            self.log,
            self._limits,
            members_at=self.configurations.at,
            applied=self.engine.applied,
            applied_ms=self.applied_ms,
            needed=(stored, *(sent.index for sent in self.sending.values())),
        )
        if dropped:
            self.configurations.reload()
        return dropped
