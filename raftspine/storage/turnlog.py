"""The engine's side of the log: one record per loop turn, syncs by policy, and what to do when the disk
refuses.

The rule: a turn the log refused stays here, in order, until it is in the log after all or the engine has put
it into the tree; and after a failed sync the log is not used again before it has been started over, because
the kernel may have dropped pages it had called written. Trouble is a state that ends, never an exception that
somebody has to catch in time.
"""

from asyncio import AbstractEventLoop, Future, TimerHandle
from collections.abc import Callable, Iterable

from raftspine.errors import Unknown
from raftspine.ports import Clock
from raftspine.storage.futures import SharedFuture
from raftspine.storage.wal import Wal


class TurnLog:
    """`trouble` says why the log takes nothing, or is None. `changed` is called when that changes, `on_sync` with
    the seconds that each sync took."""

    def __init__(
        self,
        wal: Wal,
        loop: AbstractEventLoop,
        clock: Clock,
        *,
        sync_seconds: float,
        changed: Callable[[], None],
        on_sync: Callable[[float], None],
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._clock = clock
        self._interval = sync_seconds
        self._changed = changed
        self._on_sync = on_sync
        self._unlogged: list[bytes] = []
        self._dirty = False  # something appended has not been handed to a sync
        self._timer: TimerHandle | None = None
        self._sync_failed = False
        self._restated = 0  # what was found at start stands again from here on
        self.trouble: str | None = None
        self.last_sync_seconds = 0.0

    @property
    def position(self) -> int:
        """The position of the last record."""
        return self._wal.next_position - 1

    @property
    def size_bytes(self) -> int:
        return self._wal.size_bytes

    def restate(self, payloads: Iterable[bytes], beyond: int) -> None:
        """Say again what the log held at the start beyond this position of the tree: nobody knows whether what a
        process that died has left is on disk, and no sync of it can tell (wal.py)."""
        try:
            self._restated = self._wal.restate(payloads, beyond)
        except OSError as error:
            self._sync_failed = True  # here too only the tree helps
            self._set_trouble(f"the log cannot be written: {error}")
            return
        self.mark_dirty()

    def write(self, payload: bytes) -> bool:
        """Append one turn; False when the log refuses, and then the turn is kept."""
        if self.trouble is None:
            try:
                self._wal.append(payload)
            except OSError as error:
                self._unlogged.append(payload)
                self._set_trouble(f"the log cannot be written: {error}")
                return False
            self.mark_dirty()
            return True
        self._unlogged.append(payload)
        return False

    def mark_dirty(self) -> None:
        """Make sure of a sync within the interval."""
        self._dirty = True
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._sync_in_time)

    def sync(self, waiter: SharedFuture | None) -> None:
        """Resolve `waiter` when all written so far is on disk, or fail it with Unknown."""
        self._dirty = False
        started = self._clock.monotonic()
        try:
            synced = self._wal.sync()
        except OSError as error:
            self._sync_refused(error, waiter)
            return
        synced.add_done_callback(lambda done: self._synced(done, waiter, started))

    def forget(self, through: int) -> None:
        """The tree holds everything up to this position."""
        self._drop_before(through + 1)

    def _drop_before(self, position: int) -> None:
        try:
            self._wal.drop_before(position)
        except OSError as error:
            self._set_trouble(f"old segments of the log cannot be removed: {error}")

    def retry(self) -> None:
        """Offer the refused turns again. After a failed sync only `start_over` helps."""
        if self._sync_failed:
            return
        try:
            while self._unlogged:
                self._wal.append(self._unlogged[0])
                del self._unlogged[0]
        except OSError as error:
            self._set_trouble(f"the log cannot be written: {error}")
            return
        self.mark_dirty()
        self._set_trouble(None)

    def start_over(self) -> None:
        """Begin a new log; for when the tree holds everything, the refused turns included."""
        try:
            self._wal.restart(self._wal.next_position)
        except OSError as error:
            self._set_trouble(f"the log cannot be started over: {error}")
            return
        self._unlogged.clear()
        self._sync_failed, self._restated = False, 0
        self._set_trouble(None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wal.close()

    def _sync_in_time(self) -> None:
        self._timer = None
        if self._dirty and not self._sync_failed:
            self.sync(None)

    def _synced(self, done: "Future[None]", waiter: SharedFuture | None, started: float) -> None:
        self.last_sync_seconds = self._clock.monotonic() - started
        self._on_sync(self.last_sync_seconds)
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._sync_refused(error, waiter)
            return
        if self._restated:
            self._drop_before(self._restated)
            self._restated = 0
        if waiter is not None:
            waiter.set_result(None)

    def _sync_refused(self, error: BaseException, waiter: SharedFuture | None) -> None:
        self._sync_failed = True
        if waiter is not None:
            waiter.fail(Unknown(f"the disk did not confirm the write: {error}"))
        self._set_trouble(f"the log cannot be synced: {error}")

    def _set_trouble(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()
