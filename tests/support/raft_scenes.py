"""Scenes for our own Raft on virtual time: one node against a puppeteer, or a small cluster that has a leader."""

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable
from typing import Any

from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import SpineError
from raftspine.sim.loop import VirtualLoop, run
from tests.support.raft_cluster import Cluster, Node
from tests.support.raft_puppet import Puppet


def play(scene: Callable[[Puppet], Awaitable[None]], size: int = 3, limits: RaftLimits | None = None) -> None:
    """One node of `size`; the scene says what the others send."""

    async def main(loop: VirtualLoop) -> None:
        await scene(Puppet(loop, size, limits))

    run(main)


def with_cluster(scene: Callable[[Cluster], Awaitable[None]], size: int = 3, **options: Any) -> None:
    """`size` whole Raft nodes, one of which leads when the scene begins."""

    async def main(loop: VirtualLoop) -> None:
        cluster = Cluster(loop, size, **options)
        cluster.start()
        await cluster.until(cluster.leader)
        await scene(cluster)

    run(main)


def others(cluster: Cluster, node: Node) -> list[Node]:
    return [other for other in cluster.nodes.values() if other is not node]


async def outcome(future: "Future[Any]", seconds: float = 30) -> Any:
    """The result, or the error it ended with."""
    try:
        return await asyncio.wait_for(future, seconds)
    except SpineError as error:
        return error


def kinds(sent: list[Any]) -> list[int]:
    """The kinds of frames among what a puppet sent."""
    return [out[1] for out in sent]
