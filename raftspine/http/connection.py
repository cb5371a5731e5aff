"""One client's connection: the plain road for nearly every request, aiohttp's for all others.

aiohttp makes a URL, two streams, a writer, a request and a task for each request, a third of what a small read
costs, and our handlers look at none of it. Nearly all requests are alike: one of a few methods, a path, a few ASCII
headers and at most one body of a known length. These are answered here.

The rule: a request is answered here only when it has arrived as a whole and fits the narrow grammar below, so that
there can be no doubt where it ends. To be wrong about that is request smuggling. At anything else (chunks, upgrades,
an Expect, a repeated or an odd header, HTTP/1.0, no HTTP at all, a body that comes slowly) the connection, from that
request on and with all bytes that belong to it, is aiohttp's for good: its parser, its errors, its time limits.
"""

import asyncio
import re
import socket
from asyncio import Future, TimerHandle, Transport
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache, partial
from typing import Any, Final, cast

import structlog

from raftspine.http.intake import Request, too_large
from raftspine.http.reply import HIGH_WATER, SLOW_SECONDS, Reply, Slow, Stream
from raftspine.services import eager
from raftspine.services.deadlines import Late, within

_log = structlog.get_logger(__name__)

HEAD_BYTES: Final = 8190
"""A longer request line and headers are aiohttp's to refuse."""

BODY_BYTES: Final = 256 * 1024
"""A longer body is aiohttp's to read, which knows how to stop a client that sends too much."""

PATIENCE_SECONDS: Final = 0.1
"""How long the rest of a request may take to arrive before aiohttp, which has time limits, waits for it instead."""

PIECES: Final = 16
"""In how many pieces a request may arrive; each new one is looked at from the beginning."""

WAITING_BYTES: Final = 256 * 1024
"""Bytes of later requests kept while one is answered; above it the client has to wait."""

_LINE = re.compile(rb"(GET|HEAD|DELETE|PUT|POST|PATCH|LOCK|UNLOCK) (/[\x21-\x7e]*) HTTP/1\.1\r\n").match
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_LENGTH = re.compile(r"[1-9][0-9]{0,8}").fullmatch
_BODILESS = frozenset({b"GET", b"HEAD", b"DELETE"})
_UNUSUAL = frozenset(
    {"transfer-encoding", "te", "trailer", "upgrade", "expect", "content-encoding", "proxy-connection", "keep-alive"}
)
"""Headers that change how a message or a connection is read."""


class PlainRequest:
    """A request that has arrived as a whole."""

    __slots__ = ("_content", "headers", "method", "target")

    def __init__(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self._content = content

    async def body(self, limit: int, *, empty: bool = False) -> bytes:
        if len(self._content) > limit:
            raise too_large(limit)
        return self._content


class Unfinished(Exception):
    """More bytes have to arrive."""


class Unusual(Exception):
    """Not for this road."""


def read(data: bytes) -> tuple[PlainRequest, int]:
    """The first request in `data` and where it ends. Raises Unfinished, Unusual."""
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES)
    if end < 0:
        raise Unfinished if len(data) < HEAD_BYTES else Unusual
    line = _LINE(data, 0, end + 2)
    if line is None:
        raise Unusual
    headers = _headers(data[line.end() : end])
    if headers is None:
        raise Unusual
    start = end + 4
    method = line[1]
    length = headers.get("content-length")
    if method in _BODILESS:
        if length is not None:
            raise Unusual
        return PlainRequest(method.decode(), line[2].decode(), headers, b""), start
    if length is None or (size := int(length)) > BODY_BYTES:
        raise Unusual
    if len(data) < start + size:
        raise Unfinished
    return PlainRequest(method.decode(), line[2].decode(), headers, data[start : start + size]), start + size


@lru_cache(maxsize=1024)
def _headers(block: bytes) -> Mapping[str, str] | None:
    """Header lines as a map with names in lower case; None when one of them is out of the ordinary. A client's
    requests differ in their first line and body, seldom in their headers, so the last ones are remembered."""
    found: dict[str, str] = {}
    for line in block.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not _NAME(name) or name in found or name in _UNUSUAL:
            return None
        if not (value.isascii() and value.isprintable()):
            return None
        found[name] = value
    if "host" not in found or found.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = found.get("content-length")
    return None if length is not None and not _LENGTH(length) else found


class Connection(asyncio.Protocol):
    """The protocol of one connection. `answer` never raises; `other` makes aiohttp's protocol; `open_connections` is
    where it enters and leaves itself."""

    def __init__(
        self,
        answer: "Callable[[Request], Coroutine[Any, Any, Reply]]",
        other: Callable[[], asyncio.Protocol],
        open_connections: "dict[Connection, None]",
        idle_seconds: float,
    ) -> None:
        self._answer = answer
        self._other = other
        self._open = open_connections
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: Transport | None = None
        self._waiting = b""
        """Bytes that are not answered yet: a part of a request, or those behind the one under way."""
        self._under_way: Future[Reply] | None = None
        self._pieces = 0
        self._requests = 0
        self._idle: TimerHandle | None = None
        self._hurry: TimerHandle | None = None
        self._held_back = False
        self._streaming: asyncio.Task[Reply] | None = None
        self._full: Future[None] | None = None
        """There while the client has much to read."""

    # ── its life ─────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._open[self] = None
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._let_go()
        self._transport = None
        self._waiting = b""
        self.resume_writing()
        if self._streaming is not None:
            self._streaming.cancel()

    def _let_go(self) -> None:
        self._open.pop(self, None)
        for timer in (self._idle, self._hurry):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        """Look from time to time whether the client still wants something; cheaper than a timer for each request."""
        self._idle = self._loop.call_later(self._idle_seconds, self._check_idle, self._requests)

    def _check_idle(self, seen: int) -> None:
        if self._requests == seen and self._under_way is None and self._transport is not None:
            self._transport.close()
        else:
            self._watch()

    @property
    def ended(self) -> "Future[Reply] | None":
        """Done when the request under way is answered; None when there is none."""
        return self._under_way

    def close(self, *, now: bool = False) -> None:
        """End the connection; `now`: also when a request is under way, whose client will not learn what became of
        it."""
        if self._transport is None or (self._under_way is not None and not now):
            return
        if self._under_way is not None:
            self._under_way.cancel()
        self._transport.close()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._waiting:
            data = self._waiting + data
            self._waiting = b""
        if self._under_way is None:
            self._take(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._waiting = data
        if len(data) > WAITING_BYTES and not self._held_back and self._transport is not None:
            self._held_back = True
            self._transport.pause_reading()

    def _take(self, data: bytes) -> None:
        """Answer requests for as long as they are whole and their answers need not be waited for."""
        while data and self._transport is not None and not self._transport.is_closing():
            try:
                request, end = read(data)
            except Unfinished:
                self._await_rest(data)
                return
            except Unusual:
                self._hand_over(data)
                return
            data = data[end:]
            self._requests += 1
            self._pieces = 0
            if self._hurry is not None:
                self._hurry.cancel()
                self._hurry = None
            replied = eager.start(self._answer(request), self._loop)
            if not replied.done():
                self._under_way = replied
                replied.add_done_callback(partial(self._answered, request))
                self._keep(data)
                return
            if self._write(request, replied):
                self._keep(data)
                return
            if self._transport is not None and self._transport.get_write_buffer_size() > HIGH_WATER:
                self._hand_over(data)  # who does not read what was asked for is waited for there
                return

    def _await_rest(self, data: bytes) -> None:
        self._pieces += 1
        if self._pieces > PIECES:
            self._hand_over(data)
            return
        self._waiting = data
        if self._hurry is None:
            self._hurry = self._loop.call_later(PATIENCE_SECONDS, self._hand_over_waiting)

    def _answered(self, request: PlainRequest, replied: "Future[Reply]") -> None:
        self._under_way = None
        if self._write(request, replied):
            return
        data, self._waiting = self._waiting, b""
        if self._held_back and self._transport is not None:
            self._held_back = False
            self._transport.resume_reading()
        if data:
            self._take(data)

    def _write(self, request: PlainRequest, replied: "Future[Reply]") -> bool:
        """Whether a stream has begun, behind which nothing comes any more."""
        transport = self._transport
        if transport is None or transport.is_closing() or replied.cancelled():
            return False
        reply = replied.result()
        transport.write(reply.wire(alive=not reply.closes, head_only=request.method == "HEAD"))
        if isinstance(reply, Stream) and request.method != "HEAD":
            self._under_way = self._streaming = self._loop.create_task(self._stream(reply))
            self._streaming.add_done_callback(self._streamed)
            return True
        if reply.closes:
            transport.close()
        return False

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _stream(self, reply: Stream) -> Reply:
        await reply.send(self)
        return reply

    def _streamed(self, ended: "Future[Reply]") -> None:
        self._under_way = self._streaming = None
        transport = self._transport
        if transport is None:
            return
        error = None if ended.cancelled() else ended.exception()
        if isinstance(error, Slow):
            _log.info("a client does not read its stream; cut off")
            transport.abort()
            return
        if error is not None and not isinstance(error, ConnectionResetError):
            _log.error("a stream failed", exc_info=error)
        transport.close()

    def write(self, data: bytes) -> None:
        if self._transport is None:
            raise ConnectionResetError("the client closed the connection")
        self._transport.write(data)

    async def drain(self) -> None:
        if self._full is None:
            return
        try:
            await within(self._full, SLOW_SECONDS, self._loop)
        except Late:
            raise Slow from None

    def pause_writing(self) -> None:
        self._full = self._loop.create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    # ── the other road ───────────────────────────────────────────────────────────────────────────────────────

    def _hand_over_waiting(self) -> None:
        self._hurry = None
        data, self._waiting = self._waiting, b""
        self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        """From here on the connection is aiohttp's."""
        transport = self._transport
        if transport is None:
            return
        self._let_go()
        self._transport = None
        protocol = self._other()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.data_received(data)
