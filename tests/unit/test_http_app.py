"""The front door itself: cluster routes, failures, keys, connections, start and stop."""

import asyncio
import json
import socket
from contextlib import closing
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
import structlog

from raftspine.errors import Misdirected, Misuse, NoSpace, RateLimited, SpineError, Unavailable, Unknown
from raftspine.http.app import HttpServer
from raftspine.http.auth import Auth
from tests.support.http_site import Site, play


def test_the_cluster_routes() -> None:
    async def story(site: Site) -> None:
        why = (await site.ask("GET", "/v1/route?tags=a,%20critical&id=x")).json
        assert (why["model"], why["path"], why["matched"]) == ("strong", "strong", ["critical"])
        assert (await site.ask("GET", "/v1/topology")).json["epoch"] == 1
        assert (await site.ask("GET", "/v1/cluster/status")).json["nodes"]["n1"] == {"read_only": None}
        for path in ("/v1/stats", "/api/v1/memory/stats"):
            assert (await site.ask("GET", path)).json == {"memories": 0}
        for path in ("/healthz", "/api/v1/memory/health"):
            assert (await site.ask("GET", path)).json == {"status": "ok", "node": "n1", "version": "0.0.0"}
        metrics = await site.ask("GET", "/metrics")
        assert b"spine_up 1" in metrics.body
        assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert (await site.ask("GET", "/openapi.json")).json["openapi"].startswith("3.1")

    play(story)


def test_readiness_says_what_is_missing() -> None:
    async def story(site: Site) -> None:
        assert (await site.ask("GET", "/readyz")).json == {"ready": True, "node": "n1"}
        site.cluster.reasons = ["group 3 has no leader"]
        seen = await site.ask("GET", "/readyz")
        assert (seen.status, seen.error["code"]) == (503, "not_ready")
        assert seen.error["details"] == {"reasons": ["group 3 has no leader"]}
        assert seen.headers["Retry-After"] == "1"

    play(story)


def test_what_became_of_a_request() -> None:
    async def story(site: Site) -> None:
        await site.ask("PUT", "/v1/memories/a", {"content": 1}, {"Idempotency-Key": "k/1"})
        seen = await site.ask("GET", "/v1/requests/k%2F1")
        assert (seen.json["state"], seen.json["id"]) == ("done", "a")
        assert (await site.ask("GET", "/v1/requests/k2")).json["state"] == "unknown"
        assert (await site.ask("POST", "/v1/requests/k2/void")).json["state"] == "void"
        assert (await site.ask("GET", "/v1/requests/a%20b")).status == 422

    play(story)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Unavailable("x", code="no_quorum"), 503, "no_quorum", "1"),
        (Unavailable("x", code="session_unavailable", retry_after_ms=2200), 503, "session_unavailable", "3"),
        (RateLimited("x"), 429, "rate_limited", "1"),
        (NoSpace("x"), 507, "no_space", "5"),
        (Unknown("x"), 504, "outcome_unknown", None),
        (Misdirected("x", details={"epoch": 7}), 421, "wrong_epoch", None),
        (TimeoutError(), 504, "outcome_unknown", None),
    ],
)
def test_failures_of_the_services(error: Exception, status: int, code: str, retry_after: str | None) -> None:
    async def story(site: Site) -> None:
        site.memories.failing = error
        seen = await site.ask("PUT", "/v1/memories/a", {"content": 1})
        assert (seen.status, seen.error["code"]) == (status, code)
        assert seen.headers.get("Retry-After") == retry_after
        assert seen.error["retryable"] is True
        assert (seen.error["retry_after_ms"] is None) == (retry_after is None)
        if isinstance(error, SpineError):
            assert seen.error["details"] == error.details

    with structlog.testing.capture_logs():
        play(story)


def test_an_unforeseen_error_is_logged_and_not_shown() -> None:
    async def story(site: Site) -> None:
        site.memories.failing = ZeroDivisionError("/secret/path.py")
        seen = await site.ask("GET", "/v1/memories/a", None, {"X-Request-Id": "trace-9"})
        assert (seen.status, seen.error["code"], seen.error["details"]) == (500, "internal", {})
        assert b"secret" not in seen.body and b"Traceback" not in seen.body
        assert (await site.ask("GET", "/healthz")).status == 200

    with structlog.testing.capture_logs() as logs:
        play(story)
    assert [entry["request_id"] for entry in logs] == ["trace-9"]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/memories/", "/v1/locks/a/acquire", "//", "/v1/memories/a/b/c"])
def test_unknown_paths_are_404_in_the_envelope(path: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("POST", path, {"content": 1})
        if path == "/v1/memories/":
            assert seen.status == 405
        else:
            assert (seen.status, seen.error["code"]) == (404, "not_found")
        assert seen.headers["X-Spine-Node"] == "n1"

    play(story)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/memories/a", "DELETE, GET, PATCH, PUT, HEAD"),
        ("DELETE", "/v1/memories", "GET, POST, HEAD"),
        ("GET", "/v1/requests/a/void", "POST"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("LOCK", "/v1/memories/a", "DELETE, GET, PATCH, PUT, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_allow(method: str, path: str, allow: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask(method, path)
        assert (seen.status, seen.error["code"]) == (405, "method_not_allowed")
        assert seen.headers["Allow"] == allow

    play(story)


@pytest.mark.parametrize(
    "data",
    [
        b"BREW / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_the_envelope_and_the_door(data: bytes) -> None:
    async def story(site: Site) -> None:
        answer = await site.raw(data)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Connection: close" in head
        assert json.loads(body)["error"]["code"] == "invalid_request"

    with structlog.testing.capture_logs():
        play(story)


def test_keys_decide_who_reads_and_who_writes() -> None:
    roles = {"r": "reader", "w": "writer", "o": "operator"}
    auth = Auth({sha256(key.encode()).hexdigest(): role for key, role in roles.items()})

    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a")
        assert (seen.status, seen.error["code"]) == (401, "unauthorized")
        assert seen.headers["WWW-Authenticate"].startswith("Bearer")
        for wrong in ("Bearer x", "Bearer ", "Basic r", "r"):
            assert (await site.ask("GET", "/v1/memories/a", None, {"Authorization": wrong})).status == 401
        body = {"content": 1}
        seen = await site.ask("PUT", "/v1/memories/a", body, {"Authorization": "Bearer r"})
        assert (seen.status, seen.error["code"]) == (403, "forbidden")
        assert not site.memories.kept
        for key in "wo":
            put = await site.ask("PUT", "/v1/memories/a", body, {"Authorization": f"bearer {key}"})
            assert put.status in (200, 201)
        assert (await site.ask("GET", "/v1/memories/a", None, {"Authorization": "Bearer r"})).status == 200
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert (await site.ask("GET", path)).status == 200
        assert (await site.ask("GET", "/metrics")).status == 401

    play(story, auth=auth)


def test_connections_are_kept_unless_the_client_wants_them_closed() -> None:
    async def story(site: Site) -> None:
        one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await site.raw(one + one + last)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert answer.count(b"Connection: close") == 1
        assert b"Connection: close" in await site.raw(b"GET /healthz HTTP/1.0\r\n\r\n")

    play(story)


def test_stopping_lets_what_is_under_way_finish() -> None:
    async def run() -> None:
        site = Site()
        begun, go_on = asyncio.Event(), asyncio.Event()
        real = site.memories.get

        async def slow(*arguments: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await real(*arguments)

        site.memories.get = slow  # type: ignore[assignment,method-assign]
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        async with aiohttp.ClientSession() as site.client:
            await site.ask("PUT", "/v1/memories/a", {"content": 1})
            under_way = asyncio.create_task(site.ask("GET", "/v1/memories/a"))
            await begun.wait()
            stopping = asyncio.create_task(site.server.stop(10.0))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", site.server.port)
            assert not under_way.done()
            go_on.set()
            seen = await under_way
            assert (seen.status, seen.headers["Connection"]) == (200, "close")
            await stopping
        await site.server.stop()

    asyncio.run(run())


def test_what_does_not_finish_by_the_deadline_is_cut_off() -> None:
    async def run() -> None:
        site = Site()
        begun = asyncio.Event()

        async def stuck(*arguments: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

        site.memories.get = stuck  # type: ignore[assignment,method-assign]
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        async with aiohttp.ClientSession() as site.client:
            under_way = asyncio.create_task(site.ask("GET", "/v1/memories/a"))
            await begun.wait()
            await site.server.stop(0.05)
            with pytest.raises(aiohttp.ClientError):
                await under_way

    asyncio.run(run())


def test_a_stalled_upload_does_not_hold_up_the_stop() -> None:
    async def run() -> None:
        site = Site()
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        head = "PUT /v1/memories/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")  # the node waits for the body now
        async with asyncio.timeout(30):
            await site.server.stop(3600)
        writer.close()

    asyncio.run(run())


def test_a_port_in_use_is_named() -> None:
    async def run() -> None:
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(Misuse, match=f"127.0.0.1:{port}"):
                await HttpServer(Site().front()).start("127.0.0.1", port)

    asyncio.run(run())


def test_binding_beyond_loopback_needs_keys() -> None:
    async def run() -> None:
        with pytest.raises(Misuse, match=r"0\.0\.0\.0"):
            await HttpServer(Site().front()).start("0.0.0.0", 0)

    asyncio.run(run())


def test_telemetry_gets_route_templates_only() -> None:
    seen: list[tuple[str, str, int]] = []

    class Recorder:
        def observe(self, route: str, method: str, status: int, seconds: float) -> None:
            assert seconds >= 0
            seen.append((route, method, status))

    async def story(site: Site) -> None:
        await site.ask("PUT", "/v1/memories/a", {"content": 1})
        await site.ask("GET", "/v1/memories/b")
        await site.ask("LOCK", "/v1/coffee")

    play(story, telemetry=Recorder())
    assert seen == [
        ("/v1/memories/{id}", "PUT", 201),
        ("/v1/memories/{id}", "GET", 404),
        ("other", "other", 404),
    ]
