"""A disk that keeps what was synced, and of the rest whatever the seed says.

A real disk forgets unsynced bytes only when the power fails at the right moment, which no test can arrange.
This one does it on request: at a crash each file keeps its synced part and a random share of what was
appended since, possibly torn within a record, possibly with a hole of zeros, as page caches leave it. It can
also be full, slow, or fail; and when a sync has failed, the pages it was for are never written any more, although the
next sync says that all is well, as Linux does it (Rebello et al., "Can Applications Recover from fsync Failures?",
2020). Sectors are written whole or not at all: of one whose sync failed, what was appended to it later is not there
either, and all of it is when a later sync writes it again.

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
        self.dropped: list[tuple[int, int]] = []
        """Parts whose sync failed: in the page cache only, whatever is synced later."""


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
        self.refuses = False
        """Appending fails with EIO, and writes nothing."""
        self.slowness = 1.0
        """How many times longer a sync takes."""
        self.life = 0
        """Grows with each crash; handles of an earlier life are dead."""
        self.syncs = 0
        self.on_sync: Callable[[], None] | None = None
        """Called when a sync begins: the moment at which a crash tells most."""
        self.at: Callable[[str], None] | None = None
        """Told the name of each point that a node passes, before and after whatever it does to its files."""
        self._folders: dict[str, dict[str, _File]] = {}

    def directory(self, name: str) -> "SimDirectory":
        return SimDirectory(self, name, self._folders.setdefault(name, {}))

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
        for start, end in file.dropped:
            end = min(-(-end // SECTOR_BYTES) * SECTOR_BYTES, len(file.data))
            file.data[start:end] = bytes(max(0, end - start))
        file.dropped.clear()
        file.synced = len(file.data)

    def safe(self, directory: str) -> dict[str, bytes]:
        """What a power loss now would certainly leave of a folder's files."""
        kept = {}
        for name, file in self._folders.get(directory, {}).items():
            data = file.data[: file.synced]
            for start, end in file.dropped:
                data[start:end] = bytes(min(end, len(data)) - start)
            kept[name] = bytes(data)
        return kept

    def is_safe(self, directory: str, name: str, start: int, end: int) -> bool:
        """Whether a power loss now would leave these bytes of a file."""
        file = self._folders.get(directory, {}).get(name)
        if file is None or file.synced < end:
            return False
        return all(end <= low or start >= high for low, high in file.dropped)

    def pass_point(self, name: str) -> None:
        if self.at is not None:
            self.at(name)

    def damage(self, directory: str, name: str, offset: int) -> None:
        """Flip a byte of a file, as rotten media does."""
        self._folders[directory][name].data[offset] ^= 0xFF

    def erase(self, directory: str) -> None:
        """All files of a folder are gone, as after a replaced volume. Only while the node is dead."""
        self._folders.pop(directory, None)

    def image(self, directory: str) -> dict[str, bytes]:
        """What a backup of a folder would hold."""
        return {name: bytes(file.data) for name, file in self._folders.get(directory, {}).items()}

    def restore(self, directory: str, image: dict[str, bytes]) -> None:
        """Put an older image in place of a folder, as a restored machine does. Only while the node is dead."""
        self._folders[directory] = {name: _File(data) for name, data in image.items()}

    def size(self) -> int:
        return sum(len(file.data) for folder in self._folders.values() for file in folder.values())


class SimDirectory:
    def __init__(self, disk: SimDisk, folder: str, files: dict[str, _File]) -> None:
        self._disk = disk
        self._folder = folder
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
            return SimFile(self._disk, self._folder, _File())
        file = self._files.setdefault(name, _File())
        if truncate_at is not None:
            del file.data[truncate_at:]
            file.synced = min(file.synced, truncate_at)
            file.dropped = [(start, min(end, truncate_at)) for start, end in file.dropped if start < truncate_at]
        return SimFile(self._disk, self._folder, file)

    def remove(self, name: str) -> None:
        if self._life != self._disk.life:
            return
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        self._disk.pass_point(f"before removing from {self._folder}")
        del self._files[name]
        self._disk.pass_point(f"after removing from {self._folder}")

    def set_aside(self) -> str:
        number = 1
        while (aside := f"{self._folder}.void-{number}") in self._disk._folders:
            number += 1
        self._disk._folders[aside] = dict(self._files)
        self._files.clear()
        return aside


class SimFile:
    def __init__(self, disk: SimDisk, folder: str, file: _File) -> None:
        self._disk = disk
        self._folder = folder
        self._file = file
        self._life = disk.life

    @property
    def _dead(self) -> bool:
        return self._life != self._disk.life

    def append(self, data: bytes) -> None:
        disk = self._disk
        if self._dead:
            return
        disk.pass_point(f"before writing to {self._folder}")
        if disk.refuses:
            raise OSError(errno.EIO, "the simulated disk fails to write")
        if disk.full:
            self._file.data += data[: disk.dice.below(len(data))]
            raise OSError(errno.ENOSPC, "no space left on the simulated disk")
        self._file.data += data
        disk.pass_point(f"after writing to {self._folder}")

    def sync(self) -> "Future[None]":
        """Resolves after a while; never, when the process has died meanwhile."""
        disk = self._disk
        future: Future[None] = asyncio.get_running_loop().create_future()
        disk.syncs += 1
        disk.pass_point(f"before syncing {self._folder}")
        if disk.on_sync is not None:
            disk.on_sync()
        covered = len(self._file.data)
        delay = disk.dice.uniform(*disk.sync_seconds) * disk.slowness
        disk.loop.call_later(delay, self._synced, future, covered)
        return future

    def _synced(self, future: "Future[None]", covered: int) -> None:
        disk, file = self._disk, self._file
        if self._dead or future.done():
            return
        covered = min(covered, len(file.data))
        if disk.broken:
            if covered > file.synced:
                file.dropped.append((file.synced, covered))
                file.synced = covered
            future.set_exception(OSError(errno.EIO, "the simulated disk fails to sync"))
            return
        if covered > file.synced:  # a sector is written as a whole, with what an earlier sync has left of it
            whole = file.synced // SECTOR_BYTES * SECTOR_BYTES
            file.dropped = [(start, min(end, whole)) for start, end in file.dropped if start < whole]
            file.synced = covered
        future.set_result(None)
        disk.pass_point(f"after syncing {self._folder}")

    def size(self) -> int:
        return len(self._file.data)

    def close(self) -> None:
        pass
