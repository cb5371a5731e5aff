"""The plain road: what stays on it, what is handed over, and what a connection does meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from raftspine.http import connection
from raftspine.http.app import Connections
from raftspine.http.connection import Connection, Request
from raftspine.http.reply import Reply
from tests.support.http_site import Site
from tests.support.wire import Wire

GET = b"GET /v1/memories/a HTTP/1.1\r\nHost: x\r\n\r\n"


class Asked:
    """Requests that are answered when the test says so."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.go_on: list[asyncio.Future[Reply]] = []

    async def answer(self, request: Request) -> Reply:
        self.targets.append(request.target)
        self.go_on.append(asyncio.get_running_loop().create_future())
        return await self.go_on[-1]


def play(story: Callable[[Asked, Connection, Wire], Awaitable[None]], *, idle_seconds: float = 60.0) -> None:
    async def run() -> None:
        asked = Asked()

        def other() -> asyncio.Protocol:
            raise AssertionError("handed over")

        protocol = Connection(asked.answer, other, {}, idle_seconds)
        wire = Wire(protocol)
        protocol.connection_made(wire)
        await story(asked, protocol, wire)
        wire.close()
        await asyncio.sleep(0)

    asyncio.run(run())


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_requests_are_answered_one_after_the_other() -> None:
    async def story(asked: Asked, protocol: Connection, wire: Wire) -> None:
        protocol.data_received(GET + GET.replace(b"/a", b"/b")[:20])
        protocol.data_received(GET.replace(b"/a", b"/b")[20:])
        assert asked.targets == ["/v1/memories/a"]
        asked.go_on[0].set_result(Reply(200, "", b"one"))
        await turns()
        assert wire.data.endswith(b"Content-Length: 3\r\n\r\none")
        assert asked.targets == ["/v1/memories/a", "/v1/memories/b"]
        asked.go_on[1].set_result(Reply(200, "", b"two").closing())
        await turns()
        assert wire.data.endswith(b"Connection: close\r\n\r\ntwo")
        assert wire.closed

    play(story)


def test_a_client_that_sends_ahead_is_held_back() -> None:
    async def story(asked: Asked, protocol: Connection, wire: Wire) -> None:
        protocol.data_received(GET)
        ahead = GET * (connection.WAITING_BYTES // len(GET) + 1)
        protocol.data_received(ahead)
        assert not wire.reading
        asked.go_on[0].set_result(Reply(200, "", b""))
        await turns()
        assert len(asked.targets) == 2

    play(story)


def test_a_client_that_left_gets_nothing() -> None:
    async def story(asked: Asked, protocol: Connection, wire: Wire) -> None:
        protocol.data_received(GET)
        protocol.connection_lost(None)
        asked.go_on[0].set_result(Reply(200, "", b"late"))
        await turns()
        assert wire.data == b""

    play(story)


def test_who_wants_nothing_any_more_is_let_go() -> None:
    async def story(asked: Asked, protocol: Connection, wire: Wire) -> None:
        protocol.data_received(GET)
        await asyncio.sleep(0.03)
        assert not wire.closed  # it waits for an answer
        asked.go_on[0].set_result(Reply(200, "", b""))
        async with asyncio.timeout(60):
            await wire.changed.wait()
        assert wire.closed

    play(story, idle_seconds=0.01)


def test_a_request_in_many_pieces_is_aiohttps() -> None:
    async def run() -> None:
        server = Connections(Site().front())
        wire = Wire(server())
        wire.protocol.connection_made(wire)
        for at in range(len(GET)):
            wire.protocol.data_received(GET[at : at + 1])
        assert not isinstance(wire.protocol, Connection)
        await turns(20)
        assert wire.data.startswith(b"HTTP/1.1 404 ")
        await _end(server, wire)

    asyncio.run(run())


def test_the_rest_of_a_request_is_not_waited_for_here() -> None:
    async def run() -> None:
        server = Connections(Site().front())
        wire = Wire(server())
        wire.protocol.connection_made(wire)
        wire.protocol.data_received(GET[:30])
        async with asyncio.timeout(60):
            await wire.changed.wait()
        assert not isinstance(wire.protocol, Connection)
        wire.protocol.data_received(GET[30:])
        await turns(20)
        assert wire.data.startswith(b"HTTP/1.1 404 ")
        await _end(server, wire)

    asyncio.run(run())


async def _end(server: Connections, wire: Any) -> None:
    wire.close()
    await asyncio.sleep(0)
    await server.shutdown(1.0)
