"""The commands on memories and on requests, as they stand in a shard group's log.

Order of fields is format: append only, with defaults (commands.py says which marker goes with what).
"""

from typing import Any, TypeAlias

from msgspec import Struct

from raftspine.model import Memory, RingRecord


class Condition(Struct, frozen=True, array_like=True):
    """What must hold of the stored memory: its version text (`*`: that it exists), or that it does not exist."""

    version: str | None = None
    absent: bool = False


ANY = Condition()


class Guard(Struct, frozen=True, array_like=True):
    """A lock of the same shard group and the fencing token that must be current for a write to happen. space:
    `lock`, or `election` when the token is a term of office."""

    lock: str
    token: int
    space: str = "lock"


class PutMemory(Struct, frozen=True, array_like=True, tag="put"):
    """Store a memory. Of `memory` the log fills in times, expiry and writer.

    keep_tags: the writer named no tags; keep the stored ones. request: 16-byte digest of the
    Idempotency-Key, or empty; fingerprint: digest of what was asked under it. ring: what a quorum of the
    ring held of this id, seen by the coordinator before proposing (None: nothing). agent: who writes.
    demote: the tags no longer demand the log, so the result goes to the ring. log_seen: highest sequence
    number of the group's log origin in the vectors of the replicas that `ring` was read from. guards: all
    must be current, else `fenced`.
    """

    id: str
    memory: Memory
    keep_tags: bool = False
    expected: Condition = ANY
    request: bytes = b""
    fingerprint: bytes = b""
    ring: RingRecord | None = None
    agent: str = ""
    demote: bool = False
    log_seen: int = 0
    guards: tuple[Guard, ...] = ()


class PatchMemory(Struct, frozen=True, array_like=True, tag="patch"):
    """Change fields of a memory that exists. `changes` maps names of `Memory`'s writable fields (and
    `content_sha256`, which goes with `content`) to their new values; the rest as in PutMemory."""

    id: str
    changes: dict[str, Any]
    expected: Condition = ANY
    request: bytes = b""
    fingerprint: bytes = b""
    ring: RingRecord | None = None
    agent: str = ""
    demote: bool = False
    log_seen: int = 0
    guards: tuple[Guard, ...] = ()


class DeleteMemory(Struct, frozen=True, array_like=True, tag="delete"):
    """Delete a memory; fields as in PutMemory."""

    id: str
    expected: Condition = ANY
    request: bytes = b""
    fingerprint: bytes = b""
    ring: RingRecord | None = None
    agent: str = ""
    log_seen: int = 0
    guards: tuple[Guard, ...] = ()


class GetMemory(Struct, frozen=True, array_like=True, tag="get"):
    """Read a strong memory inside a transaction."""

    id: str


class VoidRequest(Struct, frozen=True, array_like=True, tag="void"):
    """Settle that a request will never apply, unless it already has."""

    request: bytes


MemoryCommand: TypeAlias = PutMemory | PatchMemory | DeleteMemory
TxnOp: TypeAlias = MemoryCommand | GetMemory
