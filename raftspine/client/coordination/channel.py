"""How coordination talks to the store: questions, changes, and what is left to be done after the caller has gone.

The rule: a question that changes nothing by being asked twice (a renewal, a check) has no Idempotency-Key and is
repeated as often as its time allows; whatever else changes something has one, so that *unknown* stays apart from
*no*. Work that nobody waits for any more (taking back a question whose asker was cancelled) is kept here until it is
done, or until the client is closed, which waits for it a little.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

from raftspine.client import records
from raftspine.client.operations import encoded
from raftspine.client.wire import Request, Wire

LAST_S = 2.0
"""How long closing the client waits for what was left to do."""


class Channel:
    """The coordination side of one client. Bound to its event loop."""

    def __init__(self, wire: Wire, agent_id: str | None) -> None:
        self.agent_id = agent_id
        self._wire = wire
        self._headers = {} if agent_id is None else {"X-Agent-Id": agent_id}
        self._left: set[asyncio.Task[None]] = set()

    def new_key(self) -> str:
        """128 random bits: an Idempotency-Key, or a name that nobody else draws."""
        return self._wire.new_key()

    async def ask(
        self,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        hold_s: float = 0.0,
        within_s: float | None = None,
        method: str = "POST",
        agent: str | None = None,
    ) -> dict[str, Any]:
        """The answer to a POST. `key`: it is a change, with this Idempotency-Key. `hold_s`: how long the node may
        keep the answer back because we asked it to; `within_s`: the time for all attempts. Raises the SpineError of
        the answer."""
        headers = self._headers if agent is None else {"X-Agent-Id": agent}
        if body is not None:
            headers = {**headers, "Content-Type": "application/json"}
        data = None if body is None else encoded(body, "$")
        reply = await self._wire.send(
            Request(method, path, headers=headers, body=data, key=key, hold_s=hold_s, within_s=within_s)
        )
        return records.plain(reply.body) if reply.body else {}

    async def change(
        self, path: str, body: Any = None, *, method: str = "POST", agent: str | None = None
    ) -> dict[str, Any]:
        """`ask` for a change, under a key drawn for it."""
        return await self.ask(path, body, key=self.new_key(), method=method, agent=agent)

    async def look(
        self, path: str, query: Mapping[str, str | None] | None = None, *, hold_s: float = 0.0
    ) -> dict[str, Any]:
        """The answer to a GET; what is None in the query is left out."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return records.plain((await self._wire.send(Request("GET", path, given, self._headers, hold_s=hold_s))).body)

    def follow(self, path: str, query: Mapping[str, str | None], idle_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of a GET whose answer goes on (server-sent events); see Wire.follow."""
        given = {name: value for name, value in query.items() if value is not None}
        headers = {**self._headers, "Accept": "text/event-stream"}
        return self._wire.follow(Request("GET", path, given, headers), idle_s)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this though nobody waits for it. It must not raise."""
        task = asyncio.get_running_loop().create_task(work)
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def close(self) -> None:
        """Wait a little for what was left to do, then drop it."""
        if self._left:
            _, late = await asyncio.wait(self._left, timeout=LAST_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
