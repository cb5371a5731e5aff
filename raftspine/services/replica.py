"""This node's share of the ring: the versions it holds, the dots it has seen, and the one way in.

Every version, wherever it comes from (this node's own clients, a coordinator's push, a peer's catch-up, a demotion
in the Raft log), passes through `accept`. It keeps two rules without which a ring loses or revives memories:

* *covered is inert*: a version whose dot this replica has seen and no longer holds was superseded; storing it again
  would bring the dead back;
* record, index rows and dot row change in one batch, and the vector is nothing but the set of dot rows (plus a
  stored floor below which they have been trimmed), so a crash can never leave a vector that promises a version the
  disk does not have.

A strong record shadows the ring: a version arriving for it goes to the conflict log, never silently away
(lineage.py says which versions that concerns). While the log keeps an id, dead or alive, the ring keeps nothing of
it: what a promotion has seen must not come to light when the strong memory is deleted or expires. Source: dotted
version vector sets (Almeida, Baquero et al., 2014); the origin is fresh for each boot, so no dot is ever minted
twice, even from a disk that was rolled back.
"""

from asyncio import Future, get_running_loop
from collections.abc import Callable, Iterable, Sequence

import structlog

from raftspine.core import merge
from raftspine.core.dots import Vector
from raftspine.core.hlc import Hlc
from raftspine.errors import Rejected, Unavailable
from raftspine.model import GroupId, Memory, NodeId, RingRecord, StrongRecord, Version
from raftspine.ports import Clock, Engine, Entropy, Row
from raftspine.services import lineage
from raftspine.storage import memories as rows

log = structlog.get_logger()

SHADOWED = RingRecord((), {})
"""What `accept` returns for a version whose id the log keeps: its coordinator has yet to learn of the promotion."""

Needs = dict[str, int] | Vector
"""What a reader waits for: for each origin all dots up to one, or another replica's whole vector."""


class Promoted(Exception):
    """The log keeps this id, and whoever began a ring operation on it did not know. Never leaves the services: the
    operation is begun again once this replica has applied what it missed."""


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
        self.withheld: Callable[[GroupId], bool] = lambda group: False
        """Whether the log's state of a group is in doubt here; set once there is a log."""
        self._waiting: dict[GroupId, list[tuple[Needs, Future[bool]]]] = {}
        self._level: set[GroupId] = set()
        self._stable: dict[GroupId, Vector] = {}
        self._floors: dict[GroupId, dict[str, int]] = {}

    # ── groups ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, groups: Iterable[GroupId]) -> None:
        """Take up these groups, with what the disk says this replica has seen of them."""
        for group in groups:
            if group not in self._vectors:
                vector = self._vectors[group] = rows.load_vector(self.engine, group)
                self._next[group] = vector.highest(self.origin) + 1  # 1, unless chance repeats an origin

    def groups(self) -> list[GroupId]:
        return sorted(self._vectors)

    def holds(self, group: GroupId) -> bool:
        return group in self._vectors

    def serves(self, group: GroupId) -> bool:
        """Whether requests for a group may be answered from here: it is held, and its state is not in doubt."""
        return group in self._vectors and not self.withheld(group)

    def vector(self, group: GroupId) -> Vector:
        """What this replica has seen of a group. Raises Unavailable(`not_ready`) when it is not held, or not yet:
        peers ask from the first moment on, and a node knows what it holds only once it has its table."""
        vector = self._vectors.get(group)
        if vector is None:
            raise Unavailable(f"this node does not hold shard group {group}, or not yet", code="not_ready")
        return vector

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    def record(self, group: GroupId, id: str) -> RingRecord | None:
        return rows.ring(self.engine, group, id)

    def strong(self, group: GroupId, id: str) -> StrongRecord | None:
        return rows.strong(self.engine, group, id)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────

    def write(
        self,
        group: GroupId,
        id: str,
        old: RingRecord | None,
        memory: Memory | None,
        *,
        stamp: int,
        request: bytes = b"",
        deps: tuple[tuple[int, str, int], ...] = (),
        local: bool = False,
    ) -> tuple[Version, RingRecord | None]:
        """Mint and stage a new version by this node that supersedes all of `old`; also what `accept` says of it.

        `old` must be this replica's record as of now, joined with what a quorum read brought (`local`: it is exactly
        the stored record). An origin's later dot covers its earlier ones, so minting over a record read before an
        await would replace, without a conflict, what this node wrote in between. A number is used up only when the
        version is staged: a gap would keep every vector, and with it every session, waiting for ever.
        Raises Promoted, NoSpace, Unavailable; nothing is stored then."""
        seq = self._next[group]
        context = {} if old is None else old.context
        version = Version(id, self.origin, seq, stamp, context, memory, request, deps)
        rival = self.accept(group, version, known=old if local else None)
        self._next[group] = seq + 1
        return version, rival

    def stamp(self, old: RingRecord | None) -> int:
        """A stamp above this node's clock and above what it replaces."""
        return self.hlc.tick(self._clock.wall_ms(), 0 if old is None else old.versions[0].stamp)

    def accept(self, group: GroupId, version: Version, *, known: RingRecord | None = None) -> RingRecord | None:
        """Stage a version, unless its dot was seen before. `known` spares the look-up of the stored record.

        Returns what its coordinator should be told: the merged record when there was a concurrent version in it that
        the coordinator had not seen, whoever won; SHADOWED when the log keeps the id; else None. The same for a dot
        seen before: catch-up may have brought it, and told nobody. Raises Rejected(`clock_drift`) for a stamp too far
        ahead, NoSpace, Promoted for a version of this node's own that the log shadows; nothing is staged then."""
        vector = self._vectors[group]
        origin, seq = version.origin, version.seq
        if vector.covers(origin, seq):
            return self._rival_of_seen(group, version)
        if origin != self.origin:
            self.hlc.observe(version.stamp, self._clock.wall_ms())
        strong = rows.strong(self.engine, group, version.id)
        staged: list[Row] = [rows.dot_row(group, origin, seq, version.id)]
        rival: RingRecord | None = None
        if strong is not None and not lineage.outlives(group, version, strong):
            if origin == self.origin:
                raise Promoted
            if not covers(strong.shadow, version):
                rival = SHADOWED
                staged += self._lost(group, version, winner=rows.strong_version(group, strong))
        else:
            old = known or rows.ring(self.engine, group, version.id)
            changes, rival = self._merged(group, version.id, old, merge.put(old, version))
            staged += changes
            if version.request:
                staged.append(rows.ring_request_row(group, version))
        self.engine.stage(staged)
        vector.add(origin, seq)
        if group in self._waiting:
            self._wake(group)
        return rival

    def _rival_of_seen(self, group: GroupId, version: Version) -> RingRecord | None:
        """What to tell the coordinator of a version that came here by another way before its own push did. This
        replica's acknowledgement counts like any other, so it must say what it would have said at first sight; else
        the one replica at which two quorums meet could keep silent about their conflict. A version that another has
        replaced was seen by it, and there is nothing to tell."""
        strong = rows.strong(self.engine, group, version.id)
        if strong is not None and not lineage.outlives(group, version, strong):
            return None if covers(strong.shadow, version) else SHADOWED
        record = rows.ring(self.engine, group, version.id)
        if record is None:
            return None
        others = [v for v in record.versions if v.dot != version.dot]
        if len(others) < len(record.versions):
            unseen = any(not (v.request and v.request == version.request) for v in others)
        else:
            replaced = any(v.origin == version.origin or covers(v.context, version) for v in others)
            unseen = not replaced and lineage.fallen_to_demotion(group, version, record)
        return record if unseen else None

    def _merged(
        self, group: GroupId, id: str, old: RingRecord | None, merged: merge.Merged
    ) -> tuple[list[Row], RingRecord | None]:
        """The rows that store a merge's outcome and its losers; the record, when there are losers."""
        record, fallen = lineage.settle(group, merged.record)
        staged = rows.ring_rows(group, id, old, record)
        losers = merged.losers
        if fallen:
            losers = (*fallen, *(v for v in losers if v in record.versions[1:]))
        if not losers:
            return staged, None
        winner = rows.ring_version(record.versions[0])
        for loser in losers:
            staged += self._lost(group, loser, winner=winner)
        return staged, record

    def adopt(self, group: GroupId, version: Version) -> None:
        """A version that the Raft log made (a demotion): every replica mints the same one at the same entry."""
        vector = self._vectors[group]
        if vector.covers(version.origin, version.seq):
            return
        old = rows.ring(self.engine, group, version.id)
        staged, _ = self._merged(group, version.id, old, merge.put(old, version))
        staged.append(rows.dot_row(group, version.origin, version.seq, version.id))
        if version.request:
            staged.append(rows.ring_request_row(group, version))
        self.engine.stage(staged)
        vector.add(version.origin, version.seq)
        if group in self._waiting:
            self._wake(group)

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        """The log has taken an id over: the ring lets go of all that this strong record shadows. What the promotion
        had not seen is in the conflict log by then (the ledger sees to it)."""
        old = rows.ring(self.engine, group, strong.id)
        if old is None:
            return
        new = lineage.outliving(group, old, strong)
        if new is not old:
            self.engine.stage(rows.ring_rows(group, strong.id, old, new))

    def take(self, group: GroupId, records: Sequence[RingRecord], dots: Sequence[tuple[str, int, str]]) -> None:
        """Stage a peer's records together with the dots they answer for (catch-up). Raises Rejected(`clock_drift`)
        when a record has a stamp too far ahead, after staging all others: it and its dots are left out."""
        vector = self._vectors[group]
        staged: list[Row] = []
        refused: dict[str, Rejected] = {}
        for record in records:
            try:
                staged += self._join(group, vector, record)
            except Rejected as error:
                refused[record.versions[0].id] = error
        seen = [dot for dot in dots if dot[2] not in refused and not vector.covers(dot[0], dot[1])]
        staged += [rows.dot_row(group, origin, seq, id) for origin, seq, id in seen]
        self.engine.stage(staged)
        for origin, seq, _ in seen:
            vector.add(origin, seq)
        if group in self._waiting:
            self._wake(group)
        for refusal in refused.values():
            raise refusal

    def _join(self, group: GroupId, vector: Vector, record: RingRecord) -> list[Row]:
        """The changes that take up a peer's record, without the versions that are obsolete here."""
        id = record.versions[0].id
        old = rows.ring(self.engine, group, id)
        strong = rows.strong(self.engine, group, id)
        held = set() if old is None else {version.dot for version in old.versions}
        fresh = [v for v in record.versions if v.dot in held or not vector.covers(v.origin, v.seq)]
        for version in fresh:
            self.hlc.observe(version.stamp, self._clock.wall_ms())
        staged: list[Row] = []
        live: list[Version] = []
        for version in fresh:
            if strong is None or lineage.outlives(group, version, strong):
                live.append(version)
            elif not covers(strong.shadow, version):
                staged += self._lost(group, version, winner=rows.strong_version(group, strong))
        if live:
            incoming = RingRecord(tuple(live), record.context)
            merged = merge.join(old, incoming) if old is not None else merge.Merged(incoming, (), True)
            staged += self._merged(group, id, old, merged)[0]
            staged += [rows.ring_request_row(group, version) for version in live if version.request]
        return staged

    def take_floor(self, group: GroupId, floor: Vector) -> None:
        """A peer's whole state has arrived: everything its vector covered at the start is now answered for."""
        vector = self._vectors[group]
        joint = vector.copy()
        joint.join(floor)
        self.engine.stage(rows.vector_rows(group, joint))
        vector.join(floor)
        self._floors.pop(group, None)
        if group in self._waiting:
            self._wake(group)

    def note_losers(self, group: GroupId, losers: Iterable[Version], winner: Version) -> None:
        """Keep versions in the conflict log that this node replaced although their writers and `winner`'s knew
        nothing of one another."""
        staged = [row for loser in losers for row in self._lost(group, loser, winner=rows.ring_version(winner))]
        if staged:
            self.engine.stage(staged)

    def _lost(self, group: GroupId, loser: Version, *, winner: str) -> list[Row]:
        self.conflicts_total += 1
        return rows.conflict_rows(self.engine, group, loser, winner=winner, now_ms=self._clock.wall_ms())

    # ── waiting for a session's writes ────────────────────────────────────────────────────────────────────────

    def has(self, group: GroupId, needs: Needs) -> bool:
        """Whether this replica has seen all that is named."""
        if isinstance(needs, Vector):
            return self._vectors[group].dominates(needs)
        base = self._vectors[group].base
        return all(base.get(origin, 0) >= seq for origin, seq in needs.items())

    async def covered(self, group: GroupId, needs: Needs, wait_ms: int) -> bool:
        """Wait until `has`, for at most `wait_ms`."""
        if self.has(group, needs):
            return True
        if wait_ms <= 0:
            return False
        loop = get_running_loop()
        future: Future[bool] = loop.create_future()
        entry: tuple[Needs, Future[bool]] = (needs, future)
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

    # ── after a start ─────────────────────────────────────────────────────────────────────────────────────────

    def level(self, group: GroupId) -> bool:
        """Whether this replica may answer a session alone. Tokens do not name what every replica had on disk, so one
        that was wiped or rolled back must first compare itself with its peers; see Catchup."""
        return group in self._level

    def set_level(self, group: GroupId) -> None:
        self._level.add(group)

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
        left, staged, reached = limit, list[Row](), dict[str, int]()
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
            reached[origin] = max(floor, through)
        if staged:
            self.engine.stage(staged)
        floors.update(reached)  # not before: when the store refuses, the rows are still there
        return limit - left


def covers(context: dict[str, int], version: Version) -> bool:
    """Whether a context has seen this version."""
    return context.get(version.origin, 0) >= version.seq


def _give_up(future: Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
