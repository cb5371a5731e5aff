"""The strong path: one agreed order of changes per shard group, and reads that never miss one of them.

A client may only be told one of three things about a write: done, not done, or unknown. Between the client
and the log lie up to two hops, and leaders change while requests are under way; so the rule is kept here, in
one loop: **as soon as a command may have been handed to a log, no failure may be reported as "not done"**. It
is then retried only when it carries a request digest, because the log applies a digest once, and is otherwise
reported as Unknown. Turn an Unknown into a refusal and a deployment gate is opened twice; turn a refusal into
an Unknown and clients wait for nothing.

Reads have no such trouble: asking again is always safe, so they end in a result or in Unavailable.

Who talks to whom: a replica sends to the group's leader, once. A node that keeps no replica of the group
sends to a replica, which may pass it on, once (`hops` counts down; at zero a node that does not lead refuses,
naming the leader it knows).
"""

from asyncio import Future, get_running_loop
from typing import Any, NamedTuple

from raftspine import codec
from raftspine.core.ledger import outcomes
from raftspine.core.ledger.outcomes import Outcome
from raftspine.errors import NoSpace, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId, StrongRecord
from raftspine.ports import Clock, Engine, ReplicatedLog, Rpc
from raftspine.services.barriers import Barriers, no_leader
from raftspine.services.deadlines import Bell, Late, within
from raftspine.services.leaders import HURRY, Leaders
from raftspine.services.topology import Topology
from raftspine.storage import memories

PROPOSE = "strong.propose"
READ = "strong.read"
READ_INDEX = "strong.read_index"

WORTH_RETRYING = frozenset({"no_leader", "peer_down", "not_ready"})
"""Codes that a change of leader or of a link cures within a deadline. Others (no_space, overloaded) are
passed on at once: waiting inside the node would hide them from the client's backoff."""


class StrongTiming(NamedTuple):
    """Milliseconds. `timeout`: how long an operation may take when its caller sets no deadline. `recheck`:
    how long to wait for news of a leader before looking again without news. `round`: when a read barrier's
    question to a peer is given up. `election`: the longest a leader that is cut off from its majority
    believes itself to lead (CheckQuorum)."""

    timeout_ms: int = 5000
    recheck_ms: int = 100
    round_ms: int = 2000
    election_ms: int = 2000


class StrongPath:
    """Writes and reads of the strong path for this node, whether or not it keeps the group."""

    def __init__(
        self,
        node: NodeId,
        log: ReplicatedLog,
        rpc: Rpc,
        topology: Topology,
        engine: Engine,
        clock: Clock,
        timing: StrongTiming | None = None,
    ) -> None:
        self.node = node
        self._log = log
        self._rpc = rpc
        self._topology = topology
        self._engine = engine
        self._now = clock.monotonic
        self._timing = timing or StrongTiming()
        self.timeout_ms = self._timing.timeout_ms
        self._leaders = Leaders(node, log, rpc, topology)
        self.news = Bell()
        """Rings when a leader or a link changed."""
        self._barriers = Barriers(log, clock, ask=self._ask_index, holds=topology.holds)
        rpc.serve(PROPOSE, self._serve_propose)
        rpc.serve(READ_INDEX, self._serve_read_index)
        rpc.serve(READ, self._serve_read)
        rpc.on_link(self.news.ring)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    async def execute(
        self,
        group: GroupId,
        command: bytes,
        deadline_ms: int | None = None,
        *,
        replayable: bool = False,
        hops: int = 1,
    ) -> tuple[Outcome, int]:
        """Have a command decided by the group's log: its outcome and the log index that decided it.

        `deadline_ms` counts from now (None: the configured timeout). `replayable` promises that the command
        carries a request digest, so that proposing it again cannot apply it twice. Unavailable when it was
        certainly never proposed, Unknown when it may have been and the outcome did not arrive in time.
        """
        ends = self._ends(deadline_ms)
        sent, hurry = False, HURRY
        while True:
            left = ends - self._now()
            if left <= 0:
                raise self._unknown(group) if sent else no_leader(group, self.leader(group))
            leader, spare = self._leaders.whom(group, hops)
            try:
                if leader == self.node:
                    return await self._propose_here(group, command, left)
                if leader is not None:
                    return await self._propose_there(leader, group, command, left, spare, replayable)
            except Unknown:
                if not replayable:
                    raise
                sent = True
            except Unavailable as error:
                if error.code not in WORTH_RETRYING:
                    if sent:
                        raise self._unknown(group, error) from error
                    raise
                self._leaders.learn(group, leader, error)
            except SpineError as error:
                if sent:
                    raise self._unknown(group, error) from error
                raise
            if hurry and self._leaders.whom(group, hops)[0] not in (None, leader):
                hurry -= 1  # someone else leads now: ask at once
                continue
            hurry = HURRY
            await self.news.heard(min(ends - self._now(), self._timing.recheck_ms / 1000), get_running_loop())

    async def _propose_here(self, group: GroupId, command: bytes, left: float) -> tuple[Outcome, int]:
        self._check_room()
        try:
            decided: tuple[Outcome, int] = await within(self._log.propose(group, command), left, get_running_loop())
        except Late:
            raise self._unknown(group) from None
        return decided

    async def _propose_there(
        self, peer: NodeId, group: GroupId, command: bytes, left: float, hops: int, replayable: bool
    ) -> tuple[Outcome, int]:
        left_ms = int(left * 1000) + 1
        body = (group, command, left_ms, hops, replayable)
        reply = await self._rpc.call(peer, PROPOSE, body, timeout_ms=left_ms)
        return outcomes.decode(reply[0]), reply[1]

    def _check_room(self) -> None:
        """An entry that this leader could not apply would never be answered: refuse it before it is proposed."""
        why = self._engine.read_only()
        if why is not None:
            raise NoSpace(f"the leader's store takes no writes: {why}")

    def _serve_propose(self, peer: NodeId, body: Any) -> Any:
        group, command, left_ms, hops, replayable = body
        leader = self.leader(group)
        if leader == self.node:
            self._check_room()
            return _reply(self._log.propose(group, command))
        if leader is None or hops < 1:
            raise no_leader(group, leader)
        return self._pass_on(group, command, left_ms, replayable)

    async def _pass_on(self, group: GroupId, command: bytes, left_ms: int, replayable: bool) -> tuple[bytes, int]:
        outcome, index = await self.execute(group, command, left_ms, replayable=replayable, hops=0)
        return outcomes.encode(outcome), index

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    async def barrier(self, group: GroupId, deadline_ms: int | None = None) -> int:
        """Return once this replica holds everything that was acknowledged before the call; the log index of
        that point. On a node without a replica only the index: what to read then lies elsewhere. Unavailable
        (`no_leader`, `no_quorum`) after `deadline_ms` from now."""
        loop = get_running_loop()
        ends = self._ends(deadline_ms)
        hurry = HURRY
        while True:
            asked, _ = self._leaders.whom(group, 1)
            try:
                return await within(self._barriers.join(group, loop), ends - self._now(), loop)
            except Late:
                raise self._no_barrier(group) from None
            except (Unavailable, Unknown) as error:
                if error.code not in WORTH_RETRYING and not isinstance(error, Unknown):
                    raise
                self._leaders.learn(group, asked, error)
            if hurry and self._leaders.whom(group, 1)[0] not in (None, asked):
                hurry -= 1
                continue
            hurry = HURRY
            left = ends - self._now()
            if left <= 0:
                raise self._no_barrier(group)
            await self.news.heard(min(left, self._timing.recheck_ms / 1000), loop)

    async def applied(self, group: GroupId, index: int, wait_ms: int) -> bool:
        """Whether this replica has applied a log index, or does so within `wait_ms`. Only where it is held."""
        future = self._log.wait_applied(group, index)
        if not future.done() and wait_ms <= 0:
            future.cancel()
            return False
        try:
            await within(future, wait_ms / 1000, get_running_loop())
        except Late:
            return False
        return True

    async def read(self, group: GroupId, id: str, deadline_ms: int | None = None) -> StrongRecord | None:
        """The record, linearizable; from a replica when this node keeps none. Unavailable when the deadline
        passes."""
        if self._topology.serves(group):
            await self.barrier(group, deadline_ms)
            return memories.strong(self._engine, group, id)
        record, _ = await self._read_there(group, id, deadline_ms, linearizable=True)
        return record

    async def stale(
        self, group: GroupId, id: str, deadline_ms: int | None = None
    ) -> tuple[StrongRecord | None, int | None]:
        """The record as the nearest replica has it, and an upper estimate of its age in milliseconds (None:
        nothing has told that replica since it started)."""
        if self._topology.serves(group):
            return memories.strong(self._engine, group, id), self.staleness_ms(group)
        return await self._read_there(group, id, deadline_ms, linearizable=False)

    def staleness_ms(self, group: GroupId) -> int | None:
        """How old this replica's applied state may be at most; None when nothing has told since it started.

        Only a read barrier proves that a follower is current: one that hears heartbeats may still be catching
        up, because the commit index it is told is capped at what it holds. So the age counts from the last
        barrier passed here, and asking for the age when that is long ago starts a barrier for those who ask
        next. A leader is surer of itself: cut off from its majority it steps down within one election
        timeout.
        """
        now = self._now()
        current_at = self._barriers.current_at
        if self._log.leader(group) == self.node:
            led = now - self._timing.election_ms / 1000
            current_at[group] = max(led, current_at.get(group, led))
        known = current_at.get(group)
        if known is None or (now - known) * 1000 > self._timing.election_ms:
            self._barriers.refresh(group, get_running_loop())
        return None if known is None else max(0, int((now - known) * 1000))

    async def _read_there(
        self, group: GroupId, id: str, deadline_ms: int | None, *, linearizable: bool
    ) -> tuple[StrongRecord | None, int | None]:
        """Ask replicas in order of preference until one answers; asking again is safe."""
        ends = self._ends(deadline_ms)
        while True:
            for peer in self._leaders.replicas(group):
                left_ms = int((ends - self._now()) * 1000)
                if left_ms <= 0:
                    raise self._no_barrier(group)
                try:
                    data, age = await self._rpc.call(
                        peer, READ, (group, id, left_ms, linearizable), timeout_ms=left_ms
                    )
                except (Unavailable, Unknown):
                    continue  # the next replica may be better placed; the deadline ends this
                return None if data is None else codec.decode_strong(data), age
            left = ends - self._now()
            if left <= 0:
                raise self._no_barrier(group)
            await self.news.heard(min(left, self._timing.recheck_ms / 1000), get_running_loop())

    async def _serve_read(self, peer: NodeId, body: Any) -> tuple[bytes | None, int | None]:
        group, id, left_ms, linearizable = body
        if not self._topology.serves(group):
            raise Unavailable(f"{self.node} shows no replica of shard group {group}", code="not_ready")
        age: int | None = 0
        if linearizable:
            await self.barrier(group, left_ms)
        else:
            age = self.staleness_ms(group)
        record = memories.strong(self._engine, group, id)
        return None if record is None else codec.encode(record), age

    # ── who leads ───────────────────────────────────────────────────────────────────────────────────────────

    def leader_changed(self, group: GroupId, leader: NodeId | None) -> None:
        """To be called by whoever learns of a new leader: wakes the requests that wait for one."""
        self._leaders.forget(group)
        self.news.ring()

    def leader(self, group: GroupId) -> NodeId | None:
        """The leader as far as this node knows."""
        return self._leaders.leader(group)

    def _ask_index(self, group: GroupId) -> "Future[int]":
        leader, hops = self._leaders.whom(group, 1)
        if leader == self.node:
            return self._log.read_index(group)
        if leader is None:
            raise no_leader(group)
        return self._rpc.call(leader, READ_INDEX, (group, hops), timeout_ms=self._timing.round_ms)

    def _serve_read_index(self, peer: NodeId, body: Any) -> "Future[int]":
        group, hops = GroupId(body[0]), int(body[1])
        leader = self.leader(group)
        if leader == self.node:
            return self._log.read_index(group)
        if leader is None or hops < 1:
            raise no_leader(group, leader)
        return self._rpc.call(leader, READ_INDEX, (group, 0), timeout_ms=self._timing.round_ms)

    # ── giving up ───────────────────────────────────────────────────────────────────────────────────────────

    def _unknown(self, group: GroupId, cause: SpineError | None = None) -> Unknown:
        details: dict[str, Any] = {"group": group}
        if cause is not None:
            details["cause"] = cause.code
        return Unknown(
            f"shard group {group} did not say in time what became of the request; it may have happened",
            details=details,
        )

    def _ends(self, deadline_ms: int | None) -> float:
        return self._now() + (self.timeout_ms if deadline_ms is None else deadline_ms) / 1000

    def _no_barrier(self, group: GroupId) -> Unavailable:
        leader = self.leader(group)
        if leader is None and (self._topology.holds(group) or not self._leaders.replicas(group)):
            return no_leader(group)
        return Unavailable(
            f"shard group {group} did not confirm in time what a read must contain",
            code="no_quorum",
            details={"group": group, "leader": leader},
            retry_after_ms=500,
        )


def _reply(proposed: "Future[Any]") -> "Future[tuple[bytes, int]]":
    """The proposal's result as it travels, without a task: the hop costs the leader two callbacks."""
    answer: Future[tuple[bytes, int]] = get_running_loop().create_future()

    def decided(done: "Future[Any]") -> None:
        if answer.done():
            return
        if done.cancelled():
            answer.set_exception(Unknown("the leader gave up waiting for its log"))
        elif (error := done.exception()) is not None:
            answer.set_exception(error)
        else:
            outcome, index = done.result()
            answer.set_result((outcomes.encode(outcome), index))

    proposed.add_done_callback(decided)
    return answer
