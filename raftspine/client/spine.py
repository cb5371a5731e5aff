"""The client and its sessions: who holds the session token.

A session token says what its holder has written and read, so that any node can tell whether it is up to date
enough to answer. It therefore belongs to one line of work. Kept on the shared client it would make unrelated
tasks wait for each other's writes; lost between two concurrent replies it would forget one of them. So the
client has none (the store then merges enough replicas by itself), and a session sends one request at a time.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import msgspec

from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.face import Coordination
from raftspine.client.endpoints import Endpoints
from raftspine.client.entropy import OsEntropy
from raftspine.client.operations import Operations
from raftspine.client.wire import Reply, Request, Wire
from raftspine.errors import SpineError
from raftspine.ports import Entropy

DEFAULT_TIMEOUT_S = 15.0
"""Enough for an election under the `wan` preset and a retry after it."""


class AsyncSession(Operations):
    """A line of work that reads what it wrote, on whichever node answers. Requests of one session go out one
    after the other; for parallel work open one session per worker. Shares the client's connections."""

    def __init__(self, wire: Wire, agent_id: str | None, consistency: str | None, token: str | None) -> None:
        super().__init__(wire, agent_id, consistency)
        self.token = token
        """Hand it to another process to let it see what this session has seen."""
        self._turn = asyncio.Lock()

    async def _call(self, request: Request) -> Reply:
        async with self._turn:
            if self.token is not None:
                request = request._replace(headers={**request.headers, "X-Spine-Session": self.token})
            reply = await super()._call(request)
            self.token = reply.headers.get("X-Spine-Session", self.token)
            return reply


class AsyncSpine(Operations, Coordination):
    """A client of one cluster; safe to share between tasks of one event loop.

    `url` is one node's address or several: with several, a failing node is left for the next. `timeout` is
    the time in seconds a call may take with all its retries. `consistency` asks for a model on every call.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:8788",
        *,
        api_key: str | None = None,
        agent_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        consistency: str | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        """Raises Misuse when an address is not one. Connects at the first call."""
        wire = Wire(Endpoints(url), api_key=api_key, timeout_s=timeout, entropy=entropy or OsEntropy())
        super().__init__(wire, agent_id, consistency)
        self.channel = Channel(wire, agent_id)

    async def __aenter__(self) -> "AsyncSpine":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, those of the sessions included. What is held is not given back by this."""
        await self.channel.close()
        await self._wire.close()

    def session(
        self, *, agent_id: str | None = None, consistency: str | None = None, token: str | None = None
    ) -> AsyncSession:
        """A new session, for `agent_id` or the client's own. `token` continues an earlier one."""
        return AsyncSession(self._wire, agent_id or self._agent_id, consistency or self._consistency, token)

    async def probe(self, url: str, path: str, *, timeout: float = 2.0) -> tuple[int, dict[str, Any]]:
        """Ask one node, without retries, for a JSON document that describes the node itself, such as
        ``/readyz``: the status, which may be an error, and the document. Raises Unavailable when the node
        does not answer."""
        reply = await self._wire.ask(url.rstrip("/"), Request("GET", path), timeout)
        try:
            document = msgspec.json.decode(reply.body) if reply.body else {}
        except msgspec.DecodeError as error:
            raise SpineError(f"{url}{path} did not answer in JSON; is it a raftspine node?") from error
        return reply.status, document if isinstance(document, dict) else {"value": document}
