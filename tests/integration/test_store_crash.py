"""The store as it runs: real files, LMDB, and processes that are killed without warning."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftspine.errors import Corrupt, Misuse, NoSpace, Unavailable
from raftspine.storage import keys
from raftspine.storage.engine import Engine
from raftspine.storage.files import FileDirectory
from raftspine.storage.tree import LmdbTree
from tests.support.storage import LoopClock, until

MAP_BYTES = 64 << 20

WRITER = """
import asyncio, sys
from raftspine.storage.engine import Engine
from raftspine.storage.files import FileDirectory
from raftspine.storage.tree import LmdbTree
from tests.support.storage import LoopClock

async def main():
    loop = asyncio.get_running_loop()
    tree = LmdbTree.open(sys.argv[1] + "/tree", 64 << 20, loop)
    engine = Engine.open(
        FileDirectory(sys.argv[1] + "/log", loop), tree, clock=LoopClock(),
        checkpoint_interval_ms=20, segment_bytes=20_000, durability=sys.argv[2],
    )
    print("checkpoint", tree._process.pid, flush=True)
    for number in range(10**9):
        engine.stage([(b"k%09d" % number, b"v" * 100), (b"last", b"%d" % number), (b"k%09d" % (number - 50), None)])
        await engine.commit()
        print(number, flush=True)

asyncio.run(main())
"""


class Store:
    """An engine on real files below a folder."""

    def __init__(self, path: Path, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as undo:
            self.directory = FileDirectory(path / "log", loop)
            undo.callback(self.directory.close)
            self.tree = LmdbTree.open(path / "tree", options.pop("map_bytes", MAP_BYTES), loop)
            undo.callback(self.tree.close)
            self.engine = Engine.open(self.directory, self.tree, clock=LoopClock(), **options)
            undo.pop_all()
        self._open = True

    async def close(self) -> None:
        if self._open:
            self._open = False
            try:
                await self.engine.close()
            finally:
                self.directory.close()

    def crash(self) -> None:
        """Let go without a checkpoint."""
        self._open = False
        self.tree.close()
        self.directory.close()

    def checkpoint_pid(self) -> int:
        assert self.tree._process is not None
        return self.tree._process.pid


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Store]:
    store = Store(path, **options)
    try:
        yield store
    finally:
        await store.close()


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def write_until_killed(path: Path, durability: str, acknowledged: int) -> tuple[int, int]:
    """Kill a writer after that many acknowledgements; returns the last one it gave, and its helper's pid."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), durability], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout as lines:
        helper = int(lines.readline().split()[1])
        for _ in range(acknowledged):
            lines.readline()
        process.kill()
        told = [line for line in lines.read().split(b"\n")[:-1] if line]
    return int(told[-1]) if told else acknowledged - 1, helper


@pytest.mark.parametrize("durability", ["interval", "always"])
def test_everything_acknowledged_survives_a_kill_at_any_time(tmp_path: Path, durability: str) -> None:
    async def check(last: int, helper: int) -> None:
        await until(lambda: gone(helper))
        async with opened(tmp_path) as store:
            found = int(store.engine.get(b"last") or b"-1")
            assert found >= last
            kept = [key for key, _ in store.engine.scan(b"k", b"l", limit=1000)]
            assert kept == [b"k%09d" % number for number in range(max(found - 49, 0), found + 1)]

    for acknowledged in (1, 150, 800):
        asyncio.run(check(*write_until_killed(tmp_path, durability, acknowledged)))


def test_a_killed_checkpoint_process_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path, checkpoint_interval_ms=5) as store:
            for number in range(60):
                store.engine.stage([(b"k%03d" % number, b"v" * 2000)])
                await store.engine.commit()
                if number % 20 == 10:
                    os.kill(store.checkpoint_pid(), signal.SIGKILL)
            await store.engine.checkpoint()
            assert store.tree.starts > 1
            assert len(store.tree.scan(b"k", b"l", limit=100)) == 60

    asyncio.run(story())


def test_a_checkpoint_process_ignores_signals_and_ends_with_its_input(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as store:
            pid = store.checkpoint_pid()
            store.engine.stage([(b"a", b"1")])
            await store.engine.checkpoint()
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            store.engine.stage([(b"a", b"2")])
            await store.engine.checkpoint()
            assert (store.checkpoint_pid(), store.tree.starts) == (pid, 1)
        assert gone(pid)

    asyncio.run(story())


def test_a_second_opener_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path):
            with pytest.raises(Misuse, match=f"in use by pid {os.getpid()}"):
                Store(tmp_path)
        async with opened(tmp_path):
            pass

    asyncio.run(story())


def test_a_full_map_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    async def story() -> None:
        taken = 0
        with pytest.raises(NoSpace):
            async with opened(tmp_path, map_bytes=256 << 10, checkpoint_interval_ms=5) as store:
                for number in range(10_000):
                    store.engine.stage([(b"k%05d" % number, b"v" * 3000)])
                    await store.engine.commit()
                    taken += 1
        assert store.engine.read_only() is not None
        async with opened(tmp_path) as larger:
            assert len(larger.engine.scan(b"k", b"l", limit=10_000)) == taken

    asyncio.run(story())


def test_views_of_the_tree_are_ordered_and_frozen_ones_stay(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as store:
            store.engine.stage([(b"k%d" % number, b"%d" % number) for number in range(6)])
            frozen = await store.engine.freeze()
            tree = store.tree
            assert [key for key, _ in tree.scan(b"k1", b"k4", limit=9)] == [b"k1", b"k2", b"k3"]
            assert [key for key, _ in tree.scan(b"k1", b"k4", limit=2, reverse=True)] == [b"k3", b"k2"]
            assert [key for key, _ in tree.scan(b"k4", b"l", limit=9, reverse=True)] == [b"k5", b"k4"]
            assert tree.scan(b"k", b"zz", limit=1, reverse=True)[0][0].startswith(keys.META)
            assert tree.scan(b"k1", b"k4", limit=0) == tree.scan(b"z", b"zz", limit=5) == []
            store.engine.stage([(b"k1", None), (b"k2", b"new")])
            await store.engine.checkpoint()
            assert [tree.get(b"k1"), tree.get(b"k2")] == [None, b"new"]
            assert [frozen.get(b"k1"), frozen.get(b"k2")] == [b"1", b"2"]
            assert 0 < store.engine.used_ratio() < 0.1
            frozen.close()

    asyncio.run(story())


def test_a_tree_of_another_format_or_of_garbage_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with opened(tmp_path) as store:
            await store.tree.apply({keys.STORE_FORMAT: b"9 other"})
        with pytest.raises(Misuse, match="9 other"):
            LmdbTree.open(tmp_path / "tree", MAP_BYTES, loop)
        garbage = tmp_path / "garbage"
        garbage.mkdir()
        (garbage / "data.mdb").write_bytes(b"not a database" * 1000)
        with pytest.raises(Corrupt) as caught:
            LmdbTree.open(garbage, MAP_BYTES, loop)
        assert caught.value.details["file"] == str(garbage / "data.mdb")

    asyncio.run(story())


def test_a_log_damaged_in_the_middle_is_refused_by_name_and_place(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path, checkpoint_interval_ms=10**6)
        for number in range(3):
            store.engine.stage([(b"k%d" % number, b"v" * 100)])
            await store.engine.commit(durable=True)
        store.crash()
        (file,) = (tmp_path / "log").glob("*.wal")
        assert file.stat().st_mode & 0o777 == 0o600
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
        with pytest.raises(Corrupt) as caught:
            Store(tmp_path)
        assert caught.value.details["file"] == file.name
        assert caught.value.details["offset"] < 100

    asyncio.run(story())


def test_a_writer_waits_for_one_that_outlived_its_node(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "tree").mkdir()
        survivor = os.open(tmp_path / "tree" / "writer", os.O_RDWR | os.O_CREAT)
        fcntl.flock(survivor, fcntl.LOCK_EX)
        async with opened(tmp_path) as store:
            store.engine.stage([(b"a", b"1")])
            done = store.engine.checkpoint()
            await asyncio.wait([done], timeout=0.3)
            assert not done.done()
            os.close(survivor)
            await done

    asyncio.run(story())


def test_batches_left_at_the_end_fail_instead_of_hanging(tmp_path: Path) -> None:
    async def story() -> None:
        tree = LmdbTree.open(tmp_path / "tree", MAP_BYTES, asyncio.get_running_loop())
        waiting = tree.apply({b"a": b"1"})
        tree.close()
        with pytest.raises(Unavailable):
            await waiting

    asyncio.run(story())
