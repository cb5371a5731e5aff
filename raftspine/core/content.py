"""When two memories say the same, and the digest of what one says.

The rule: equality is that of JSON, not of Python, where 1 == True == 1.0. Without it a counter could not be
turned into a flag, and a digest would depend on the order in which a client happened to list its keys.
"""

from hashlib import sha256
from typing import Any

from msgspec import json, msgpack

from raftspine.model import Memory

_canonical = msgpack.Encoder(order="deterministic").encode
_canonical_json = json.Encoder(order="deterministic").encode


def content_digest(content: Any) -> bytes:
    """SHA-256 of the content: of its UTF-8 when it is text, else of its JSON with sorted keys."""
    return sha256(content.encode() if isinstance(content, str) else _canonical_json(content)).digest()


def same_writing(a: Memory, b: Memory) -> bool:
    """Whether a writer who stored `a` would have nothing to change in `b`: all writable fields, no bookkeeping."""
    if a.content != b.content:
        return False
    mine, other = _writable(a), _writable(b)
    # Comparing first is cheap and nearly always the end of it; the bytes then tell 1 from True.
    return mine == other and _canonical(mine) == _canonical(other)


def _writable(memory: Memory) -> tuple[Any, ...]:
    return (
        memory.content,
        memory.agent_id,
        memory.namespace,
        memory.tags,
        memory.importance,
        memory.metadata,
        memory.ttl_seconds,
        memory.pinned,
    )
