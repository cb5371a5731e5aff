"""A disk that keeps what was synced, and of the rest whatever the seed says.

A real disk forgets unsynced bytes only when the power fails at the right moment, which no test can arrange.
This one does it on request: at a crash each file keeps its synced part and a random share of what was
appended since, possibly torn within a record, possibly with a hole of zeros, as page caches leave it. It can
also be full, or fail.

`SimDisk` is one node's disk; its directories are `ports.Directory`, its files `ports.AppendFile`. After a
crash the handles of the dead process still exist in the simulation and no longer reach anything.
"""

import asyncio
import errno
from asyncio import Future
from collections.abc import Callable

from raftspine.sim.loop import Dice, VirtualLoop

SECTOR_BYTES = 512


class _File:
    """What the disk holds of one file: all bytes appended, and how many are safe."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.synced = len(data)


class SimDisk:
    """`sync_seconds`: shortest and longest time a sync takes."""

    def __init__(self, loop: VirtualLoop, dice: Dice, *, sync_seconds: tuple[float, float] = (0.0002, 0.002)) -> None:
        self.loop = loop
        self.dice = dice
        self.sync_seconds = sync_seconds
        self.full = False
        """Appending fails with ENOSPC, after a part of the bytes was written, as the kernel may do."""
        self.broken = False
        """Syncs fail with EIO."""
        self.life = 0
        """Grows with each crash; handles of an earlier life are dead."""
        self.syncs = 0
        self.on_sync: Callable[[], None] | None = None
        """Called when a sync begins: the moment at which a crash tells most."""
        self._folders: dict[str, dict[str, _File]] = {}

    def directory(self, name: str) -> "SimDirectory":
        return SimDirectory(self, self._folders.setdefault(name, {}))

    def crash(self, *, power: bool) -> None:
        """The process dies; with `power`, the page cache is lost too."""
        self.life += 1
        if power:
            for folder in self._folders.values():
                for file in folder.values():
                    self._lose(file)

    def _lose(self, file: _File) -> None:
        unsynced = len(file.data) - file.synced
        if unsynced:
            del file.data[file.synced + self.dice.below(unsynced + 1) :]
            first = -(-file.synced // SECTOR_BYTES) * SECTOR_BYTES
            for start in range(first, len(file.data), SECTOR_BYTES):
                if self.dice.chance(0.05):  # this page had not been written back, a later one had
                    end = min(start + SECTOR_BYTES, len(file.data))
                    file.data[start:end] = bytes(end - start)
        file.synced = len(file.data)

    def damage(self, directory: str, name: str, offset: int) -> None:
        """Flip a byte of a file, as rotten media does."""
        self._folders[directory][name].data[offset] ^= 0xFF

    def erase(self, directory: str) -> None:
        """All files of a folder are gone, as after a replaced volume. Only while the node is dead."""
        self._folders.pop(directory, None)

    def size(self) -> int:
        return sum(len(file.data) for folder in self._folders.values() for file in folder.values())


class SimDirectory:
    def __init__(self, disk: SimDisk, files: dict[str, _File]) -> None:
        self._disk = disk
        self._files = files
        self._life = disk.life

    @property
    def path(self) -> str:
        return "disk"

    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        data = self._files[name].data
        return bytes(data[offset:] if length < 0 else data[offset : offset + length])

    def open(self, name: str, *, truncate_at: int | None = None) -> "SimFile":
        if self._life != self._disk.life:
            return SimFile(self._disk, _File())
        file = self._files.setdefault(name, _File())
        if truncate_at is not None:
            del file.data[truncate_at:]
            file.synced = min(file.synced, truncate_at)
        return SimFile(self._disk, file)

    def remove(self, name: str) -> None:
        if self._life != self._disk.life:
            return
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        del self._files[name]


class SimFile:
    def __init__(self, disk: SimDisk, file: _File) -> None:
        self._disk = disk
        self._file = file
        self._life = disk.life

    @property
    def _dead(self) -> bool:
        return self._life != self._disk.life

    def append(self, data: bytes) -> None:
        if self._dead:
            return
        if self._disk.full:
            self._file.data += data[: self._disk.dice.below(len(data))]
            raise OSError(errno.ENOSPC, "no space left on the simulated disk")
        self._file.data += data

    def sync(self) -> "Future[None]":
        """Resolves after a while; never, when the process has died meanwhile."""
        future: Future[None] = asyncio.get_running_loop().create_future()
        self._disk.syncs += 1
        if self._disk.on_sync is not None:
            self._disk.on_sync()
        covered = len(self._file.data)
        delay = self._disk.dice.uniform(*self._disk.sync_seconds)
        self._disk.loop.call_later(delay, self._synced, future, covered)
        return future

    def _synced(self, future: "Future[None]", covered: int) -> None:
        if self._dead or future.done():
            return
        if self._disk.broken:
            future.set_exception(OSError(errno.EIO, "the simulated disk fails to sync"))
            return
        self._file.synced = max(self._file.synced, min(covered, len(self._file.data)))
        future.set_result(None)

    def size(self) -> int:
        return len(self._file.data)

    def close(self) -> None:
        pass
