"""The front door: a request comes in, a route is found, its handler runs, a reply leaves.

The rule: nothing leaves but a `Reply`, and every failure passes through problems.py. So a client can rely
on the envelope, the request id and the node's name whatever went wrong, and never sees a traceback.

Built on aiohttp's low-level Server: its Application adds a resolver, middlewares and signals that cost a
third of the throughput and do nothing the table of routes does not do.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog
from aiohttp import web

from raftspine.core.limits import Limits
from raftspine.errors import Forbidden, Malformed, Misuse, SpineError
from raftspine.http import parse
from raftspine.http.auth import Access, Auth
from raftspine.http.call import Call, Telemetry
from raftspine.http.cluster import ClusterHandlers, ClusterView, Requests
from raftspine.http.connection import Connection
from raftspine.http.coordination.routes import coordination_routes
from raftspine.http.dispatch import Bound, Router
from raftspine.http.intake import ForeignRequest, Request
from raftspine.http.memories import Memories, MemoryHandlers
from raftspine.http.openapi import document
from raftspine.http.problems import foreign
from raftspine.http.reply import Heads, Reply
from raftspine.http.routes import table
from raftspine.ports import Clock, Entropy
from raftspine.services.coordination.service import Coordination

KEEPALIVE_SECONDS = 75.0
LINGER_SECONDS = 2.0
"""How long what is left of a refused body is read and dropped, so that the client gets to see the refusal."""

UPLOAD_SECONDS = 1.0
"""How long a node that is stopping waits for the rest of a request's body. Nothing was done for it yet, so nothing is
left in doubt, and a client that stalls must not hold the node up."""

_log = structlog.get_logger(__name__)


class Services(Memories, Requests, Protocol):
    """All that the handlers ask of the memory services."""


class FrontDoor:
    """Answers requests. Made by `build`; `serve` is the handler for aiohttp's low-level server. `refused` hears of
    privileged acts whose key was not good enough: key, act, path."""

    def __init__(
        self,
        router: Router,
        *,
        auth: Auth,
        heads: Heads,
        clock: Clock,
        request_prefix: str,
        telemetry: Telemetry,
        refused: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.auth = auth
        self._refused = refused
        self._router = router
        self._heads = heads
        self._now = clock.monotonic
        self._prefix = request_prefix
        self._count = 0
        self._observe = telemetry.observe
        self.draining = False

    async def serve(self, request: web.BaseRequest) -> Reply:
        """A request that came by aiohttp."""
        reply = await self.answer(ForeignRequest(request))
        return reply if request.content.is_eof() else reply.closing()

    async def answer(self, request: Request) -> Reply:
        """One request, start to end. Raises nothing but CancelledError."""
        started = self._now()
        headers = request.headers
        call = Call(headers, parse.request_id(headers) or self._new_id(), self._heads, started)
        method, label = request.method, "other"
        try:
            path, _, query = request.target.partition("?")
            accept = headers.get(parse.ACCEPT)
            if accept is not None and accept != "*/*":
                call.msgpack = parse.wants_msgpack(accept)
            route, call.params = self._router.find(method, path)
            label = route.path
            self._admit(call, route, path)
            call.query = parse.query(query, route.query) if query else route.no_query
            if route.json is not None:
                call.body = await self._body(request, call, route)
            elif route.raw:
                call.body = await request.body(route.body_limit, empty=True)
            reply = await route.handler(call)
        except SpineError as error:
            reply = self._refusal(call, error)
        except Exception as error:  # noqa: BLE001 - the door, where what nobody foresaw is logged and answered
            reply = self._failure(call, error, label)
        if self.draining:
            reply.closing()
        self._observe(label, method if label != "other" else "other", reply.code, self._now() - started)
        return reply

    def _admit(self, call: Call, route: Bound, path: str) -> None:
        try:
            call.key = self.auth.admit(call.headers.get(parse.AUTHORIZATION), route.access)
        except Forbidden as error:
            if route.access >= Access.APPROVE and self._refused is not None:
                self._refused(error.details["key"], f"{route.method} {route.path}", path)
            raise

    async def _body(self, request: Request, call: Call, route: Bound) -> object:
        kind = call.headers.get(parse.CONTENT_TYPE)
        if kind is not None and kind != "application/json":
            call.body_msgpack = parse.body_is_msgpack(kind)
        data = await request.body(route.body_limit)
        return parse.decode(data, route.msgpack if call.body_msgpack else route.json)

    def _refusal(self, call: Call, error: SpineError) -> Reply:
        reply = call.problem(error)
        if reply.code == 500:
            _log.error("request failed", request_id=call.request_id, error=error.message, exc_info=error)
        return reply

    def _failure(self, call: Call, error: Exception, route: str) -> Reply:
        """An exception nobody foresaw: the client learns the request id, the log everything."""
        _log.error("request failed", request_id=call.request_id, route=route, exc_info=error)
        return call.problem(foreign(error))

    def not_http(self, message: str) -> Reply:
        """The answer to bytes that are no HTTP request; the connection ends with it."""
        call = Call({}, self._new_id(), self._heads, self._now())
        first_line = message.strip().partition("\n")[0][:200]
        return call.problem(Malformed(f"not a valid HTTP request: {first_line}", field="request")).closing()

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:x}"


def build(
    memories: Services,
    cluster: ClusterView,
    *,
    node_id: str,
    limits: Limits,
    auth: Auth,
    clock: Clock,
    entropy: Entropy,
    telemetry: Telemetry,
    coordination: Coordination | None = None,
) -> FrontDoor:
    """Wire the table of routes to the services; without `coordination` there are no routes for it. Request ids are
    unique across nodes and boots: a random prefix and a count."""
    docs: list[bytes] = []
    routes = table(MemoryHandlers(memories, limits), ClusterHandlers(cluster, memories, limits, lambda: docs[0]))
    if coordination is not None:
        routes = (*routes, *coordination_routes(coordination, limits, auth))
    docs.append(document(routes, cluster.version))
    bound = [Bound(route, limits.batch_body_bytes if route.large else limits.body_bytes) for route in routes]
    return FrontDoor(
        Router(bound),
        auth=auth,
        heads=Heads(node_id, clock),
        clock=clock,
        request_prefix=f"{entropy.token_bytes(5).hex()}-",
        telemetry=telemetry,
        refused=None if coordination is None else coordination.access.refused,
    )


class _Foreign(web.RequestHandler):
    """aiohttp's protocol, except that what is no HTTP gets our envelope, and no traceback in the log."""

    __slots__ = ("_front",)

    def __init__(self, manager: "Connections", front: FrontDoor) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
        )
        self._front = front

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        _log.info("not a valid HTTP request", remote=request.remote, error=message)
        return self._front.not_http(message or "")


class Connections(web.Server):
    """All connections of a server: called for the protocol of each."""

    def __init__(self, front: FrontDoor) -> None:
        super().__init__(front.serve)
        self._front = front
        self._plain: dict[Connection, None] = {}

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        return Connection(self._front.answer, self._foreign, self._plain, KEEPALIVE_SECONDS)

    def _foreign(self) -> web.RequestHandler:
        return _Foreign(self, self._front)

    def pre_shutdown(self) -> None:
        """Close the connections that want nothing."""
        super().pre_shutdown()
        for connection in list(self._plain):
            connection.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let the requests under way end within `timeout` seconds, then close all connections."""
        busy = [connection.ended for connection in self._plain if connection.ended is not None]
        waits = [super().shutdown(timeout)]
        if busy:
            waits.append(_wait(busy, timeout))
        await asyncio.gather(*waits)
        for connection in list(self._plain):
            connection.close(now=True)


class HttpServer:
    """Listens on one address. `start` once, `stop` once."""

    def __init__(self, front: FrontDoor) -> None:
        self._front = front
        self._runner: web.ServerRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one, found in `port` afterwards. Misuse when the address cannot be
        had, or is reachable from other machines while there are no API keys."""
        self._front.auth.check_bind(host)
        runner = web.ServerRunner(Connections(self._front))
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise Misuse(
                f"cannot listen on {host}:{port}: {error.strerror or error}; is another node running?"
            ) from error
        self._runner = runner
        self.port = site.port

    async def stop(self, deadline_s: float = 10.0) -> None:
        """Stop accepting, let requests under way finish for at most `deadline_s` seconds, then close. What
        is cut off by the deadline is an unknown outcome for its client."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._front.draining = True
        for site in runner.sites:
            await site.stop()
        server = runner.server
        if server is not None:
            server.pre_shutdown()
            asyncio.get_running_loop().call_later(UPLOAD_SECONDS, _drop_uploads, server)
            await server.shutdown(deadline_s)
        await runner.cleanup()


async def _wait(futures: list[asyncio.Future[Reply]], seconds: float | None) -> None:
    await asyncio.wait(futures, timeout=seconds)


def _drop_uploads(server: web.Server) -> None:
    """Close the connections whose request has not arrived in full."""
    for connection in server.connections:
        request = connection._current_request
        if request is not None and not request.content.is_eof():
            connection.force_close()
