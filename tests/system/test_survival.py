"""Three real node processes, killed as a power cut or an impatient operator would kill them."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftspine import AsyncSpine
from raftspine.errors import Conflict, SpineError, Unavailable, Unknown
from tests.support.cluster import LocalCluster, await_that
from tests.support.memories import dataset, dataset_path
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(processes: Processes, tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(processes, tmp_path)
    made.start()
    yield made


def test_the_real_memories_are_kept_by_their_tags_and_outlive_any_one_node(
    cluster: LocalCluster, processes: Processes
) -> None:
    command = [sys.executable, "-m", "raftspine", "import", str(dataset_path()), "--url", cluster.url("n1")]
    importing = processes.start(command, name="import")
    assert importing.wait(120) == 0, importing.output()

    memories = dataset()
    critical = {m["id"] for m in memories if "critical" in m["tags"]}
    assert len(critical) == 15

    async def read_back(node: str) -> None:
        async with AsyncSpine(cluster.url(node), agent_id="reader", timeout=30) as spine:
            for start in range(0, len(memories), 250):
                part = memories[start : start + 250]
                results = await spine.batch({"op": "get", "id": m["id"]} for m in part)
                for memory, result in zip(part, results, strict=True):
                    assert result.record is not None, (node, memory["id"], result)
                    assert result.record.content == memory["content"]
                    assert sorted(result.record.tags) == sorted(set(memory["tags"]))
                    strong = result.record.consistency == "strong"
                    assert strong == (memory["id"] in critical), (node, memory["id"])

    async def both_paths_work(nodes: list[str]) -> None:
        async with AsyncSpine([cluster.url(node) for node in nodes], agent_id="writer", timeout=30) as spine:
            for i in range(40):
                ring = await spine.put(f"ring-{nodes[0]}-{i}", f"{i}")
                strong = await spine.put(f"strong-{nodes[0]}-{i}", f"{i}", tags=["critical"])
                assert (await spine.get(ring.id)).content == f"{i}"
                assert (await spine.get(strong.id)).content == f"{i}"

    for node in cluster.ids:
        asyncio.run(read_back(node))
    route = cluster.get("n1", f"/v1/route?id={sorted(critical)[0]}")[1]
    assert route["path"] == "strong" and len(route["replicas"]) == 3
    for victim in cluster.ids:
        cluster.kill(victim)
        asyncio.run(both_paths_work([node for node in cluster.ids if node != victim]))
        cluster.start(victim)
        await_agreement(cluster)
        asyncio.run(read_back(victim))


def await_agreement(cluster: LocalCluster) -> None:
    """No node misses anything another one has, on either path."""

    def agreed() -> bool:
        for node in cluster.ids:
            status = cluster.get(node, "/v1/cluster/status")[1]
            if status is None or not status["ready"]:
                return False
            if any(peer["pending_dots"] or not peer["connected"] for peer in status["peers"].values()):
                return False
            if any(group["applied"] != group["commit"] for group in status["groups"]):
                return False
        return len({str(cluster.get(node, "/v1/stats")[1]["memories_by_group"]) for node in cluster.ids}) == 1

    await_that(agreed, "all nodes agree", lambda: str(cluster.get(cluster.ids[0], "/v1/cluster/status")[1]))


def test_nothing_acknowledged_is_lost_when_all_nodes_are_killed_at_once(cluster: LocalCluster) -> None:
    acknowledged: dict[str, str] = {}

    async def write(name: str, tags: list[str], url: str, enough: asyncio.Event, stop: asyncio.Event) -> None:
        async with AsyncSpine(url, agent_id=name, timeout=2) as spine:
            i = 0
            while not stop.is_set():
                i += 1
                id, content = f"{name}-{i}", f"content {i} of {name}"
                try:
                    await spine.put(id, content, tags=tags)
                except SpineError:
                    continue
                acknowledged[id] = content
                if len(acknowledged) >= 3000:
                    enough.set()

    async def load() -> None:
        enough, stop = asyncio.Event(), asyncio.Event()
        writers = [
            asyncio.create_task(
                write(f"{'strong' if n % 2 else 'ring'}-{n}", ["lock"] if n % 2 else [], url, enough, stop)
            )
            for n, url in enumerate(cluster.urls * 4)
        ]
        await enough.wait()
        await asyncio.to_thread(cluster.kill, *cluster.ids)
        stop.set()
        await asyncio.gather(*writers)

    asyncio.run(load())
    assert any(id.startswith("strong") for id in acknowledged) and any(id.startswith("ring") for id in acknowledged)
    cluster.start()

    async def check() -> None:
        async with AsyncSpine(cluster.urls, agent_id="checker", timeout=30) as spine:
            ids = sorted(acknowledged)
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                results = await spine.batch({"op": "get", "id": id} for id in part)
                lost = [id for id, r in zip(part, results, strict=True) if r.record is None]
                assert not lost
                for id, result in zip(part, results, strict=True):
                    assert result.record is not None and result.record.content == acknowledged[id]

    asyncio.run(check())


def test_no_increment_is_lost_or_doubled_while_leaders_are_killed(cluster: LocalCluster) -> None:
    """16 clients add one to a counter by compare-and-set through all nodes; the leader is killed three times."""
    done: list[int] = []
    unknown: list[int] = []

    async def increment(n: int, goal: int, progress: asyncio.Event) -> None:
        async with AsyncSpine(cluster.urls[n % 3 :] + cluster.urls[: n % 3], agent_id=f"c{n}", timeout=20) as spine:
            for _ in range(goal):
                while True:
                    try:
                        now = await spine.get("counter")
                        await spine.put("counter", now.content + 1, tags=["critical"], expected_version=now.version)
                    except Conflict:
                        continue
                    except Unavailable:
                        continue
                    except Unknown:
                        unknown.append(n)
                        break
                    done.append(n)
                    progress.set()
                    break

    async def run() -> None:
        async with AsyncSpine(cluster.urls, timeout=30) as spine:
            await spine.put("counter", 0, tags=["critical"])
        progress = asyncio.Event()
        clients = [asyncio.create_task(increment(n, 25, progress)) for n in range(16)]
        for goal in (60, 160, 260):
            while len(done) < goal:
                progress.clear()
                await progress.wait()
            leader = cluster.get(next(n for n in cluster.ids if cluster.running[n].alive()), "/v1/route?id=counter")
            victim = leader[1]["leader"]
            if victim is not None:
                await asyncio.to_thread(cluster.kill, victim)
                await asyncio.to_thread(cluster.start, victim)
        await asyncio.gather(*clients)
        async with AsyncSpine(cluster.urls, timeout=30) as spine:
            total = (await spine.get("counter")).content
        assert len(done) <= total <= len(done) + len(unknown)
        assert len(done) + len(unknown) == 16 * 25

    asyncio.run(run())
