"""Workers share a queue; one of them dies with a task in its hands, and each task is still finished once.

Run it against a development cluster (`raftspine dev`): python examples/worker_pool.py
"""

import asyncio
import os

from raftspine import AsyncSpine

URL = os.environ.get("RAFTSPINE_URL", "http://127.0.0.1:8788").split(",")
PAGES = 12


async def worker(name: str) -> None:
    async with AsyncSpine(URL, agent_id=name) as spine:
        async for task in spine.tasks("render").work(name, lease=5):
            async with task:  # cancelled if the claim is lost, failed if this block raises
                await task.complete({"rendered": task.payload["page"], "by": name})


async def dies_at_work(name: str) -> None:
    """Claims a task and is never heard of again: its lease runs out and the task goes to somebody else."""
    async with AsyncSpine(URL, agent_id=name) as spine:
        (task,) = await spine.tasks("render").claim(name, lease=2, wait=10)
        print(name, "died at page", task.payload["page"])


async def main() -> None:
    async with AsyncSpine(URL) as spine:
        queue = spine.tasks("render")
        for page in range(PAGES):
            await queue.enqueue({"page": page}, id=f"page-{page}", max_attempts=3)
        await dies_at_work("worker-0")
        workers = [asyncio.create_task(worker(f"worker-{n}")) for n in (1, 2, 3)]
        while (await queue.page())["counts"]["done"] < PAGES:
            await asyncio.wait(workers, timeout=0.2)  # they only end by an error
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        done = [await queue.show(f"page-{page}") for page in range(PAGES)]
        assert sorted(task["result"]["rendered"] for task in done) == list(range(PAGES))
        again = [task["id"] for task in done if task["attempts"] > 1]
        print(f"{len(done)} pages rendered, each once; {', '.join(again)} took a second attempt")


asyncio.run(main())
