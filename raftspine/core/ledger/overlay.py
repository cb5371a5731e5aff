"""A ledger's state with changes on top that are not stored yet.

The rule: whoever applies commands sees the effects of those before, and stores nothing until all are through.
The host needs that for the commands of one entry, and a command that takes several steps (a session ends, its
locks pass on to the next) needs it for its steps; both use this, one over the other.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

from raftspine.core.ledger.state import (
    Effect,
    LedgerView,
    RequestRow,
    SetCounter,
    SetRequest,
    SetRow,
    SetStrong,
)
from raftspine.model import RingRecord, StrongRecord


class Overlay(LedgerView):
    """`base` and what `perform` was given. The ring is always the base's: changing it is the host's business."""

    def __init__(self, base: LedgerView) -> None:
        self._base = base
        self._strong: dict[str, StrongRecord | None] = {}
        self._requests: dict[bytes, RequestRow] = {}
        self._counters: dict[str, int] = {}
        self._rows: dict[tuple[str, bytes], bytes | None] = {}
        self._keys: dict[str, list[bytes]] = {}  # of _rows by table, sorted

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    def strong(self, id: str) -> StrongRecord | None:
        if id not in self._strong:
            self._strong[id] = self._base.strong(id)
        return self._strong[id]

    def ring(self, id: str) -> RingRecord | None:
        return self._base.ring(id)

    def request(self, digest: bytes) -> RequestRow | None:
        row = self._requests.get(digest)
        return self._base.request(digest) if row is None else row

    def counter(self, name: str) -> int:
        if name not in self._counters:
            self._counters[name] = self._base.counter(name)
        return self._counters[name]

    def row(self, table: str, key: bytes) -> bytes | None:
        place = (table, key)
        return self._rows[place] if place in self._rows else self._base.row(table, key)

    def rows(
        self, table: str, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        changed = self._keys.get(table, ())
        first, past = bisect_left(changed, lo), bisect_left(changed, hi)
        if first >= past:
            return self._base.rows(table, lo, hi, limit=limit, reverse=reverse)
        mine = {key: self._rows[table, key] for key in changed[first:past]}
        # Each change can hide one row of the base, so asking for that many more is always enough.
        below = self._base.rows(table, lo, hi, limit=limit + len(mine), reverse=reverse)
        found = [row for row in below if row[0] not in mine]
        found += [(key, value) for key, value in mine.items() if value is not None]
        found.sort(reverse=reverse)
        return found[:limit]

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    def perform(self, effects: Iterable[Effect]) -> None:
        """Take up effects, in order."""
        for effect in effects:
            if isinstance(effect, SetRow):
                place = (effect.table, effect.key)
                if place not in self._rows:
                    insort(self._keys.setdefault(effect.table, []), effect.key)
                self._rows[place] = effect.value
            elif isinstance(effect, SetStrong):
                self._strong[effect.id] = effect.new
            elif isinstance(effect, SetRequest):
                self._requests[effect.digest] = effect.row
            elif isinstance(effect, SetCounter):
                self._counters[effect.name] = effect.value
