"""Workers are killed at random while they work through a queue: each task is completed exactly once on the record.

The suite takes a small queue; RAFTSPINE_TASKS=1000 a larger one.
"""

import asyncio
import os
import random
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from signal import Signals

import pytest

from raftspine import AsyncSpine
from tests.support.cluster import LocalCluster
from tests.support.processes import Process, Processes

TASKS = int(os.environ.get("RAFTSPINE_TASKS", "120"))
WORKERS = 8
KILL_EVERY_S = 0.4

pytestmark = [pytest.mark.system, pytest.mark.timeout(180 + TASKS)]

WORKER = """
import asyncio, os, sys
from raftspine import AsyncSpine
async def main():
    async with AsyncSpine(sys.argv[1].split(",")) as spine:
        async for task in spine.tasks("work").work(f"worker-{os.getpid()}", lease=2):
            async with task:
                await asyncio.sleep(0.05)
                await task.complete({"by": os.getpid(), "attempt": task.attempt})
asyncio.run(main())
"""


def test_each_task_is_completed_once_whoever_is_killed(processes: Processes, tmp_path: Path) -> None:
    cluster = LocalCluster(processes, tmp_path)
    cluster.start()
    chance = random.Random(17)

    def start(number: int) -> Process:
        command = [sys.executable, "-c", WORKER, ",".join(cluster.urls)]
        return processes.start(command, name=f"worker-{number}")

    async def run() -> tuple[Counter[str], list[dict[str, object]], int]:
        completed: Counter[str] = Counter()
        async with AsyncSpine(cluster.urls) as spine:
            queue = spine.tasks("work")

            async def count() -> None:
                async for event in spine.watch(kinds=["task"], prefix="work/"):
                    if event.change == "completed":
                        completed[event.key] += 1
                    if len(completed) == TASKS:
                        return

            counting = asyncio.create_task(count())
            await asyncio.gather(*(queue.enqueue(n, id=f"t-{n}") for n in range(TASKS)))
            workers = [await asyncio.to_thread(start, n) for n in range(WORKERS)]
            kills = 0
            while not counting.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(counting), KILL_EVERY_S)
                    break
                victim = chance.randrange(WORKERS)
                workers[victim].send(Signals.SIGKILL)
                await asyncio.to_thread(workers[victim].kill)
                workers[victim] = await asyncio.to_thread(start, victim)
                kills += 1
            await counting
            return completed, [await queue.show(f"t-{n}") for n in range(TASKS)], kills

    completed, tasks, kills = asyncio.run(run())
    assert kills > 0
    assert completed == {f"work/t-{n}": 1 for n in range(TASKS)}
    assert all(task["state"] == "done" for task in tasks)
