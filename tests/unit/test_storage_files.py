"""Real files: what is appended is readable at once, syncs are shared, and a disk's refusal reaches who asked."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftspine.storage.files import FileDirectory
from raftspine.storage.wal import Wal


@asynccontextmanager
async def folder(path: Path) -> AsyncIterator[FileDirectory]:
    directory = FileDirectory(path, asyncio.get_running_loop())
    try:
        yield directory
    finally:
        directory.close()


def test_files_grow_are_listed_cut_and_removed(tmp_path: Path) -> None:
    async def story() -> None:
        async with folder(tmp_path / "new" / "log") as directory:
            file = directory.open("a")
            file.append(b"one")
            file.append(b"two")
            assert (directory.names(), directory.read("a"), file.size()) == (["a"], b"onetwo", 6)
            await file.sync()
            file.close()
            file.close()
            file = directory.open("a", truncate_at=4)
            file.append(b"!")
            assert directory.read("a") == b"onet!"
            file.close()
            directory.remove("a")
            assert directory.names() == []

    asyncio.run(story())


def test_syncs_asked_for_while_one_runs_share_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, begun = threading.Event(), threading.Semaphore(0)
    lengths: list[int] = []

    def slow(fd: int) -> None:
        lengths.append(os.fstat(fd).st_size)
        begun.release()
        may_end.wait()

    monkeypatch.setattr(os, "fdatasync", slow)

    async def story() -> None:
        async with folder(tmp_path) as directory:
            file = directory.open("a")
            file.append(b"1")
            first = file.sync()
            await asyncio.to_thread(begun.acquire)
            file.append(b"2")
            second = file.sync()
            file.append(b"3")
            third = file.sync()
            may_end.set()
            await asyncio.gather(first, second, third)
            assert lengths == [1, 3]
            file.close()

    asyncio.run(story())


def test_a_failed_sync_is_told_and_later_ones_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[OSError | None] = [OSError(errno.EIO, "Input/output error"), None]

    def sync(fd: int) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "fdatasync", sync)

    async def story() -> None:
        async with folder(tmp_path) as directory:
            file = directory.open("a")
            with pytest.raises(OSError, match="Input/output"):
                await file.sync()
            await file.sync()
            file.close()

    asyncio.run(story())


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, bytes(data)[:3]))

    async def story() -> None:
        async with folder(tmp_path) as directory:
            file = directory.open("a")
            file.append(b"0123456789")
            assert (directory.read("a"), file.size()) == (b"0123456789", 10)
            file.close()

    asyncio.run(story())


def test_a_log_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    async def story() -> None:
        async with folder(tmp_path) as directory:
            (tmp_path / f"{1:020d}.wal").symlink_to("/dev/full")
            wal = Wal.open(directory, segment_bytes=1000)
            with pytest.raises(OSError, match="No space"):
                wal.append(b"x")
            wal.close()

    if Path("/dev/full").exists():
        asyncio.run(story())


def test_closing_waits_for_syncs_under_way(tmp_path: Path) -> None:
    async def story() -> None:
        async with folder(tmp_path) as directory:
            file = directory.open("a")
            file.append(b"x")
            pending = file.sync()
            file.close()
        await pending

    asyncio.run(story())


def test_what_is_moved_aside_is_gone_as_a_whole_whenever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(killed_after: int) -> None:
        path = tmp_path / f"raft{killed_after}"
        moved = 0

        def rename(*names: Path) -> None:
            nonlocal moved
            if moved == killed_after:
                raise KeyboardInterrupt
            moved += 1
            real(*names)

        async with folder(path) as directory:
            for name in "abc":
                directory.open(name).close()
            monkeypatch.setattr(os, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                directory.set_aside()
            monkeypatch.setattr(os, "rename", real)
        for _ in range(2):  # it is finished, and not done again
            async with folder(path) as directory:
                assert directory.names() == []

    real = os.rename
    for killed_after in range(3):
        asyncio.run(story(killed_after))
        aside = list(tmp_path.glob(f"raft{killed_after}.void-*"))
        assert len(aside) == 2
        assert sorted(file.name for folder in aside for file in folder.iterdir()) == ["a", "b", "c"]
