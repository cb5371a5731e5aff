"""Brings a replica that missed something level with the others, and lets go of what all of them have.

Once a second each node tells its peers, per shard group, the vector of what it has *on disk*. A replica that lacks a
dot a peer named a round ago pulls it (what is merely in flight has arrived by then), so the cost is what is missing
and nothing when replicas agree. This is hinted handoff and anti-entropy in one: the others' dot rows are the
hints, durable, and a loop delivers them, never an event that can be missed. When the rows a replica would need are
already trimmed (it came back empty), it takes the whole group instead.

The meet of all advertised vectors is the *stable* vector: tokens stop naming what it covers and its dot rows go.
Only what is on disk may be advertised; otherwise a power loss could leave a write named stable that nobody has.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from raftspine import codec
from raftspine.core.dots import Vector
from raftspine.errors import Rejected, SpineError
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, Engine, Rpc
from raftspine.services.replica import RingReplica
from raftspine.storage import memories as rows

log = structlog.get_logger()

PAGE_DOTS = 500
PAGE_BYTES = 1 << 20
TRIM_PER_ROUND = 4000


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
        interval_ms: int,
        timeout_ms: int,
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._rpc = rpc
        self._clock = clock
        self._peers_of = peers_of
        self._interval = interval_ms / 1000
        self._timeout_ms = timeout_ms
        self._theirs: dict[NodeId, dict[GroupId, Vector]] = {}
        self._told: dict[NodeId, dict[GroupId, bytes]] = {}
        self._behind_since: dict[NodeId, float] = {}
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
        rpc.on_link(self._link)

    # ── serving peers ─────────────────────────────────────────────────────────────────────────────────────────

    def _push(self, peer: NodeId, body: Any) -> None:
        """Store a coordinator's batch and answer once it is committed: which entries were refused, and which lost
        against a version their coordinator had not seen, with the record they lost in."""
        batch, entries = body
        failed: list[int] = []
        beaten: list[tuple[int, bytes]] = []
        for place, (group, data) in enumerate(entries):
            try:
                if not self._replica.holds(group):
                    raise Rejected("not a replica of this group", code="wrong_epoch")
                winner = self._replica.accept(GroupId(group), codec.decode_version(data))
                if winner is not None:
                    beaten.append((place, codec.encode(winner)))
            except SpineError as error:
                self.refused_total += 1
                failed.append(place)
                log.warning("ring push refused", peer=peer, group=group, code=error.code, reason=error.message)
        if len(failed) == len(entries):
            self._rpc.cast(peer, "ring.ack", (batch, failed, ()))
            return

        def answer(commit: "asyncio.Future[None]") -> None:
            lost = commit.exception() is not None
            self._rpc.cast(peer, "ring.ack", (batch, list(range(len(entries))) if lost else failed, beaten))

        self._engine.commit().add_done_callback(answer)

    def _vectors(self, peer: NodeId, body: Any) -> None:
        known = self._theirs.setdefault(peer, {})
        for group, wire in body:
            known[GroupId(group)] = Vector.from_wire(wire)

    def _pull(self, peer: NodeId, body: Any) -> Any:
        """What the caller's vector lacks, one page: (records, dots, more), or None when rows are trimmed."""
        group, wire = body
        group = GroupId(group)
        mine = self._replica.vector(group)
        records: list[bytes] = []
        dots: list[tuple[str, int, str]] = []
        size, sent = 0, set()
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
                dots.append((origin, seq, id))
                if len(dots) >= PAGE_DOTS or size >= PAGE_BYTES:
                    return records, dots, True
        return records, dots, False

    def _scan(self, peer: NodeId, body: Any) -> Any:
        """One page of a whole group: (vector at this moment, records, last id or None at the end)."""
        group, after = body
        group = GroupId(group)
        vector = self._replica.vector(group).to_wire()
        page = rows.ring_page(self._engine, group, after, PAGE_DOTS)
        records: list[bytes] = []
        size = 0
        for id, data in page:
            records.append(data)
            size += len(data)
            if size >= PAGE_BYTES:
                return vector, records, id
        return vector, records, page[-1][0] if len(page) == PAGE_DOTS else None

    # ── the round ─────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Rounds until cancelled; a fresh link starts one early."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._interval)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.round()
            except SpineError as error:
                log.warning("catch-up round failed", code=error.code, reason=error.message)

    async def round(self) -> None:
        """Pull what peers named last time and this replica still lacks; then name what it has on disk."""
        for peer, vectors in list(self._theirs.items()):
            for group, theirs in vectors.items():
                if self._replica.holds(group) and not self._replica.vector(group).dominates(theirs):
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
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, peer: NodeId, group: GroupId) -> None:
        try:
            more = True
            while more:
                body = (group, self._replica.vector(group).to_wire())
                page = await self._rpc.call(peer, "ring.pull", body, timeout_ms=self._timeout_ms, bulk=True)
                if page is None:
                    await self._fetch_all(peer, group)
                    return
                records, dots, more = page
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
            wire, records, after = await self._rpc.call(
                peer, "ring.scan", body, timeout_ms=self._timeout_ms, bulk=True
            )
            floor = floor or Vector.from_wire(wire)
            self._replica.take(group, [codec.decode_ring(r) for r in records], [])
            await self._engine.commit()
            if after is None:
                break
        self._replica.take_floor(group, floor)
        await self._engine.commit()

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


