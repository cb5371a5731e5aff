"""A request gets the same answer by either road, however its bytes arrive.

The plain road (http/connection.py) answers what is whole and ordinary, aiohttp all else. Where the two disagree about
where a request ends, one client's bytes become another request: so they are compared here, on requests that are
ordinary, odd and wrong, cut into pieces at any place.
"""

import asyncio
import re
from itertools import accumulate, pairwise, takewhile
from typing import Any

import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftspine.http import connection
from raftspine.http.app import Connections
from tests.support.http_site import Site
from tests.support.wire import Wire

BODY = b'{"content": "a memory"}'

names = st.sampled_from(
    [
        b"Accept: */*",
        b"Accept: application/msgpack",
        b"Content-Type: application/json",
        b"content-type:text/plain",
        b"X-Agent-Id: a-1",
        b"X-Agent-Id: \xe4",
        b"X-Request-Id:   abc\t",
        b"Connection: keep-alive",
        b"If-None-Match: *",
        b"X-Empty:",
        b"X-Tab: a\tb",
        b" folded",
        b"X-Space : 1",
        b"no colon",
        b"Expect: something",
        b"Content-Encoding: gzip",
        b"Content-Length: 0",
        b"Content-Length: +5",
        b"Transfer-Encoding: identity",
    ]
)


@st.composite
def requests(draw: Any) -> bytes:
    """One request, perhaps with a body of the length it names, perhaps chunked."""
    method = draw(
        st.sampled_from(
            [b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"POST", b"LOCK", b"UNLOCK", b"OPTIONS", b"get"]
        )
    )
    path = draw(
        st.sampled_from([b"/v1/memories/a", b"/v1/memories/a%2Fb?consistency=strong", b"/healthz", b"*", b"/\xe4"])
    )
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]))
    lines = draw(st.lists(names, max_size=4, unique=True))
    if draw(st.integers(0, 9)):
        lines.insert(0, b"Host: x")
    head = b" ".join((method, path, version))
    how = draw(st.sampled_from(["none", "length", "length", "chunked", "twice"]))
    body = b""
    if how == "length":
        lines.append(b"Content-Length: %d" % len(BODY))
        body = BODY
    elif how == "twice":
        lines += [b"Content-Length: %d" % len(BODY), b"Content-Length: %d" % len(BODY)]
        body = BODY
    elif how == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    return b"\r\n".join((head, *lines, b"", b"")) + body


def _answers(pieces: list[bytes], *, plain: bool) -> tuple[bytes, bool, dict[str, Any]]:
    """What a connection gets for these pieces, whether it was closed, and what was stored."""

    async def run() -> tuple[bytes, bool, dict[str, Any]]:
        site = Site()
        server = Connections(site.front())
        protocol = server() if plain else server._foreign()
        wire = Wire(protocol)
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                wire.protocol.data_received(piece)
            for _ in range(20):
                await asyncio.sleep(0)
        # What is not whole goes over after a while; here at once.
        if isinstance(wire.protocol, connection.Connection) and wire.protocol._waiting:
            wire.protocol._hand_over_waiting()
        for _ in range(20):
            await asyncio.sleep(0)
        closed = wire.closed
        wire.close()
        await asyncio.sleep(0)
        await server.shutdown(1.0)
        stored = {id: repr(memory) for id, memory in site.memories.kept.items()}
        return re.sub(rb"X-Request-Id: [^\r]*", b"", re.sub(rb'"requestId":"[^"]*"', b"", wire.data)), closed, stored

    with structlog.testing.capture_logs():
        return asyncio.run(run())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=3))
def test_both_roads_answer_alike(stream: list[bytes], cuts: list[int]) -> None:
    data = b"".join(stream)
    ends = list(accumulate(len(one) for one in stream))
    ordinary = list(takewhile(_ordinary, stream))
    shared = sum(len(one) for one in ordinary)
    # Ordinary requests come in any pieces. aiohttp refuses some others before they are whole, and with them what came
    # in the same piece; so it gets each request by itself.
    pieces = _cut(data, {cut % (shared + 1) for cut in cuts} | set(ends[len(ordinary) - 1 :] if ordinary else ends))
    assert _answers(pieces, plain=True) == _answers(_cut(data, set(ends)), plain=False)


def _ordinary(request: bytes) -> bool:
    try:
        connection.read(request)
    except connection.Unusual:
        return False
    return True


def _cut(data: bytes, places: set[int]) -> list[bytes]:
    return [data[a:b] for a, b in pairwise(sorted({0, len(data), *places}))]


def test_an_ordinary_request_takes_the_plain_road() -> None:
    data = b"PUT /v1/memories/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    request, end = connection.read(data + b"GET")
    assert (request.method, request.target, end) == ("PUT", "/v1/memories/a", len(data))
    assert asyncio.run(request.body(100)) == BODY
