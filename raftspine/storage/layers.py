"""Rows in memory over the tree beneath, and the checkpoints that move them down.

The rule: a layer that is handed to the tree stays readable until the tree has it, and at most one is under
way; meanwhile changes gather in the next. A batch that the tree refuses is kept and offered again, so a full
disk costs memory and not data. The batch holds the log position it reaches, so tree and log cannot disagree
on where one ends and the other begins.
"""

from asyncio import AbstractEventLoop, Future, TimerHandle
from collections.abc import Callable
from typing import Any, NamedTuple

from raftspine.ports import Clock, Row, Tree
from raftspine.storage import keys
from raftspine.storage.futures import SharedFuture
from raftspine.storage.memtable import Memtable, scan

_NOTHING: Any = object()


class Limits(NamedTuple):
    """When a checkpoint begins, and when the memory it would free is too much to wait for."""

    checkpoint_seconds: float
    checkpoint_bytes: int
    memtable_bytes: int


class Layers:
    """`seal` is asked before a checkpoint to log what is still open, and tells the position reached.
    `reached` is told the position that the tree holds. `changed` is called when `trouble` or `behind` may
    have changed.
    """

    def __init__(
        self,
        tree: Tree,
        loop: AbstractEventLoop,
        clock: Clock,
        limits: Limits,
        *,
        seal: Callable[[], int],
        reached: Callable[[int], None],
        changed: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._loop = loop
        self._clock = clock
        self._limits = limits
        self._seal = seal
        self._reached = reached
        self._changed = changed
        self._layers: tuple[Memtable, ...] = (Memtable(),)  # oldest first; two while one goes to the tree
        self._current = self._layers[0]
        self._position = 0  # of the layer under way
        self._applying = False
        self._waiters: list[SharedFuture] = []  # for the checkpoint under way
        self._next_waiters: list[SharedFuture] = []  # for the one after it
        self._timer: TimerHandle | None = None
        self._closed = False
        self.trouble: str | None = None
        self.checkpoints = 0
        self.last_seconds = 0.0

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: bytes) -> bytes | None:
        value: Any = self._current.rows.get(key, _NOTHING)
        if value is _NOTHING:
            if len(self._layers) > 1:
                value = self._layers[0].rows.get(key, _NOTHING)
            if value is _NOTHING:
                return self._tree.get(key)
        return value  # type: ignore[no-any-return]

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return scan(self._layers, self._tree, lo, hi, limit=limit, reverse=reverse)

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self._layers)

    @property
    def behind(self) -> bool:
        """Whether memory is at its bound because the tree has not caught up."""
        return self._under_way() and self.size_bytes > self._limits.memtable_bytes

    @property
    def empty(self) -> bool:
        """Whether the tree holds everything."""
        return not self._under_way() and not self._current.rows

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────

    def put(self, rows: list[Row] | dict[bytes, bytes | None]) -> None:
        self._current.rows.update(rows)

    def grown(self, size_bytes: int) -> None:
        """What was put last takes this much; begin a checkpoint now or in time."""
        self._current.size_bytes += size_bytes
        self._checkpoint_when_due()

    def checkpoint(self, waiter: SharedFuture) -> None:
        """Have all that was put so far moved into the tree. A checkpoint under way began too early for that;
        one that failed is tried again now."""
        if self._under_way():
            self._next_waiters.append(waiter)
            if not self._applying:
                self._apply()
            return
        self._waiters.append(waiter)
        self.begin()

    def begin(self) -> None:
        """Hand the current layer to the tree, unless one is under way. To be called between callbacks, when
        no operation has staged only a part of its rows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._under_way() or self._closed:
            return
        position = self._seal()
        if self._under_way():
            return  # what was sealed was large enough to begin one itself
        if not self._current.rows:
            self._tell_waiters(None)
            return
        self._current.rows[keys.LOG_POSITION] = keys.number(position)
        self._position = position
        full, self._current = self._current, Memtable()
        self._layers = (full, self._current)
        self._apply()

    def retry(self) -> None:
        """Offer a refused batch again."""
        if self._under_way() and not self._applying:
            self._apply()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._tree.close()

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────

    def _under_way(self) -> bool:
        return len(self._layers) > 1

    def _checkpoint_when_due(self) -> None:
        if self._under_way():
            if self.behind:
                self._changed()
        elif self._current.size_bytes >= self._limits.checkpoint_bytes:
            self.begin()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._limits.checkpoint_seconds, self.begin)

    def _apply(self) -> None:
        self._applying = True
        started = self._clock.monotonic()
        self._tree.apply(self._layers[0].rows).add_done_callback(lambda done: self._applied(done, started))

    def _applied(self, done: "Future[None]", started: float) -> None:
        self._applying = False
        error = done.exception()
        if self._closed:
            return
        if error is not None:
            self.trouble = str(error)
            self._tell_waiters(error)
            self._changed()
            return
        self._layers = (self._current,)
        self.checkpoints += 1
        self.last_seconds = self._clock.monotonic() - started
        self.trouble = None
        self._reached(self._position)
        self._tell_waiters(None)
        self._changed()
        if self._waiters:
            self.begin()
        elif self._current.rows:
            self._checkpoint_when_due()

    def _tell_waiters(self, error: BaseException | None) -> None:
        """End the waiting for this checkpoint. A failure also ends it for the next, which cannot begin."""
        waiters, self._waiters, self._next_waiters = self._waiters, self._next_waiters, []
        if error is None:
            for waiter in waiters:
                waiter.set_result(None)
            return
        waiters += self._waiters
        self._waiters = []
        for waiter in waiters:
            waiter.fail(error)
