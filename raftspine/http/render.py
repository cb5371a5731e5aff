"""Stored values to the bytes a client reads. JSON and msgpack carry the same fields and the same text for
times.

Encoders are built once; a record is copied into its wire Struct and encoded in one go, about 3 µs.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET

from raftspine.http.bodies import LostWrite, Record
from raftspine.services.values import Loser, Stored

_json = msgspec.json.Encoder(enc_hook=str).encode
_msgpack = msgspec.msgpack.Encoder(enc_hook=str).encode

_MAX_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z, the last moment RFC 3339 can write


def body(value: Any, msgpack: bool) -> bytes:
    """`value` in the format the client accepts."""
    return _msgpack(value) if msgpack else _json(value)


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    """A pure function whose last results are kept: records of one page, and all fresh writes, share seconds."""
    clamped = max(0, min(seconds, _MAX_SECONDS))
    return datetime.fromtimestamp(clamped, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 as text, UTC, always with three decimals so that text order is time order."""
    seconds, rest = divmod(ms, 1000)
    return f"{_second(seconds)}{rest:03d}Z"


def record(stored: Stored, *, advisory: bool = False) -> Record:
    memory = stored.memory
    expires = memory.expires_at_ms
    created = rfc3339(memory.created_at_ms)
    same = memory.updated_at_ms == memory.created_at_ms
    return Record(
        stored.id,
        memory.namespace,
        memory.agent_id,
        memory.content,
        memory.tags,
        memory.importance,
        memory.metadata,
        memory.ttl_seconds,
        None if expires is None else rfc3339(expires),
        memory.pinned,
        stored.version,
        memory.content_sha256.hex(),
        stored.model,
        created,
        created if same else rfc3339(memory.updated_at_ms),
        memory.updated_by,
        None,
        0,
        memory.merged_from,
        "advisory" if advisory else UNSET,
    )


def lost(loser: Loser) -> LostWrite:
    memory = loser.memory
    at = rfc3339(loser.lost_at_ms)
    if memory is None:
        return LostWrite(loser.id, loser.version, loser.winner, at, True)
    return LostWrite(
        loser.id,
        loser.version,
        loser.winner,
        at,
        False,
        memory.content,
        memory.agent_id,
        memory.namespace,
        memory.tags,
        memory.importance,
        memory.metadata,
        rfc3339(memory.updated_at_ms),
        memory.updated_by,
    )
