"""What a reader is shown of what is stored: the winner, unless it is a delete or its time is up.

Deleted and expired memories stay in the store for a while, because replicas still have to agree that they are gone.
Whoever looks at a stored record on behalf of a caller therefore looks through these functions. One look around them,
and a memory that is gone answers a read, keeps its tags for the next write, or fails a precondition that holds.
"""

from typing import Any

from raftspine.errors import Conflict, PreconditionFailed, SpineError
from raftspine.model import Memory, RingRecord, StrongRecord, Version
from raftspine.services.values import Expect
from raftspine.storage import memories as rows


def shown(record: RingRecord | None, now_ms: int) -> Version | None:
    """What a reader sees of a ring record: a version with a memory, or nothing."""
    if record is None:
        return None
    winner = record.versions[0]
    memory = winner.memory
    if memory is None or (memory.expires_at_ms is not None and memory.expires_at_ms <= now_ms):
        return None
    return winner


def live(record: StrongRecord | None, now_ms: int) -> StrongRecord | None:
    """What a reader sees of a strong record: a record with a memory, or nothing."""
    if record is None or record.memory is None:
        return None
    return None if rows.is_expired(record.memory, now_ms) else record


def shown_memory(strong: StrongRecord | None, ring: RingRecord | None, now_ms: int) -> Memory | None:
    """The memory of an id: the log's, where the log keeps the id, else the ring's."""
    if strong is not None:
        kept = live(strong, now_ms)
        return None if kept is None else kept.memory
    winner = shown(ring, now_ms)
    return None if winner is None else winner.memory


def check(expect: Expect, record: RingRecord | None, now_ms: int) -> None:
    """A precondition against a quorum's merge: it detects a race that is over, not one under way. Raises
    PreconditionFailed when the expectation came as a header, else Conflict, both naming the current version."""
    if expect.version is None and not expect.absent:
        return
    winner = shown(record, now_ms)
    current = None if winner is None else rows.ring_version(winner)
    if expect.absent:
        if current is None:
            return
    elif current is not None and expect.version in ("*", current):
        return
    raise _mismatch(expect, current)


def _mismatch(expect: Expect, current: str | None) -> SpineError:
    details: dict[str, Any] = {"current_version": current}
    wanted = "it to be absent" if expect.absent else f"version {expect.version}"
    message = f"the request expects {wanted}; stored is {current or 'nothing'}"
    if expect.header:
        return PreconditionFailed(message, details=details)
    return Conflict(message, details=details)
