"""Everything the services store about memories, as rows: the one storage module they import.

The rule: a function here either reads a View or returns rows; nothing is staged behind the caller's back,
so the caller decides what goes into one batch (record, index rows, dot, request: all or nothing). Where
each row lies is keys.py's business, records with their indexes are in records.py, pages in listing.py; the
rest is below: the dot log with its vectors, the conflict log, results of requests and positions in the
group's log.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from raftspine.codec import decode_any, decode_version, encode
from raftspine.core.dots import Vector
from raftspine.model import Memory, Version
from raftspine.ports import Position, Row, View
from raftspine.storage import keys
from raftspine.storage.listing import FoundPage, Query, cursor, expired, page
from raftspine.storage.records import (
    Found,
    Lookup,
    is_expired,
    resolve,
    ring,
    ring_bytes,
    ring_rows,
    ring_version,
    strong,
    strong_rows,
    strong_version,
)

__all__ = [
    "CONFLICTS_KEPT",
    "Found",
    "FoundPage",
    "Lookup",
    "Lost",
    "Query",
    "RingRequest",
    "applied",
    "applied_row",
    "chain",
    "conflict_rows",
    "conflicts",
    "cursor",
    "dot_gone",
    "dot_row",
    "dots",
    "doubt",
    "doubt_row",
    "expired",
    "floor",
    "is_expired",
    "load_vector",
    "page",
    "resolve",
    "ring",
    "ring_bytes",
    "ring_page",
    "ring_request",
    "ring_request_row",
    "ring_rows",
    "ring_version",
    "strong",
    "strong_page",
    "strong_request",
    "strong_request_row",
    "strong_rows",
    "strong_version",
    "vector_row",
    "vector_rows",
]

CONFLICTS_KEPT = 16
"""Losers remembered per id. An id written concurrently all day must not fill the disk."""

SCAN_ROWS = 4096


def ring_page(view: View, group: int, after: str | None, limit: int) -> list[tuple[str, bytes]]:
    """Ids and encoded ring records of a group in id order, behind `after`; tombstones included."""
    return _record_page(view, keys.RING, group, after, limit)


def strong_page(view: View, group: int, after: str | None, limit: int) -> list[tuple[str, bytes]]:
    """Ids and encoded strong records of a group in id order, behind `after`; deleted ones included."""
    return _record_page(view, keys.STRONG, group, after, limit)


def _record_page(view: View, kind: bytes, group: int, after: str | None, limit: int) -> list[tuple[str, bytes]]:
    lo, hi = keys.span(kind, group)
    if after:
        lo += after.encode() + b"\0"
    return [(keys.id_of_record(key), data) for key, data in view.scan(lo, hi, limit=limit)]


# ── the dot log and the vector it adds up to ──────────────────────────────────────────────────────────────


def dot_row(group: int, origin: str, seq: int, id: str) -> Row:
    """That this replica has seen the origin's write `seq`, and which id it changed."""
    return keys.dot(group, origin, seq), id.encode()


def dot_gone(group: int, origin: str, seq: int) -> Row:
    """The removal of a dot row; goes with the `vector_row` that answers for it from then on."""
    return keys.dot(group, origin, seq), None


def dots(view: View, group: int, origin: str, lo: int, hi: int, limit: int) -> list[tuple[int, str]]:
    """(seq, id) of the origin's writes with lo <= seq <= hi that are still in the log, in order."""
    first, past = keys.dot(group, origin, lo), keys.dot(group, origin, hi) + b"\0"
    return [(int.from_bytes(key[-8:], "big"), id.decode()) for key, id in view.scan(first, past, limit=limit)]


def floor(view: View, group: int, origin: str) -> int:
    """The number up to which an origin's dot rows have been trimmed; 0 when none have."""
    data = view.get(keys.vector(group, origin))
    return 0 if data is None else int(decode_any(data)[0])


def vector_row(group: int, origin: str, base: int, extras: Iterable[int]) -> Row:
    """What has been seen of an origin apart from the dot rows still in the log."""
    return keys.vector(group, origin), encode([base, sorted(extras)])


def vector_rows(group: int, vector: Vector) -> list[Row]:
    """A whole vector, for when it was learnt otherwise than write by write."""
    origins = vector.base.keys() | vector.extras.keys()
    return [
        vector_row(group, origin, vector.base.get(origin, 0), vector.extras.get(origin, ()))
        for origin in sorted(origins)
    ]


def load_vector(view: View, group: int) -> Vector:
    """All this replica has seen of a group: the vector rows plus every dot still in the log."""
    vector = Vector()
    for key, value in _all(view, keys.VECTOR, group):
        origin, (base, extras) = keys.origin_of_vector(key), decode_any(value)
        vector.advance(origin, base)
        for seq in extras:
            vector.add(origin, seq)
    for key, _ in _all(view, keys.DOT, group):
        vector.add(*keys.origin_and_seq(key))
    return vector


def count(view: View, group: int, limit: int) -> int:
    """How many ids a group holds on either path, tombstones included; at most `limit` of each."""
    return sum(len(view.scan(*keys.span(kind, group), limit=limit)) for kind in (keys.RING, keys.STRONG))


def _all(view: View, kind: bytes, group: int) -> Iterable[tuple[bytes, bytes]]:
    lo, hi = keys.span(kind, group)
    while rows := view.scan(lo, hi, limit=SCAN_ROWS):
        yield from rows
        lo = rows[-1][0] + b"\0"


# ── the conflict log ──────────────────────────────────────────────────────────────────────────────────────


class Lost(NamedTuple):
    """A write that lost against a concurrent one. `version` and `winner` are version texts."""

    version: str
    memory: Memory | None
    lost_at_ms: int
    winner: str


def conflict_rows(view: View, group: int, loser: Version, *, winner: str, now_ms: int) -> list[Row]:
    """Keep a loser, and let go of the oldest ones of its id above CONFLICTS_KEPT. Noting a loser again
    changes nothing but the time."""
    key = keys.conflict(group, loser.id, loser.stamp, loser.origin, loser.seq)
    prefix = keys.conflicts(group, loser.id)
    kept = [k for k, _ in view.scan(prefix, keys.after(prefix), limit=SCAN_ROWS) if k != key]
    surplus = max(len(kept) - (CONFLICTS_KEPT - 1), 0)
    rows: list[Row] = [(k, None) for k in kept[:surplus]]
    rows.append((key, encode([encode(loser), now_ms, winner])))
    return rows


def conflicts(view: View, group: int, id: str) -> list[Lost]:
    """The losers kept of an id, newest first."""
    prefix = keys.conflicts(group, id)
    found = []
    for _, value in view.scan(prefix, keys.after(prefix), limit=2 * CONFLICTS_KEPT, reverse=True):
        data, lost_at_ms, winner = decode_any(value)
        loser = decode_version(data)
        found.append(Lost(ring_version(loser), loser.memory, lost_at_ms, winner))
    return found[:CONFLICTS_KEPT]


# ── what became of requests ───────────────────────────────────────────────────────────────────────────────


class RingRequest(NamedTuple):
    """The ring write an Idempotency-Key caused. `fingerprint` tells a retry from another request with the
    same key. `void`: it was declared dead and will never apply. `created`: the write had superseded
    nothing."""

    origin: str
    seq: int
    stamp: int
    fingerprint: bytes
    created: bool
    void: bool = False
    id: str = ""


DIGEST_BYTES = 16


def ring_request_row(group: int, version: Version) -> Row:
    """Remember the request behind a ring version: `request` is its digest, then the fingerprint."""
    digest, fingerprint = version.request[:DIGEST_BYTES], version.request[DIGEST_BYTES:]
    created = not version.context
    request = RingRequest(version.origin, version.seq, version.stamp, fingerprint, created, id=version.id)
    return keys.ring_request(group, digest), encode(request)


def ring_void_row(group: int, digest: bytes) -> Row:
    """Note that the request with this digest is never to be carried out."""
    return keys.ring_request(group, digest), encode(RingRequest("", 0, 0, b"", False, void=True))


def ring_request(view: Lookup, group: int, digest: bytes) -> RingRequest | None:
    data = view.get(keys.ring_request(group, digest))
    return None if data is None else RingRequest(*decode_any(data))


def strong_request_row(group: int, digest: bytes, result: bytes | None) -> Row:
    """Remember what a strong command with this digest returned; None forgets it."""
    return keys.strong_request(group, digest), result


def strong_request(view: Lookup, group: int, digest: bytes) -> bytes | None:
    return view.get(keys.strong_request(group, digest))


# ── where the group's log has been applied to ─────────────────────────────────────────────────────────────


def applied_row(group: int, at: Position, more: Any = None, chain: Any = None) -> Row:
    """Goes with the effects of the entry at this position. `more` and `chain` are the state machine's, plain data."""
    return keys.applied(group), encode([at.index, at.term, more, chain])


def applied(view: Lookup, group: int) -> tuple[Position, Any]:
    """The last applied position and what was stored with it; ((0, 0), None) for a new group."""
    data = view.get(keys.applied(group))
    if data is None:
        return Position(0, 0), None
    index, term, more, *_ = decode_any(data)
    return Position(index, term), more


def chain(view: View, group: int) -> Any:
    """The chain stored with the last applied position; None when an earlier version stored it, or nobody."""
    data = view.get(keys.applied(group))
    row: list[Any] = [] if data is None else decode_any(data)
    return row[3] if len(row) > 3 else None


def doubt_row(group: int, doubt: Any) -> Row:
    """What this node must not forget against its replica of a group; None forgets it. Plain data."""
    return keys.meta(f"doubt {group}"), None if doubt is None else encode(doubt)


def doubt(view: View, group: int) -> Any:
    data = view.get(keys.meta(f"doubt {group}"))
    return None if data is None else decode_any(data)
