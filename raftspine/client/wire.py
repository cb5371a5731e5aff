"""One request, from first attempt to an outcome the caller may rely on.

The rule: what may have happened is never reported as refused. A write carries one Idempotency-Key through all
of its attempts, so repeating it is safe; but as soon as one attempt was sent and not answered, running out of
time ends in `Unknown`, whatever the last attempt said. Without that, a caller told "unavailable" would do the
work again under a new key, and do it twice.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from yarl import URL

from raftspine._version import __version__
from raftspine.client import problems
from raftspine.client.endpoints import Backoff, Endpoints
from raftspine.errors import InvalidRequest, SpineError, Unavailable, Unknown
from raftspine.ports import Entropy

RETRIED = (502, 503, 504)
"""Not done (503) or not known. Everything else is a decision, or will not change by asking again."""

MAYBE_DONE = (502, 504)
"""The node itself does not know, or a proxy lost its answer on the way. A 503 leaves doubt too when it says that it
is `indeterminate`: a ring write that some replicas have, and others may be given by them."""

DECIDED = (400, 404, 405, 409, 412, 413, 415, 422)
"""Answers that hold for the request itself or were given after its key was looked up. Any other refusal (no
right to ask, no room, too many requests) says nothing about an earlier attempt left in doubt."""

CONNECT_S = 2.0
"""A node on a reachable machine accepts within milliseconds; past this, another one is worth trying."""


NOBODY_S = 5.0
"""How long to go on when no address takes connections at all: long enough for a node to be restarted, and
short enough that a wrong address is soon called one."""


class Request(NamedTuple):
    """What goes to a node. `path` is already percent-encoded. `key` is None on what may be repeated without one.
    `repeats`: the key came from the caller, so an earlier call may have sent it, and no attempt of this one may claim
    to be the first. `hold_s`: how long the node may keep the answer back by request. `within_s`: the time for all
    attempts, where it is not the client's usual one."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    key: str | None = None
    repeats: bool = False
    hold_s: float = 0.0
    within_s: float | None = None


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _NotSentError(Exception):
    """No connection: the node cannot have seen this attempt."""


class _BrokenError(Exception):
    """Sent, wholly or in part, and not answered."""


class Wire:
    """The connections of one client: a pool, the nodes' addresses and the retry rule. Bound to one event loop."""

    def __init__(self, endpoints: Endpoints, *, api_key: str | None, timeout_s: float, entropy: Entropy) -> None:
        self.endpoints = endpoints
        self._timeout_s = timeout_s
        self._entropy = entropy
        self._headers = {"User-Agent": f"raftspine/{__version__}", "Accept": "application/json"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise InvalidRequest("an API key has visible ASCII characters only", field="api_key")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool: aiohttp.ClientSession | None = None
        self._closed = False

    def new_key(self) -> str:
        """A fresh Idempotency-Key: 128 random bits, so that no two clients ever draw the same."""
        return self._entropy.token_bytes(16).hex()

    async def close(self) -> None:
        self._closed = True
        if self._pool is not None:
            await self._pool.close()

    async def send(self, request: Request) -> Reply:
        """The reply, with a status below 400. Raises the SpineError that the store, or the lack of one, means."""
        loop = asyncio.get_running_loop()
        total_s = self._timeout_s if request.within_s is None else request.within_s
        deadline = loop.time() + total_s + request.hold_s
        backoff = Backoff(len(self.endpoints), self._entropy)
        attempt, doubt, reached = int(request.repeats), False, loop.time()
        while True:
            attempt += 1
            url = self.endpoints.current()
            error: SpineError
            try:
                reply = await self._attempt(url, request, attempt, deadline - loop.time(), total_s / 3)
            except _NotSentError as cause:
                error = Unavailable(f"{url} cannot be reached: {cause}", code="unreachable")
            except _BrokenError as cause:
                doubt, reached = True, loop.time()
                error = Unavailable(f"{url} did not answer: {cause}", code="no_answer")
            else:
                if reply.status < 400:
                    return reply
                error = problems.rebuild(reply.status, reply.headers, reply.body)
                partly = reply.status in MAYBE_DONE or bool(error.details.get("indeterminate"))
                doubt, reached = doubt or partly, loop.time()
                if reply.status not in RETRIED:
                    raise self._outcome(request, error, doubt and reply.status not in DECIDED)
            self.endpoints.failed(url)
            pause = backoff.next_s(error.retry_after_ms)
            if loop.time() + pause >= min(deadline, reached + NOBODY_S):
                raise self._outcome(request, error, doubt)
            await asyncio.sleep(pause)

    async def follow(self, request: Request, idle_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on, from the node that is asked first; it ends when the node ends it.
        Raises the SpineError of a refusal, and Unavailable when there is no answer, or no line for `idle_s` seconds;
        the next call then asks another node."""
        url = self.endpoints.current()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=idle_s)
        target = URL(url + request.path, encoded=True).with_query(request.query)
        try:
            async with self._connections().request(
                request.method,
                target,
                headers={**self._headers, **request.headers},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if response.status >= 400:
                    error = problems.rebuild(response.status, response.headers, await response.read())
                    if response.status in RETRIED:
                        self.endpoints.failed(url)
                    raise error
                async for line in response.content:
                    yield line
        except (aiohttp.ClientError, TimeoutError, _BrokenError) as error:
            self.endpoints.failed(url)
            raise Unavailable(f"{url}: {_why(error)}", code="no_answer") from error

    async def ask(self, url: str, request: Request, timeout_s: float) -> Reply:
        """One attempt at one given node, whatever it answers; for looking at nodes rather than through them.
        Raises Unavailable when it does not answer."""
        try:
            return await self._attempt(url, request, 1, timeout_s, timeout_s)
        except (_NotSentError, _BrokenError) as cause:
            raise Unavailable(f"{url}: {cause}", code="unreachable") from cause

    def _outcome(self, request: Request, error: SpineError, doubt: bool) -> SpineError:
        """What the caller is told in the end: the last error, unless an unanswered write makes it a lie."""
        if request.key is None or not doubt or isinstance(error, Unknown):
            if isinstance(error, Unknown) and request.key is not None:
                error.details.setdefault("idempotency_key", request.key)
            return error
        return Unknown(
            f"the write may have happened: {error.message}; ask again with the same Idempotency-Key",
            details={**error.details, "idempotency_key": request.key},
        )

    async def _attempt(self, url: str, request: Request, attempt: int, remaining_s: float, share_s: float) -> Reply:
        """One exchange, in its share of the time, so that a node that hangs leaves time for another; what the node
        may hold back comes on top."""
        headers = {**self._headers, **request.headers}
        if request.key is not None:
            headers["Idempotency-Key"] = request.key
            headers["X-Spine-Attempt"] = str(attempt)
        share = remaining_s if len(self.endpoints) == 1 else min(remaining_s, share_s + request.hold_s)
        timeout = aiohttp.ClientTimeout(total=max(share, 0.001), sock_connect=CONNECT_S)
        target = URL(url + request.path, encoded=True)
        if request.query:
            target = target.with_query(request.query)
        try:
            async with self._connections().request(
                request.method,
                target,
                headers=headers,
                data=request.body,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _NotSentError(_why(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _BrokenError(_why(error)) from error

    def _connections(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable("this client is closed", code="closed")
        if self._pool is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._pool = aiohttp.ClientSession(
                connector=connector, middlewares=(_no_silent_resend,), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._pool


async def _no_silent_resend(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """aiohttp repeats a PUT or DELETE by itself when a kept-alive connection turns out dead. It would do so
    with the same X-Spine-Attempt, so the store would not look for the first try; hence it must not see that
    error."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenError(_why(error)) from error


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.errno) if error.errno else str(error.os_error)
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error) or type(error).__name__
