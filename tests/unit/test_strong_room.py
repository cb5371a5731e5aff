"""A store whose map is full refuses strong writes at once; it does not hold them until they are "unknown"."""

import asyncio

import pytest

from raftspine.errors import NoSpace
from raftspine.services.values import ANYTHING, Ask, Draft
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster
from raftspine.sim.loop import VirtualLoop


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_full_map_answers_no_space_and_recovers(nodes: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        cluster = SimCluster(loop, nodes=nodes)
        await cluster.start()
        node = cluster.live()[0].node
        assert node is not None
        await node.memories.put(Ask(), "held", Draft(1, tags=("lock",)), ANYTHING)
        for host in cluster.hosts.values():
            host.tree.full = True
        await node.memories.put(Ask(), "fills", Draft(2), ANYTHING)
        await cluster.until(lambda: node.engine.read_only() is not None, "the full map is noticed")

        began = loop.time()
        with pytest.raises(NoSpace):
            await node.memories.put(Ask(), "held", Draft(3, tags=("lock",)), ANYTHING)
        assert loop.time() - began < 1.0
        kept = (await node.memories.get(Ask(), "held")).stored
        assert kept is not None and kept.memory.content == 1

        for host in cluster.hosts.values():
            host.tree.full = False
        await cluster.until(lambda: node.engine.read_only() is None, "there is room again")
        await asyncio.wait_for(node.memories.put(Ask(), "held", Draft(4, tags=("lock",)), ANYTHING), 30)
        cluster.shut()

    virtual.run(main, seed=5)
