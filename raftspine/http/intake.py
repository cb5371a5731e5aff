"""What the front door gets to see of a request, and reading its body without letting it grow beyond a limit.

aiohttp's low-level server bounds nothing by itself. The declared length is refused before a byte is read, an
undeclared one while reading. Most bodies have arrived with their headers and are taken without waiting.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from aiohttp import hdrs, web

from raftspine.errors import Malformed, TooLarge
from raftspine.http.problems import UnsupportedMedia

BODY_SECONDS = 30.0
"""How long the rest of a body may take to arrive; a client that stalls must not hold a connection for ever."""


class Request(Protocol):
    """What the front door needs to know of a request, whichever road it came by."""

    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str:
        """Path and query as they were sent."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """To be asked in lower case."""
        ...

    async def body(self, limit: int, *, empty: bool = False) -> bytes:
        """TooLarge, Malformed (cut off, and empty unless that may be), UnsupportedMedia (compressed)."""
        ...


class ForeignRequest:
    """A request that came by aiohttp."""

    def __init__(self, request: web.BaseRequest) -> None:
        raw = request.raw_path
        self.method = request.method
        self.target = raw if raw[:1] == "/" else request.rel_url.raw_path_qs  # the absolute form, to a proxy
        self.headers = request.headers
        self._request = request

    async def body(self, limit: int, *, empty: bool = False) -> bytes:
        return await read_body(self._request, limit, empty=empty)


async def read_body(request: web.BaseRequest, limit: int, *, empty: bool = False) -> bytes:
    """The body, at most `limit` bytes. TooLarge, Malformed (cut off, and empty unless that may be), UnsupportedMedia
    (compressed)."""
    content = request.content
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise UnsupportedMedia("send the body without Content-Encoding", details={"field": "Content-Encoding"})
    if content.is_eof():
        data = content.read_nowait()
        if len(data) > limit:
            raise too_large(limit)
    else:
        data = await _read_rest(request, limit)
    if not data and not empty:
        raise Malformed("a body is required", field="$")
    return data


async def _read_rest(request: web.BaseRequest, limit: int) -> bytes:
    declared = request.content_length
    if declared is not None and declared > limit:
        raise too_large(limit)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while part := await request.content.readany():
                size += len(part)
                if size > limit:
                    raise too_large(limit)
                parts.append(part)
    except TimeoutError as error:
        raise Malformed(f"the body did not arrive within {BODY_SECONDS:.0f} s", field="$") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Malformed("the body was cut off or is not encoded as announced", field="$") from error
    return b"".join(parts)


def too_large(limit: int) -> TooLarge:
    """The refusal of a longer body."""
    return TooLarge(f"a body of at most {limit} bytes is accepted here", details={"field": "$", "limit": limit})
