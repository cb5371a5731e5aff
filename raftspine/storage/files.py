"""Real files behind ports.Directory: appended on the loop's thread, synced on a thread of their own.

The rule: an append goes to the page cache at once, which takes microseconds and outlives the process; only
the sync, which waits for the disk, is handed away, and all who ask for one while another runs share the next.
A loop that waits for a disk answers nobody, neither clients nor the peers who then elect a new leader.

One process at a time: two writers on one log would each take the other's records for damage.
"""

import contextlib
import fcntl
import os
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from raftspine.errors import Misuse
from raftspine.storage.futures import SharedFuture

LOCK_NAME = "lock"

ASIDE_NAME = "aside"
"""A file that is there while the others are being moved aside: what is left of them must not be read as a log."""

Job = Callable[[], None]


class FileDirectory:
    """A folder of logs, created when missing, held by this process until `close`. Raises Misuse when another
    holder has it, OSError."""

    def __init__(self, path: str | os.PathLike[str], loop: AbstractEventLoop) -> None:
        self._path = Path(path)
        self._loop = loop
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _hold(self._path / LOCK_NAME)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if (self._path / ASIDE_NAME).exists():  # the process that began this died
            self.set_aside()

    @property
    def path(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        with os.scandir(self._path) as entries:
            return [entry.name for entry in entries if entry.is_file() and entry.name not in (LOCK_NAME, ASIDE_NAME)]

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        with (self._path / name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def open(self, name: str, *, truncate_at: int | None = None) -> "AppendedFile":
        path = self._path / name
        created = not path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if truncate_at is not None:
                os.ftruncate(fd, truncate_at)
                os.fsync(fd)
            if created:
                self._sync_names()
            return AppendedFile(self, fd, os.fstat(fd).st_size)
        except BaseException:
            os.close(fd)
            raise

    def remove(self, name: str) -> None:
        os.unlink(self._path / name)
        self._sync_names()

    def set_aside(self) -> str:
        """Move all files into a new folder beside this one, `<name>.void-<n>`: kept for whoever wants to know,
        and out of the way for whoever has to begin anew. All or nothing, whenever the process is killed: half a log
        may look like an older one that is whole, with promises in it that were taken back since."""
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.void-{number}")).exists():
            number += 1
        aside.mkdir(mode=0o700)
        marker = self._path / ASIDE_NAME
        marker.touch(mode=0o600)
        self._sync_names()
        for name in self.names():
            os.rename(self._path / name, aside / name)
        for path in (aside, self._path.parent, self._path):
            _sync_folder(path)
        self.remove(ASIDE_NAME)
        return str(aside)

    def close(self) -> None:
        """Finish the syncs asked for and let another process have the folder."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        os.close(self._lock)

    # ── for the files ─────────────────────────────────────────────────────────────────────────────────────

    def later(self, job: Job) -> None:
        """Run a job on the sync thread, behind those already waiting."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"sync {self._path.name}", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def release(self, fd: int) -> None:
        """Close a descriptor once no sync can be using it."""
        if self._thread is None:
            os.close(fd)
        else:
            self._jobs.put(partial(os.close, fd))

    def shared_future(self) -> SharedFuture:
        return SharedFuture(loop=self._loop)

    def tell(self, future: SharedFuture, error: OSError | None) -> None:
        """From the sync thread: resolve a future on the loop."""
        # RuntimeError: the loop is closed, so nobody waits any more.
        with contextlib.suppress(RuntimeError):
            if error is None:
                self._loop.call_soon_threadsafe(future.set_result, None)
            else:
                self._loop.call_soon_threadsafe(future.fail, error)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _sync_names(self) -> None:
        _sync_folder(self._path)


class AppendedFile:
    """ports.AppendFile on a descriptor."""

    def __init__(self, directory: FileDirectory, fd: int, size: int) -> None:
        self._directory = directory
        self._fd = fd
        self._size = size
        self._waiting: SharedFuture | None = None  # of a sync that has not begun

    def append(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        self._size += written
        rest = memoryview(data)[written:]
        while rest:  # a nearly full disk takes a part, and refuses the next write
            written = os.write(self._fd, rest)
            self._size += written
            rest = rest[written:]

    def sync(self) -> SharedFuture:
        waiting = self._waiting  # read once: the sync thread may take it away at any moment
        if waiting is not None:
            return waiting
        self._waiting = future = self._directory.shared_future()
        self._directory.later(partial(self._sync, self._fd))
        return future

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        """Behind the syncs already asked for."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            self._directory.release(fd)

    def _sync(self, fd: int) -> None:
        # Taken before the disk is asked: whoever appends from here on gets another future. The two threads
        # exchange one reference, which the interpreter does in one step.
        future, self._waiting = self._waiting, None
        assert future is not None
        try:
            os.fdatasync(fd)
        except OSError as error:
            self._directory.tell(future, error)
        else:
            self._directory.tell(future, None)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _hold(path: Path) -> int:
    """Lock the folder for this process and write down who holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Misuse(
            f"{path.parent} is in use by pid {holder}; stop that process or choose another data directory",
            code="data_dir_in_use",
            details={"path": str(path.parent), "pid": holder},
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd
