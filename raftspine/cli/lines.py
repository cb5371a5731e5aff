"""A line of an import file, as the body of a write.

The rule: every field is either written, kept elsewhere on purpose, or known to be the server's own; a field
that is none of these refuses its line. Dropping it silently would lose data on the one occasion when somebody
moves all of it.
"""

import gzip
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import msgspec

WRITABLE = frozenset(
    {"id", "content", "agent_id", "namespace", "tags", "importance", "metadata", "ttl_seconds", "pinned"}
)

SERVERS_OWN = frozenset(
    {
        "access_count",
        "consistency",
        "content_sha256",
        "expires_at",
        "last_accessed_at",
        "merged_from",
        "precondition",
        "updated_at",
        "updated_by",
        "version",
    }
)
"""Found in files written by `export`; the server derives them anew."""

GZIP_MAGIC = b"\x1f\x8b"


class Line(NamedTuple):
    """`op` is the batch operation, or None when `fault` says why there is none. `size` is in bytes."""

    number: int
    id: str
    op: dict[str, Any] | None
    fault: str
    size: int


def read(raw: IO[bytes]) -> Iterator[Line]:
    """The lines of a file, plain or gzipped (by its first two bytes), numbered from 1; empty ones are skipped."""
    head = raw.peek(2)[:2]  # type: ignore[attr-defined]
    stream = gzip.GzipFile(fileobj=raw) if head == GZIP_MAGIC else raw
    for number, text in enumerate(stream, 1):
        if text.strip():
            yield parse(number, text)


def parse(number: int, text: bytes) -> Line:
    """One line. `created_at` cannot be written through the API (a server stamps its own), so the original one
    is kept as ``metadata.created_at``."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        return Line(number, "", None, f"not a JSON object: {error}", len(text))
    id = fields.get("id")
    if not isinstance(id, str) or not id:
        return Line(number, "", None, "no id", len(text))
    unknown = fields.keys() - WRITABLE - SERVERS_OWN - {"created_at"}
    if unknown:
        return Line(number, id, None, f"unknown field {sorted(unknown)[0]!r}", len(text))
    if "content" not in fields:
        return Line(number, id, None, "no content", len(text))
    op = {"op": "put", **{name: value for name, value in fields.items() if name in WRITABLE}}
    created = fields.get("created_at")
    metadata = op.get("metadata") or {}
    if created is not None and isinstance(metadata, dict):
        op["metadata"] = {"created_at": created, **metadata}
    return Line(number, id, op, "", len(text))
