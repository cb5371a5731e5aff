"""The durable ordered map under the engine: LMDB, read here, written by a process of its own (checkpoint.py).

The rule: reads go through one read transaction that is renewed after each applied batch, and what is newer
than that is in the engine's memory, so a reader sees a batch wholly or not at all. No batch is given up
because the writing process died: another is started and gets it again.

Without the marker row that names the engine and the format, a file of the other LMDB engine (the lmdb package
carries two) would be opened as damaged, or worse, not as damaged.
"""

import os
import socket
import subprocess
import sys
from asyncio import AbstractEventLoop, Future, Task
from collections import deque
from pathlib import Path
from typing import Any

import lmdb
from msgspec import msgpack

from raftspine.errors import Corrupt, Misuse, NoSpace, SpineError, Unavailable
from raftspine.storage import checkpoint, keys
from raftspine.storage.checkpoint import ANSWER, REQUEST
from raftspine.storage.segment import REMEDY

STARTS_PER_BATCH = 3
GOODBYE_SECONDS = 30.0

_encode = msgpack.Encoder().encode


class _Died(Exception):
    """The writing process ended before it answered."""


class LmdbView:
    """Reads through one transaction."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._transaction.get(key)
        return value

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []
        if limit <= 0:
            return rows
        with self._transaction.cursor() as cursor:
            if reverse:
                found = cursor.prev() if cursor.set_range(hi) else cursor.last()
                steps = cursor.iterprev() if found else ()
            else:
                steps = cursor.iternext() if cursor.set_range(lo) else ()
            for row in steps:
                if row[0] < lo if reverse else row[0] >= hi:
                    break
                rows.append(row)
                if len(rows) == limit:
                    break
        return rows

    def close(self) -> None:
        self._transaction.abort()


class LmdbTree(LmdbView):
    """ports.Tree. See the module."""

    def __init__(self, path: Path, map_size_bytes: int, loop: AbstractEventLoop, environment: Any) -> None:
        super().__init__(environment.begin())
        self._path = path
        self._map_size_bytes = map_size_bytes
        self._loop = loop
        self._environment = environment
        self._queue: deque[tuple[dict[bytes, bytes | None], Future[None]]] = deque()
        self._worker: Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._closed = False
        self.starts = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], map_size_bytes: int, loop: AbstractEventLoop) -> "LmdbTree":
        """Create the tree when it is missing, check who wrote it, and start the writing process. Raises
        Misuse for a tree of another engine or format, Corrupt for one that LMDB cannot read, OSError."""
        folder = Path(path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _check_length(folder, map_size_bytes)
            _prepare(folder, map_size_bytes)
            environment = checkpoint.open_environment(str(folder), map_size_bytes, readonly=True)
        except lmdb.Error as error:
            raise _mapped(error, folder) from error
        tree = cls(folder, map_size_bytes, loop, environment)
        tree._start()
        return tree

    def apply(self, rows: dict[bytes, bytes | None]) -> "Future[None]":
        """Resolves when the batch is durable and visible. NoSpace when the map or the disk is full,
        Unavailable when the writing process cannot do it; the batch is then not in. The rows must not change
        meanwhile."""
        future: Future[None] = self._loop.create_future()
        self._queue.append((rows, future))
        if self._worker is None:
            self._worker = self._loop.create_task(self._drain())
        return future

    def freeze(self) -> LmdbView:
        """A view of this moment. Pages it pins are not reused, so close it soon."""
        return LmdbView(self._environment.begin())

    def used_ratio(self) -> float:
        """How full the map is, counting pages that were freed and will be used again."""
        info, page = self._environment.info(), self._environment.stat()["psize"]
        return float((info["last_pgno"] + 1) * page / self._map_size_bytes)

    def close(self) -> None:
        """Let the writing process finish and go. Batches that were not answered fail with Unavailable."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
        for _, future in self._queue:
            if not future.done():
                future.set_exception(Unavailable("the store is being closed"))
                future.exception()
        self._queue.clear()
        self._stop()
        super().close()
        self._environment.close()

    # ── one batch at a time ───────────────────────────────────────────────────────────────────────────────

    async def _drain(self) -> None:
        try:
            while self._queue:
                rows, future = self._queue[0]
                try:
                    await self._deliver(_encode(rows))
                except SpineError as error:
                    future.set_exception(error)
                else:
                    self._transaction.abort()
                    self._transaction = self._environment.begin()
                    future.set_result(None)
                self._queue.popleft()
        finally:
            self._worker = None

    async def _deliver(self, payload: bytes) -> None:
        for _ in range(STARTS_PER_BATCH):
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                status, text = await self._exchange(payload)
            except (_Died, ConnectionError):
                self._stop()
                continue
            if status == checkpoint.APPLIED:
                return
            if status == checkpoint.FULL:
                raise NoSpace(f"the store at {self._path} is full: {text}", retry_after_ms=1000)
            self._stop()
            raise Unavailable(f"the store at {self._path} cannot be written: {text}")
        raise Unavailable(f"the process that writes {self._path} ended {STARTS_PER_BATCH} times over one batch")

    async def _exchange(self, payload: bytes) -> tuple[bytes, str]:
        channel = self._channel
        assert channel is not None
        await self._loop.sock_sendall(channel, REQUEST.pack(len(payload)))
        await self._loop.sock_sendall(channel, payload)
        status, length = ANSWER.unpack(await self._exactly(channel, ANSWER.size))
        return status, (await self._exactly(channel, length)).decode(errors="replace")

    async def _exactly(self, channel: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(channel, size - len(data))
            if not more:
                raise _Died
            data += more
        return data

    # ── the writing process ───────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            command = [sys.executable, "-m", "raftspine.storage.checkpoint", str(self._path)]
            try:
                self._process = subprocess.Popen(
                    [*command, str(self._map_size_bytes)], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
                )
            except OSError as error:
                ours.close()
                raise Unavailable(f"the process that writes {self._path} cannot be started: {error}") from error
        self._channel = ours
        self.starts += 1

    def _stop(self) -> None:
        """End the process by ending its input; by force only when it does not finish its last batch."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is None:
            return
        try:
            self._process.wait(GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _check_length(path: Path, map_size_bytes: int) -> None:
    """Raises Corrupt when the file ends before its rows do. The map is memory to whoever reads it, so a page that
    is not there ends the process by a signal, without a word. A short file alone proves nothing: pages that were
    freed again before they were ever written may be missing at its end. So a process of its own reads every row."""
    file = path / "data.mdb"
    if not file.exists() or file.stat().st_size == 0:
        return
    environment = checkpoint.open_environment(str(path), map_size_bytes, readonly=True)
    try:
        promised = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    finally:
        environment.close()
    length = file.stat().st_size
    if length >= promised:
        return
    command = [sys.executable, "-m", "raftspine.storage.checkpoint", str(path), str(map_size_bytes), checkpoint.WALK]
    if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0:
        raise Corrupt(
            f"{file}, offset {length}: the file ends here, and its rows reach up to {promised}. {REMEDY}",
            details={"file": str(file), "offset": length},
        )


def _prepare(path: Path, map_size_bytes: int) -> None:
    """Create what is missing, free the slots of readers that died, check or write the marker."""
    major, minor, _ = lmdb.version()
    ours = f"1 lmdb {major}.{minor}".encode()
    environment = checkpoint.open_environment(str(path), map_size_bytes, readonly=False)
    try:
        environment.reader_check()
        with environment.begin(write=True) as transaction:
            found = transaction.get(keys.STORE_FORMAT)
            if found is None and transaction.stat()["entries"] == 0:
                transaction.put(keys.STORE_FORMAT, ours)
            elif found != ours:
                raise Misuse(
                    f"{path} was written in format {(found or b'unknown').decode(errors='replace')!r}, this "
                    f"version writes {ours.decode()!r}; use the version that wrote it, or export and import",
                    code="store_format",
                    details={"path": str(path)},
                )
    finally:
        environment.close()


def _mapped(error: Any, path: Path) -> SpineError:
    file = str(path / "data.mdb")
    if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)):
        return NoSpace(f"{file}: {error}")
    if isinstance(error, (lmdb.VersionMismatchError, lmdb.IncompatibleError)):
        return Misuse(f"{file} belongs to another LMDB engine: {error}", code="store_format")
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError)):
        return Corrupt(
            f"{file} cannot be read: {error}. {REMEDY}",
            details={"file": file, "offset": 0},
        )
    return Misuse(f"{file} cannot be opened: {error}", details={"path": str(path)})
