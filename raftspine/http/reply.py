"""A finished response as bytes, written in one piece.

aiohttp's own Response keeps headers in a multidict, fills in defaults and serialises them for each request:
8 of the 25 µs that a small request costs. Nearly all our headers are known when the node starts, so a reply
here *is* its header text and its body, and is handed to the transport in one write. It stays a
StreamResponse whose public `prepare` and `write_eof` are overridden; nothing private is touched.

The rule: header values must be free of CR and LF before they get here. They are made by the node itself, or
are client text that parse.py has restricted to visible ASCII. Without that rule this module would be a hole
for response splitting.
"""

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from aiohttp import web

from raftspine.ports import Clock

JSON = "application/json"
MSGPACK = "application/msgpack"

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
SLOW_SECONDS = 10.0
"""How long a stream waits for its client to read before it is cut off."""
HIGH_WATER = 64 * 1024
"""Bytes waiting in a connection above which its next reply waits for the client to read."""


class Reply(web.StreamResponse):
    """Status, header lines (each ended by CRLF, without Content-Length and Connection) and body."""

    def __init__(self, status: int, head: str, body: bytes = b"", *, close: bool = False) -> None:
        self.code = status
        self.head = head
        self.content = body
        self._closes = close
        self._alive = True

    @property
    def status(self) -> int:
        return self.code

    @property
    def reason(self) -> str:
        return HTTPStatus(self.code).phrase

    @property
    def keep_alive(self) -> bool | None:
        return self._alive

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this reply."""
        return self._closes

    def closing(self) -> "Reply":
        """The connection ends with this reply."""
        self._closes = True
        return self

    def wire(self, *, alive: bool, head_only: bool = False, say_alive: bool = False) -> bytes:
        """The whole reply. `say_alive`: the client is one of HTTP/1.0, and has to be told what is the rule since."""
        body = self.content
        head = f"{_STATUS_LINES[self.code]}{self.head}"
        if self.code not in _BODILESS:
            head = f"{head}Content-Length: {len(body)}\r\n"
        if not alive:
            head += "Connection: close\r\n"
        elif say_alive:
            head += "Connection: keep-alive\r\n"
        return f"{head}\r\n".encode() + (b"" if head_only else body)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write everything. ConnectionResetError when the client is gone."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client closed the connection")
        self._alive = alive = request.keep_alive and not self._closes
        old = request.version.minor == 0
        transport.write(self.wire(alive=alive, head_only=request.method == "HEAD", say_alive=old))
        if transport.get_write_buffer_size() > HIGH_WATER:
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class Slow(Exception):
    """The client does not read what it asked for."""


class Sink(Protocol):
    """Where a stream goes. `drain` waits until the client has read most of it: Slow when it does not,
    ConnectionResetError when it is gone."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class Stream(Reply):
    """A reply whose body is made while it is sent, and ends with the connection. `send` writes it to the sink it is
    given and returns at its end."""

    def __init__(self, status: int, head: str, send: Callable[[Sink], Awaitable[None]]) -> None:
        super().__init__(status, head, close=True)
        self.send = send
        self._request: web.BaseRequest | None = None

    def wire(self, *, alive: bool, head_only: bool = False, say_alive: bool = False) -> bytes:
        """The head alone: how long the body will be nobody knows, so it ends with the connection."""
        return f"{_STATUS_LINES[self.code]}{self.head}Connection: close\r\n\r\n".encode()

    async def prepare(self, request: web.BaseRequest) -> None:
        await super().prepare(request)
        self._alive = False
        self._request = request

    async def write_eof(self, data: bytes = b"") -> None:
        request = self._request
        if request is not None and request.method != "HEAD":
            await self.send(_ForeignSink(request))


class _ForeignSink:
    """A sink for a connection that is aiohttp's."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request

    def write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client closed the connection")
        transport.write(data)

    async def drain(self) -> None:
        try:
            await asyncio.wait_for(self._request.writer.drain(), SLOW_SECONDS)
        except TimeoutError:
            raise Slow from None


class Heads:
    """The header lines every reply begins with: who answered, when, in which format."""

    def __init__(self, node_id: str, clock: Clock) -> None:
        self._clock = clock
        self._node = f"Server: raftspine\r\nX-Spine-Node: {node_id}\r\n"
        self._due = float("-inf")
        self._lines: dict[str, str] = {}

    def start(self, content_type: str, now: float) -> str:
        """Lines for `content_type`; `now` is the monotonic time in seconds, and the Date is renewed once a second."""
        if now >= self._due:
            self._due = now + 1.0
            self._lines.clear()
        lines = self._lines.get(content_type)
        if lines is None:
            date = formatdate(self._clock.wall_ms() / 1000, usegmt=True)
            kind = f"Content-Type: {content_type}\r\n" if content_type else ""
            lines = self._lines[content_type] = f"{kind}Date: {date}\r\n{self._node}"
        return lines
