"""From what a writer gave to what is stored: defaults, times, digest and the tags that stay.

Kept apart from both paths so that a memory means the same whichever of them keeps it.
"""

import hashlib
from typing import Any

import msgspec
from msgspec import UNSET

from raftspine.model import Memory
from raftspine.services.values import Draft, Patch

_json = msgspec.json.Encoder(order="sorted").encode


def content_digest(content: Any) -> bytes:
    """SHA-256 of a content: of its UTF-8 text, or of its canonical JSON (sorted keys, no spaces)."""
    data = content.encode() if isinstance(content, str) else _json(content)
    return hashlib.sha256(data).digest()


def fresh(draft: Draft, tags: tuple[str, ...], old: Memory | None, agent_id: str, now_ms: int) -> Memory:
    """The memory a store request makes, replacing `old`."""
    ttl = draft.ttl_seconds
    return Memory(
        content=draft.content,
        agent_id=draft.agent_id or agent_id,
        namespace=draft.namespace,
        tags=tags,
        importance=draft.importance,
        metadata=draft.metadata,
        ttl_seconds=ttl,
        expires_at_ms=None if ttl is None else now_ms + ttl * 1000,
        pinned=draft.pinned,
        content_sha256=content_digest(draft.content),
        created_at_ms=now_ms if old is None else old.created_at_ms,
        updated_at_ms=now_ms,
        updated_by=agent_id or draft.agent_id,
    )


def changed(old: Memory, patch: Patch, agent_id: str, now_ms: int) -> Memory:
    """The memory a change request makes of `old`."""
    fields = changes(patch)
    memory = msgspec.structs.replace(old, updated_at_ms=now_ms, updated_by=agent_id or old.updated_by, **fields)
    if "content" in fields:
        memory = msgspec.structs.replace(memory, content_sha256=content_digest(memory.content))
    if "ttl_seconds" in fields:
        ttl = memory.ttl_seconds
        memory = msgspec.structs.replace(memory, expires_at_ms=None if ttl is None else now_ms + ttl * 1000)
    return memory


def changes(patch: Patch) -> dict[str, Any]:
    """The fields a patch sets."""
    return {name: value for name in patch.__struct_fields__ if (value := getattr(patch, name)) is not UNSET}
