"""This node's share of the ring: the versions it holds, the dots it has seen, and the one way in.

Every version, wherever it comes from (this node's own clients, a coordinator's push, a peer's catch-up, a demotion
in the Raft log), passes through `accept`. It keeps two rules without which a ring loses or revives memories:

* *covered is inert*: a version whose dot this replica has seen and no longer holds was superseded; storing it again
  would bring the dead back;
* record, index rows and dot row change in one batch, and the vector is nothing but the set of dot rows (plus a
  stored floor below which they have been trimmed), so a crash can never leave a vector that promises a version the
  disk does not have.

A live strong record shadows the ring: a version arriving for it goes to the conflict log, never silently away.
Source: dotted version vector sets (Almeida, Baquero et al., 2014); the origin is fresh for each boot, so no dot is
ever minted twice, even from a disk that was rolled back.
"""

from asyncio import Future, get_running_loop
from collections.abc import Iterable, Sequence

import structlog

from raftspine.core import merge
from raftspine.core.dots import Vector
from raftspine.core.hlc import Hlc
from raftspine.model import GroupId, Memory, NodeId, RingRecord, StrongRecord, Version
from raftspine.ports import Clock, Engine, Entropy, Row
from raftspine.storage import memories as rows

log = structlog.get_logger()


class RingReplica:
    """The ring state of the shard groups this node holds. All methods run on the loop and never wait, except
    `covered`."""

    def __init__(self, node: NodeId, engine: Engine, *, clock: Clock, entropy: Entropy, hlc: Hlc) -> None:
        self.node = node
        self.origin = f"{node}~{entropy.token_bytes(4).hex()}"
        self.engine = engine
        self.hlc = hlc
        self.conflicts_total = 0
        self._clock = clock
        self._vectors: dict[GroupId, Vector] = {}
        self._next: dict[GroupId, int] = {}
        self._waiting: dict[GroupId, list[tuple[dict[str, int], Future[bool]]]] = {}
        self._stable: dict[GroupId, Vector] = {}
        self._floors: dict[GroupId, dict[str, int]] = {}

    # ── groups ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, groups: Iterable[GroupId]) -> None:
        """Take up these groups, with what the disk says this replica has seen of them."""
        for group in groups:
            if group not in self._vectors:
                self._vectors[group] = rows.load_vector(self.engine, group)
                self._next[group] = 1

    def groups(self) -> list[GroupId]:
        return sorted(self._vectors)

    def holds(self, group: GroupId) -> bool:
        return group in self._vectors

    def vector(self, group: GroupId) -> Vector:
        return self._vectors[group]

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    def record(self, group: GroupId, id: str) -> RingRecord | None:
        return rows.ring(self.engine, group, id)

    def strong(self, group: GroupId, id: str) -> StrongRecord | None:
        return rows.strong(self.engine, group, id)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────

    def mint(
        self,
        group: GroupId,
        id: str,
        old: RingRecord | None,
        memory: Memory | None,
        *,
        stamp: int,
        request: bytes = b"",
        deps: tuple[tuple[int, str, int], ...] = (),
    ) -> Version:
        """A new version by this node that supersedes all of `old`. Not stored until `accept`."""
        seq = self._next[group]
        self._next[group] = seq + 1
        return Version(id, self.origin, seq, stamp, {} if old is None else old.context, memory, request, deps)

    def stamp(self, old: RingRecord | None) -> int:
        """A stamp above this node's clock and above what it replaces."""
        return self.hlc.tick(self._clock.wall_ms(), 0 if old is None else old.versions[0].stamp)

    def accept(self, group: GroupId, version: Version, *, known: RingRecord | None = None) -> RingRecord | None:
        """Stage a version, unless its dot was seen before. `known` spares the look-up of the stored record.

        Returns the merged record when the version lost against a concurrent one in it, so that its coordinator can
        be told; else None. Raises Rejected(`clock_drift`) for a stamp too far ahead, NoSpace."""
        vector = self._vectors[group]
        origin, seq = version.origin, version.seq
        if vector.covers(origin, seq):
            return None
        if origin != self.origin:
            self.hlc.observe(version.stamp, self._clock.wall_ms())
        strong = rows.strong(self.engine, group, version.id)
        staged: list[Row] = [rows.dot_row(group, origin, seq, version.id)]
        beaten_in: RingRecord | None = None
        if strong is not None and (strong.memory is not None or covers(strong.shadow, version)):
            if not covers(strong.shadow, version):
                staged += self._lost(group, version, winner=rows.strong_version(group, strong))
        else:
            old = known or rows.ring(self.engine, group, version.id)
            merged = merge.put(old, version)
            staged += rows.ring_rows(group, version.id, old, merged.record)
            for loser in merged.losers:
                staged += self._lost(group, loser, winner=rows.ring_version(merged.record.versions[0]))
                if loser is version:
                    beaten_in = merged.record
        if version.request:
            staged.append(rows.ring_request_row(group, version))
        self.engine.stage(staged)
        vector.add(origin, seq)
        if group in self._waiting:
            self._wake(group)
        return beaten_in

    def adopt(self, group: GroupId, version: Version) -> None:
        """A version that the Raft log made (a demotion): every replica mints the same one at the same entry."""
        vector = self._vectors[group]
        if vector.covers(version.origin, version.seq):
            return
        staged = [rows.dot_row(group, version.origin, version.seq, version.id)]
        old = rows.ring(self.engine, group, version.id)
        merged = merge.put(old, version)
        staged += rows.ring_rows(group, version.id, old, merged.record)
        for loser in merged.losers:
            staged += self._lost(group, loser, winner=rows.ring_version(merged.record.versions[0]))
        self.engine.stage(staged)
        vector.add(version.origin, version.seq)
        if group in self._waiting:
            self._wake(group)

    def take(self, group: GroupId, records: Sequence[RingRecord], dots: Sequence[tuple[str, int, str]]) -> None:
        """Stage a peer's records together with the dots they answer for (catch-up)."""
        vector = self._vectors[group]
        for record in records:
            self._join(group, vector, record)
        staged: list[Row] = []
        for origin, seq, id in dots:
            if not vector.covers(origin, seq):
                staged.append(rows.dot_row(group, origin, seq, id))
                vector.add(origin, seq)
        self.engine.stage(staged)
        if group in self._waiting:
            self._wake(group)

    def _join(self, group: GroupId, vector: Vector, record: RingRecord) -> None:
        id = record.versions[0].id
        strong = rows.strong(self.engine, group, id)
        if strong is not None and strong.memory is not None:
            for version in record.versions:
                self.accept(group, version)
            return
        old = rows.ring(self.engine, group, id)
        held = set() if old is None else {version.dot for version in old.versions}
        shadow = {} if strong is None else strong.shadow
        live = tuple(
            version
            for version in record.versions
            if version.dot in held or not (vector.covers(*version.dot) or covers(shadow, version))
        )
        for version in live:
            self.hlc.observe(version.stamp, self._clock.wall_ms())
        if not live:
            return
        incoming = RingRecord(live, record.context)
        merged = merge.join(old, incoming) if old is not None else merge.Merged(incoming, (), True)
        staged = rows.ring_rows(group, id, old, merged.record)
        for loser in merged.losers:
            staged += self._lost(group, loser, winner=rows.ring_version(merged.record.versions[0]))
        staged += [rows.ring_request_row(group, version) for version in live if version.request]
        self.engine.stage(staged)

    def take_floor(self, group: GroupId, floor: Vector) -> None:
        """A peer's whole state has arrived: everything its vector covered at the start is now answered for."""
        vector = self._vectors[group]
        vector.join(floor)
        self.engine.stage(rows.vector_rows(group, vector))
        self._floors.pop(group, None)
        if group in self._waiting:
            self._wake(group)

    def _lost(self, group: GroupId, loser: Version, *, winner: str) -> list[Row]:
        self.conflicts_total += 1
        return rows.conflict_rows(self.engine, group, loser, winner=winner, now_ms=self._clock.wall_ms())

    # ── waiting for a session's writes ────────────────────────────────────────────────────────────────────────

    def has(self, group: GroupId, needs: dict[str, int]) -> bool:
        """Whether this replica has seen, for each origin, all dots up to the given one."""
        base = self._vectors[group].base
        return all(base.get(origin, 0) >= seq for origin, seq in needs.items())

    async def covered(self, group: GroupId, needs: dict[str, int], wait_ms: int) -> bool:
        """Wait until `has`, for at most `wait_ms`."""
        if self.has(group, needs):
            return True
        if wait_ms <= 0:
            return False
        loop = get_running_loop()
        future: Future[bool] = loop.create_future()
        entry = (needs, future)
        self._waiting.setdefault(group, []).append(entry)
        timer = loop.call_later(wait_ms / 1000, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()
            left = self._waiting.get(group)
            if left is not None and entry in left:
                left.remove(entry)
                if not left:
                    del self._waiting[group]

    def _wake(self, group: GroupId) -> None:
        for needs, future in self._waiting[group]:
            if not future.done() and self.has(group, needs):
                future.set_result(True)

    # ── stability ─────────────────────────────────────────────────────────────────────────────────────────────

    def set_stable(self, group: GroupId, stable: Vector) -> None:
        """What every replica of the group has on disk; below it tokens need no entry and dot rows no keeping."""
        self._stable[group] = stable

    def stable(self, group: int, origin: str, seq: int) -> bool:
        """Whether every replica of the group has this dot on disk."""
        vector = self._stable.get(GroupId(group))
        return vector is not None and vector.base.get(origin, 0) >= seq

    def trim(self, group: GroupId, limit: int) -> int:
        """Remove at most `limit` dot rows that every replica has; returns how many went. Between the floor and the
        vector's base every number has a row, so nothing needs to be searched for."""
        stable = self._stable.get(group)
        if stable is None:
            return 0
        vector, floors = self._vectors[group], self._floors.setdefault(group, {})
        left, staged = limit, list[Row]()
        for origin, through in stable.base.items():
            if left <= 0:
                break
            floor = floors.get(origin)
            if floor is None:
                floor = rows.floor(self.engine, group, origin)
            through = min(through, vector.base.get(origin, 0), floor + left)
            if through > floor:
                staged += [rows.dot_gone(group, origin, seq) for seq in range(floor + 1, through + 1)]
                staged.append(rows.vector_row(group, origin, through, ()))
                left -= through - floor
            floors[origin] = max(floor, through)
        if staged:
            self.engine.stage(staged)
        return limit - left


def covers(context: dict[str, int], version: Version) -> bool:
    """Whether a context has seen this version."""
    return context.get(version.origin, 0) >= version.seq


def _give_up(future: Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
