"""An engine on a disk and a tree in memory, for tests that look beneath it."""

import asyncio
from collections.abc import Callable
from typing import Any

from raftspine.ports import Directory
from raftspine.sim.tree import SimTree
from raftspine.storage.engine import Engine


class LoopClock:
    """ports.Clock by the running loop's time."""

    def wall_ms(self) -> int:
        return int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def open_engine(disk: Directory, tree: SimTree, *, durability: str = "interval", **options: Any) -> Engine:
    """With intervals so short that a test need not wait for them."""
    short: dict[str, Any] = {"sync_interval_ms": 2, "checkpoint_interval_ms": 5} | options
    return Engine.open(disk, tree, clock=LoopClock(), durability=durability, **short)


def new_tree() -> SimTree:
    return SimTree(asyncio.get_running_loop(), delay_seconds=0.001)


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; the test's own timeout is the limit."""
    while not condition():  # noqa: ASYNC110 (the engine has no event for each of its states)
        await asyncio.sleep(0.001)
