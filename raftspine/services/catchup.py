"""Brings a replica that missed something level with the others, and lets go of what all of them have.

Once a second each node tells its peers, per shard group, the vector of what it has *on disk*. A replica that lacks a
dot a peer named a round ago pulls it (what is merely in flight has arrived by then), so the cost is what is missing
and nothing when replicas agree. This is hinted handoff and anti-entropy in one: the others' dot rows are the
hints, durable, and a loop delivers them, never an event that can be missed. When the rows a replica would need are
already trimmed (it came back empty), it takes the whole group instead.

The meet of all advertised vectors is the *stable* vector: tokens stop naming what it covers and its dot rows go.
Only what is on disk may be advertised; otherwise a power loss could leave a write named stable that nobody has.

Tokens do not name what is stable, so a replica that was wiped or rolled back would answer sessions with gaps. After
each start it therefore counts as *level* in a group only once it has covered what N-W+1 peers told it.

An id that the log keeps has no ring record; its dots still travel. They may be taken up only by a replica that has
applied as much of the log as the sender, or it would answer for a write that it neither holds nor knows to be
superseded.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from raftspine import codec
from raftspine.core.dots import Vector
from raftspine.core.quorum import read_quorum
from raftspine.errors import Rejected, SpineError, Unavailable
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, Engine, Rpc
from raftspine.services.deadlines import Late, within
from raftspine.services.replica import SHADOWED, RingReplica
from raftspine.storage import memories as rows

log = structlog.get_logger()

PAGE_DOTS = 500
PAGE_BYTES = 1 << 20
TRIM_PER_ROUND = 4000


WaitApplied = Callable[[GroupId, int], "asyncio.Future[None]"]


class Catchup:
    """Serves the peers of this node's groups, and runs the round that asks them."""

    def __init__(
        self,
        replica: RingReplica,
        engine: Engine,
        rpc: Rpc,
        clock: Clock,
        peers_of: Callable[[GroupId], tuple[NodeId, ...]],
        *,
        wait_applied: WaitApplied,
        write_quorum: int,
        interval_ms: int,
        timeout_ms: int,
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._rpc = rpc
        self._clock = clock
        self._peers_of = peers_of
        self._wait_applied = wait_applied
        self._write_quorum = write_quorum
        self._interval = interval_ms / 1000
        self._timeout_ms = timeout_ms
        self._theirs: dict[NodeId, dict[GroupId, Vector]] = {}
        self._told: dict[NodeId, dict[GroupId, bytes]] = {}
        self._behind_since: dict[NodeId, float] = {}
        self._level_with: dict[GroupId, set[NodeId]] = {}
        self._pulling: set[tuple[NodeId, GroupId]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.pulled_total = 0
        self.full_syncs_total = 0
        self.refused_total = 0
        rpc.serve("ring.push", self._push)
        rpc.serve("ring.vectors", self._vectors)
        rpc.serve("ring.pull", self._pull)
        rpc.serve("ring.scan", self._scan)
        rpc.serve("ring.applied", self._applied)
        rpc.on_link(self._link)

    # ── serving peers ─────────────────────────────────────────────────────────────────────────────────────────

    def _push(self, peer: NodeId, body: Any) -> None:
        """Store a coordinator's batch and answer once it is committed: which entries were refused, and which met a
        version their coordinator had not seen, with the record of both; nothing (b"") where the log keeps the id. The
        code of the first refusal goes along, so that the writer learns why (a full disk, a clock that is off)."""
        batch, entries = body
        failed: list[int] = []
        told: list[tuple[int, bytes]] = []
        refusal: SpineError | None = None
        for place, (group, data) in enumerate(entries):
            try:
                if not self._replica.holds(group):
                    raise Rejected("not a replica of this group", code="wrong_epoch")
                rival = self._replica.accept(GroupId(group), codec.decode_version(data))
                if rival is not None:
                    told.append((place, b"" if rival is SHADOWED else codec.encode(rival)))
            except SpineError as error:
                self.refused_total += 1
                failed.append(place)
                refusal = refusal or error
        why = ""
        if refusal is not None:
            why = refusal.code
            log.warning("ring writes refused", peer=peer, writes=len(failed), code=why, reason=refusal.message)
        if len(failed) == len(entries):
            self._rpc.cast(peer, "ring.ack", (batch, failed, (), why))
            return

        def answer(commit: "asyncio.Future[None]") -> None:
            lost = commit.exception() is not None
            refused = list(range(len(entries))) if lost else failed
            self._rpc.cast(peer, "ring.ack", (batch, refused, told, "unconfirmed" if lost else why))

        self._engine.commit().add_done_callback(answer)

    def _vectors(self, peer: NodeId, body: Any) -> None:
        known = self._theirs.setdefault(peer, {})
        for group, wire in body:
            known[GroupId(group)] = Vector.from_wire(wire)
            self._compare(peer, GroupId(group))

    def _compare(self, peer: NodeId, group: GroupId) -> bool:
        """Whether this replica has all that a peer told; notes it when it does."""
        if not self._replica.holds(group):
            return True
        if not self._replica.vector(group).dominates(self._theirs[peer][group]):
            return False
        if not self._replica.level(group):
            with_whom = self._level_with.setdefault(group, set())
            with_whom.add(peer)
            peers = self._peers_of(group)
            if len(with_whom.intersection(peers)) >= min(len(peers), read_quorum(len(peers) + 1, self._write_quorum)):
                self._replica.set_level(group)
        return True

    def _pull(self, peer: NodeId, body: Any) -> Any:
        """What the caller's vector lacks, one page: (records, dots, more, log index the caller must have applied), or
        None when rows are trimmed."""
        group, wire = body
        group = GroupId(group)
        mine = self._replica.vector(group)
        records: list[bytes] = []
        dots: list[tuple[str, int, str]] = []
        size, sent, index = 0, set(), 0
        for origin, lo, hi in Vector.from_wire(wire).missing(mine):
            found = rows.dots(self._engine, group, origin, lo, hi, PAGE_DOTS)
            if not found or found[0][0] != lo:
                return None
            expected = lo
            for seq, id in found:
                if seq != expected:
                    return None
                expected += 1
                if id not in sent:
                    sent.add(id)
                    record = self._replica.record(group, id)
                    if record is not None:
                        data = codec.encode(record)
                        size += len(data)
                        records.append(data)
                    strong = self._replica.strong(group, id)
                    if strong is not None:
                        index = max(index, strong.index)
                dots.append((origin, seq, id))
                if len(dots) >= PAGE_DOTS or size >= PAGE_BYTES:
                    return records, dots, True, index
        return records, dots, False, index

    async def _applied(self, peer: NodeId, body: Any) -> None:
        """Answers once this replica has applied a log index and would still know it after a power loss."""
        group, index = body
        await self._wait_applied(GroupId(group), index)
        await self._engine.commit(durable=True)

    def _scan(self, peer: NodeId, body: Any) -> Any:
        """One page of a whole group: (vector at this moment, records, last id or None at the end, log index
        applied)."""
        group, after = body
        group = GroupId(group)
        vector = self._replica.vector(group).to_wire()
        index = rows.applied(self._engine, group)[0].index
        page = rows.ring_page(self._engine, group, after, PAGE_DOTS)
        records: list[bytes] = []
        size = 0
        for id, data in page:
            records.append(data)
            size += len(data)
            if size >= PAGE_BYTES:
                return vector, records, id, index
        return vector, records, page[-1][0] if len(page) == PAGE_DOTS else None, index

    # ── the round ─────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Rounds until cancelled; a fresh link starts one early."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval)
            self._wake.clear()
            try:
                await self.round()
            except SpineError as error:
                log.warning("catch-up round failed", code=error.code, reason=error.message)

    async def round(self) -> None:
        """Pull what peers named last time and this replica still lacks; then name what it has on disk."""
        for peer, vectors in list(self._theirs.items()):
            for group in vectors:
                if not self._compare(peer, group):
                    self._start_pull(peer, group)
        now = {group: self._replica.vector(group).copy() for group in self._replica.groups()}
        if any(self._told.get(p, {}).get(g) != v.digest() for g, v in now.items() for p in self._peers_of(g)):
            await self._engine.commit(durable=True)
            self._tell(now)
        self._settle(now)

    def _tell(self, now: dict[GroupId, Vector]) -> None:
        out: dict[NodeId, list[tuple[int, Any]]] = {}
        for group, vector in now.items():
            digest = vector.digest()
            for peer in self._peers_of(group):
                told = self._told.setdefault(peer, {})
                if told.get(group) != digest and self._rpc.connected(peer):
                    told[group] = digest
                    out.setdefault(peer, []).append((group, vector.to_wire()))
        for peer, body in out.items():
            if not self._rpc.cast(peer, "ring.vectors", body):
                self._told.pop(peer, None)

    def _settle(self, now: dict[GroupId, Vector]) -> None:
        left = TRIM_PER_ROUND
        for group, mine in now.items():
            others = [self._theirs.get(peer, {}).get(group) for peer in self._peers_of(group)]
            known = [vector for vector in others if vector is not None]
            if len(known) == len(others):
                self._replica.set_stable(group, Vector.meet([mine, *known]))
                if left > 0:
                    left -= self._replica.trim(group, left)

    def _start_pull(self, peer: NodeId, group: GroupId) -> None:
        if (peer, group) in self._pulling or not self._rpc.connected(peer):
            return
        self._pulling.add((peer, group))
        task = asyncio.create_task(self._fetch(peer, group))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, peer, group))

    def _ended(self, peer: NodeId, group: GroupId, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("catch-up failed", peer=peer, group=group, exc_info=error)

    async def _fetch(self, peer: NodeId, group: GroupId) -> None:
        try:
            more = True
            while more:
                body = (group, self._replica.vector(group).to_wire())
                page = await self._rpc.call(peer, "ring.pull", body, timeout_ms=self._timeout_ms, bulk=True)
                if page is None:
                    await self._fetch_all(peer, group)
                    return
                records, dots, more, index = page
                await self._apply_first(group, index)
                self.pulled_total += len(dots)
                self._replica.take(group, [codec.decode_ring(r) for r in records], [tuple(d) for d in dots])
                await self._engine.commit()
        except SpineError as error:
            log.info("catch-up interrupted", peer=peer, group=group, code=error.code, reason=error.message)
        finally:
            self._pulling.discard((peer, group))

    async def _fetch_all(self, peer: NodeId, group: GroupId) -> None:
        """The peer no longer has rows for what this replica lacks: take its whole group, then its vector."""
        self.full_syncs_total += 1
        log.info("taking a whole shard group", peer=peer, group=group)
        floor: Vector | None = None
        after: str | None = None
        while True:
            body = (group, after)
            wire, records, after, index = await self._rpc.call(
                peer, "ring.scan", body, timeout_ms=self._timeout_ms, bulk=True
            )
            await self._apply_first(group, index)
            floor = floor or Vector.from_wire(wire)
            self._replica.take(group, [codec.decode_ring(r) for r in records], [])
            await self._engine.commit()
            if after is None:
                break
        self._replica.take_floor(group, floor)
        await self._engine.commit()

    async def _apply_first(self, group: GroupId, index: int) -> None:
        if not index:
            return
        try:
            await within(self._wait_applied(group, index), self._timeout_ms / 1000, asyncio.get_running_loop())
        except Late:
            raise Unavailable("this replica is behind in the group's log", code="not_ready") from None

    def _link(self, peer: NodeId, up: bool) -> None:
        if up:
            self._told.pop(peer, None)
            self._wake.set()

    # ── figures ───────────────────────────────────────────────────────────────────────────────────────────────

    def pending(self, peer: NodeId) -> int:
        """How many dots this node has that the peer, by its last word, has not on disk."""
        total = 0
        for group, theirs in self._theirs.get(peer, {}).items():
            if self._replica.holds(group):
                total += sum(hi - lo + 1 for _, lo, hi in theirs.missing(self._replica.vector(group)))
        return total

    def lag_seconds(self, peer: NodeId) -> float:
        """How long the peer has been behind without a pause; 0 when its last word covered everything."""
        now = self._clock.monotonic()
        if self.pending(peer) == 0:
            self._behind_since.pop(peer, None)
            return 0.0
        return now - self._behind_since.setdefault(peer, now)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
