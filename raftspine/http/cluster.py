"""Handlers about the cluster rather than about a memory: where things go, what became of a request, is it
well.

These answer from what this node knows now. Only /v1/requests asks others, because only a majority can say
that something will never happen.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from raftspine.core.limits import Limits, check_id
from raftspine.errors import Unavailable
from raftspine.http import parse
from raftspine.http.bodies import Health, Ready, RouteQuery
from raftspine.http.call import Call
from raftspine.http.reply import Reply
from raftspine.model import Table
from raftspine.services.values import Explained, RequestStatus

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class ClusterView(Protocol):
    """What this node can say of itself and the cluster, at once and without asking anyone."""

    @property
    def node_id(self) -> str: ...
    @property
    def version(self) -> str: ...

    def topology(self) -> Table: ...

    def status(self) -> dict[str, Any]:
        """Plain data: per node the groups with role, leader, term, commit and applied; peers connected; lag;
        pending dots; share of the store used; why it is read-only; epoch."""
        ...

    def ready(self) -> tuple[bool, list[str]]:
        """Whether this node may take traffic, and what is missing when not."""
        ...

    def stats(self) -> dict[str, Any]: ...

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4."""
        ...


class Requests(Protocol):
    """What became of writes, and why memories go where they go (services/memories.py)."""

    async def explain(self, tags: tuple[str, ...], id: str | None, agent_id: str) -> Explained: ...
    async def request_status(self, key: str) -> RequestStatus: ...
    async def void_request(self, key: str) -> RequestStatus: ...


class ClusterHandlers:
    """The cluster routes over one view. `document` yields /openapi.json once the table of routes is complete."""

    def __init__(
        self, cluster: ClusterView, requests: Requests, limits: Limits, document: Callable[[], bytes]
    ) -> None:
        self._cluster = cluster
        self._requests = requests
        self._limits = limits
        self._document = document

    async def route(self, call: Call) -> Reply:
        """Explain the router's decision for tags and an id."""
        query: RouteQuery = call.query
        if query.id is not None:
            check_id(query.id, self._limits)
        tags = tuple(tag for tag in (part.strip() for part in query.tags.split(",")) if tag)
        agent = query.agent_id
        if agent is None:
            agent = parse.ask(call.headers, None, self._limits).agent_id
        return call.reply(200, await self._requests.explain(tags, query.id, agent))

    async def request_status(self, call: Call) -> Reply:
        """What became of an Idempotency-Key."""
        return await self._about_request(call, self._requests.request_status)

    async def void_request(self, call: Call) -> Reply:
        """Make sure that a request never happens, or learn that it did."""
        return await self._about_request(call, self._requests.void_request)

    async def _about_request(self, call: Call, ask: Callable[[str], Awaitable[RequestStatus]]) -> Reply:
        key = call.params[0]
        parse.check_idempotency_key(key, "key")
        return call.reply(200, await ask(key))

    async def topology(self, call: Call) -> Reply:
        return call.reply(200, self._cluster.topology())

    async def status(self, call: Call) -> Reply:
        return call.reply(200, self._cluster.status())

    async def stats(self, call: Call) -> Reply:
        return call.reply(200, self._cluster.stats())

    async def healthz(self, call: Call) -> Reply:
        """The process answers. Says nothing about the cluster, so that nobody restarts a node for its peers' sake."""
        return call.reply(200, Health("ok", self._cluster.node_id, self._cluster.version))

    async def readyz(self, call: Call) -> Reply:
        """200 when this node may take traffic, else 503 with the reasons."""
        ready, reasons = self._cluster.ready()
        if not ready:
            raise Unavailable(f"not ready: {'; '.join(reasons)}", details={"reasons": reasons})
        return call.reply(200, Ready(True, self._cluster.node_id))

    async def metrics(self, call: Call) -> Reply:
        return call.raw(self._cluster.metrics(), PROMETHEUS)

    async def openapi(self, call: Call) -> Reply:
        return call.raw(self._document(), "application/json")
