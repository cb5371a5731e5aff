"""A small simulated cluster for stories about the ring: whole nodes, virtual time, and faults placed by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from raftspine.cluster.raft_host import METHOD as RAFT
from raftspine.model import GroupId, Model, NodeId, RingRecord
from raftspine.node import Node
from raftspine.services.values import ANYTHING, Answer, Ask, Draft, Expect, Stored
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster
from raftspine.sim.loop import VirtualLoop

PUSH = "ring.push"
VECTORS = "ring.vectors"

__all__ = ["PUSH", "RAFT", "VECTORS", "Held", "Site", "story"]


class Held:
    """One node's messages of one method, kept back until `release` (or for good, with `drop`)."""

    def __init__(self, node: Node, method: str) -> None:
        self._node = node
        self._method = method
        self._handlers: dict[str, Any] = node.rpc._handlers
        self._handler = self._handlers[method]
        self.kept: list[tuple[NodeId, Any]] = []
        self._handlers[method] = self._keep

    def _keep(self, peer: NodeId, body: Any) -> None:
        self.kept.append((peer, body))

    def release(self) -> None:
        self._handlers[self._method] = self._handler
        for peer, body in self.kept:
            self._handler(peer, body)
        self.kept.clear()

    def drop(self) -> None:
        """Let messages through again; those kept so far are lost."""
        self.kept.clear()
        self.release()


class Site:
    """A running cluster and shorthands for what agents do to it."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster

    def node(self, id: str) -> Node:
        node = self.cluster.hosts[NodeId(id)].node
        assert node is not None, f"{id} is down"
        return node

    def group(self, id: str) -> GroupId:
        return self.node("a").topology.group_of(id)

    def record(self, node: str, id: str) -> RingRecord | None:
        return self.node(node).replica.record(self.group(id), id)

    def leader(self, id: str) -> str:
        leader = self.node("a").raft.leader(self.group(id))
        assert leader is not None, "the group has a leader"
        return str(leader)

    def followers(self, id: str) -> list[str]:
        return [str(n) for n in self.cluster.ids if n != self.leader(id)]

    def hold(self, node: str, *methods: str) -> list[Held]:
        return [Held(self.node(node), method) for method in methods]

    def isolate(self, node: str) -> Callable[[], None]:
        """Cut a node off; returns what heals it."""
        others = [n for n in self.cluster.ids if n != node]
        return self.cluster.network.partition([NodeId(node)], others)

    async def until(self, holds: Callable[[], Any], what: str = "the condition", seconds: float = 30.0) -> None:
        await self.cluster.until(holds, what, seconds)

    async def agreed(self) -> None:
        """Wait until all replicas have seen the same writes and applied the same log."""
        nodes = [host.node for host in self.cluster.live() if host.node is not None and host.node.replica.groups()]

        def same() -> bool:
            return all(
                node.replica.vector(group) == nodes[0].replica.vector(group)
                and group in node.raft.groups()
                and node.raft.status(group).applied == nodes[0].raft.status(group).last
                for group in nodes[0].replica.groups()
                for node in nodes
            )

        await self.until(same, "all replicas agree")

    # ── what agents do ────────────────────────────────────────────────────────────────────────────────────────

    async def put(
        self,
        node: str,
        id: str,
        content: Any,
        *,
        tags: Any = (),
        token: str | None = None,
        expect: Expect = ANYTHING,
        key: str | None = None,
        wish: Model | None = None,
        ttl: int | None = None,
        agent: str = "",
        first: bool = False,
    ) -> Answer:
        ask = Ask(agent_id=agent, token=token, idempotency_key=key, consistency=wish, first_attempt=first)
        return await self.node(node).memories.put(ask, id, Draft(content, tags=tags, ttl_seconds=ttl), expect)

    async def get(
        self,
        node: str,
        id: str,
        *,
        token: str | None = None,
        wish: Model | None = None,
        wait_ms: int = 250,
        agent: str = "",
    ) -> Answer:
        ask = Ask(agent_id=agent, token=token, consistency=wish, max_wait_ms=wait_ms)
        return await self.node(node).memories.get(ask, id)

    async def read(self, node: str, id: str, **how: Any) -> Any:
        """The content alone."""
        stored = (await self.get(node, id, **how)).stored
        assert stored is not None, "a found memory is stored"
        return stored.memory.content

    async def delete(self, node: str, id: str, *, token: str | None = None, key: str | None = None) -> Answer:
        ask = Ask(token=token, idempotency_key=key)
        return await self.node(node).memories.delete(ask, id, ANYTHING)

    async def losers(self, node: str, id: str) -> list[Any]:
        """Contents of the conflict log, newest first."""
        lost = await self.node(node).memories.conflicts(Ask(), id)
        return [None if entry.memory is None else entry.memory.content for entry in lost]


def stored(answer: Answer) -> Stored:
    assert answer.stored is not None, "the answer carries a memory"
    return answer.stored


def story(main: Callable[[Site], Awaitable[None]], *, seed: int = 1, level: bool = True, **options: Any) -> None:
    """Run a story on a fresh cluster (options as SimCluster's) that has settled after its start."""

    async def run(loop: VirtualLoop) -> None:
        site = Site(SimCluster(loop, **options))
        await site.cluster.start()
        if level:
            await site.until(lambda: all(_level(host.node) for host in site.cluster.live()), "all replicas are level")
        await asyncio.wait_for(main(site), 300)
        site.cluster.shut()

    virtual.run(run, seed=seed)


def _level(node: Node | None) -> bool:
    return node is not None and all(node.replica.level(group) for group in node.replica.groups())
