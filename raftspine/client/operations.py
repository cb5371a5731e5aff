"""The store's operations, said once.

The client, its sessions and the blocking face all offer the same methods; they differ only in what `_call`
adds to a request. Writing the methods once is what keeps the three from drifting apart.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from raftspine.client import records
from raftspine.client.records import BatchResult, Page, Record
from raftspine.client.wire import Reply, Request, Wire
from raftspine.errors import InvalidRequest

_json = msgspec.json.Encoder()


class Unset:
    """Stands for a field that was not given, where None means something."""


UNSET = Unset()


class Guards(Protocol):
    """What can guard a write: a lease, an office."""

    @property
    def guards(self) -> list[dict[str, Any]]: ...


Guarded = Guards | Sequence[Guards] | None


def guards(given: Guarded) -> list[dict[str, Any]]:
    """The conditions `[{lock, token, space}]` of one lease, or of several."""
    if given is None:
        return []
    several = given if isinstance(given, Sequence) else (given,)
    return [condition for one in several for condition in one.guards]


class Operations:
    """Every call a client can make. Each raises the SpineError of the store's answer: Rejected and its kinds
    when it refused, Unavailable when nothing happened, Unknown when a write may have happened."""

    def __init__(self, wire: Wire, agent_id: str | None, consistency: str | None) -> None:
        self._wire = wire
        self._agent_id = agent_id
        self._consistency = consistency

    # ── writes ──────────────────────────────────────────────────────────────────────────────────────────────

    async def put(
        self,
        id: str,
        content: Any,
        *,
        tags: Sequence[str] | None = None,
        agent_id: str | None = None,
        namespace: str | None = None,
        importance: str | float | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        pinned: bool | None = None,
        expected_version: str | None = None,
        if_absent: bool = False,
        guard: Guarded = None,
        idempotency_key: str | None = None,
    ) -> Record:
        """Store a memory under `id`, replacing what is there. Without `tags` the stored ones stay.

        `expected_version` refuses with Conflict, `if_absent` with PreconditionFailed, when the stored state is
        another; `guard` with Fenced, when the token of a lease is not current. `idempotency_key` lets a later call
        repeat this one; drawn afresh when not given.
        """
        body = _draft(content, tags, agent_id, namespace, importance, metadata, ttl_seconds, pinned)
        if expected_version is not None:
            body["expected_version"] = expected_version
        if guard is not None:
            body["guard"] = guards(guard)
        headers = {"If-None-Match": "*"} if if_absent else {}
        reply = await self._write("PUT", _memory(id), body, headers=headers, key=idempotency_key)
        return records.record(reply.body)

    async def add(
        self,
        content: Any,
        *,
        tags: Sequence[str] | None = None,
        agent_id: str | None = None,
        namespace: str | None = None,
        importance: str | float | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        pinned: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Record:
        """Store a memory under an id the server draws."""
        body = _draft(content, tags, agent_id, namespace, importance, metadata, ttl_seconds, pinned)
        return records.record((await self._write("POST", "/v1/memories", body, key=idempotency_key)).body)

    async def patch(
        self,
        id: str,
        *,
        content: Any = UNSET,
        tags: Sequence[str] | Unset = UNSET,
        namespace: str | Unset = UNSET,
        importance: str | float | Unset = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        ttl_seconds: int | Unset | None = UNSET,
        pinned: bool | Unset = UNSET,
        expected_version: str | None = None,
        guard: Guarded = None,
        idempotency_key: str | None = None,
    ) -> Record:
        """Change the given fields; the others stay. `ttl_seconds=None` removes the expiry."""
        given = {
            "content": content,
            "tags": tags,
            "namespace": namespace,
            "importance": importance,
            "metadata": metadata,
            "ttl_seconds": ttl_seconds,
            "pinned": pinned,
        }
        body = {name: value for name, value in given.items() if not isinstance(value, Unset)}
        if expected_version is not None:
            body["expected_version"] = expected_version
        if guard is not None:
            body["guard"] = guards(guard)
        reply = await self._write("PATCH", _memory(id), body, key=idempotency_key)
        return records.record(reply.body)

    async def delete(
        self,
        id: str,
        *,
        expected_version: str | None = None,
        guard: Guarded = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Remove a memory; removing what is not there succeeds too. `expected_version` refuses with Conflict
        when another one is stored, `guard` with Fenced when the token of a lock is not current."""
        query = {} if expected_version is None else {"expected_version": expected_version}
        headers = {} if guard is None else {"X-Spine-Fencing": _fencing(guards(guard))}
        await self._write("DELETE", _memory(id), None, query=query, headers=headers, key=idempotency_key)

    async def batch(
        self, ops: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> tuple[BatchResult, ...]:
        """Up to 1000 operations, `{"op": "put"|"get"|"delete", "id": …, …}`; one result each, in order. They
        are independent: some may fail while others succeed."""
        listed = [dict(op) for op in ops]
        ids = tuple(str(op.get("id", "")) for op in listed)
        reply = await self._write("POST", "/v1/memories/batch", {"ops": listed}, key=idempotency_key)
        return records.batch(reply.body, ids)

    async def void_request(self, key: str) -> dict[str, Any]:
        """Settle an unknown outcome: afterwards the request with this Idempotency-Key has happened or never
        will; the answer says which."""
        return records.plain((await self._write("POST", f"/v1/requests/{quoted(key)}/void", None)).body)

    # ── reads ───────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, id: str, *, consistency: str | None = None) -> Record:
        """The memory. Raises NotFound; its `details["confirmed"]` is false when no majority could be asked."""
        return records.record((await self._read(_memory(id), consistency=consistency)).body)

    async def page(
        self,
        *,
        tag: str | None = None,
        namespace: str | None = None,
        agent_id: str | None = None,
        prefix: str | None = None,
        updated_since: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """One page of memories that meet all filters, at most 1000. `cursor` is the `next_cursor` of the page
        before, `updated_since` RFC 3339 text or milliseconds since 1970."""
        given = {
            "tag": tag,
            "namespace": namespace,
            "agent_id": agent_id,
            "prefix": prefix,
            "updated_since": updated_since,
            "cursor": cursor,
        }
        query = {name: value for name, value in given.items() if value is not None}
        return records.page((await self._read("/v1/memories", {**query, "limit": str(limit)})).body)

    async def list(self, **filters: Any) -> AsyncIterator[Record]:
        """All memories that meet the filters of `page`, fetched page by page while you iterate."""
        cursor: str | None = filters.pop("cursor", None)
        while True:
            page = await self.page(cursor=cursor, **filters)
            for record in page.items:
                yield record
            cursor = page.next_cursor
            if cursor is None:
                return

    async def conflicts(self, id: str) -> Sequence[dict[str, Any]]:
        """The writes to this id that lost against a concurrent one; `deleted` marks a losing delete."""
        return records.items((await self._read(_memory(id) + "/conflicts")).body)

    async def versions(self, id: str) -> Sequence[Record]:
        """The history of this id as far as it is kept, newest first."""
        return records.page((await self._read(_memory(id) + "/versions")).body).items

    async def route(self, *, tags: Sequence[str] = (), id: str | None = None) -> dict[str, Any]:
        """What the router decides for these tags and this id, and why."""
        query = {"tags": ",".join(tags)} if tags else {}
        if id is not None:
            query["id"] = id
        return records.plain((await self._read("/v1/route", query)).body)

    async def topology(self) -> dict[str, Any]:
        """The table: members, and for each shard group its replicas, with the epoch."""
        return records.plain((await self._read("/v1/topology")).body)

    async def status(self) -> dict[str, Any]:
        """The cluster as the answering node sees it."""
        return records.plain((await self._read("/v1/cluster/status")).body)

    async def request_status(self, key: str) -> dict[str, Any]:
        """What became of the request with this Idempotency-Key: done, void or unknown."""
        return records.plain((await self._read(f"/v1/requests/{quoted(key)}")).body)

    # ── how a call goes out ─────────────────────────────────────────────────────────────────────────────────

    async def _read(
        self, path: str, query: Mapping[str, str] | None = None, *, consistency: str | None = None
    ) -> Reply:
        model = consistency or self._consistency
        headers = {"X-Spine-Consistency": model} if model else {}
        return await self._call(Request("GET", path, query or {}, headers))

    async def _write(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Reply:
        sent = dict(headers or {})
        data = None if body is None else encoded(body)
        if data is not None:
            sent["Content-Type"] = "application/json"
        if self._consistency:
            sent["X-Spine-Consistency"] = self._consistency
        request = Request(method, path, query or {}, sent, data, key or self._wire.new_key(), repeats=key is not None)
        return await self._call(request)

    async def _call(self, request: Request) -> Reply:
        """Sessions add their token here."""
        if self._agent_id is not None:
            request = request._replace(headers={**request.headers, "X-Agent-Id": self._agent_id})
        return await self._wire.send(request)


def _draft(
    content: Any,
    tags: Sequence[str] | None,
    agent_id: str | None,
    namespace: str | None,
    importance: str | float | None,
    metadata: Mapping[str, Any] | None,
    ttl_seconds: int | None,
    pinned: bool | None,
) -> dict[str, Any]:
    """The body of a write: what was given and nothing else, so that defaults are the server's business."""
    optional = {
        "tags": tags,
        "agent_id": agent_id,
        "namespace": namespace,
        "importance": importance,
        "metadata": metadata,
        "ttl_seconds": ttl_seconds,
        "pinned": pinned,
    }
    return {"content": content, **{name: value for name, value in optional.items() if value is not None}}


def encoded(body: Any, field: str = "$.content") -> bytes:
    """A body as JSON. InvalidRequest when it holds what JSON has no word for."""
    try:
        return _json.encode(body)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{field} cannot be written as JSON: {error}", field=field) from error


def _fencing(conditions: Sequence[Mapping[str, Any]]) -> str:
    """Guards as a header, for a request without a body. It has no word for an election."""
    if any(condition["space"] != "lock" for condition in conditions):
        raise InvalidRequest("a delete can be guarded by locks only; an office can guard one in a txn", field="guard")
    return ",".join(f"{quoted(condition['lock'])}={condition['token']}" for condition in conditions)


def _memory(id: str) -> str:
    if not id:
        raise InvalidRequest("an id has 1 to 255 bytes", field="id")
    return "/v1/memories/" + quoted(id)


def quoted(segment: str) -> str:
    """One path segment. Dots alone would be taken for a step up by whatever normalises paths on the way."""
    try:
        quoted = quote(segment, safe="")
    except UnicodeEncodeError as error:
        raise InvalidRequest("an id is UTF-8 text", field="id") from error
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted
