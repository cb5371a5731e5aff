"""Memories on the strong path: put, patch and delete against one agreed order.

The rules:

* A condition is checked where the write happens, in the log, against the stored version's text. That makes
  it a compare-and-set.
* A strong record that lives (not deleted, not expired) shadows all of the ring; a dead one shadows what it
  was promoted over. Otherwise the id is *promoted* by the first write that goes through the log: what the
  coordinator saw on the ring is then the stored memory, and ring versions outside it go to the conflict log.
* A write whose tags no longer demand the log *demotes* the id: the record leaves the log and becomes a ring
  version with a dot of the log's own origin, so all replicas write the same version.
* A later promotion must have seen that version. Otherwise it would build on what was on the ring before, and
  the demoting write would be lost; hence the counter `demoted/<id>` and the outcome `ring_behind`.

Outcomes depend on the replicated state and the command alone (see state.py for the one exception, conflicts).
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, replace

from raftspine.core.content import same_writing
from raftspine.core.hlc import stamp_of
from raftspine.core.ledger import events, fence
from raftspine.core.ledger.memory_commands import DeleteMemory, MemoryCommand, PatchMemory, PutMemory
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.requests import once
from raftspine.core.ledger.state import (
    Conflict,
    Effect,
    LedgerView,
    Place,
    Result,
    SetCounter,
    SetRing,
    SetStrong,
)
from raftspine.core.merge import covers, union
from raftspine.core.version_text import log_origin, ring_version_text, strong_version_text
from raftspine.model import Memory, RingRecord, StrongRecord, Version

RING_SEQ = "ring-seq"
"""Counter: ring versions this group's log has written so far."""

_TTL_MAX_SECONDS = 1 << 40
"""Above any configured limit, and small enough that an expiry in milliseconds still fits 64 bits."""


_ID_BYTES = 255
"""As storage.keys has room for; front ends refuse earlier."""
_STAMP_MOST = (1 << 63) - 1


def wrong_id(id: str) -> str | None:
    """Why no memory can have this id; None when one can."""
    if not id or "\0" in id:
        return "a memory's id is not empty and holds no NUL"
    return f"a memory's id is longer than {_ID_BYTES} bytes" if len(id.encode()) > _ID_BYTES else None


def demoted_counter(id: str) -> str:
    """Counter: the sequence number of an id's last demotion; removed by its next promotion."""
    return f"demoted/{id}"


def apply(view: LedgerView, command: MemoryCommand, at: Place, group: int, time_ms: int) -> Result:
    """The outcome of one command and its effects. Total: whatever the command says, the answer is a value."""

    def afresh() -> Result:
        outcome, effects = decide(view, command, at, group, time_ms)
        return outcome, effects + events.append(view, at, time_ms, events.of_memories(effects, group))

    return once(view, command.request, command.fingerprint, time_ms, afresh)


def decide(view: LedgerView, command: MemoryCommand, at: Place, group: int, time_ms: int) -> Result:
    """As `apply`, for a command inside another one: whether it was asked before, and who is told, is that one's
    business."""
    refused = fence.refused(view, command.id, command.guards)
    return _Step(view, command, at, group, time_ms).run() if refused is None else (refused, [])


def outside(record: RingRecord | None, shadow: dict[str, int]) -> tuple[Version, ...]:
    """The ring versions of a strong memory that its promotion did not see: they lost, and belong in the
    conflict log."""
    return () if record is None else tuple(v for v in record.versions if not covers(shadow, v))


class Changes(Struct, forbid_unknown_fields=True):
    """The shape of `PatchMemory.changes`."""

    content: Any = UNSET
    content_sha256: bytes | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: str | float | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    ttl_seconds: int | UnsetType | None = UNSET
    pinned: bool | UnsetType = UNSET


class _Stored(NamedTuple):
    """What the command finds. `record`: the strong record, dead or alive. `memory`: None when there is none,
    or it is deleted or expired. `shadow`, `stamp`: what of the ring lies under it. `ring`: the version it is
    shown from, while it lives on the ring."""

    record: StrongRecord | None
    memory: Memory | None
    version: str | None
    shadow: dict[str, int]
    stamp: int
    ring: Version | None


class _Step:
    """One command on its way: the arguments that every part of the decision needs."""

    def __init__(self, view: LedgerView, command: MemoryCommand, at: Place, group: int, time_ms: int) -> None:
        self.view = view
        self.command = command
        self.at = at
        self.group = group
        self.time_ms = time_ms

    def run(self) -> Result:
        command = self.command
        if (wrong := wrong_id(command.id)) is not None:
            return Outcome(Status.INVALID, command.id, reason=wrong), []
        if self._ring_behind():
            return Outcome(Status.RING_BEHIND, command.id, reason="the ring was read too early"), []
        stored = self._stored()
        if isinstance(command, DeleteMemory):
            return self._delete(command, stored)
        if isinstance(command, PatchMemory):
            return self._patch(command, stored)
        return self._put(command, stored)

    # ── the three commands ──────────────────────────────────────────────────────────────────────────────────

    def _put(self, command: PutMemory, stored: _Stored) -> Result:
        memory, old = command.memory, stored.memory
        if not _ttl_fits(memory.ttl_seconds):
            return Outcome(Status.INVALID, command.id, reason="ttl_seconds is out of range"), []
        memory = replace(
            memory,
            tags=old.tags if command.keep_tags and old is not None else memory.tags,
            expires_at_ms=self._expiry(memory.ttl_seconds),
            created_at_ms=self.time_ms if old is None else old.created_at_ms,
            updated_at_ms=self.time_ms,
            updated_by=command.agent or memory.agent_id,
        )
        # An equal memory that expires is written all the same, for the writer means to prolong it.
        return self._store(command, stored, memory, refresh=memory.ttl_seconds is not None)

    def _patch(self, command: PatchMemory, stored: _Stored) -> Result:
        old = stored.memory
        if old is None:
            if command.expected.version is not None:
                return self._conflict(stored)
            return Outcome(Status.ABSENT, command.id, reason="there is no such memory"), []
        try:
            changes = msgspec.convert(command.changes, Changes)
        except msgspec.ValidationError:
            # Its text may differ between versions of the library; replicas must not.
            return Outcome(Status.INVALID, command.id, reason="the changes do not fit a memory"), []
        ttl = old.ttl_seconds if changes.ttl_seconds is UNSET else changes.ttl_seconds
        if not _ttl_fits(ttl):
            return Outcome(Status.INVALID, command.id, reason="ttl_seconds is out of range"), []
        fields = {name: value for name, value in asdict(changes).items() if value is not UNSET}
        if "content" in fields:
            fields.setdefault("content_sha256", b"")
        if "ttl_seconds" in fields:
            fields["expires_at_ms"] = self._expiry(fields["ttl_seconds"])
        memory = replace(old, **fields, updated_at_ms=self.time_ms, updated_by=command.agent or old.agent_id)
        return self._store(command, stored, memory, refresh=fields.get("ttl_seconds") is not None)

    def _delete(self, command: DeleteMemory, stored: _Stored) -> Result:
        if stored.memory is None:
            return Outcome(Status.ABSENT, command.id, record=stored.record), []
        if not self._expected(stored):
            return self._conflict(stored)
        if command.ring is not None:
            # Ring versions a live record hid have lost; they must not come to light when it goes.
            stored = stored._replace(shadow=union(stored.shadow, command.ring.context))
        record = self._record(stored, None)
        outcome = Outcome(Status.DELETED, command.id, record=record, version=self._version_text())
        return outcome, self._keep(stored, record)

    # ── what a command finds ────────────────────────────────────────────────────────────────────────────────

    def _ring_behind(self) -> bool:
        command = self.command
        if self.view.strong(command.id) is not None:
            return False
        demoted = self.view.counter(demoted_counter(command.id))
        if not demoted:
            return False
        seen = command.ring.context.get(log_origin(self.group), 0) if command.ring is not None else 0
        return max(seen, command.log_seen) < demoted

    def _stored(self) -> _Stored:
        record = self.view.strong(self.command.id)
        if record is not None and (memory := self._alive(record.memory)) is not None:
            version = strong_version_text(self.group, record.index, record.sub)
            return _Stored(record, memory, version, record.shadow, record.stamp, None)
        shadow, stamp = ({}, 0) if record is None else (record.shadow, record.stamp)
        ring = self.command.ring
        if ring is None:
            return _Stored(record, None, None, shadow, stamp, None)
        shown = next(iter(outside(ring, shadow)), None)
        memory = None if shown is None else self._alive(shown.memory)
        shadow = union(shadow, ring.context)
        stamp = max(stamp, *(v.stamp for v in ring.versions), 0)
        if shown is None or memory is None:
            return _Stored(record, None, None, shadow, stamp, None)
        return _Stored(record, memory, ring_version_text(shown.origin, shown.seq), shadow, stamp, shown)

    def _alive(self, memory: Memory | None) -> Memory | None:
        if memory is None or (memory.expires_at_ms is not None and memory.expires_at_ms <= self.time_ms):
            return None
        return memory

    def _expected(self, stored: _Stored) -> bool:
        expected = self.command.expected
        if expected.absent and stored.memory is not None:
            return False
        if expected.version is None:
            return True
        return stored.memory is not None and expected.version in ("*", stored.version)

    def _is_repeat(self, old: Memory, memory: Memory) -> bool:
        """Whether a write whose condition fails is the one that is stored, sent again.

        A request with a key that has not been seen is certainly another write, and so is another agent's: for
        two agents that count from 5 to 6, "already 6" must not be a success for both. Who does not say who they are
        might be anybody, so they have no repeats either. `absent` never repeats, because whoever creates must know
        that it was them.
        """
        command = self.command
        return (
            not command.request
            and not command.expected.absent
            and bool(memory.updated_by)
            and old.updated_by == memory.updated_by
            and same_writing(old, memory)
        )

    # ── what a command leaves ───────────────────────────────────────────────────────────────────────────────

    def _store(self, command: PutMemory | PatchMemory, stored: _Stored, memory: Memory, *, refresh: bool) -> Result:
        old = stored.memory
        stays = command.demote == (stored.ring is not None)
        if not self._expected(stored):
            if old is not None and stays and self._is_repeat(old, memory):
                return self._equal(stored)
            return self._conflict(stored)
        if old is not None and stays and not refresh and same_writing(old, memory):
            return self._equal(stored)
        if command.demote:
            return self._demote(stored, memory)
        record = self._record(stored, memory)
        status = Status.CREATED if old is None else Status.CHANGED
        outcome = Outcome(status, command.id, record, self._version_text(), created=old is None)
        return outcome, self._keep(stored, record)

    def _demote(self, stored: _Stored, memory: Memory) -> Result:
        id = self.command.id
        origin = log_origin(self.group)
        seq = self.view.counter(RING_SEQ) + 1
        stamp = max(stamp_of(self.time_ms), stored.stamp + 1)
        if stamp > _STAMP_MOST:
            return Outcome(Status.INVALID, id, reason="the ring's stamps are out of range"), []
        request = self.command.request and self.command.request + self.command.fingerprint
        version = Version(id, origin, seq, stamp, stored.shadow, memory, request)
        effects: list[Effect] = [SetCounter(RING_SEQ, seq), SetCounter(demoted_counter(id), seq)]
        if stored.record is not None:
            effects.append(SetStrong(id, stored.record, None))
        effects.append(SetRing(id, version))
        outcome = Outcome(
            Status.DEMOTED,
            id,
            version=ring_version_text(origin, seq),
            created=stored.memory is None,
            ring=version,
        )
        return outcome, effects

    def _record(self, stored: _Stored, memory: Memory | None) -> StrongRecord:
        at = self.at
        return StrongRecord(self.command.id, at.index, at.sub, memory, stored.shadow, stored.stamp)

    def _keep(self, stored: _Stored, record: StrongRecord) -> list[Effect]:
        """The effects of writing a strong record, promotion included."""
        id = self.command.id
        effects: list[Effect] = [SetStrong(id, stored.record, record)]
        if stored.ring is not None or stored.memory is None:
            if self.view.counter(demoted_counter(id)):
                effects.append(SetCounter(demoted_counter(id), 0))
            text = self._version_text()
            losers = outside(self.view.ring(id), stored.shadow)
            effects.extend(Conflict(id, loser, text, self.time_ms) for loser in losers)
        return effects

    def _equal(self, stored: _Stored) -> Result:
        record = stored.record if stored.ring is None else None
        return Outcome(Status.EQUAL, self.command.id, record=record, version=stored.version, ring=stored.ring), []

    def _conflict(self, stored: _Stored) -> Result:
        return Outcome(
            Status.VERSION_CONFLICT,
            self.command.id,
            current=stored.version,
            reason="the stored version is another one" if stored.version else "there is no such memory",
        ), []

    def _version_text(self) -> str:
        return strong_version_text(self.group, self.at.index, self.at.sub)

    def _expiry(self, ttl_seconds: int | None) -> int | None:
        return None if ttl_seconds is None else self.time_ms + ttl_seconds * 1000


def _ttl_fits(ttl_seconds: int | None) -> bool:
    return ttl_seconds is None or 0 < ttl_seconds <= _TTL_MAX_SECONDS
