"""The store as it runs: real files, LMDB, and processes that are killed without warning."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

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

    def __init__(self, path: Path, **options: int) -> None:
        loop = asyncio.get_running_loop()
        self.directory = FileDirectory(path / "log", loop)
        try:
            self.tree = LmdbTree.open(path / "tree", MAP_BYTES, loop)
            self.engine = Engine.open(self.directory, self.tree, clock=LoopClock(), **options)
        except BaseException:
            self.directory.close()
            raise

    async def close(self) -> None:
        await self.engine.close()
        self.directory.close()

    def checkpoint_pid(self) -> int:
        assert self.tree._process is not None
        return self.tree._process.pid


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
    async def check(last: int) -> None:
        store = Store(tmp_path)
        found = int(store.engine.get(b"last") or b"-1")
        assert found >= last
        kept = [key for key, _ in store.engine.scan(b"k", b"l", limit=1000)]
        assert kept == [b"k%09d" % number for number in range(max(found - 49, 0), found + 1)]
        await store.close()

    for acknowledged in (1, 150, 800):
        last, helper = write_until_killed(tmp_path, durability, acknowledged)

        async def helper_ends(pid: int = helper) -> None:
            await until(lambda: gone(pid))

        asyncio.run(helper_ends())
        asyncio.run(check(last))


def test_a_killed_checkpoint_process_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path, checkpoint_interval_ms=5)
        for number in range(60):
            store.engine.stage([(b"k%03d" % number, b"v" * 2000)])
            await store.engine.commit()
            if number % 20 == 10:
                os.kill(store.checkpoint_pid(), signal.SIGKILL)
        await store.engine.checkpoint()
        assert store.tree.starts > 1
        assert len(store.tree.scan(b"k", b"l", limit=100)) == 60
        await store.close()

    asyncio.run(story())


def test_a_checkpoint_process_that_ignores_signals_ends_with_its_input(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path)
        pid = store.checkpoint_pid()
        store.engine.stage([(b"a", b"1")])
        await store.engine.checkpoint()
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        store.engine.stage([(b"a", b"2")])
        await store.engine.checkpoint()
        assert (store.checkpoint_pid(), store.tree.starts) == (pid, 1)
        await store.close()
        assert gone(pid)

    asyncio.run(story())


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path)
        with pytest.raises(Misuse, match=f"in use by pid {os.getpid()}"):
            Store(tmp_path)
        await store.close()
        again = Store(tmp_path)
        await again.close()

    asyncio.run(story())


def test_a_full_map_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        directory = FileDirectory(tmp_path / "log", loop)
        tree = LmdbTree.open(tmp_path / "tree", 256 << 10, loop)
        engine = Engine.open(directory, tree, clock=LoopClock(), checkpoint_interval_ms=5)
        with pytest.raises(NoSpace):
            for number in range(10_000):
                engine.stage([(b"k%05d" % number, b"v" * 3000)])
                await engine.commit()
        assert engine.get(b"k00000") == b"v" * 3000
        assert engine.used_ratio() > 0.3
        with pytest.raises(NoSpace):
            await engine.close()
        directory.close()
        store = Store(tmp_path)
        assert len(store.engine.scan(b"k", b"l", limit=10_000)) == number
        await store.close()

    asyncio.run(story())


def test_views_of_the_tree_are_ordered_and_frozen_ones_stay(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path)
        store.engine.stage([(b"k%d" % number, b"%d" % number) for number in range(6)])
        frozen = await store.engine.freeze()
        tree = store.tree
        assert [key for key, _ in tree.scan(b"k1", b"k4", limit=9)] == [b"k1", b"k2", b"k3"]
        assert [key for key, _ in tree.scan(b"k1", b"k4", limit=2, reverse=True)] == [b"k3", b"k2"]
        assert [key for key, _ in tree.scan(b"k1", b"z", limit=9, reverse=True)][:1] == [b"k5"]
        assert tree.scan(b"k1", b"k4", limit=0) == tree.scan(b"z", b"zz", limit=5) == []
        store.engine.stage([(b"k1", None), (b"k2", b"new")])
        await store.engine.checkpoint()
        assert [tree.get(b"k1"), tree.get(b"k2")] == [None, b"new"]
        assert [frozen.get(b"k1"), frozen.get(b"k2")] == [b"1", b"2"]
        frozen.close()
        await store.close()

    asyncio.run(story())


def test_a_tree_of_another_format_or_of_garbage_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        store = Store(tmp_path)
        await store.tree.apply({keys.STORE_FORMAT: b"9 other"})
        await store.close()
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
        loop = asyncio.get_running_loop()
        directory = FileDirectory(tmp_path / "log", loop)
        tree = LmdbTree.open(tmp_path / "tree", MAP_BYTES, loop)
        engine = Engine.open(directory, tree, clock=LoopClock(), checkpoint_interval_ms=10**6)
        for number in range(3):
            engine.stage([(b"k%d" % number, b"v" * 100)])
            await engine.commit(durable=True)
        tree.close()
        directory.close()
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


def test_batches_left_at_the_end_fail_instead_of_hanging(tmp_path: Path) -> None:
    async def story() -> None:
        tree = LmdbTree.open(tmp_path / "tree", MAP_BYTES, asyncio.get_running_loop())
        waiting = tree.apply({b"a": b"1"})
        tree.close()
        with pytest.raises(Unavailable):
            await waiting

    asyncio.run(story())
