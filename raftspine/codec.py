"""Bytes <-> values. Every stored or sent record begins with one byte that says which format it is.

Without the marker a change of shape would be read as garbage by an older node, or as a plausible wrong value by
a newer one. Each format knows only its parent: to change a record, add the next marker and a migration from the
one before. JSON never enters the store; it is the HTTP layer's business.
"""

from typing import Any, TypeVar

import msgspec

from raftspine.errors import Corrupt
from raftspine.model import Memory, RingRecord, StrongRecord, Table, Version

T = TypeVar("T")

V1 = b"\x01"

_encode = msgspec.msgpack.Encoder().encode
_version = msgspec.msgpack.Decoder(Version)
_ring = msgspec.msgpack.Decoder(RingRecord)
_strong = msgspec.msgpack.Decoder(StrongRecord)
_memory = msgspec.msgpack.Decoder(Memory)
_table = msgspec.msgpack.Decoder(Table)
_any = msgspec.msgpack.Decoder()


def encode(value: Any) -> bytes:
    """Marker plus msgpack. Takes any of the model's values, or plain data."""
    return V1 + _encode(value)


def _decode(data: bytes, decoder: "msgspec.msgpack.Decoder[T]", what: str) -> T:
    if data[:1] != V1:
        raise Corrupt(f"{what}: unknown format marker {data[:1]!r}; was it written by a newer version?")
    try:
        return decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise Corrupt(f"{what}: {error}") from error


def decode_version(data: bytes) -> Version:
    """Raises Corrupt."""
    return _decode(data, _version, "ring version")


def decode_ring(data: bytes) -> RingRecord:
    """Raises Corrupt."""
    return _decode(data, _ring, "ring record")


def decode_strong(data: bytes) -> StrongRecord:
    """Raises Corrupt."""
    return _decode(data, _strong, "strong record")


def decode_memory(data: bytes) -> Memory:
    """Raises Corrupt."""
    return _decode(data, _memory, "memory")


def decode_table(data: bytes) -> Table:
    """Raises Corrupt."""
    return _decode(data, _table, "table")


def decode_as(data: bytes, kind: type[T], what: str) -> T:
    """A record of any other shape, rarely read. Raises Corrupt."""
    return _decode(data, msgspec.msgpack.Decoder(kind), what)


def decode_any(data: bytes) -> Any:
    """Plain data (maps, lists, numbers, text, bytes). Raises Corrupt."""
    return _decode(data, _any, "record")
