"""A stand-in for a node, for the client and the command line: the API's shapes over a dictionary, and faults
on demand.

It exists so that the retry rules can be tested against answers that a healthy cluster never gives:
connections cut before or after a write took effect, outcomes left unknown, a proxy's error page. It runs in a
thread of its own, because the code under test may block or bring its own loop.
"""

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

NOW = "2026-01-02T03:04:05.678Z"


@dataclass
class Fault:
    """What to do to one request instead of answering it well.

    `status` answers with that error; `cut` closes the connection instead. `applied` lets the write take
    effect before that. `html` answers as a proxy would, without an envelope.
    """

    status: int = 503
    code: str = "not_ready"
    cut: bool = False
    applied: bool = False
    html: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    retry_after_ms: int | None = None


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class FakeServer:
    """`with FakeServer() as server:` serves on `server.url` until the block ends."""

    def __init__(self, name: str = "fake-1", *, port: int = 0) -> None:
        self.name = name
        self.url = ""
        self.memories: dict[str, dict[str, Any]] = {}
        self.faults: deque[Fault] = deque()
        self.poisoned: dict[str, Fault] = {}
        """Ids whose operations fail inside a batch."""
        self.seen: list[Seen] = []
        self.also: Callable[[Seen], tuple[int, Any]] | None = None
        """Answers what the dictionary of memories does not: status and body; above 400 the inside of the envelope."""
        self.ready: tuple[int, dict[str, Any]] = (200, {"ready": True, "node": name, "reasons": []})
        self.status: dict[str, Any] = {"cluster": "fake", "nodes": []}
        self.topology: dict[str, Any] = {"epoch": 1, "members": [], "groups": []}
        self._port = port
        self._revision = 0
        self._done: dict[str, web.Response] = {}
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        assert self._started.wait(10), "the fake server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{port}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        seen = Seen(request.method, request.raw_path.split("?")[0], dict(request.query), dict(request.headers), body)
        self.seen.append(seen)
        fault = self.faults.popleft() if self.faults else None
        if fault is None:
            return self._answer(seen)
        if fault.applied:
            self._answer(seen)
        if fault.cut:
            assert request.transport is not None
            request.transport.abort()
        return _problem(fault)

    def _answer(self, seen: Seen) -> web.Response:
        key = seen.headers.get("Idempotency-Key")
        if key is not None and key in self._done:
            return _copy(self._done[key])
        response = self._dispatch(seen)
        if seen.path.startswith("/v1/memories"):
            response.headers["X-Spine-Session"] = f"token-{len(self.seen)}"
        response.headers["X-Spine-Node"] = self.name
        if key is not None:
            self._done[key] = _copy(response)
        return response

    def _dispatch(self, seen: Seen) -> web.Response:
        from urllib.parse import unquote

        parts = [unquote(part) for part in seen.path.strip("/").split("/")]
        match seen.method, parts:
            case "GET", ["readyz"]:
                return _json(self.ready[1], self.ready[0])
            case "GET", ["v1", "cluster", "status"]:
                return _json(self.status)
            case "GET", ["v1", "topology"]:
                return _json(self.topology)
            case "GET", ["v1", "route"]:
                strong = "critical" in seen.query.get("tags", "").split(",")
                path = "strong" if strong else "ring"
                return _json({"model": "strong" if strong else "read-your-writes", "path": path, "group": 3})
            case "GET", ["v1", "requests", key]:
                return _json({"key": key, "state": "done" if key in self._done else "unknown"})
            case "POST", ["v1", "requests", key, "void"]:
                return _json({"key": key, "state": "done" if key in self._done else "void"})
            case "POST", ["v1", "memories", "batch"]:
                return _json({"results": [self._one(op) for op in seen.body["ops"]]})
            case "POST", ["v1", "memories"]:
                return self._put(f"drawn-{self._revision + 1}", seen)
            case "GET", ["v1", "memories"]:
                return self._list(seen.query)
            case "GET", ["v1", "memories", id]:
                return _json(self.memories[id]) if id in self.memories else _problem(_missing())
            case "GET", ["v1", "memories", id, "conflicts"]:
                return _json({"items": []})
            case "GET", ["v1", "memories", id, "versions"]:
                return _json({"items": [self.memories[id]]})
            case "PUT", ["v1", "memories", id]:
                return self._put(id, seen)
            case "PATCH", ["v1", "memories", id]:
                if id not in self.memories:
                    return _problem(_missing())
                self.memories[id] = self._record(id, {**self.memories[id], **seen.body})
                return _json(self.memories[id])
            case "DELETE", ["v1", "memories", id]:
                expected = seen.query.get("expected_version")
                if expected is not None and expected != self.memories.get(id, {}).get("version"):
                    return _problem(Fault(409, "version_conflict"))
                self.memories.pop(id, None)
                return web.Response(status=204)
        if self.also is not None:
            status, body = self.also(seen)
            return _json(body if status < 400 else {"error": body}, status)
        return _problem(Fault(404, "not_found"))

    def _put(self, id: str, seen: Seen) -> web.Response:
        old = self.memories.get(id)
        expected = seen.body.pop("expected_version", None)
        if expected is not None and (old is None or old["version"] != expected):
            return _problem(Fault(409, "version_conflict", details={"version": old and old["version"]}))
        if seen.headers.get("If-None-Match") == "*" and old is not None:
            return _problem(Fault(412, "precondition_failed"))
        self.memories[id] = self._record(id, seen.body)
        return _json(self.memories[id], 201 if old is None else 200)

    def _record(self, id: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._revision += 1
        tags = fields.get("tags", [])
        return {
            "namespace": "",
            "agent_id": "",
            "importance": "medium",
            "metadata": {},
            "ttl_seconds": None,
            "expires_at": None,
            "pinned": False,
            "consistency": "strong" if "critical" in tags else "read-your-writes",
            "created_at": NOW,
            "updated_at": NOW,
            "merged_from": [],
            **fields,
            "tags": tags,
            "id": id,
            "version": f"v{self._revision}",
            "content_sha256": hashlib.sha256(str(fields.get("content")).encode()).hexdigest(),
        }

    def _one(self, op: dict[str, Any]) -> dict[str, Any]:
        id = op["id"]
        if id in self.poisoned:
            fault = self.poisoned[id]
            return {"status": fault.status, "error": _envelope(fault)}
        if op["op"] == "delete":
            self.memories.pop(id, None)
            return {"status": 204}
        if op["op"] == "get":
            if id not in self.memories:
                return {"status": 404, "error": _envelope(_missing())}
            return {"status": 200, "record": self.memories[id]}
        created = id not in self.memories
        self.memories[id] = self._record(id, {k: v for k, v in op.items() if k not in ("op", "id")})
        return {"status": 201 if created else 200, "record": self.memories[id]}

    def _list(self, query: dict[str, str]) -> web.Response:
        limit, after = int(query.get("limit", "100")), query.get("cursor", "")
        fit = [
            m
            for id, m in sorted(self.memories.items())
            if id > after
            and ("tag" not in query or query["tag"] in m["tags"])
            and ("agent_id" not in query or query["agent_id"] == m["agent_id"])
            and id.startswith(query.get("prefix", ""))
        ]
        return _json({"items": fit[:limit], "next_cursor": fit[limit - 1]["id"] if len(fit) > limit else None})


def _missing() -> Fault:
    return Fault(404, "not_found", details={"confirmed": True})


def _json(value: Any, status: int = 200) -> web.Response:
    """Compact, as the real one writes it: the load generator counts on that."""
    text = json.dumps(value, separators=(",", ":"))
    return web.json_response(text=text, status=status)


def _envelope(fault: Fault) -> dict[str, Any]:
    return {
        "code": fault.code,
        "message": f"the fake says {fault.code}",
        "details": fault.details,
        "requestId": "req-1",
        "retryable": fault.status in (503, 504),
        "retry_after_ms": fault.retry_after_ms,
    }


def _problem(fault: Fault) -> web.Response:
    if fault.html:
        return web.Response(status=fault.status, text="<html>bad gateway</html>", content_type="text/html")
    return _json({"error": _envelope(fault)}, fault.status)


def _copy(response: web.Response) -> web.Response:
    headers = {k: v for k, v in response.headers.items() if k.lower() not in ("content-length", "content-type")}
    return web.Response(
        status=response.status, body=response.body, content_type=response.content_type, headers=headers
    )
