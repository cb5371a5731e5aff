"""A running front door over the fake services, and a client for it. `play` starts both, runs a story, stops."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from yarl import URL

from raftspine.core.limits import Limits
from raftspine.http.app import FrontDoor, HttpServer, build
from raftspine.http.auth import Auth
from raftspine.http.call import Silent
from raftspine.http.fake import FakeClock, FakeCluster, FakeEntropy, FakeMemories

Story = Callable[["Site"], Awaitable[None]]


class Site:
    """A running front door over the fake services, and a client for it."""

    server: HttpServer
    client: aiohttp.ClientSession

    def __init__(self, **options: Any) -> None:
        self.memories = FakeMemories()
        self.cluster = FakeCluster()
        self.telemetry = options.pop("telemetry", Silent())
        self.limits = options.pop("limits", Limits())
        self.auth = options.pop("auth", Auth())

    def front(self) -> FrontDoor:
        return build(
            self.memories,
            self.cluster,
            node_id="n1",
            limits=self.limits,
            auth=self.auth,
            clock=FakeClock(),
            entropy=FakeEntropy(),
            telemetry=self.telemetry,
        )

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> "Seen":
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else headers or {}
        url = URL(f"http://127.0.0.1:{self.server.port}{path}", encoded=True)
        async with self.client.request(
            method, url, data=data, headers=sent, skip_auto_headers=["Content-Type"]
        ) as got:
            return Seen(got.status, got.headers, await got.read())

    async def raw(self, data: bytes) -> bytes:
        """What the server answers to exactly these bytes, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


class Seen:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def play(story: Story, **options: Any) -> None:
    async def run() -> None:
        site = Site(**options)
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        async with aiohttp.ClientSession() as site.client:
            try:
                await story(site)
            finally:
                await site.server.stop(2.0)

    asyncio.run(run())
