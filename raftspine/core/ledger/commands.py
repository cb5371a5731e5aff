"""What may be written to a shard group's log, as bytes that every replica reads alike.

The rule: a command holds everything its outcome depends on besides the state (no clock, no chance, nothing
the applying node happens to know), behind one byte that names the format. A new command or field means a
new marker: a replica that would have to guess halts its group instead, because one that skips what another
applies has diverged for good.
"""

from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from raftspine.errors import Corrupt
from raftspine.model import Memory, RingRecord

V1 = 1


class Condition(Struct, frozen=True, array_like=True):
    """What must hold of the stored memory: its version text (`*`: that it exists), or that it does not exist."""

    version: str | None = None
    absent: bool = False


ANY = Condition()


class PutMemory(Struct, frozen=True, array_like=True, tag="put"):
    """Store a memory. Of `memory` the log fills in times, expiry and writer.

    keep_tags: the writer named no tags; keep the stored ones. request: 16-byte digest of the
    Idempotency-Key, or empty; fingerprint: digest of what was asked under it. ring: what a quorum of the
    ring held of this id, seen by the coordinator before proposing (None: nothing). agent: who writes.
    demote: the tags no longer demand the log, so the result goes to the ring. log_seen: highest sequence
    number of the group's log origin in the vectors of the replicas that `ring` was read from.
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


class DeleteMemory(Struct, frozen=True, array_like=True, tag="delete"):
    """Delete a memory; fields as in PutMemory."""

    id: str
    expected: Condition = ANY
    request: bytes = b""
    fingerprint: bytes = b""
    ring: RingRecord | None = None
    agent: str = ""
    log_seen: int = 0


class VoidRequest(Struct, frozen=True, array_like=True, tag="void"):
    """Settle that a request will never apply, unless it already has."""

    request: bytes


MemoryCommand: TypeAlias = PutMemory | PatchMemory | DeleteMemory
Command: TypeAlias = MemoryCommand | VoidRequest


class Malformed(NamedTuple):
    """Bytes in the log that are no command of this format; applying them is a result like any other."""

    reason: str


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def encode(command: Command) -> bytes:
    """Marker and msgpack."""
    return bytes((V1,)) + _encode(command)


def decode(data: bytes) -> Command | Malformed:
    """The command, or why it is none.

    Corrupt when the marker is of a newer version. The host must then halt the group: this replica can neither
    apply the entry nor skip it.
    """
    if not data:
        return Malformed("an empty command")
    if data[0] > V1:
        raise Corrupt(f"ledger command of format {data[0]}; this version reads up to {V1}")
    if data[0] != V1:
        return Malformed(f"unknown format marker {data[0]}")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, RecursionError) as error:
        return Malformed(str(error))
