"""Of several instances of a service, one does the periodic work; when it goes, another takes over.

Run it against a development cluster (`raftspine dev`): python examples/elected_cron.py
"""

import asyncio
import os

from raftspine import AsyncSpine, LeaseLost

URL = os.environ.get("RAFTSPINE_URL", "http://127.0.0.1:8788").split(",")
TICKS = 3


async def instance(name: str, ran: list[tuple[str, int]]) -> None:
    """Stand for election, and while in office run the job. The term guards what the job writes."""
    async with AsyncSpine(URL, agent_id=name) as spine:
        try:
            async with spine.election("nightly").campaign({"instance": name}, ttl=5, owner=name) as office:
                for tick in range(TICKS):
                    await spine.put("nightly", {"by": name, "tick": tick}, tags=["lock"], guard=office)
                    ran.append((name, office.term))
        except LeaseLost as lost:
            print(name, "was voted out:", lost.message)


async def main() -> None:
    ran: list[tuple[str, int]] = []
    async with AsyncSpine(URL) as spine:
        instances = [asyncio.create_task(instance(f"cron-{n}", ran)) for n in (1, 2)]
        async for leader in spine.election("nightly").observe():
            print("leader:", "nobody" if leader is None else f"{leader.owner} in term {leader.term}")
            if len(ran) == 2 * TICKS:
                break
        await asyncio.gather(*instances)
        last = await spine.get("nightly")
    names = [name for name, _ in ran]
    assert names[:TICKS] == [names[0]] * TICKS and names[TICKS:] == [names[-1]] * TICKS, ran  # one after the other
    assert ran[0][1] < ran[-1][1], "terms rise"
    print("the last run was by", last.content["by"])


asyncio.run(main())
