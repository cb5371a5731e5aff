"""One group on one node: proposals and reads on one side, the guarded engine on the other, futures in between.

Whoever proposed is owed exactly one of three answers, and they must not blur (design/strong-path.md §4):

    a result       the entry is on a majority's disks and applied here
    Unavailable    nothing was appended; asking elsewhere is safe
    Unknown        it was appended and may yet be applied: the entry was superseded, covered by a snapshot, or
                   leadership was lost and nobody said in time what became of it

Nothing here runs a caller's code inside the engine: futures are resolved, and the loop calls back afterwards. The
state machine is total; should it raise after all, the group stops where it is, with the reason, and is not retried,
because a second try on one replica alone is how replicas diverge. Only NoSpace, which it raises before it has
changed anything, is waited out.
"""

import heapq
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from raftspine.cluster import raft_envelope, raft_frames
from raftspine.cluster.raft_engine import NO_OP, REGULAR, Engine
from raftspine.cluster.raft_flow import RETRY_HEARTBEATS, Flow
from raftspine.cluster.raft_guard import Guard
from raftspine.cluster.raft_reads import Reads
from raftspine.cluster.raft_types import GroupLog, RaftLimits, RaftTiming
from raftspine.errors import NoSpace, SpineError, TooLarge, Unavailable, Unknown
from raftspine.model import NodeId
from raftspine.ports import Clock, Entropy, LogStatus, Position, StateMachine

Outgoing = tuple[NodeId, Sequence[Any]]
"""A frame and the peer it is for."""


class _Proposed(NamedTuple):
    """The callers whose commands make up one entry."""

    term: int
    callers: "list[Future[Any]]"


class RaftGroup:
    """See the module. Driven by RaftHost: `turn` once per loop turn in which something happened."""

    def __init__(
        self,
        me: NodeId,
        log: GroupLog,
        machine: StateMachine,
        loop: AbstractEventLoop,
        *,
        clock: Clock,
        entropy: Entropy,
        timing: RaftTiming,
        limits: RaftLimits,
    ) -> None:
        self.group = log.group
        self.me = me
        self.log = log
        self.peers = tuple(voter for voter in log.voters if voter != me)
        self.held: list[Outgoing] = []
        """Frames that must not leave before the journal is on disk …"""
        self.express: list[Outgoing] = []
        """… and those that may (raft_frames.py says why)."""
        self.halted: str | None = None
        self.stalled: str | None = None
        self.installing = False
        self.handover: tuple[NodeId, float] | None = None
        """Leadership is being given to this peer, until then; proposals wait."""
        self.known_leader: NodeId | None = None
        self.sending: dict[NodeId, int] = {}
        """Snapshots on their way to followers, by their index: entries above must stay for what comes after."""

        self._machine = machine
        self._loop = loop
        self._clock = clock
        self._limits = limits
        self._patience = timing.election_max_ms / 1000
        self._queue: deque[tuple[bytes, Future[Any]]] = deque()
        self._proposed: dict[int, _Proposed] = {}
        self._outstanding = 0
        self._awaited: list[tuple[int, int, Future[None]]] = []
        self._awaited_count = 0
        self._office: int | None = None
        self._ousted_at: float | None = None
        self._handed_over = False

        applied = machine.position(self.group).index
        self._applied_ms = self._log_time(applied)
        self._stamp_ms = self._applied_ms
        self._guard = Guard(
            log,
            self.peers,
            clock=clock,
            entropy=entropy,
            timing=timing,
            emit=self.emit,
            halt=self.halt,
            superseded=self._superseded,
        )
        self.engine = Engine(
            me,
            log,
            applied,
            self,
            clock=clock,
            entropy=entropy,
            timing=timing,
            apply_entries=limits.apply_entries,
        )
        retry = RETRY_HEARTBEATS * timing.heartbeat_ms / 1000
        self.flow = Flow(self.engine, log, self.peers, self.emit, limits, retry)
        self._reads = Reads(self.peers)
        self._guard.attach(self.engine, self.flow, self._reads)

    # ── asked from above ───────────────────────────────────────────────────────────────────────────────────

    def propose(self, command: bytes) -> "Future[Any]":
        """Queue a command for this turn's entry."""
        caller: Future[Any] = self._loop.create_future()
        if self.halted is not None or not self.engine.leads:
            caller.set_exception(self.not_leading())
        elif self._outstanding >= self._limits.outstanding:
            caller.set_exception(
                Unavailable(
                    "too many proposals are waiting in this group", code="overloaded", retry_after_ms=100
                )
            )
        elif len(command) > self._limits.command_bytes:
            caller.set_exception(
                TooLarge(f"a command of {len(command)} bytes is above {self._limits.command_bytes}")
            )
        else:
            self._outstanding += 1
            self._queue.append((command, caller))
        return caller

    def read_index(self) -> "Future[int]":
        reader: Future[int] = self._loop.create_future()
        if self.halted is not None or not self.engine.leads:
            reader.set_exception(self.not_leading())
        else:
            self._reads.add(reader)
        return reader

    def wait_applied(self, index: int) -> "Future[None]":
        waiter: Future[None] = self._loop.create_future()
        if self.engine.applied >= index:
            waiter.set_result(None)
        elif self.halted is not None:
            waiter.set_exception(self.not_leading())
        else:
            self._awaited_count += 1
            heapq.heappush(self._awaited, (index, self._awaited_count, waiter))
        return waiter

    def not_leading(self) -> Unavailable:
        """Why nothing can be proposed here, and whom to ask instead."""
        details = {"group": self.group, "leader": self.known_leader}
        if self.halted is not None:
            details["leader"] = None
            return Unavailable(
                f"group {self.group} is halted here: {self.halted}", code="no_leader", details=details
            )
        return Unavailable(f"this node does not lead group {self.group}", code="no_leader", details=details)

    def status(self, reason: str | None) -> LogStatus:
        engine = self.engine
        role = "leader" if engine.leads else "candidate" if engine.campaigns else "follower"
        return LogStatus(
            self.group,
            "halted" if self.halted is not None else role,
            self.leader,
            engine.term,
            engine.commit,
            engine.applied,
            self.log.last,
            self.log.voters,
            self.halted or reason or self.stalled,
        )

    @property
    def leader(self) -> NodeId | None:
        return None if self.halted is not None else self.engine.leader

    @property
    def unfinished(self) -> bool:
        """Whether committed entries on disk wait to be applied."""
        engine = self.engine
        ready = min(engine.commit, self.log.durable) > engine.applied
        return ready and self.halted is None and self.stalled is None and not self.installing

    def needs_turn(self, beat: bool) -> bool:
        """Whether the slow timer has to turn this group."""
        if self.halted is not None:
            return False
        if self.engine.leads or self.stalled is not None:
            return beat
        return bool(self._proposed or self._queue) or self.engine.election_due

    # ── the turn ───────────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, source: NodeId, frame: Sequence[Any]) -> None:
        """A well-formed frame for this group; strangers are not heard."""
        if self.halted is not None or source not in self.peers:
            return
        if self.installing and frame[1] == raft_frames.APPEND:
            self._guard.from_leader(source, frame[2])
            return  # the log is about to be replaced; the leader asks again
        self._guard.deliver(source, frame)

    def turn(self, beat: bool) -> None:
        """Append what was proposed, let the engine work, address the followers, answer whom an answer is owed."""
        if self.halted is not None:
            return
        engine = self.engine
        if engine.leads:
            self._take_office()
            if self.handover is None:
                self._append_queue()
        engine.turn()
        if engine.leads and self.halted is None:
            self._take_office()
            self._lead(beat)
        else:
            self._follow()
        self._wake_awaited()
        self.known_leader = self.leader

    def _take_office(self) -> None:
        """First turn of a term this node leads: nothing known of an earlier one holds."""
        if self._office != self.engine.term:
            self._office, self._ousted_at, self.handover = self.engine.term, None, None
            self._stamp_ms = max(self._stamp_ms, self._log_time(self.log.last))
            self.flow.begin()

    def _lead(self, beat: bool) -> None:
        engine, now = self.engine, self._clock.monotonic()
        if engine.applied >= engine.own_term_index:
            beat = self._reads.begin(engine.commit) or beat
        beat, engine.wants_beat = beat or engine.wants_beat, False
        self.flow.run(now, beat=beat, context=self._reads.context)
        self._reads.settle()
        if self.handover is not None:
            self._hand_over(*self.handover, now)

    def _follow(self) -> None:
        self._office, self.handover = None, None
        self.known_leader = self.leader
        if self._reads.pending:
            self._reads.fail(self.not_leading())
        if self._queue:
            self._refuse_queue(self.not_leading())
        if self._proposed:
            now = self._clock.monotonic()
            if self._ousted_at is None:
                self._ousted_at = now
            if now - self._ousted_at > self._patience:
                self.abandon("leadership was lost and the outcome did not become known")

    def _append_queue(self) -> None:
        """Close entries over the queue: as few as the limits allow, all commands of one stamped alike."""
        queue, limits = self._queue, self._limits
        while queue:
            commands: list[bytes] = []
            callers: list[Future[Any]] = []
            size = 0
            while queue and len(commands) < limits.entry_commands:
                size += len(queue[0][0])
                if commands and size > limits.entry_bytes:
                    break
                command, caller = queue.popleft()
                commands.append(command)
                callers.append(caller)
            self._stamp_ms = max(self._stamp_ms, self._clock.wall_ms())
            index = self.engine.propose(raft_envelope.pack(self._stamp_ms, commands))
            self._proposed[index] = _Proposed(self.engine.term, callers)

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
        able = not self.installing and self.halted is None and self.stalled is None
        return able and self._guard.may_campaign()

    def forced(self) -> bool:
        return self._guard.forced()

    def apply(self, index: int, term: int, command: bytes) -> bool:
        """Apply one entry. False when it cannot be: the group has halted, stalled, or awaits a snapshot."""
        if self.halted is not None or self.installing:
            return False
        kind = command[:1]
        results: list[Any] = []
        if kind == REGULAR:
            done = self._apply_commands(index, term, command)
            if done is None:
                return False
            results = done
        elif kind != NO_OP:
            self.halt(f"entry {index} is of a kind this version does not know: {command[:1]!r}")
            return False
        proposed = self._proposed.pop(index, None)
        if proposed is not None:
            self._answer(proposed, term, results)
        return True

    def _apply_commands(self, index: int, term: int, command: bytes) -> list[Any] | None:
        try:
            time_ms, commands = raft_envelope.unpack(command[1:])
            results = self._machine.apply(self.group, Position(index, term), time_ms, commands)
            if len(results) != len(commands):
                raise ValueError(f"{len(results)} results for {len(commands)} commands")
        except NoSpace as error:
            self.stalled = f"entry {index} waits for space: {error.message}"
            if self.engine.leads and self.peers:
                self.engine.resign()  # another replica may have room
            return None
        except Exception as error:  # noqa: BLE001 (whatever it is, a second try here alone would diverge)
            self.halt(f"entry {index} cannot be applied: {type(error).__name__}: {error}")
            return None
        self.stalled = None
        self._applied_ms = max(self._applied_ms, time_ms)
        return results

    def _answer(self, proposed: _Proposed, term: int, results: list[Any]) -> None:
        self._outstanding -= len(proposed.callers)
        if proposed.term == term:
            for caller, result in zip(proposed.callers, results, strict=True):
                if not caller.done():
                    caller.set_result(result)
        else:
            _fail_all(proposed.callers, Unknown("another leader's entry took the place of this one"))

    # ── endings ────────────────────────────────────────────────────────────────────────────────────────────

    def halt(self, reason: str) -> None:
        """Stop this group on this node for good, and say why. The other groups, and its other replicas, go on."""
        if self.halted is not None:
            return
        self.halted = reason
        self.engine.resign()
        self.held.clear()
        self.end(f"the group halted: {reason}")

    def resign(self, error: SpineError, reason: str) -> None:
        """Stop leading because the journal cannot be written; nothing that waited may still be acknowledged."""
        if self.engine.leads:
            self.engine.resign()
        self._office, self.handover = None, None
        self.held.clear()
        self.express.clear()
        self.known_leader = self.leader
        self._refuse_queue(error)
        self._reads.fail(error)
        self.abandon(reason)

    def end(self, reason: str) -> None:
        """Answer everybody: this group will not do so any more."""
        refusal = self.not_leading()
        self._refuse_queue(refusal)
        self._reads.fail(refusal)
        self.abandon(reason)
        _fail_all([waiter for _, _, waiter in self._awaited], refusal)
        self._awaited.clear()

    def abandon(self, reason: str) -> None:
        """Whoever waits for an appended entry learns that its outcome is unknown."""
        for proposed in self._proposed.values():
            self._outstanding -= len(proposed.callers)
            _fail_all(proposed.callers, Unknown(reason, details={"group": self.group}))
        self._proposed.clear()

    def _superseded(self, index: int) -> None:
        """Entries from `index` on are being cut. Another replica may hold them still, so their fate is open."""
        for at in [at for at in self._proposed if at >= index]:
            proposed = self._proposed.pop(at)
            self._outstanding -= len(proposed.callers)
            _fail_all(proposed.callers, Unknown("a new leader's log does not hold this entry"))

    def _refuse_queue(self, error: SpineError) -> None:
        self._outstanding -= len(self._queue)
        _fail_all([caller for _, caller in self._queue], error)
        self._queue.clear()

    # ── leadership on purpose ──────────────────────────────────────────────────────────────────────────────

    def begin_handover(self, to: NodeId, until: float) -> bool:
        """Give leadership to `to` as soon as it has everything; proposals wait meanwhile. False if not leading."""
        if not self.engine.leads or self.halted is not None or to not in self.peers:
            return False
        self.handover, self._handed_over = (to, until), False
        return True

    def _hand_over(self, to: NodeId, until: float, now: float) -> None:
        if now >= until:
            self.handover = None
        elif not self._handed_over and self.flow.caught_up(to):
            self._handed_over = True
            self.engine.hand_over(to)

    # ── snapshots and compaction ───────────────────────────────────────────────────────────────────────────

    def leader_spoke(self, source: NodeId, term: int) -> bool:
        """Whether a snapshot's sender leads the present term; the chunk counts as a heartbeat."""
        if self.halted is not None or source not in self.peers or not self._guard.from_leader(source, term):
            return False
        self.engine.follow(source, term, 0)
        return True

    def holds(self, at: Position) -> bool:
        """Whether a snapshot at this place would add nothing."""
        log = self.log
        if at.index <= max(self.engine.commit, log.base):
            return True
        return at.index <= log.last and log.term_at(at.index) == at.term

    def installed(self, at: Position, time_ms: int, voters: tuple[NodeId, ...]) -> None:
        """The state machine was replaced: entries above `at` stay unless they contradict it."""
        log = self.log
        for index in [index for index in self._proposed if index <= at.index]:
            proposed = self._proposed.pop(index)
            self._outstanding -= len(proposed.callers)
            _fail_all(proposed.callers, Unknown("a snapshot covers this entry"))
        self._applied_ms = max(self._applied_ms, time_ms)
        if log.base <= at.index <= log.last and log.term_at(at.index) == at.term:
            log.rebase(at.index, at.term, self._applied_ms, voters)
        else:
            self._superseded(at.index)
            log.reset(at.index, at.term, self._applied_ms, voters)
        self.engine.jump(at.index)
        self._wake_awaited()

    @property
    def oversized(self) -> bool:
        log, limits = self.log, self._limits
        return len(log.rows) > limits.compact_entries or log.bytes > limits.compact_bytes

    def compact(self, stored: int) -> bool:
        """Drop entries at or below `stored`, a position the state machine has on disk, but for a tail."""
        log, limits = self.log, self._limits
        keep, size = 0, 0
        for command, _, _ in reversed(log.rows[1:][-limits.keep_entries :]):
            size += len(command)
            if size > limits.compact_bytes // 2:
                break
            keep += 1
        floor = min(stored, self.engine.applied, log.durable, *self.sending.values())
        target = min(floor, log.last - keep)
        if target <= log.base:
            return False
        log.rebase(target, log.term_at(target), self._applied_ms, log.voters)
        return True

    @property
    def applied_ms(self) -> int:
        """The newest leader time among applied entries."""
        return self._applied_ms

    def _log_time(self, up_to: int) -> int:
        """The newest stamp in the log at or below an index: a leader's time must not fall behind it."""
        log = self.log
        for command, index, _ in reversed(log.rows[1:]):
            if index <= up_to and command[:1] == REGULAR:
                try:
                    return max(log.time_ms, raft_envelope.unpack(command[1:])[0])
                except ValueError:
                    break  # of a newer version: applying it will halt the group, with a better message
        return log.time_ms


def _fail_all(futures: "Sequence[Future[Any]]", error: SpineError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
