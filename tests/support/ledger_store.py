"""A replica's ledger state in memory, made of nothing but what the effects say; it counts what is read."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any

from raftspine import codec
from raftspine.core import merge
from raftspine.core.ledger import commands, machine, outcomes
from raftspine.core.ledger.outcomes import Outcome
from raftspine.core.ledger.state import (
    ROW_KEY_BYTES,
    Conflict,
    Effect,
    Place,
    RequestRow,
    SetCounter,
    SetRequest,
    SetRing,
    SetRow,
    SetStrong,
    decode_request,
    encode_request,
)
from raftspine.core.ledger.tables import TABLES
from raftspine.model import Dot, RingRecord, StrongRecord, Version

GROUP = 3


class LedgerStore:
    """`LedgerView`, and `perform` to change it. `reads`: rows looked up or returned by scans."""

    def __init__(self) -> None:
        self.strongs: dict[str, StrongRecord] = {}
        self.rings: dict[str, RingRecord] = {}
        self.requests: dict[bytes, bytes] = {}
        self.counters: dict[str, int] = {}
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self._keys: dict[str, list[bytes]] = {}
        self.lost: set[Dot] = set()
        self.reads = 0

    def strong(self, id: str) -> StrongRecord | None:
        assert len(id.encode()) <= 255 and "\0" not in id, "no store has a key for this id"
        return self.strongs.get(id)

    def ring(self, id: str) -> RingRecord | None:
        return self.rings.get(id)

    def request(self, digest: bytes) -> RequestRow | None:
        assert 0 < len(digest) <= 400, "no store has a key for this digest"
        return decode_request(self.requests[digest]) if digest in self.requests else None

    def counter(self, name: str) -> int:
        assert len(name.encode()) <= 300, "as LedgerView says"
        return self.counters.get(name, 0)

    def row(self, table: str, key: bytes) -> bytes | None:
        assert table in TABLES and 0 <= len(key) <= ROW_KEY_BYTES, (table, key)
        self.reads += 1
        return self.tables.get(table, {}).get(key)

    def rows(
        self, table: str, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        assert table in TABLES
        keys = self._keys.get(table, [])
        first, past = bisect_left(keys, lo), bisect_left(keys, hi)
        found = keys[max(first, past - limit) : past][::-1] if reverse else keys[first : min(past, first + limit)]
        self.reads += len(found) + 1
        return [(key, self.tables[table][key]) for key in found]

    def put_ring(self, version: Version) -> None:
        self.rings[version.id] = merge.put(self.rings.get(version.id), version).record

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SetStrong(id, old, new):
                    assert codec.encode(old) == codec.encode(self.strongs.get(id))
                    codec.encode(new)
                    if new is None:
                        del self.strongs[id]
                    else:
                        self.strongs[id] = new
                case SetRing(_, version):
                    codec.encode(version)
                    self.put_ring(version)
                case SetRequest(digest, row):
                    self.requests[digest] = encode_request(row)
                case SetCounter(name, value):
                    self.counters[name] = value
                    if not value:
                        del self.counters[name]
                case SetRow(table, key, value):
                    self._set_row(table, key, value)
                case Conflict(_, loser, _, _):
                    self.lost.add(loser.dot)

    def _set_row(self, table: str, key: bytes, value: bytes | None) -> None:
        assert table in TABLES and 0 < len(key) <= ROW_KEY_BYTES, (table, key)
        rows, keys = self.tables.setdefault(table, {}), self._keys.setdefault(table, [])
        if value is not None:
            if key not in rows:
                insort(keys, key)
            rows[key] = value
        elif rows.pop(key, None) is not None:
            del keys[bisect_left(keys, key)]

    def replicated(self) -> tuple[Any, ...]:
        return self.strongs, self.requests, self.counters, {name: rows for name, rows in self.tables.items() if rows}

    def copy(self) -> LedgerStore:
        """What a snapshot carries to another replica; its ring is its own."""
        other = LedgerStore()
        other.strongs = dict(self.strongs)
        other.requests = dict(self.requests)
        other.counters = dict(self.counters)
        for table, rows in self.tables.items():
            for key, value in rows.items():
                other._set_row(table, key, value)
        return other


class LedgerLog:
    """One replica that applies commands, each an entry of its own unless several are given; `time_ms` is the
    leader's clock, set by the test."""

    def __init__(self) -> None:
        self.store = LedgerStore()
        self.index = 0
        self.term = 1
        self.time_ms = 1_000_000
        self.effects: list[Effect] = []

    def do(self, command: Any) -> Outcome:
        return self.entry(command)[0]

    def entry(self, *batch: Any) -> list[Outcome]:
        """Apply several commands as one log entry."""
        self.index += 1
        results = []
        for sub, command in enumerate(batch):
            place = Place(self.index, sub, self.term)
            outcome, self.effects = machine.apply_encoded(
                self.store, commands.encode(command), place, GROUP, self.time_ms
            )
            self.store.perform(self.effects)
            assert outcomes.decode(outcomes.encode(outcome)) == outcome
            results.append(outcome)
        return results
