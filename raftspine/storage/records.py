"""Ring and strong records in the store, together with the index rows that make them findable.

The rule: a record and its index rows change in one batch, and the rows to remove are worked out from the
record that is being replaced, never by searching. An index row that outlives its record makes lists show
what was deleted or hide what is there, and nothing would ever repair it.

Only what a reader would be shown is indexed: of a ring record the winner (the first version), of a deleted
memory nothing. A ring and a strong record of one id have separate index rows; `resolve` decides which counts.
"""

from typing import NamedTuple, Protocol

from raftspine.codec import decode_ring, decode_strong, encode
from raftspine.core.version_text import ring_version_text, strong_version_text
from raftspine.model import Memory, RingRecord, StrongRecord, Version
from raftspine.ports import Row
from raftspine.storage import keys


class Lookup(Protocol):
    """All that reading a record needs of a View."""

    def get(self, key: bytes) -> bytes | None: ...


class Found(NamedTuple):
    """A memory as a reader is shown it. `strong`: the log keeps it, not the ring."""

    id: str
    memory: Memory
    version: str
    strong: bool


def ring(view: Lookup, group: int, id: str) -> RingRecord | None:
    """Raises Corrupt, as every reader here."""
    data = view.get(keys.ring(group, id))
    return None if data is None else decode_ring(data)


def ring_bytes(view: Lookup, group: int, id: str) -> bytes | None:
    """The record as stored, ready to be sent."""
    return view.get(keys.ring(group, id))


def strong(view: Lookup, group: int, id: str) -> StrongRecord | None:
    data = view.get(keys.strong(group, id))
    return None if data is None else decode_strong(data)


def ring_version(version: Version) -> str:
    """The version text of one ring version."""
    return ring_version_text(version.origin, version.seq)


def strong_version(group: int, record: StrongRecord) -> str:
    """The version text of a strong record."""
    return strong_version_text(group, record.index, record.sub)


def ring_rows(group: int, id: str, old: RingRecord | None, new: RingRecord | None) -> list[Row]:
    """The changes that turn one id's stored ring record into another; None: no record."""
    row = (keys.ring(group, id), None if new is None else encode(new))
    was = None if old is None else old.versions[0].memory
    now = None if new is None else new.versions[0].memory
    return [row, *_index_changes(group, id, was, now, keys.RING_PATH)]


def strong_rows(group: int, id: str, old: StrongRecord | None, new: StrongRecord | None) -> list[Row]:
    """The changes that turn one id's stored strong record into another; None: no record."""
    row = (keys.strong(group, id), None if new is None else encode(new))
    was = None if old is None else old.memory
    now = None if new is None else new.memory
    return [row, *_index_changes(group, id, was, now, keys.STRONG_PATH)]


def resolve(view: Lookup, group: int, id: str) -> Found | None:
    """What a reader of this replica is shown: the strong memory if there is one, else the ring's winner among
    the versions no promotion has absorbed. Expiry is the caller's business. None: nothing, or a tombstone."""
    kept = strong(view, group, id)
    if kept is not None and kept.memory is not None:
        return Found(id, kept.memory, strong_version(group, kept), True)
    record = ring(view, group, id)
    if record is None:
        return None
    shadow = {} if kept is None else kept.shadow
    for version in record.versions:
        if version.seq > shadow.get(version.origin, 0):
            memory = version.memory
            return None if memory is None else Found(id, memory, ring_version(version), False)
    return None


def is_expired(memory: Memory, now_ms: int) -> bool:
    return memory.expires_at_ms is not None and memory.expires_at_ms <= now_ms


def _index_changes(group: int, id: str, old: Memory | None, new: Memory | None, path: bytes) -> list[Row]:
    if old is None:
        return [] if new is None else [(key, b"") for key in _index_keys(group, id, new, path)]
    if new is not None and _same_place(old, new):
        if old.updated_at_ms == new.updated_at_ms:
            return []
        tail = id.encode() + path
        return [
            (keys.by_time(group, keys.BY_UPDATE, old.updated_at_ms) + tail, None),
            (keys.by_time(group, keys.BY_UPDATE, new.updated_at_ms) + tail, b""),
        ]
    before = _index_keys(group, id, old, path)
    if new is None:
        return [(key, None) for key in before]
    now = _index_keys(group, id, new, path)
    changes: list[Row] = [(key, None) for key in before if key not in now]
    changes += [(key, b"") for key in now if key not in before]
    return changes


def _same_place(old: Memory, new: Memory) -> bool:
    """Whether two memories differ, to the indexes, in their update time at most: the common overwrite."""
    return (
        old.agent_id == new.agent_id
        and old.tags == new.tags
        and old.namespace == new.namespace
        and old.expires_at_ms == new.expires_at_ms
    )


def _index_keys(group: int, id: str, memory: Memory, path: bytes) -> list[bytes]:
    """A handful, so a list is searched faster than a set is built."""
    tail = id.encode() + path
    found = [keys.by_time(group, keys.BY_UPDATE, memory.updated_at_ms) + tail]
    if memory.agent_id:
        found.append(keys.by_value(group, keys.BY_AGENT, memory.agent_id) + tail)
    if memory.namespace:
        found.append(keys.by_value(group, keys.BY_NAMESPACE, memory.namespace) + tail)
    found += [keys.by_value(group, keys.BY_TAG, tag) + tail for tag in memory.tags]
    if memory.expires_at_ms is not None:
        found.append(keys.by_time(group, keys.BY_EXPIRY, memory.expires_at_ms) + tail)
    return found
