"""A Directory in memory that can lose power, fill up and refuse to sync, for tests of what sits on one."""

import asyncio
import errno
from asyncio import Future


class MemoryDisk:
    """`room` is how many more bytes fit; None for no limit. `sync_error` makes every sync fail that is asked for
    while it is set."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.synced: dict[str, int] = {}
        self.room: int | None = None
        self.sync_error: OSError | None = None
        self.truncate_error: OSError | None = None
        self.syncs = 0

    @property
    def path(self) -> str:
        return "memory"

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        data = self.files[name]
        return bytes(data[offset:] if length < 0 else data[offset : offset + length])

    def open(self, name: str, *, truncate_at: int | None = None) -> "MemoryFile":
        data = self.files.setdefault(name, bytearray())
        if truncate_at is not None:
            if self.truncate_error is not None:
                raise self.truncate_error
            if self.room is not None:
                self.room += len(data) - truncate_at
            del data[truncate_at:]
            self.synced[name] = min(self.synced.get(name, 0), truncate_at)
        return MemoryFile(self, name, data)

    def remove(self, name: str) -> None:
        freed = self.files.pop(name)
        self.synced.pop(name, None)
        if self.room is not None:
            self.room += len(freed)

    def set_aside(self) -> str:
        raise NotImplementedError("no test of a log on this disk voids it")

    def copy(self) -> "MemoryDisk":
        """What a second process would find now: the page cache survives the death of the first."""
        twin = MemoryDisk()
        twin.files = {name: bytearray(data) for name, data in self.files.items()}
        twin.synced = dict(self.synced)
        return twin

    def power_cut(self) -> "MemoryDisk":
        """What is left after power loss when nothing unsynced was lucky."""
        twin = MemoryDisk()
        twin.files = {name: data[: self.synced.get(name, 0)] for name, data in self.files.items()}
        twin.synced = dict(self.synced)
        return twin


class MemoryFile:
    def __init__(self, disk: MemoryDisk, name: str, data: bytearray) -> None:
        self._disk, self._name, self._data = disk, name, data
        self._open = True

    def append(self, data: bytes) -> None:
        assert self._open
        room = self._disk.room
        if room is not None and len(data) > room:
            self._data += data[:room]
            self._disk.room = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        if room is not None:
            self._disk.room = room - len(data)
        self._data += data

    def sync(self) -> "Future[None]":
        assert self._open
        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        loop.call_soon(self._done, future, len(self._data), self._disk.sync_error)
        return future

    def _done(self, future: "Future[None]", length: int, error: OSError | None) -> None:
        self._disk.syncs += 1
        if error is not None:
            future.set_exception(error)
            return
        before = self._disk.synced.get(self._name, 0)
        self._disk.synced[self._name] = max(before, length)
        future.set_result(None)

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        self._open = False
