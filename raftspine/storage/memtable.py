"""Changes that are in the log but not yet in the tree, and ordered scans over them together with the tree.

The rule: a newer layer hides an older one key by key, and a removed key stays in its layer as a tombstone
until the tree has forgotten it too. Sorting is put off until somebody scans: a write costs one dict update,
and a scan sorts only what arrived since the last scan of the same kind and group. A few new keys are put into
their places one by one: to a log entry that scans after each write, sorting tens of thousands anew for the sake of
three would be most of its work.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import islice

from raftspine.ports import View

PREFIX_BYTES = 3
"""Kind and shard group: what nearly every scan stays within (keys.py)."""

FEW = 32
"""New keys of a bucket that are put into their places rather than sorted in."""

WINDOW_ROWS = 64
"""Least number of rows of a layer that a scan looks at in one step beyond what it was asked for."""


class Memtable:
    """Rows by key; a value of None is a removal. `size_bytes` is kept by the owner."""

    __slots__ = ("_buckets", "_fresh", "_indexed", "rows", "size_bytes")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.size_bytes = 0
        self._indexed = 0
        self._buckets: dict[bytes, list[bytes]] = {}
        self._fresh: dict[bytes, list[bytes]] = {}  # of a bucket, not in it yet

    def keys_between(self, lo: bytes, hi: bytes) -> tuple[list[bytes], int, int]:
        """A sorted list and the bounds of the part of it with lo <= key < hi."""
        self._index_new()
        first, last = lo[:PREFIX_BYTES], hi[:PREFIX_BYTES]
        if len(first) == PREFIX_BYTES and (first == last or hi == _next_prefix(first)):
            keys = self._sorted(first)
        else:
            keys = []
            for prefix in sorted(p for p in self._buckets if first <= p <= last):
                keys += self._sorted(prefix)
        return keys, bisect_left(keys, lo), bisect_left(keys, hi)

    def _index_new(self) -> None:
        """Sort new keys into buckets. A dict keeps its order and nothing ever leaves this one, so the new
        keys are its last ones."""
        fresh = len(self.rows) - self._indexed
        if not fresh:
            return
        buckets, waiting = self._buckets, self._fresh
        for key in islice(reversed(self.rows), fresh):
            prefix = key[:PREFIX_BYTES]
            keys = waiting.get(prefix)
            if keys is None:
                buckets.setdefault(prefix, [])
                waiting[prefix] = [key]
            else:
                keys.append(key)
        self._indexed = len(self.rows)

    def _sorted(self, prefix: bytes) -> list[bytes]:
        bucket = self._buckets.get(prefix)
        if bucket is None:
            return []
        fresh = self._fresh.pop(prefix, ())
        if len(fresh) <= FEW:
            for key in fresh:
                insort(bucket, key)
        else:
            bucket += fresh
            bucket.sort()
        return bucket


def scan(
    layers: Sequence[Memtable], tree: View, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False
) -> list[tuple[bytes, bytes]]:
    """At most `limit` live rows of [lo, hi) in order (from the upper end when `reverse`); `layers` oldest
    first, all above the tree."""
    found: list[tuple[bytes, bytes]] = []
    while len(found) < limit and lo < hi:
        wanted = limit - len(found)
        overlay, edge = _window(layers, lo, hi, 2 * wanted + WINDOW_ROWS, reverse)
        start, stop = (edge, hi) if reverse else (lo, edge)
        found += _merged(overlay, tree, start, stop, wanted, reverse)
        if reverse:
            hi = edge
        else:
            lo = edge
    return found


def _window(
    layers: Sequence[Memtable], lo: bytes, hi: bytes, most: int, reverse: bool
) -> tuple[dict[bytes, bytes | None], bytes]:
    """The layers' rows in the nearer part of [lo, hi), and where that part ends: so far that no layer gives
    more than `most` rows, which keeps a short scan of a long range short."""
    edge = lo if reverse else hi
    parts = []
    for layer in layers:
        keys, i, j = layer.keys_between(lo, hi)
        if i == j:
            continue
        if j - i > most:
            edge = max(edge, keys[j - most]) if reverse else min(edge, keys[i + most])
        parts.append((layer.rows, keys, i, j))
    overlay: dict[bytes, bytes | None] = {}
    for rows, keys, i, j in parts:
        if reverse:
            i = bisect_left(keys, edge, i, j)
        else:
            j = bisect_left(keys, edge, i, j)
        for key in keys[i:j]:
            overlay[key] = rows[key]
    return overlay, edge


def _merged(
    overlay: dict[bytes, bytes | None], tree: View, lo: bytes, hi: bytes, limit: int, reverse: bool
) -> list[tuple[bytes, bytes]]:
    if not overlay:
        return tree.scan(lo, hi, limit=limit, reverse=reverse)
    # Each removal can hide one row of the tree, so asking for that many more is always enough.
    removals = sum(1 for value in overlay.values() if value is None)
    rows = [row for row in tree.scan(lo, hi, limit=limit + removals, reverse=reverse) if row[0] not in overlay]
    rows += [(key, value) for key, value in overlay.items() if value is not None]
    rows.sort(reverse=reverse)
    return rows[:limit]


def _next_prefix(prefix: bytes) -> bytes:
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b""
