"""Read-your-writes across nodes, while the links between them are slow."""

import asyncio
from pathlib import Path

import pytest

from raftspine import AsyncSpine
from tests.support.cluster import LocalCluster
from tests.support.processes import Processes
from tests.support.proxy import DelayProxy
from tests.support.tools import free_ports

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WRITES = 10_000
WORKERS = 50


def test_a_session_reads_its_write_on_every_other_node_at_once(processes: Processes, tmp_path: Path) -> None:
    """n1 dials n2 and n3, and n2 dials n3 (the smaller id dials): each of these links gets a delay of its own."""
    cluster = LocalCluster(processes, tmp_path)
    pairs = [("n1", "n2"), ("n1", "n3"), ("n2", "n3")]
    cluster.reroute = dict(zip(pairs, free_ports(3), strict=True))

    async def run() -> None:
        proxies = [
            DelayProxy(cluster.reroute[pair], ("127.0.0.1", cluster.peer[pair[1]]), delay_ms=delay)
            for pair, delay in zip(pairs, (1, 25, 10), strict=True)
        ]
        for proxy in proxies:
            await proxy.start()
        try:
            await asyncio.to_thread(cluster.start)
            await asyncio.gather(*(worker(n) for n in range(WORKERS)))
        finally:
            for proxy in proxies:
                await proxy.close()

    async def worker(n: int) -> None:
        one, two, three = (AsyncSpine(url, timeout=30) for url in cluster.urls)
        async with one, two, three:
            writer = one.session(agent_id=f"agent-{n}")
            for i in range(WRITES // WORKERS):
                written = await writer.put(f"s-{n}-{i % 20}", i)
                for other in (two, three):
                    read = await other.session(agent_id=f"agent-{n}", token=writer.token).get(written.id)
                    assert read.content == i, (n, i, read)

    asyncio.run(run())
