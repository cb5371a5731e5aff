"""The ledger host over the node's own engine: what survives a crash, and a snapshot from disk to disk."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from raftspine.core.ledger.commands import DeleteMemory, PutMemory, encode
from raftspine.model import GroupId, Memory, StrongRecord, Version
from raftspine.ports import Position
from raftspine.services.ledger_host import LedgerHost
from raftspine.sim.tree import SimTree
from raftspine.storage import keys, memories
from raftspine.storage.engine import Engine
from raftspine.storage.files import FileDirectory
from raftspine.system import SystemClock

GROUP = GroupId(1)


class NoRing:
    def adopt(self, group: GroupId, version: Version) -> None:
        raise AssertionError("nothing is demoted in these stories")

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        pass


@asynccontextmanager
async def opened(folder: Path, tree: SimTree, *, crash: bool = False) -> AsyncIterator[tuple[Engine, Any]]:
    """An engine and a ledger host over it; with `crash` the tree never gets what the log holds."""
    directory = FileDirectory(folder, asyncio.get_running_loop())
    engine = Engine.open(directory, tree, clock=SystemClock())
    try:
        yield engine, LedgerHost(engine, NoRing(), on_table=lambda _: None)
        if crash:
            await engine.commit(durable=True)
            tree.full = True
    finally:
        try:
            await engine.close()
        except Exception:
            if not crash:
                raise
        tree.full = False
        directory.close()


def fill(host: LedgerHost, count: int) -> None:
    first = host.position(GROUP).index + 1
    for index in range(first, first + count):
        commands = [encode(PutMemory(f"m{index}-{n}", Memory("x" * 200, tags=("critical",)))) for n in range(8)]
        host.apply(GROUP, Position(index, 1), index, [*commands, encode(DeleteMemory(f"m{index}-0"))])


def rows(engine: Engine) -> list[tuple[bytes, bytes]]:
    found = []
    for kind in (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER, keys.APPLIED, keys.INDEX):
        found += engine.scan(*keys.span(kind, GROUP), limit=100_000)
    return found


def test_a_restart_finds_the_position_and_the_effects_together(tmp_path: Path) -> None:
    async def story() -> None:
        tree = SimTree(asyncio.get_running_loop(), delay_seconds=0)
        async with opened(tmp_path / "a", tree, crash=True) as (engine, host):
            fill(host, 50)
            before = rows(engine)
        async with opened(tmp_path / "a", tree) as (engine, host):
            assert host.position(GROUP) == Position(50, 1) and rows(engine) == before
            fill(host, 1)
            assert memories.strong(engine, GROUP, "m51-7") is not None

    asyncio.run(story())


def test_a_snapshot_from_disk_to_disk_is_there_after_a_crash(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        source_tree, target_tree = SimTree(loop, delay_seconds=0), SimTree(loop, delay_seconds=0)
        async with opened(tmp_path / "a", source_tree) as (engine, host):
            fill(host, 200)
            at, stream = await host.snapshot(GROUP)
            fill(host, 10)
            chunks = [chunk async for chunk in stream]
            assert len(chunks) > 1
        async with opened(tmp_path / "b", target_tree, crash=True) as (engine, host):
            fill(host, 3)
            await host.install(GROUP, at, chunks)
            assert host.position(GROUP) == Position(200, 1)
        async with opened(tmp_path / "b", target_tree) as (engine, host):
            assert host.position(GROUP) == Position(200, 1)
            assert len(engine.scan(*keys.span(keys.STRONG, GROUP), limit=100_000)) == 200 * 8
            fill(host, 10)
            after = rows(engine)
        async with opened(tmp_path / "a", source_tree) as (engine, host):
            assert rows(engine) == after

    asyncio.run(story())
