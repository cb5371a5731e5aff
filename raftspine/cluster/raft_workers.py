"""What a node does for its groups besides the turn: keep logs short, send snapshots, spread leadership.

None of it is needed for safety, all of it for staying alive: a log that is never shortened fills the disk, a
follower left behind never returns without a snapshot, and a node that leads every group does the others'
work. Each job does a bounded piece and comes back with the next tick of the host's timer.
"""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from raftspine.cluster.raft_group import RaftGroup
from raftspine.cluster.raft_snapshot import Pace, SnapshotSender, Traffic
from raftspine.core.repeats import Repeats
from raftspine.errors import SpineError
from raftspine.model import GroupId, MemberId, NodeId, node_of
from raftspine.ports import Clock, CrashPoint, Entropy, Position, Rpc, SnapshotProgress, StateMachine

COMPACT_SECONDS = 1.0
BALANCE_SECONDS = 5.0
AUDIT_SECONDS = 1.0
"""How often replicas tell what their state came to, if there is news of it: a mark is made every 1024 entries."""

HANDOVER_SECONDS = 1.0
"""How long proposals wait for a transfer of leadership before it is called off: about an election."""

REFUSED_SECONDS = 60.0
"""Pause after a preferred replica did not take over, so that its group does not stall again and again."""

log = structlog.get_logger(__name__)


class Workers:
    """The jobs of one RaftHost. `changed(group)` has the group turned."""

    def __init__(
        self,
        groups: dict[GroupId, RaftGroup],
        *,
        loop: AbstractEventLoop,
        clock: Clock,
        entropy: Entropy,
        rpc: Rpc,
        machine: StateMachine,
        changed: Callable[[RaftGroup], None],
        snapshot_bytes_per_second: int,
        passed: CrashPoint,
        traffic: Traffic,
        tidy: Callable[[], Coroutine[Any, Any, None] | None],
    ) -> None:
        self._groups = groups
        self._loop = loop
        self._clock = clock
        self._entropy = entropy
        self._rpc = rpc
        self._machine = machine
        self._changed = changed
        self._passed = passed
        self._traffic = traffic
        self._tidy = tidy
        self._repeats = Repeats()
        self._pace = Pace(clock, snapshot_bytes_per_second)
        self._storing: set[RaftGroup] = set()
        self._compacting = False
        self._not_before: dict[GroupId, float] = {}
        now = clock.monotonic()
        self._next_compaction = now + COMPACT_SECONDS
        self._next_balance = now + BALANCE_SECONDS * (1 + entropy.random())
        self._next_audit = now + AUDIT_SECONDS
        self.tasks: set[asyncio.Task[None]] = set()

    def tick(self) -> None:
        """Start what is due."""
        now = self._clock.monotonic()
        if now >= self._next_compaction and not self._compacting:
            self._next_compaction = now + COMPACT_SECONDS
            self._start_compaction()
        if now >= self._next_audit:
            self._next_audit = now + AUDIT_SECONDS
            for group in self._groups.values():
                self._audit(group)
            if (tidying := self._tidy()) is not None:
                self._spawn(tidying)
        if now >= self._next_balance:
            self._next_balance = now + BALANCE_SECONDS
            self._balance(now)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a Raft worker failed", exc_info=error)

    # ── short logs ─────────────────────────────────────────────────────────────────────────────────────────

    def _start_compaction(self) -> None:
        large = [group for group in self._groups.values() if group.oversized and not group.shut]
        if large:
            self._compacting = True
            # Read before the flush: only what was applied by now is certain to be in it.
            positions = [(group, self._machine.position(group.group)) for group in large]
            self._spawn(self._compact(positions))

    async def _compact(self, positions: list[tuple[RaftGroup, Position]]) -> None:
        try:
            await self._machine.flush()
            self._passed("compaction:flushed")
            for group, stored in positions:
                if not group.installing and not group.shut and group.compact(stored.index):
                    self._passed("compaction:recorded")
                    self._changed(group)
        except (SpineError, OSError) as error:
            if self._repeats.due("compaction", str(error), self._clock.monotonic()):
                log.warning("Raft logs were not compacted", error=error)
        else:
            self._repeats.over("compaction")
        finally:
            self._compacting = False

    # ── snapshots ──────────────────────────────────────────────────────────────────────────────────────────

    def send_snapshots(self, group: RaftGroup) -> None:
        """Start a transfer to each follower that needs one, can be reached, and has none under way."""
        for peer in group.flow.snapshots_wanted:
            if peer in group.sending:
                pass  # asked for again while it is on its way
            elif group.shut or not self._rpc.connected(node_of(peer)) or not group.answers(peer):
                group.flow.snapshot_failed(peer, self._clock.monotonic())
            else:
                group.sending[peer] = SnapshotProgress(peer, group.log.base, 0)
                self._spawn(self._send(group, peer))
        group.flow.snapshots_wanted = []

    async def _send(self, group: RaftGroup, peer: MemberId) -> None:
        sender = SnapshotSender(self._rpc, self._machine, self._clock, self._pace, self._traffic)
        # One that fails is begun again every second, all night if need be.
        to = (group.group, node_of(peer))
        if self._repeats.due((*to, "begun"), peer, self._clock.monotonic()):
            log.info("sending a snapshot", group=group.group, peer=peer)
        try:
            index = await sender.send(group, peer)
            if group.engine.leads:
                group.flow.snapshot_installed(peer, index)
            self._repeats.over(to)
            self._repeats.over((*to, "begun"))
        except Exception as error:  # noqa: BLE001 (the follower must be tried again, whatever it was)
            self._traffic.failed += 1
            if self._repeats.due(to, str(error), self._clock.monotonic()):
                log.warning("a Raft snapshot was not transferred", group=group.group, peer=peer, error=error)
            group.flow.snapshot_failed(peer, self._clock.monotonic())
        finally:
            del group.sending[peer]
            self._changed(group)

    # ── replicas that differ ───────────────────────────────────────────────────────────────────────────────

    def _audit(self, group: RaftGroup) -> None:
        """Tell and judge; keep what came of it; and if this replica is the wrong one, make way and ask for another
        state."""
        if group.halted is not None:
            return
        audit = group.audit
        audit.tick(group.engine.term)
        if not audit.stored and group not in self._storing:
            self._storing.add(group)
            self._spawn(self._store_doubt(group))
        if audit.wrong and group.engine.leads and group.handover is None:
            self._spawn(self._make_way(group))
        elif audit.wrong and not group.installing:
            audit.ask_for_snapshot(group.engine.term, group.engine.leader)
        if group.express:
            self._changed(group)

    async def _store_doubt(self, group: RaftGroup) -> None:
        doubt = group.audit.doubt
        try:
            await self._machine.set_doubt(group.group, doubt)
            group.audit.stored = group.audit.doubt == doubt
        except (SpineError, OSError) as error:  # tried again with the next audit; the doubt holds meanwhile
            if self._repeats.due(group.group, str(error), self._clock.monotonic()):
                log.warning("a doubt could not be stored", group=group.group, error=error)
        finally:
            self._storing.discard(group)

    async def _make_way(self, group: RaftGroup) -> None:
        """Lead no more: to the best of the replicas nothing is known against, or to nobody."""
        able = [voter for voter in self._reachable(group) if group.audit.sound(voter)]
        left = bool(able) and await self.transfer(group, node_of(max(able, key=group.engine.match)))
        if not left and group.engine.leads and group.audit.wrong:
            group.engine.resign()
            self._changed(group)

    # ── leadership ─────────────────────────────────────────────────────────────────────────────────────────

    def _balance(self, now: float) -> None:
        """Let the preferred replica lead where it can, one group at a time, so that leaders spread evenly."""
        for group in self._groups.values():
            if not group.engine.leads or now < self._not_before.get(group.group, 0):
                continue
            preferred = group.members.voters[0]
            away = preferred != group.me and group.caught_up(preferred)
            if away and self._rpc.connected(node_of(preferred)):
                self._hand_to_preferred(group, preferred, now)
                return

    def _hand_to_preferred(self, group: RaftGroup, preferred: MemberId, now: float) -> None:
        def ended(future: "asyncio.Future[bool]") -> None:
            if not future.result():
                self._not_before[group.group] = now + REFUSED_SECONDS

        handover = group.begin_handover(preferred, now + HANDOVER_SECONDS)
        if handover is not None:
            handover.ended.add_done_callback(ended)
            self._changed(group)

    def _reachable(self, group: RaftGroup) -> list[MemberId]:
        """The other voters of a group whose nodes are connected."""
        others = (voter for voter in group.members.voters if voter != group.me)
        return [voter for voter in others if self._rpc.connected(node_of(voter))]

    async def transfer(self, group: RaftGroup, to: NodeId) -> bool:
        """Hand leadership to a node's voter; whether this node has stopped leading."""
        voter = next((voter for voter in group.members.voters if node_of(voter) == to), MemberId(to))
        handover = group.begin_handover(voter, self._clock.monotonic() + HANDOVER_SECONDS)
        if handover is None:
            return False
        self._changed(group)
        return await handover.ended

    async def step_down_all(self) -> None:
        """Give every led group to the reachable follower that has most of its log, or to the next one."""
        await asyncio.gather(*(self._step_down(group) for group in self._groups.values()))

    async def _step_down(self, group: RaftGroup) -> None:
        if group.handover is not None:  # perhaps to the preferred replica: another cannot begin before it has ended
            await asyncio.wait([group.handover.ended])
        reachable = [voter for voter in self._reachable(group) if group.answers(voter)]
        for voter in sorted(reachable, key=group.engine.match, reverse=True):
            if not group.engine.leads or await self.transfer(group, node_of(voter)):
                return
