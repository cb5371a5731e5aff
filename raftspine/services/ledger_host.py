"""Turns log entries into stored rows: the hands of the ledger, which itself only decides.

The rule: **all effects of an entry and the position behind it enter the engine in one batch**. A crash then
leaves either all of an entry or nothing of it, and the log is replayed from exactly where the state ends.
Were the position written apart, a restart would apply an entry twice (a counter raised twice) or skip one (an
acknowledged write gone).

A demotion hands a version to the ring, and the ring has one way in, which keeps vector and dot rows right; so
it goes through `RingSink.adopt`. That stages rows of its own, before this entry's and in the same loop turn,
hence in the same engine batch; adopting a version twice changes nothing, so an entry whose own batch was
refused (NoSpace) can be applied again.

Everything here is the same on all replicas but for two things that do not matter to outcomes: conflict rows
(they depend on what of the ring this replica has) and when expired request rows are swept.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from raftspine import codec
from raftspine.core.ledger import cluster, commands, machine
from raftspine.core.ledger.outcomes import Outcome
from raftspine.core.ledger.overlay import Overlay
from raftspine.core.ledger.state import (
    Conflict,
    Effect,
    LedgerView,
    Place,
    RequestRow,
    SetCounter,
    SetRequest,
    SetRing,
    SetRow,
    SetStrong,
    decode_request,
    encode_request,
)
from raftspine.errors import Corrupt, NoSpace, SpineError, Unavailable
from raftspine.model import META_GROUP, GroupId, RingRecord, StrongRecord, Table, Version
from raftspine.ports import CrashPoint, Doubt, Engine, Mark, Position, Row, View, nowhere
from raftspine.services import ledger_chain, ledger_snapshot
from raftspine.services.ledger_chain import MARKS_KEPT, START, Chain
from raftspine.storage import keys, memories

COUNTERS = "counter"
"""The ledger's table of counters, see storage.keys.ledger."""

_GONE = b"\0"
"""Stands in the chain for a row that was removed; no stored value begins with it."""

T = TypeVar("T")


class RingSink(Protocol):
    """The ring replica's way in for versions that the log made."""

    def adopt(self, group: GroupId, version: Version) -> None:
        """Stage a version and its dot, unless its dot was seen before. The group must be held."""
        ...

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        """Let go of what the ring holds of an id that the log has taken over."""
        ...


class Applied(NamedTuple):
    """Where a group's state stands: the last entry in it, the latest leader time it has seen, and the chain of hashes
    over what its entries did."""

    at: Position
    time_ms: int
    chain: Chain | None = None


def load_applied(view: View, group: GroupId) -> Applied:
    """What the state was stored with; zeros for a new group. Raises Corrupt."""
    at, time_ms = memories.applied(view, group)
    return Applied(at, time_ms or 0, ledger_chain.decode(memories.chain(view, group)) if at.index else START)


def load_meta(view: View) -> Table | None:
    """The meta ledger's state."""
    data = view.get(META_STATE)
    return None if data is None else codec.decode_table(data)


META_STATE = keys.ledger(META_GROUP, "cluster", "table")


class LedgerHost:
    """`ports.StateMachine` for all groups of a node, the meta group included.

    One result per command: `(outcome, log index)`. `on_table` hears of each table the meta group decides, `on_rows`
    of the rows of coordination that an entry has written, once they are staged, `on_install` of a group whose state
    was replaced.
    """

    def __init__(
        self,
        engine: Engine,
        ring: RingSink,
        *,
        on_table: Callable[[Table], Any],
        passed: CrashPoint = nowhere,
        on_rows: Callable[[GroupId, Sequence[SetRow]], None] | None = None,
        on_install: Callable[[GroupId], None] | None = None,
    ) -> None:
        self._engine = engine
        self._passed = passed
        self.on_rows = on_rows
        self.on_install = on_install
        self._marks: dict[GroupId, list[Mark]] = {}
        self._ring = ring
        self._on_table = on_table
        self._applied: dict[GroupId, Applied] = {}
        self._swept: dict[GroupId, bytes] = {}

    def applied(self, group: GroupId) -> Applied:
        """Position and leader time of a group. Raises Corrupt."""
        found = self._applied.get(group)
        if found is None:
            found = self._applied[group] = load_applied(self._engine, group)
        return found

    def position(self, group: GroupId) -> Position:
        return self.applied(group).at

    # ── applying ────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]:
        """Apply one entry. Raises Corrupt, before anything is staged, when a command is of a newer format or
        the entry is not the next: the caller must halt the group. NoSpace when the engine takes no changes
        now: nothing has changed and the same entry must come again."""
        try:
            return self._apply(group, at, time_ms, commands)
        except NoSpace:
            raise
        except Unavailable as error:  # the engine is behind its disk: to the log it is the same as a full one
            raise NoSpace(error.message, details=error.details, retry_after_ms=error.retry_after_ms) from error

    def _apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]:
        before = self.applied(group)
        if at.index <= before.at.index:
            raise Corrupt(
                f"shard group {group}: entry {at.index} came after entry {before.at.index} had been applied"
            )
        # Leaders stamp entries with their own clocks; the machine's time must not run backwards between them.
        time_ms = max(time_ms, before.time_ms)
        rows: list[Row]
        done: list[bytes]
        written: list[SetRow] = []
        if group == META_GROUP:
            results, rows = self._apply_meta(at.index, commands)
            done = [data or b"" for _, data in rows]
        else:
            results, rows, done = self._apply_shard(group, at, time_ms, commands, written)
        chain = ledger_chain.advance(before.chain, before.at.index, at.index, done)
        rows.append(memories.applied_row(group, at, time_ms, chain))
        self._engine.stage(rows)
        self._applied[group] = Applied(at, time_ms, chain)
        if chain is not None and chain.mark is not None and chain.mark != (before.chain and before.chain.mark):
            self._keep(group, chain.mark)
        if group == META_GROUP and results and results[-1][0].table is not None:
            self._on_table(results[-1][0].table)
        if written and self.on_rows is not None:
            self.on_rows(group, written)
        return results

    def _apply_shard(
        self, group: GroupId, at: Position, time_ms: int, entry: Sequence[bytes], written: list[SetRow]
    ) -> tuple[list[Any], list[Row], list[bytes]]:
        """Results, rows to store, and what of it all replicas must have done alike."""
        decoded = [commands.decode(command) for command in entry]
        batch = _Batch(self._engine, self._ring, group)
        results: list[tuple[Outcome, int]] = []
        index = at.index
        for sub, command in enumerate(decoded):
            outcome, effects = machine.apply(batch, command, Place(index, sub, at.term), group, time_ms)
            batch.store(effects, last=sub == len(decoded) - 1)
            batch.done.append(outcome.status.encode())
            results.append((outcome, index))
        rows = batch.finish()
        written += batch.written
        return results, rows, batch.done

    def _apply_meta(self, index: int, entry: Sequence[bytes]) -> tuple[list[Any], list[Row]]:
        decoded = [cluster.decode(command) for command in entry]
        before = state = load_meta(self._engine)
        results: list[tuple[cluster.ClusterOutcome, int]] = []
        for command in decoded:
            outcome, state = cluster.apply(state, command)
            results.append((outcome, index))
        if state is None or state is before:
            return results, []
        return results, [(META_STATE, codec.encode(state))]

    # ── snapshots ───────────────────────────────────────────────────────────────────────────────────────────

    async def snapshot(self, group: GroupId) -> tuple[Position, AsyncIterator[bytes]]:
        """The group's replicated state at one position. Close the stream (`aclose`) when it is not read to
        its end: it pins a view of the store."""
        view = await self._engine.freeze()
        return load_applied(view, group).at, ledger_snapshot.Stream(view, group)

    async def install(self, group: GroupId, at: Position, chunks: Iterable[bytes]) -> None:
        """Replace the group's state by a snapshot, in one durable batch: a crash leaves the old state or the
        new.

        The batch is held in memory at once, beside the chunks and what it replaces: about three times the
        group's strong state, of which there are 16 by default. Applying must rest meanwhile. Any SpineError
        means the old state is intact: Corrupt when the chunks are not a snapshot of this group at this
        position, NoSpace when the engine takes no changes. OSError means the new state is in force here and
        may not outlive a power loss: the caller must halt the group, and a restart finds one or the other.
        """
        rows = await ledger_snapshot.replacement(self._engine, group, at, chunks)
        self._passed("snapshot:verified")
        if self.doubt(group) is not None:
            rows.append(memories.doubt_row(group, None))
        self._engine.stage(rows)
        for key, data in rows:
            if key[:1] == keys.STRONG and data is not None:
                self._ring.shadow(group, codec.decode_strong(data))
        self._applied[group] = load_applied(self._engine, group)
        self._marks.pop(group, None)
        if self.on_install is not None:
            self.on_install(group)
        if group == META_GROUP and (table := load_meta(self._engine)) is not None:
            self._on_table(table)  # in this batch too: by the next turn the store may refuse
        self._passed("snapshot:switching")
        try:
            await self._engine.commit(durable=True)
        except SpineError as error:
            raise OSError(f"the snapshot of group {group} may not be on disk: {error.message}") from error
        self._passed("snapshot:switched")

    async def flush(self) -> None:
        """Everything applied so far is on disk."""
        await self._engine.commit(durable=True)

    # ── comparing with other replicas ───────────────────────────────────────────────────────────────────────

    def marks(self, group: GroupId) -> Sequence[Mark]:
        """What the last stretches of the group's history came to, oldest first; after a start only the newest."""
        known = self._marks.get(group)
        if known is None:
            chain = self.applied(group).chain
            known = self._marks[group] = [chain.mark] if chain is not None and chain.mark is not None else []
        return known

    def _keep(self, group: GroupId, mark: Mark) -> None:
        known = self._marks.setdefault(group, [])
        known.append(mark)
        del known[:-MARKS_KEPT]

    def doubt(self, group: GroupId) -> Doubt | None:
        data = memories.doubt(self._engine, group)
        return None if data is None else msgspec.convert(data, Doubt)

    async def set_doubt(self, group: GroupId, doubt: Doubt | None) -> None:
        """Returns when it is on disk. Raises what the engine raises when it takes no changes."""
        self._engine.stage([memories.doubt_row(group, doubt)])
        await self._engine.commit(durable=True)

    # ── sweeping ────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, group: GroupId, limit: int = 256) -> int:
        """Look at the next `limit` request rows and stage the removal of those that have expired; returns how
        many. A unit of background work: round and round, so a day of requests does not stay for ever."""
        lo, hi = keys.span(keys.STRONG_REQUEST, group)
        page = self._engine.scan(self._swept.get(group, lo), hi, limit=limit)
        now_ms = self.applied(group).time_ms
        gone: list[Row] = [(key, None) for key, data in page if decode_request(data).expires_at_ms <= now_ms]
        self._swept[group] = page[-1][0] + b"\0" if len(page) == limit else lo
        if gone:
            self._engine.stage(gone)
        return len(gone)


class Stored(LedgerView):
    """A group's state as the store has it; also what the readers of coordination look at."""

    def __init__(self, view: View, group: GroupId) -> None:
        self._view = view
        self._group = group

    def strong(self, id: str) -> StrongRecord | None:
        return memories.strong(self._view, self._group, id)

    def ring(self, id: str) -> RingRecord | None:
        return memories.ring(self._view, self._group, id)

    def request(self, digest: bytes) -> RequestRow | None:
        return load_request(self._view, self._group, digest)

    def counter(self, name: str) -> int:
        data = self._view.get(keys.ledger(self._group, COUNTERS, name))
        return 0 if data is None else int(codec.decode_any(data))

    def row(self, table: str, key: bytes) -> bytes | None:
        return self._view.get(keys.ledger_table(self._group, table) + key)

    def rows(
        self, table: str, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        prefix = keys.ledger_table(self._group, table)
        found = self._view.scan(prefix + lo, prefix + hi, limit=limit, reverse=reverse)
        return [(key[len(prefix) :], value) for key, value in found]


class _Batch(Overlay):
    """The state while one entry is applied: the engine's, and on top what the commands before have changed.
    Nothing is staged until the entry is through; `finish` gives the rows. Counters change with nearly every
    command, and only their last value is stored."""

    def __init__(self, engine: Engine, ring: RingSink, group: GroupId) -> None:
        super().__init__(Stored(engine, group))
        self._engine = engine
        self._sink = ring
        self._group = group
        self._changed: list[Row] = []
        self._counted: dict[str, int] = {}
        self.written: list[SetRow] = []
        self.done: list[bytes] = []
        """What goes into the chain: rows that all replicas store alike, versions given to the ring, outcomes."""

    def finish(self) -> list[Row]:
        """All changed rows. A counter is one row however often the entry has changed it."""
        for name, value in self._counted.items():
            key = keys.ledger(self._group, COUNTERS, name)
            data = codec.encode(value) if value else None
            self._changed.append((key, data))
            self.done += key, data or _GONE
        return self._changed

    def store(self, effects: Sequence[Effect], *, last: bool) -> None:
        """Take up a command's effects, in order, and turn them into rows. `last`: no command of the entry follows
        that would have to see them here."""
        if not last:
            self.perform(effects)
        for effect in effects:
            if isinstance(effect, SetStrong):
                rows = memories.strong_rows(self._group, effect.id, effect.old, effect.new)
                self._changed += rows
                self.done += rows[0][0], rows[0][1] or _GONE
                if effect.old is None and effect.new is not None:
                    self._sink.shadow(self._group, effect.new)
            elif isinstance(effect, SetRow):
                key = keys.ledger_table(self._group, effect.table) + effect.key
                self._changed.append((key, effect.value))
                self.written.append(effect)
                self.done += key, effect.value or _GONE
            elif isinstance(effect, SetRequest):
                data = encode_request(effect.row)
                self._changed.append(memories.strong_request_row(self._group, effect.digest, data))
                self.done += effect.digest, data
            elif isinstance(effect, SetCounter):
                self._counted[effect.name] = effect.value
            elif isinstance(effect, SetRing):
                self.done.append(codec.encode(effect.version))
                self._sink.adopt(self._group, effect.version)
            else:
                self._changed += conflict_rows(self._engine, self._group, effect)


def load_request(view: View, group: GroupId, digest: bytes) -> RequestRow | None:
    """What a group's log remembers of an Idempotency-Key; the row may have expired."""
    data = memories.strong_request(view, group, digest)
    return None if data is None else decode_request(data)


def conflict_rows(view: View, group: GroupId, lost: Conflict) -> list[Row]:
    """Rows that keep a ring version which a promotion did not see."""
    return memories.conflict_rows(view, group, lost.loser, winner=lost.winner, now_ms=lost.at_ms)
