"""The node's data: a log that answers quickly, in front of a tree that holds everything.

A transaction of the tree costs milliseconds, an append to a file microseconds. So a change is *staged*
(visible at once, in memory), joins the other changes of the same loop turn in one log record, and is
acknowledged when that record is in the log; the tree gets it later, in large sorted batches (checkpoints),
and then the log can forget it. The rules:

* What was staged in one callback is never split: it is in one log record and in one checkpoint.
* The tree's batch names the log position it reaches (row `x log position`), so a restart replays exactly the
  rest. Applying a record twice would do no harm, losing one would.
* What a restart finds in the log is said again there at once: a file is not trusted past a failed sync, nor past the
  death of its process (wal.py).
* Nothing that was visible is taken back. When the log refuses a turn, its outcome is *unknown*: the rows stay
  and are logged, or checkpointed, as soon as the disk allows; until then everything new is refused.
* Memory is bounded: above `memtable_limit_bytes` changes are refused until a checkpoint has caught up.

After a failed sync the kernel may have dropped what was written, so that log is never trusted again: all is
put into the tree first, then the log starts over (cf. "fsyncgate", PostgreSQL 2018).
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from raftspine.codec import decode_any, encode
from raftspine.errors import Corrupt, NoSpace, SpineError, Unavailable, Unknown
from raftspine.ports import Clock, Directory, FrozenView, Row, Tree
from raftspine.storage import keys
from raftspine.storage.futures import SharedFuture
from raftspine.storage.keys import MAX_KEY_BYTES
from raftspine.storage.layers import Layers, Limits
from raftspine.storage.segment import REMEDY
from raftspine.storage.turnlog import TurnLog
from raftspine.storage.wal import OnCut, Wal

SEGMENT_BYTES = 64 << 20
RESTATED_BYTES = 1 << 20
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0


class EngineStats(NamedTuple):
    """Figures for metrics. Bytes are of rows in the log's encoding; seconds are of the last of their kind."""

    position: int
    memtable_bytes: int
    log_bytes: int
    checkpoints: int
    checkpoint_seconds: float
    sync_seconds: float
    used_ratio: float


class Engine:
    """ports.Engine over a log Directory and a Tree. `close` closes the tree, not the directory.

    For one running loop; uses only its timers and futures, so it also runs under virtual time.
    """

    def __init__(
        self,
        wal: Wal,
        tree: Tree,
        loop: AbstractEventLoop,
        clock: Clock,
        *,
        always: bool,
        sync_seconds: float,
        limits: Limits,
        on_sync: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._tree = tree
        self._always = always
        self._log = TurnLog(wal, loop, clock, sync_seconds=sync_seconds, changed=self._reconsider, on_sync=on_sync)
        self._layers = Layers(
            tree, loop, clock, limits, seal=self._seal, reached=self._log.forget, changed=self._reconsider
        )
        self.get: Callable[[bytes], bytes | None] = self._layers.get
        """The value of a key, or None. Handed on as it is: no call is more frequent."""
        self._turn: dict[bytes, bytes | None] = {}
        self._flush_scheduled = False
        self._logged: SharedFuture | None = None  # resolved once this turn is in the log
        self._synced: SharedFuture | None = None  # resolved once this turn is on disk
        self._refusal: Callable[[], SpineError] | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Directory,
        tree: Tree,
        *,
        clock: Clock,
        durability: str = "interval",
        sync_interval_ms: int = 100,
        checkpoint_interval_ms: int = 250,
        checkpoint_bytes: int = 8 << 20,
        memtable_limit_bytes: int = 64 << 20,
        segment_bytes: int = SEGMENT_BYTES,
        on_cut: OnCut | None = None,
        on_sync: Callable[[float], None] = lambda seconds: None,
    ) -> "Engine":
        """Recover what the log holds beyond the tree. `durability`: "always" makes `commit` wait for the
        disk, "interval" for the log only, synced within `sync_interval_ms`. Raises Corrupt, Misuse,
        OSError."""
        if durability not in ("always", "interval"):
            raise ValueError(f"durability is always or interval, not {durability!r}")
        wal = Wal.open(directory, segment_bytes=segment_bytes, on_cut=on_cut)
        engine = cls(
            wal,
            tree,
            asyncio.get_running_loop(),
            clock,
            always=durability == "always",
            sync_seconds=sync_interval_ms / 1000,
            limits=Limits(checkpoint_interval_ms / 1000, checkpoint_bytes, memtable_limit_bytes),
            on_sync=on_sync,
        )
        engine._recover(wal)
        return engine

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return self._layers.scan(lo, hi, limit=limit, reverse=reverse)

    async def freeze(self) -> FrozenView:
        """A view of everything staged before the call (and perhaps of later turns, each of them whole).
        Raises NoSpace or Unavailable when the tree cannot take what is staged."""
        await self.checkpoint()
        return self._tree.freeze()

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────

    def stage(self, rows: Iterable[Row]) -> None:
        """Add changes to this turn; all of them or, when it raises, none. NoSpace while the disk or the tree
        refuses, Unavailable(`overloaded`) while the tree is too far behind, ValueError for a key that the tree
        could never take: in the log it would stop every checkpoint from then on."""
        if self._refusal is not None:
            raise self._refusal()
        batch = rows if type(rows) is list else list(rows)
        for key, _ in batch:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}: {key[:40]!r}…")
        self._turn.update(batch)
        self._layers.put(batch)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def commit(self, *, durable: bool | None = None) -> "Future[None]":
        """Resolves when all staged so far is in the log (and synced, when `durable`). Unknown when the log
        refused it: the changes are visible and may yet survive. The future is shared and cannot be
        cancelled."""
        if durable or (durable is None and self._always):
            if self._synced is None:
                self._synced = SharedFuture(loop=self._loop)
                self._schedule_flush()
            return self._synced
        if self._logged is None:
            self._logged = SharedFuture(loop=self._loop)
            self._schedule_flush()
        return self._logged

    def checkpoint(self) -> "Future[None]":
        """Resolves when all staged so far is durable in the tree; fails with NoSpace or Unavailable."""
        done = SharedFuture(loop=self._loop)
        self._loop.call_soon(self._layers.checkpoint, done)
        return done

    def read_only(self) -> str | None:
        """Why writes are refused, or None. An overloaded engine is not read-only."""
        return self._log.trouble or self._layers.trouble

    @property
    def overloaded(self) -> bool:
        """Whether `stage` refuses because the tree is too far behind."""
        return self._refusal is not None and self.read_only() is None

    def used_ratio(self) -> float:
        return self._tree.used_ratio()

    def stats(self) -> EngineStats:
        return EngineStats(
            self._log.position,
            self._layers.size_bytes,
            self._log.size_bytes,
            self._layers.checkpoints,
            self._layers.last_seconds,
            self._log.last_sync_seconds,
            self._tree.used_ratio(),
        )

    async def close(self) -> None:
        """Sync the log, put everything into the tree, let go of both. Raises what prevented it, after
        closing; the next `open` recovers from the log."""
        try:
            await self.checkpoint()
            await self.commit(durable=True)
        finally:
            self._closed = True
            self._refusal = _closing
            if self._retry_timer is not None:
                self._retry_timer.cancel()
            self._log.close()
            self._layers.close()

    # ── the turn ──────────────────────────────────────────────────────────────────────────────────────────

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Log what was staged since the last flush and tell those who wait."""
        self._flush_scheduled = False
        turn, logged, synced = self._turn, self._logged, self._synced
        self._logged = self._synced = None
        if turn:
            self._turn = {}
            payload = encode(turn)
            self._log.write(payload)
            self._layers.grown(len(payload))
        if self._log.trouble is not None:
            for waiter in (logged, synced):
                if waiter is not None:
                    waiter.fail(Unknown(f"the write may or may not survive: {self._log.trouble}"))
            return
        if logged is not None:
            logged.set_result(None)
        if synced is not None:
            self._log.sync(synced)

    def _seal(self) -> int:
        """Log the open turn, so that a checkpoint never holds a part of one."""
        if self._turn:
            self._flush()
        return self._log.position

    # ── trouble ───────────────────────────────────────────────────────────────────────────────────────────

    def _reconsider(self) -> None:
        """Work out anew whether changes are taken, and see to it that trouble is looked at again."""
        trouble = self.read_only()
        if trouble is not None:
            self._refusal = lambda: NoSpace(f"this node takes no writes: {trouble}", retry_after_ms=1000)
            if self._retry_timer is None and not self._closed:
                self._retry_timer = self._loop.call_later(self._retry_seconds, self._retry)
                self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
            return
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._refusal = _overloaded if self._layers.behind else None

    def _retry(self) -> None:
        """The log first: it is the cheaper way out. Failing that, the tree takes what the log refused, and
        then the log can start over."""
        self._retry_timer = None
        if self._log.trouble is not None:
            self._log.retry()
        self._layers.retry()
        if self._log.trouble is not None:
            if self._layers.empty:
                self._log.start_over()
            else:
                self._layers.begin()
        self._reconsider()

    # ── recovery ──────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self, wal: Wal) -> None:
        """Bring back what the log holds beyond the tree."""
        stored = self._tree.get(keys.LOG_POSITION)
        reached = 0 if stored is None else int.from_bytes(stored, "big")
        if wal.next_position <= reached:
            # The log's unsynced end was lost with the power while the tree already had it.
            wal.restart(reached + 1)
        elif wal.beyond > reached:
            raise Corrupt(
                f"the log goes on from position {wal.beyond}, but the tree ends at {reached}: segments "
                f"are missing. {REMEDY}",
                details={"file": "log", "offset": 0},
            )
        if wal.first_position == wal.next_position:
            return
        found: dict[bytes, bytes | None] = {}
        size = 0
        for _, payload in wal.replay(reached):
            found.update(decode_any(payload))
            size += len(payload)
        self._log.restate(_payloads(found), reached)
        if size:
            self._layers.put(found)
            self._layers.grown(size)


def _payloads(rows: dict[bytes, bytes | None]) -> Iterator[bytes]:
    """Rows as log records of a bounded size. They are the last of their keys, so any part of them may be applied to
    what the log held before without taking anything back."""
    part: dict[bytes, bytes | None] = {}
    size = 0
    for key, data in rows.items():
        part[key] = data
        size += len(key) + len(data or b"")
        if size >= RESTATED_BYTES:
            yield encode(part)
            part, size = {}, 0
    if part:
        yield encode(part)


def _closing() -> SpineError:
    return Unavailable("this node's store is closed", code="not_ready")


def _overloaded() -> SpineError:
    return Unavailable("this node's store is behind with its checkpoints", code="overloaded", retry_after_ms=250)
