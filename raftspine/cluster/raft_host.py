"""The node's Raft driver: every group of this node, one turn at a time, one sync for all of them.

A vote, an acknowledgement or an entry that leaves before it is on disk is a promise a power loss breaks. So a
turn is: take in what arrived and what was proposed, let each group that has work do it, commit the journal
once, and only then send the frames that rest on it. While a sync is under way further turns gather behind it;
what they hold back leaves with the next one. Results need no such wait: a group applies only what is on its
own disk.

    frames, proposals -> turn of each dirty group -> journal.commit ────► held frames, flush waiters
                                       └─ express frames, results (at once)

When the journal cannot be written nothing is acknowledged: held frames are dropped, leadership is given up,
frames are ignored, and the commit is tried again until the disk takes it. Memory stays ahead of the disk
meanwhile, which is harmless because nobody was told.

A message names the member that sends it and the one it is for: a node that lost its journal comes back as another
member, and must neither be taken for the one it was nor answer in its place. A member whose journal turns out to have
lost what it promised is void: that is written down, everything stops, and whoever runs the node starts it anew as
another member (services/identity.py).

There is no thread and no task per proposal here; time comes from the Clock and the loop, chance from Entropy.
"""

import asyncio
import errno
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog

from raftspine.cluster import raft_frames, raft_history, raft_snapshot
from raftspine.cluster.raft_engine import require_version
from raftspine.cluster.raft_group import Outgoing, RaftGroup
from raftspine.cluster.raft_outbox import Outbox
from raftspine.cluster.raft_snapshot import SnapshotReceiver, Traffic
from raftspine.cluster.raft_staging import Staging
from raftspine.cluster.raft_types import GroupLog, RaftJournal, RaftLimits, RaftTiming
from raftspine.cluster.raft_workers import Workers
from raftspine.errors import Corrupt, InvalidRequest, Misuse, NoSpace, SpineError, Unavailable
from raftspine.model import GroupId, MemberId, NodeId, node_of
from raftspine.ports import (
    Change,
    Clock,
    CrashPoint,
    Directory,
    Entropy,
    Handler,
    LogStatus,
    Members,
    Rpc,
    StateMachine,
    nowhere,
)

__all__ = ["RaftHost", "RaftLimits", "RaftTiming"]

METHOD = "raft"

CAST_BYTES = 1 << 20
"""Frames for one peer are split into messages of about this size, far below what a link carries."""

LONGEST_WAIT_SECONDS = 0.002
"""How long a turn waits for a commit in flight."""

log = structlog.get_logger(__name__)


class RaftHost:
    """`ports.ReplicatedLog` over PySyncObj. Make it, add the groups, then start; one loop, which is the caller's."""

    def __init__(
        self,
        node: NodeId,
        *,
        clock: Clock,
        entropy: Entropy,
        rpc: Rpc,
        journal: RaftJournal,
        machine: StateMachine,
        staging: Directory,
        snapshot_bytes_per_second: int = 16 << 20,
        passed: CrashPoint = nowhere,
        timing: RaftTiming | None = None,
        limits: RaftLimits | None = None,
        loop: AbstractEventLoop | None = None,
        on_commit: Callable[[float], None] = lambda seconds: None,
        on_void: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Raises Misuse when another version of the Raft engine is installed than the one proven safe."""
        require_version()
        self.member = MemberId(node)
        """As whom this node speaks; set it before the first group is added, if it is not the node's id."""
        self._on_void = on_void
        self._void_reason: str | None = None
        self._clock = clock
        self._entropy = entropy
        self._rpc = rpc
        self._journal = journal
        self._machine = machine
        self._timing = timing or RaftTiming()
        self._limits = limits or RaftLimits()
        self._loop = loop or asyncio.get_running_loop()
        self._groups: dict[GroupId, RaftGroup] = {}
        self._listeners: list[Callable[[GroupId, NodeId | None], None]] = []
        self._running = False
        self._reason: str | None = None
        self._full = False
        self.traffic = Traffic()
        """Bytes and counts of snapshots, since the node started."""
        self._overheard: dict[GroupId, tuple[int, NodeId]] = {}
        """While the journal cannot be written: term and sender of the last word from a leader. Nothing rests on
        it; it only tells this node's clients whom to ask."""

        self._dirty: dict[RaftGroup, None] = {}
        self._beat = False
        self._half = False
        self._turn_due = False
        self._late: asyncio.TimerHandle | None = None
        self._unsynced: dict[RaftGroup, None] = {}
        """Groups with committed entries that are not on this disk yet; ordered, so that a run can be repeated."""
        self._timer: asyncio.TimerHandle | None = None

        self._outbox = Outbox(
            journal,
            self._loop,
            send=self._send,
            synced=self._synced,
            failed=self._unwritten,
            clock=clock,
            on_commit=on_commit,
        )
        self._workers = Workers(
            self._groups,
            loop=self._loop,
            clock=clock,
            entropy=entropy,
            rpc=rpc,
            machine=machine,
            changed=self._mark,
            snapshot_bytes_per_second=snapshot_bytes_per_second,
            passed=passed,
            traffic=self.traffic,
            tidy=self._tidy_stages,
        )
        self._staging = Staging(staging)
        self._receiver = SnapshotReceiver(
            machine,
            self._groups,
            self._staging,
            flushed=self._outbox.flushed,
            changed=self._mark,
            passed=passed,
            traffic=self.traffic,
        )
        self._strange: dict[NodeId, None] = {}
        """Peers that have sent malformed frames, and were reported."""
        self.ignored_frames = 0
        """Frames that were malformed, for a group not held here, or arrived while the journal was unwritable."""

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────

    def add_group(self, group: GroupId, voters: Sequence[MemberId]) -> None:
        """Take part in a group. `voters`, the preferred leader first, are those it was founded with; they count only
        when the journal does not know the group yet, which knows better. None: this member was not there then. It
        begins blank, and takes part when the group's leader has made it a learner and sent it a snapshot. Raises
        Corrupt when journal and state machine contradict each other, Misuse when this member is no founder."""
        if voters and self.member not in voters and self._journal.group(group) is None:
            raise Misuse(f"{self.member} is no voter of group {group}, which has {', '.join(voters)}")
        state = self._align(group, tuple(voters))
        made = RaftGroup(
            self.member,
            state,
            self._machine,
            self._loop,
            clock=self._clock,
            entropy=self._entropy,
            timing=self._timing,
            limits=self._limits,
            void=self._void,
        )
        self._groups[group] = made
        if self._running:
            self._mark(made)

    def _align(self, group: GroupId, voters: tuple[MemberId, ...]) -> GroupLog:
        """The group's journal, starting at or before the state machine's position and agreeing with it."""
        at = self._machine.position(group)
        state = self._journal.group(group)
        if voters or state is not None:
            fault = raft_history.contradiction(group, state, at)
            if fault is not None:
                raise Corrupt(fault, details={"group": group, "position": list(at)})
        if state is None:
            return self._journal.create(group, voters)
        if state.expected is not None and at == state.expected.at and not raft_history.contains(state, at):
            # The snapshot was installed and the journal did not get to hear of it: all it holds is covered.
            state.reset(at.index, at.term, state.expected.time_ms, state.expected.members)
        return state

    def _void(self, reason: str) -> None:
        """This member's journal does not hold what it promised. Write that down and cease: whatever is said from
        here on, by whatever node finds this journal, may contradict it."""
        if self._void_reason is not None:
            return
        self._void_reason = reason
        log.error("this node's Raft journal is void; it stops taking part", member=self.member, reason=reason)
        for group in self._groups.values():
            group.halt(reason)
        self._on_void(reason)

    def start(self) -> None:
        """Begin to take part. The handlers are registered here, so the links may be up already."""
        if self._running:
            return
        self._running = True
        self._rpc.serve(METHOD, self._receive)
        receiver = self._receiver
        for method, answer in (
            (raft_snapshot.OFFER, receiver.offer),
            (raft_snapshot.CHUNK, receiver.chunk),
            (raft_snapshot.INSTALL, receiver.install),
        ):
            self._rpc.serve(method, partial(self._receive_snapshot, answer))
        self._rpc.on_link(self._link_changed)
        for group in self._groups.values():
            self._mark(group)
        self._arm()

    async def stop(self) -> None:
        """Stop taking part; everybody who waits gets an answer, and no commit is left in flight. What was not
        yet on disk was promised to nobody. Hand leadership over first (`step_down_all`) when planned."""
        self.kill()
        for group in self._groups.values():
            group.end("this node stopped before the outcome was known")
        tasks = [*self._workers.tasks, *self._receiver.tasks()]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outbox.idle()
        self._staging.close()

    def flushed(self) -> "Future[None]":
        """Resolves when everything recorded in the journal so far is on disk; fails when it could not be written."""
        return self._outbox.flushed()

    def kill(self) -> None:
        """Cease at once, as a killed process does: nothing is sent, written or answered any more."""
        self._running = False
        self._outbox.close(Unavailable("this node is stopping"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in [*self._workers.tasks, *self._receiver.tasks()]:
            task.cancel()

    # ── ports.ReplicatedLog ────────────────────────────────────────────────────────────────────────────────

    def propose(self, group: GroupId, command: bytes) -> "Future[Any]":
        """See ports.ReplicatedLog. Also Unavailable(`overloaded`) above the bound on waiting proposals,
        TooLarge, and NoSpace or Unavailable(`not_ready`) while the journal cannot be written."""
        held = self._groups.get(group)
        if held is None or self._reason is not None or not self._running:
            return self._refused(group)
        caller = held.propose(command)
        if not caller.done():
            self._mark(held)
        return caller

    def read_index(self, group: GroupId) -> "Future[int]":
        held = self._groups.get(group)
        if held is None or self._reason is not None or not self._running:
            return self._refused(group)
        reader = held.read_index()
        if not reader.done():
            self._schedule(held)  # a read alone gives the engine nothing to do
        return reader

    def wait_applied(self, group: GroupId, index: int) -> "Future[None]":
        held = self._groups.get(group)
        return self._refused(group) if held is None else held.wait_applied(index)

    def change(self, group: GroupId, change: Change) -> "Future[Members]":
        """See ports.ReplicatedLog."""
        held = self._groups.get(group)
        if held is None or self._reason is not None or not self._running:
            return self._refused(group)
        caller = held.change(change, lambda member: self._rpc.connected(node_of(member)))
        if not caller.done():
            self._mark(held)
        return caller

    def caught_up(self, group: GroupId, member: MemberId) -> bool:
        """See ports.ReplicatedLog."""
        held = self._groups.get(group)
        return held is not None and held.caught_up(member)

    def members(self, group: GroupId) -> Members:
        """Who takes part, as this node's log has it, committed or not. KeyError for a group not held here."""
        return self._groups[group].members

    def leader(self, group: GroupId) -> NodeId | None:
        held = self._groups.get(group)
        if held is None:
            return None
        heard = self._overheard.get(group) if self._overheard else None
        return held.leader if heard is None else heard[1]

    def status(self, group: GroupId) -> LogStatus:
        """KeyError for a group this node does not hold."""
        status = self._groups[group].status(self._reason)
        coming = self._receiver.progress(group)
        return status if coming is None else status._replace(snapshots=(*status.snapshots, coming))

    def in_doubt(self, group: GroupId) -> bool:
        """Whether this replica's state is quarantined (raft_audit.py)."""
        held = self._groups.get(group)
        return held is not None and held.doubt is not None

    def divergences(self) -> int:
        """How often a replica of one of this node's groups, here or elsewhere, was found to differ."""
        return sum(group.audit.divergences for group in self._groups.values())

    def frames_ignored(self) -> int:
        """Frames that nobody acted on: malformed, from or for who is no member, of a group not held here, or that
        came while the journal could not be written."""
        return self.ignored_frames + sum(group.ignored_frames for group in self._groups.values())

    def groups(self) -> tuple[GroupId, ...]:
        return tuple(self._groups)

    def on_leader_change(self, changed: Callable[[GroupId, NodeId | None], None]) -> None:
        """Tell `changed(group, leader)`, from the loop, each time this node learns of another leader or of none."""
        self._listeners.append(changed)

    def read_only(self) -> str | None:
        """Why the journal cannot be written, or None."""
        return self._reason

    def leading(self) -> int:
        """How many groups this node leads."""
        return sum(1 for group in self._groups.values() if group.engine.leads)

    def _refused(self, group: GroupId) -> "Future[Any]":
        future: Future[Any] = self._loop.create_future()
        if group not in self._groups:
            text = f"this node holds no replica of group {group}"
            future.set_exception(Unavailable(text, code="no_leader", details={"group": group, "leader": None}))
        else:
            future.set_exception(self._unwritable() if self._reason else Unavailable("the node is stopping"))
        return future

    def _unwritable(self) -> SpineError:
        return NoSpace(self._reason or "") if self._full else Unavailable(self._reason or "")

    # ── the turn ───────────────────────────────────────────────────────────────────────────────────────────

    def _mark(self, group: RaftGroup) -> None:
        """Have a group turned, whether or not it sees a reason. Not once the node has ceased: a task that waited for
        its disk may still come to its end."""
        if not self._running:
            return
        group.stir()
        self._schedule(group)

    def _schedule(self, group: RaftGroup) -> None:
        """Turn the group soon. While a commit is in flight, when that has ended: what a turn holds back cannot leave
        earlier, and one turn then serves all that came meanwhile. But heartbeats must not wait for a slow disk."""
        self._dirty[group] = None
        if self._turn_due:
            return
        self._turn_due = True
        if self._outbox.committing:
            self._late = self._loop.call_later(LONGEST_WAIT_SECONDS, self._turn)
        else:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due, self._late = False, None
        if not self._running or self._reason is not None:
            self._dirty.clear()
            return
        dirty, self._dirty = self._dirty, {}
        beat, self._beat = self._beat, False
        express: list[Outgoing] = []
        held: list[Outgoing] = []
        for group in dirty:
            before = group.known_leader
            try:
                group.turn(beat)
            except Exception as error:  # noqa: BLE001 (the other groups go on, this one must not)
                self._broken(group, error)
            if group.express:
                express += group.express
                group.express = []
            if group.held:
                held += group.held
                group.held = []
            if group.flow.snapshots_wanted:
                self._workers.send_snapshots(group)
            if group.unfinished or group.waiting:
                self._mark(group)
            elif group.unapplied:
                self._unsynced[group] = None
            if group.known_leader != before:
                self._announce(group)
        self._send(express)
        self._outbox.release(held)

    def _broken(self, group: RaftGroup, error: Exception) -> None:
        log.error("a Raft group broke", group=group.group, exc_info=error)
        group.halt(f"internal error: {type(error).__name__}: {error}")

    def _announce(self, group: RaftGroup) -> None:
        for changed in self._listeners:
            self._loop.call_soon(changed, group.group, group.known_leader)

    def _synced(self) -> None:
        """A commit succeeded: what is on disk now may be applied."""
        if self._reason is not None:
            log.info("the Raft journal is written again", reason=self._reason)
            self._reason, self._full = None, False
            self._overheard.clear()
            for group in self._groups.values():
                self._mark(group)
        waiting, self._unsynced = self._unsynced, {}
        for group in waiting:
            if group.unfinished:
                self._mark(group)
            elif group.unapplied:
                self._unsynced[group] = None  # its entries came after that commit had begun
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._loop.call_soon(self._turn)

    def _unwritten(self, error: BaseException) -> SpineError:
        """A commit failed: nothing that rests on it may be acknowledged, and somebody else has to lead."""
        self._full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if self._reason is None:
            log.error("the Raft journal cannot be written; this node takes no part meanwhile", error=error)
        self._reason = f"the Raft journal cannot be written: {error}"
        self._dirty.clear()
        self._beat = False
        refusal = self._unwritable()
        for group in self._groups.values():
            before = group.known_leader
            group.resign(refusal, f"{self._reason}; the entry may still be stored")
            if group.known_leader != before:
                self._announce(group)
        return refusal

    # ── the wire ───────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, source: NodeId, message: Any) -> None:
        if not _addressed(source, message):
            self._malformed(source)
            return
        if not self._running:
            self.ignored_frames += 1
            return
        sender, receiver, frames = message
        if self._reason is not None:
            self.ignored_frames += 1
            self._overhear(source, frames)
            return
        if receiver != self.member:  # it is for another life of this node
            self.ignored_frames += len(frames)
            return
        for frame in frames:
            if not raft_frames.well_formed(frame):
                self._malformed(source)
                continue
            group = self._groups.get(frame[0])
            if group is None:
                self.ignored_frames += 1
                continue
            try:
                group.deliver(sender, frame)
            except Exception as error:  # noqa: BLE001 (as in _turn)
                self._broken(group, error)
            self._schedule(group)

    def _malformed(self, source: NodeId) -> None:
        """A proven member sent what no version of this node sends. Counted each time, said once a peer."""
        self.ignored_frames += 1
        if source not in self._strange:
            self._strange[source] = None
            log.warning("a peer sends Raft frames that cannot be read; they are ignored", peer=source)

    def _overhear(self, source: NodeId, message: Sequence[Any]) -> None:
        """Note who leads, without taking part: a node whose disk is full still passes requests on."""
        for frame in message:
            if not raft_frames.well_formed(frame) or frame[1] not in raft_frames.LEADERS:
                continue
            group, term = self._groups.get(frame[0]), frame[2]
            known = self._overheard.get(frame[0], (0, None))
            if group is None or term < max(group.engine.term, known[0]):
                continue
            self._overheard[frame[0]] = (term, source)
            if known[1] != source:
                for changed in self._listeners:
                    self._loop.call_soon(changed, frame[0], source)

    def _receive_snapshot(self, answer: Handler, source: NodeId, body: Any) -> Any:
        if not self._running or self._reason is not None:
            raise Unavailable(self._reason or "this node is stopping")
        if not isinstance(body, (list, tuple)) or not body:
            raise InvalidRequest("malformed snapshot call")
        if body[0] != self.member:
            raise Unavailable(f"the snapshot is for {body[0]}, this is {self.member}", code="snapshot_refused")
        return answer(source, body[1:])

    def _tidy_stages(self) -> Coroutine[Any, Any, None] | None:
        return self._receiver.tidy() if self._receiver.untidy else None

    def _send(self, outgoing: list[Outgoing]) -> None:
        """Group frames by peer; a frame that finds no link is lost, and the protocol copes."""
        if not outgoing:
            return
        per_peer: dict[MemberId, list[Sequence[Any]]] = {}
        for peer, frame in outgoing:
            per_peer.setdefault(peer, []).append(frame)
        for peer, frames in per_peer.items():
            for part in _split(frames):
                self._rpc.cast(node_of(peer), METHOD, (self.member, peer, part))

    def _link_changed(self, peer: NodeId, up: bool) -> None:
        if not up or not self._running:
            return
        for group in self._groups.values():
            members = [member for member in group.peers if node_of(member) == peer] if group.engine.leads else ()
            for member in members:
                group.flow.reconnected(member)
                self._mark(group)

    # ── by the clock ───────────────────────────────────────────────────────────────────────────────────────

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._timing.heartbeat_ms / 2000, self._tick)

    def _tick(self) -> None:
        """Twice per heartbeat: all groups that lead beat in the same turn, so that a peer gets one message."""
        self._arm()
        if self._reason is not None:
            return
        self._half = not self._half
        self._beat = self._beat or self._half
        for group in self._groups.values():
            if group.needs_turn(self._half):
                self._mark(group)
        self._workers.tick()

    # ── leadership on purpose ──────────────────────────────────────────────────────────────────────────────

    async def transfer(self, group: GroupId, to: NodeId) -> bool:
        """Hand leadership of a group to another node's voter. True once this node leads no more; False when it does
        not lead or `to` could not take over within about an election."""
        held = self._groups.get(group)
        return held is not None and await self._workers.transfer(held, to)

    async def step_down_all(self) -> None:
        """Before a planned stop: give every led group to the reachable follower that has most of its log."""
        await self._workers.step_down_all()


def _addressed(source: NodeId, message: Any) -> bool:
    """Whether a message off the wire is ``(sender, receiver, frames)`` from a member that lives at `source`."""
    if not isinstance(message, (list, tuple)) or len(message) != 3 or type(message[0]) is not str:
        return False
    return node_of(MemberId(NodeId(message[0]))) == source and isinstance(message[2], (list, tuple))


def _split(frames: list[Sequence[Any]]) -> list[list[Sequence[Any]]]:
    """Messages of at most about CAST_BYTES; nearly always one."""
    messages: list[list[Sequence[Any]]] = [[]]
    size = 0
    for frame in frames:
        if frame[1] == raft_frames.APPEND:
            size += sum(len(entry[1]) for entry in frame[6])
            if size > CAST_BYTES and messages[-1]:
                messages.append([])
                size = 0
        messages[-1].append(frame)
    return messages
