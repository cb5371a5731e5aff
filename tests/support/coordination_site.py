"""A simulated cluster whose nodes are asked through their real front doors: parsing, services, ledger, engine.

Only sockets are missing: a request is handed to the door as the connection would hand it over.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from raftspine.core.limits import Limits
from raftspine.http.app import FrontDoor, build
from raftspine.http.auth import Auth
from raftspine.http.call import Silent
from raftspine.http.connection import PlainRequest
from raftspine.http.fake import FakeEntropy
from raftspine.model import GroupId, NodeId
from raftspine.node import Node
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster
from raftspine.sim.loop import VirtualLoop

Story = Callable[["Site"], Awaitable[None]]


class Said:
    """An answer: status, headers in lower case, body."""

    def __init__(self, status: int, head: str, body: bytes) -> None:
        self.status = status
        lines = (line.partition(": ") for line in head.split("\r\n"))
        self.headers = {name.lower(): value for name, _, value in lines if name}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def details(self) -> Any:
        return self.json["error"]["details"]

    def __repr__(self) -> str:
        return f"{self.status} {self.body!r}"


class Site:
    """The cluster, and how to ask it."""

    def __init__(self, cluster: SimCluster, auth: Auth | None = None) -> None:
        self.cluster = cluster
        self.auth = auth or Auth()
        self._doors: dict[Node, FrontDoor] = {}

    def node(self, id: str = "a") -> Node:
        node = self.cluster.hosts[NodeId(id)].node
        assert node is not None, f"{id} is down"
        return node

    def door(self, id: str) -> FrontDoor:
        node = self.node(id)
        door = self._doors.get(node)
        if door is None:
            door = self._doors[node] = build(
                node.memories,
                node.overview,
                node_id=id,
                limits=Limits(),
                auth=self.auth,
                clock=node.world.clock,
                entropy=FakeEntropy(),
                telemetry=Silent(),
                coordination=node.coordination,
            )
        return door

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, via: str = "a"
    ) -> Said:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = PlainRequest(method, path, {"host": "x", **(headers or {})}, data)
        reply = await self.door(via).answer(request)
        return Said(reply.code, reply.head, reply.content)

    async def post(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, *, via: str = "a"
    ) -> Said:
        return await self.ask("POST", path, body, headers, via=via)

    async def put(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, *, via: str = "a"
    ) -> Said:
        return await self.ask("PUT", path, body, headers, via=via)

    async def get(self, path: str, headers: dict[str, str] | None = None, *, via: str = "a") -> Said:
        return await self.ask("GET", path, None, headers, via=via)

    def background(self, work: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(work)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def group(self, name: str) -> GroupId:
        return self.node(self.alive()[0]).coordination.door.group(name)

    def alive(self) -> list[str]:
        return [str(host.id) for host in self.cluster.live()]

    def leader(self, name: str) -> str:
        """Who leads the group of a lock, as one of those that live knows."""
        found = self.node(self.alive()[0]).raft.leader(self.group(name))
        assert found is not None, "no leader"
        return str(found)

    def other(self, than: str) -> str:
        return next(id for id in self.alive() if id != than)

    def crash(self, id: str, *, power: bool = False) -> None:
        self.cluster.hosts[NodeId(id)].crash(power=power)

    def restart(self, id: str) -> None:
        self.cluster.hosts[NodeId(id)].start()

    def part(self, *few: str) -> Callable[[], None]:
        """Cut these nodes off from the others; returns what heals it."""
        rest = [NodeId(id) for id in self.alive() if id not in few]
        return self.cluster.network.partition([NodeId(id) for id in few], rest)

    async def ready(self) -> None:
        cluster = self.cluster
        await cluster.until(lambda: all(cluster.ready(host) for host in cluster.live()), "the live ones are ready")


def play(story: Story, *, seed: int = 1, auth: Auth | None = None, **options: Any) -> None:
    """Run a story against a fresh cluster that is ready."""

    async def main(loop: VirtualLoop) -> None:
        cluster = SimCluster(loop, **options)
        await cluster.start()
        try:
            await story(Site(cluster, auth))
        finally:
            cluster.shut()

    virtual.run(main, seed=seed)
