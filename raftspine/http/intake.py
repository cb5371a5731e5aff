"""Reading a request's body without letting it grow beyond its route's limit.

aiohttp's low-level server bounds nothing by itself. The declared length is refused before a byte is read, an
undeclared one while reading. Most bodies have arrived with their headers and are taken without waiting.
"""

import asyncio

from aiohttp import hdrs, web

from raftspine.errors import Malformed, TooLarge
from raftspine.http.problems import UnsupportedMedia

BODY_SECONDS = 30.0
"""How long the rest of a body may take to arrive; a client that stalls must not hold a connection for ever."""


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The body, at most `limit` bytes. TooLarge, Malformed (empty, cut off), UnsupportedMedia (compressed)."""
    content = request.content
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise UnsupportedMedia("send the body without Content-Encoding", details={"field": "Content-Encoding"})
    if content.is_eof():
        data = content.read_nowait()
        if len(data) > limit:
            raise _too_large(limit)
    else:
        data = await _read_rest(request, limit)
    if not data:
        raise Malformed("a body is required", field="$")
    return data


async def _read_rest(request: web.BaseRequest, limit: int) -> bytes:
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while part := await request.content.readany():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError as error:
        raise Malformed(f"the body did not arrive within {BODY_SECONDS:.0f} s", field="$") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Malformed("the body was cut off or is not encoded as announced", field="$") from error
    return b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"a body of at most {limit} bytes is accepted here", details={"field": "$", "limit": limit})
