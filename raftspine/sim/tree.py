"""A Tree in memory for the simulator: as slow, as atomic and as full as a run wants it to be.

The rule: a batch becomes visible all at once and only after its delay, and what was applied survives a crash
of the node, as LMDB's pages do. A twin that applied at once would hide every fault in what lies between.
"""

from asyncio import AbstractEventLoop, Future
from bisect import bisect_left
from collections.abc import Callable, Mapping

from raftspine.errors import NoSpace

DELAY_SECONDS = 0.004
"""How long a batch takes where nothing is slow."""


class SimFrozen:
    """A copy of the map as it was."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows = dict(rows)
        self._keys = sorted(self._rows)

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return _scan(self._rows, self._keys, lo, hi, limit, reverse)

    def close(self) -> None:
        self._rows, self._keys = {}, []


class SimTree:
    """Give the same object to the node's next life: `close` and `crash` keep the rows.

    `delay_seconds` is how long a batch takes, in the loop's time; `full` makes batches fail with NoSpace.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        delay_seconds: float = DELAY_SECONDS,
        rows: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.delay_seconds = delay_seconds
        self.full = False
        self.at: Callable[[str], None] | None = None
        self.batches = 0
        self._loop = loop
        self._rows = dict(rows or {})
        self._keys = sorted(self._rows)
        self._life = 0

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return _scan(self._rows, self._keys, lo, hi, limit, reverse)

    def rows(self) -> dict[bytes, bytes]:
        """A copy of all there is, as a backup holds it."""
        return dict(self._rows)

    def apply(self, rows: dict[bytes, bytes | None]) -> "Future[None]":
        future: Future[None] = self._loop.create_future()
        self._loop.call_later(self.delay_seconds, self._finish, dict(rows), future, self._life)
        return future

    def freeze(self) -> SimFrozen:
        return SimFrozen(self._rows)

    def used_ratio(self) -> float:
        return 1.0 if self.full else 0.0

    def crash(self) -> None:
        """The node died: a batch under way is lost, what was applied stays."""
        self._life += 1

    def close(self) -> None:
        self._life += 1

    def _finish(self, rows: dict[bytes, bytes | None], future: "Future[None]", life: int) -> None:
        if life != self._life:
            return
        if self.full:
            future.set_exception(NoSpace("the simulated tree is full"))
            return
        for key, value in rows.items():
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value
        self._keys = sorted(self._rows)
        self.batches += 1
        if self.at is not None:
            self.at("after a checkpoint, before its node knows")
        future.set_result(None)


def _scan(
    rows: Mapping[bytes, bytes], keys: list[bytes], lo: bytes, hi: bytes, limit: int, reverse: bool
) -> list[tuple[bytes, bytes]]:
    chosen = keys[bisect_left(keys, lo) : bisect_left(keys, hi)]
    if reverse:
        chosen.reverse()
    return [(key, rows[key]) for key in chosen[:limit]]
