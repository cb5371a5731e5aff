"""`ports.Engine` over a sorted dict: what is staged is there, and a power cut takes what was not
committed."""

import asyncio
from asyncio import Future
from bisect import bisect_left
from collections.abc import Iterable

from raftspine.errors import NoSpace
from raftspine.ports import Row


class DictView:
    """An ordered map that can be read."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows
        self.closed = False

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        keys = sorted(self.rows)
        keys = keys[bisect_left(keys, lo) : bisect_left(keys, hi)]
        if reverse:
            keys.reverse()
        return [(key, self.rows[key]) for key in keys[:limit]]

    def close(self) -> None:
        self.closed = True


class DictEngine(DictView):
    """Counts its batches, so that a test can say "in one batch"."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        super().__init__(dict(rows or {}))
        self.durable = dict(self.rows)
        self.batches: list[list[Row]] = []
        self.frozen: list[DictView] = []
        self.full = False

    def stage(self, rows: Iterable[Row]) -> None:
        if self.full:
            raise NoSpace("the store is full")
        batch = list(rows)
        self.batches.append(batch)
        for key, value in batch:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    def commit(self, *, durable: bool | None = None) -> "Future[None]":
        future: Future[None] = asyncio.get_running_loop().create_future()
        if durable:
            self.durable = dict(self.rows)
        future.set_result(None)
        return future

    async def freeze(self) -> DictView:
        self.frozen.append(DictView(dict(self.rows)))
        return self.frozen[-1]

    def used_ratio(self) -> float:
        return 0.0

    def read_only(self) -> str | None:
        return "full" if self.full else None
