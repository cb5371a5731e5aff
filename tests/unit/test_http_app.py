"""The front door over real sockets: what a client sees of each route, header and failure."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from hashlib import sha256
from typing import Any

import aiohttp
import msgspec
import pytest
import structlog

from raftspine.core.limits import Limits
from raftspine.errors import (
    Misdirected,
    Misuse,
    NoSpace,
    RateLimited,
    SpineError,
    Unavailable,
    Unknown,
)
from raftspine.http.app import FrontDoor, HttpServer, build
from raftspine.http.auth import Auth
from raftspine.http.call import Silent
from raftspine.http.fake import FakeClock, FakeCluster, FakeEntropy, FakeMemories
from raftspine.model import Memory, Model
from raftspine.services.values import Loser

Story = Callable[["Site"], Awaitable[None]]


class Site:
    """A running front door over the fake services, and a client for it."""

    def __init__(self, **options: Any) -> None:
        self.memories = FakeMemories()
        self.cluster = FakeCluster()
        self.telemetry = options.pop("telemetry", Silent())
        self.limits = options.pop("limits", Limits())
        self.auth = options.pop("auth", Auth())

    def front(self) -> FrontDoor:
        return build(
            self.memories,
            self.cluster,
            node_id="n1",
            limits=self.limits,
            auth=self.auth,
            clock=FakeClock(),
            entropy=FakeEntropy(),
            telemetry=self.telemetry,
        )

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> "Seen":
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else headers or {}
        url = aiohttp.client.URL(f"http://127.0.0.1:{self.server.port}{path}", encoded=True)
        async with self.client.request(
            method, url, data=data, headers=sent, skip_auto_headers=["Content-Type"]
        ) as got:
            return Seen(got.status, got.headers, await got.read())

    async def raw(self, data: bytes) -> bytes:
        """What the server answers to exactly these bytes, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


class Seen:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def play(story: Story, **options: Any) -> None:
    async def run() -> None:
        site = Site(**options)
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        async with aiohttp.ClientSession() as site.client:
            try:
                await story(site)
            finally:
                await site.server.stop(2.0)

    asyncio.run(run())


# ── one memory ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_memory_is_stored_read_changed_and_deleted() -> None:
    async def story(site: Site) -> None:
        body = {"content": "ship it", "tags": ["critical"], "importance": 0.5, "ttl_seconds": 60}
        new = await site.ask("PUT", "/v1/memories/dep-42", body, {"X-Agent-Id": "agent-7"})
        assert new.status == 201
        assert new.json == {
            "id": "dep-42",
            "namespace": "",
            "agent_id": "agent-7",
            "content": "ship it",
            "tags": ["critical"],
            "importance": 0.5,
            "metadata": {},
            "ttl_seconds": 60,
            "expires_at": "2023-11-14T22:14:20.000Z",
            "pinned": False,
            "version": "r-n1~0-1",
            "content_sha256": sha256(b"ship it").hexdigest(),
            "consistency": "strong",
            "created_at": "2023-11-14T22:13:20.000Z",
            "updated_at": "2023-11-14T22:13:20.000Z",
            "updated_by": "agent-7",
            "last_accessed_at": None,
            "access_count": 0,
            "merged_from": [],
        }
        assert new.headers["ETag"] == '"r-n1~0-1"'
        assert new.headers["X-Spine-Session"] == "token1"
        assert new.headers["X-Spine-Consistency"] == "strong"
        assert new.headers["X-Spine-Index"] == "1"
        assert new.headers["X-Spine-Node"] == "n1"
        assert new.headers["Content-Type"] == "application/json"
        assert new.headers["X-Request-Id"]
        read = await site.ask("GET", "/v1/memories/dep-42")
        assert (read.status, read.json) == (200, new.json)
        assert read.headers["X-Spine-Staleness-Ms"] == "0"
        changed = await site.ask("PATCH", "/v1/memories/dep-42", {"content": {"a": [1, None]}})
        assert (changed.status, changed.json["content"]) == (200, {"a": [1, None]})
        assert changed.json["tags"] == ["critical"]
        again = await site.ask("PUT", "/v1/memories/dep-42", {"content": "x"})
        assert (again.status, again.json["tags"]) == (200, ["critical"])
        gone = await site.ask("DELETE", "/v1/memories/dep-42")
        assert (gone.status, gone.body) == (204, b"")
        assert "Content-Length" not in gone.headers
        assert (await site.ask("DELETE", "/v1/memories/dep-42")).status == 204
        missing = await site.ask("GET", "/v1/memories/dep-42")
        assert (missing.status, missing.error["code"]) == (404, "not_found")
        assert missing.error["details"] == {"confirmed": True}
        assert missing.error["requestId"] == missing.headers["X-Request-Id"]

    play(story)


@pytest.mark.parametrize("path", ["/v1/memories", "/api/v1/memory/store"])
def test_post_makes_an_id_unless_it_is_given_one(path: str) -> None:
    async def story(site: Site) -> None:
        made = await site.ask("POST", path, {"content": 1})
        assert made.status == 201
        assert made.headers["Location"] == f"/v1/memories/{made.json['id']}"
        given = await site.ask("POST", path, {"content": 1, "id": "a/b c"})
        assert given.json["id"] == "a/b c"
        assert given.headers["Location"] == "/v1/memories/a%2Fb%20c"
        assert (await site.ask("GET", given.headers["Location"])).status == 200

    play(story)


@pytest.mark.parametrize(
    ("path", "id"),
    [
        ("a%2Fb", "a/b"),
        ("%C3%BC", "ü"),
        ("a+b", "a+b"),
        ("batch", "batch"),
        ("..", ".."),
        ("versions", "versions"),
        ("x" * 255, "x" * 255),
        ("a%2Fversions", "a/versions"),
        ("a%3Fb%23", "a?b#"),
    ],
)
def test_ids_come_through_the_path_unchanged(path: str, id: str) -> None:
    async def story(site: Site) -> None:
        put = await site.ask("PUT", f"/v1/memories/{path}", {"content": "x"})
        assert (put.status, put.json["id"]) == (201, id)
        assert list(site.memories.kept) == [id]

    play(story)


@pytest.mark.parametrize("path", ["", "x" * 256, "%00", "a%0Ab", "%FF", "%ED%A0%80"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_bad_ids_are_refused_by_name(path: str, method: str) -> None:
    async def story(site: Site) -> None:
        body = {"content": "x"} if method == "PUT" else None
        seen = await site.ask(method, f"/v1/memories/{path}", body)
        assert (seen.status, seen.error["code"]) == (422, "invalid_request")
        assert seen.error["details"]["field"] in ("id", "path")
        assert not site.memories.kept

    play(story)


def test_raw_slashes_in_an_id_are_answered_with_the_remedy() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a/b")
        assert (seen.status, seen.error["code"]) == (404, "not_found")
        assert "%2F" in seen.error["message"]

    play(story)


def test_head_answers_as_get_without_a_body() -> None:
    async def story(site: Site) -> None:
        await site.ask("PUT", "/v1/memories/a", {"content": "x"})
        read = await site.ask("GET", "/v1/memories/a")
        for path, length in (("/v1/memories/a", len(read.body)), ("/healthz", None)):
            seen = await site.ask("HEAD", path)
            assert (seen.status, seen.body) == (200, b"")
            assert length is None or seen.headers["Content-Length"] == str(length)

    play(story)


# ── conditions, sessions, idempotency ──────────────────────────────────────────────────────────────────────


def test_conditions_by_header_are_412_and_by_field_409() -> None:
    async def story(site: Site) -> None:
        put = await site.ask("PUT", "/v1/memories/a", {"content": 1}, {"If-None-Match": "*"})
        assert put.status == 201
        path, etag = "/v1/memories/a", put.headers["ETag"]
        refused = await site.ask("PUT", path, {"content": 2}, {"If-None-Match": "*"})
        assert (refused.status, refused.error["code"]) == (412, "precondition_failed")
        refused = await site.ask("PUT", path, {"content": 2}, {"If-Match": '"other"'})
        assert refused.status == 412
        refused = await site.ask("PUT", path, {"content": 2, "expected_version": "other"})
        assert (refused.status, refused.error["code"]) == (409, "version_conflict")
        assert refused.error["details"] == {"current_version": put.json["version"]}
        refused = await site.ask("DELETE", f"{path}?expected_version=other")
        assert refused.status == 409
        done = await site.ask("PUT", path, {"content": 2}, {"If-Match": etag})
        assert (done.status, done.json["precondition"]) == (200, "advisory")
        done = await site.ask("PATCH", path, {"content": 3, "expected_version": done.json["version"]})
        assert (done.status, done.json["precondition"]) == (200, "advisory")
        plain = await site.ask("PUT", path, {"content": 4})
        assert "precondition" not in plain.json
        assert (await site.ask("PATCH", path, {"content": 5}, {"If-Match": "*"})).status == 200
        assert (await site.ask("DELETE", path, None, {"If-Match": '"no"'})).status == 412

    play(story)


def test_a_reader_who_has_the_version_gets_304() -> None:
    async def story(site: Site) -> None:
        etag = (await site.ask("PUT", "/v1/memories/a", {"content": 1})).headers["ETag"]
        for header in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            seen = await site.ask("GET", "/v1/memories/a", None, {"If-None-Match": header})
            assert (seen.status, seen.body, seen.headers["ETag"]) == (304, b"", etag)
        assert (await site.ask("GET", "/v1/memories/a", None, {"If-None-Match": '"x"'})).status == 200

    play(story)


def test_what_a_request_asks_reaches_the_service() -> None:
    async def story(site: Site) -> None:
        headers = {
            "X-Agent-Id": "agent-7",
            "X-Spine-Session": "abc",
            "X-Spine-Consistency": "causal",
            "X-Spine-Max-Wait-Ms": "60000",
            "Idempotency-Key": "k-1",
            "X-Spine-Attempt": "1",
        }
        await site.ask("PUT", "/v1/memories/a", {"content": 1, "agent_id": "writer"}, headers)
        ask = site.memories.asks[-1]
        assert (ask.agent_id, ask.token, ask.consistency) == ("agent-7", "abc", Model.CAUSAL)
        assert (ask.max_wait_ms, ask.idempotency_key, ask.first_attempt) == (60000, "k-1", True)
        assert site.memories.kept["a"].memory.agent_id == "writer"
        seen = await site.ask("GET", "/v1/memories/a?consistency=eventual", None, headers)
        assert site.memories.asks[-1].consistency is Model.EVENTUAL
        assert seen.headers["X-Spine-Consistency"] == "eventual"
        await site.ask("GET", "/v1/memories/a")
        ask = site.memories.asks[-1]
        assert (ask.agent_id, ask.token, ask.consistency) == ("", None, None)
        assert (ask.max_wait_ms, ask.idempotency_key, ask.first_attempt) == (250, None, False)

    play(story)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Idempotency-Key", "k" * 256),
        ("Idempotency-Key", "a b"),
        ("Idempotency-Key", "ü"),
        ("X-Spine-Max-Wait-Ms", "-1"),
        ("X-Spine-Max-Wait-Ms", "60001"),
        ("X-Spine-Max-Wait-Ms", "1.5"),
        ("X-Spine-Consistency", "linearizable"),
        ("X-Spine-Session", "ü"),
        ("X-Agent-Id", "a" * 129),
        ("X-Agent-Id", "a\tb"),
        ("If-Match", '"a", "b"'),
        ("If-Match", 'W/"a"'),
        ("If-None-Match", '"a"'),
    ],
)
def test_bad_headers_are_named(header: str, value: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", {"content": 1}, {header: value})
        assert (seen.status, seen.error["code"]) == (422, "invalid_request")
        assert seen.error["details"]["field"] == header
        assert not site.memories.kept

    play(story)


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a?consistency=best")
        assert seen.status == 422
        assert seen.error["details"]["allowed"] == ["strong", "causal", "read-your-writes", "eventual"]

    play(story)


def test_a_valid_request_id_is_echoed_and_a_bad_one_replaced() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a", None, {"X-Request-Id": "trace-1"})
        assert (seen.headers["X-Request-Id"], seen.error["requestId"]) == ("trace-1", "trace-1")
        seen = await site.ask("GET", "/v1/memories/a", None, {"X-Request-Id": "a b"})
        assert seen.headers["X-Request-Id"] == seen.error["requestId"] == "0000000001-1"

    play(story)


# ── bodies ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"content": NaN}',
        b'{"content": "\xff"}',
        b'{"content": "\\ud800"}',
        b'{"content": 1} x',
        b"[" * 100_000,
        b'{"content": ' + b"[" * 100_000,
    ],
)
def test_a_malformed_body_is_400(body: bytes) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", body)
        assert seen.error["code"] == "invalid_request"
        assert seen.status == (422 if body == b"[" * 100_000 else 400)
        assert not site.memories.kept

    play(story)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "$.content"),
        ([], "$"),
        ({"content": None}, "$.content"),
        ({"content": 1, "tags": [1]}, "$.tags[0]"),
        ({"content": 1, "tags": [""]}, "$.tags[0]"),
        ({"content": 1, "tags": ["x" * 65]}, "$.tags[0]"),
        ({"content": 1, "tags": [f"t{n}" for n in range(33)]}, "$.tags"),
        ({"content": 1, "expected": "v"}, "$.expected"),
        ({"content": 1, "version": "v"}, "$.version"),
        ({"content": 1, "importance": "urgent"}, "$.importance"),
        ({"content": 1, "importance": 1.5}, "$.importance"),
        ({"content": 1, "metadata": []}, "$.metadata"),
        ({"content": 1, "ttl_seconds": 0}, "$.ttl_seconds"),
        ({"content": 1, "ttl_seconds": "60"}, "$.ttl_seconds"),
        ({"content": 1, "pinned": "yes"}, "$.pinned"),
        ({"content": 1, "id": "b"}, "$.id"),
        ({"content": 1, "expected_version": 'a"b'}, "$.expected_version"),
        ({"content": 10**30}, "$.content"),
        ({"content": 1, "agent_id": "a" * 129}, "$.agent_id"),
    ],
)
def test_a_body_that_does_not_fit_is_422_and_names_the_field(body: Any, field: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", body)
        assert (seen.status, seen.error["code"]) == (422, "invalid_request")
        assert seen.error["details"]["field"] == field
        assert not site.memories.kept

    play(story)


def test_limits_are_held_for_declared_and_for_chunked_bodies() -> None:
    async def story(site: Site) -> None:
        big = b'{"content": "' + b"x" * 5000 + b'"}'
        seen = await site.ask("PUT", "/v1/memories/a", big)
        assert (seen.status, seen.error["code"]) == (413, "too_large")

        async def pieces() -> Any:
            for _ in range(5):
                yield b"x" * 1000

        url = f"http://127.0.0.1:{site.server.port}/v1/memories/a"
        async with site.client.put(url, data=pieces(), headers={"Content-Type": "application/json"}) as got:
            assert got.status == 413
        seen = await site.ask("PUT", "/v1/memories/a", {"content": "x" * 101})
        assert (seen.status, seen.error["details"]["field"]) == (413, "$.content")
        assert not site.memories.kept
        assert (await site.ask("PUT", "/v1/memories/a", {"content": "x" * 100})).status == 201

    play(story, limits=Limits(content_bytes=100, body_bytes=4000))


def test_a_client_that_waits_for_100_continue_gets_it_or_the_refusal() -> None:
    async def story(site: Site) -> None:
        head = b"PUT /v1/memories/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(head + b"Content-Length: 14\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"content": 1}')
        assert (await reader.read()).startswith(b"HTTP/1.1 201 ")
        writer.close()
        assert (await site.raw(head + b"Content-Length: 99999999\r\n\r\n")).startswith(b"HTTP/1.1 413 ")

    play(story)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/xml",
    ],
)
def test_other_content_types_are_415(kind: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", {"content": 1}, {"Content-Type": kind})
        assert (seen.status, seen.error["code"]) == (415, "unsupported_media_type")

    play(story)


def test_a_compressed_body_is_415() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", b"\x1f\x8b", {"Content-Encoding": "gzip"})
        assert (seen.status, seen.error["details"]["field"]) == (415, "Content-Encoding")

    play(story)


def test_msgpack_in_and_out_says_the_same_as_json() -> None:
    async def story(site: Site) -> None:
        body = msgspec.msgpack.encode({"content": {"n": 1}, "tags": ["a"]})
        for kind in ("application/msgpack", "application/vnd.msgpack", "application/x-msgpack"):
            put = await site.ask("PUT", "/v1/memories/a", body, {"Content-Type": kind})
            assert put.json["content"] == {"n": 1}
        read = await site.ask("GET", "/v1/memories/a", None, {"Accept": "application/msgpack"})
        assert read.headers["Content-Type"] == "application/msgpack"
        assert msgspec.msgpack.decode(read.body) == put.json
        failed = await site.ask("GET", "/v1/memories/b", None, {"Accept": "application/msgpack"})
        assert msgspec.msgpack.decode(failed.body)["error"]["code"] == "not_found"
        bad = await site.ask("PUT", "/v1/memories/a", b"\xc1", {"Content-Type": "application/msgpack"})
        assert bad.status == 400
        for value in (b"binary", float("nan"), {1: 2}):
            body = msgspec.msgpack.encode({"content": value})
            bad = await site.ask("PUT", "/v1/memories/a", body, {"Content-Type": "application/msgpack"})
            assert (bad.status, bad.error["details"]["field"]) == (422, "$.content")

    play(story)


# ── many memories ──────────────────────────────────────────────────────────────────────────────────────────


def test_listing_pages_and_filters() -> None:
    async def story(site: Site) -> None:
        for n in range(5):
            await site.ask(
                "PUT", f"/v1/memories/m{n}", {"content": n, "tags": ["even"] if n % 2 == 0 else []}
            )
        first = (await site.ask("GET", "/v1/memories?limit=2&prefix=m")).json
        assert [item["id"] for item in first["items"]] == ["m0", "m1"]
        rest = (await site.ask("GET", f"/v1/memories?cursor={first['next_cursor']}")).json
        assert [item["id"] for item in rest["items"]] == ["m2", "m3", "m4"]
        assert rest["next_cursor"] is None
        even = (await site.ask("GET", "/v1/memories?tag=even")).json["items"]
        assert [item["content"] for item in even] == [0, 2, 4]
        for since in ("2030-01-01T00:00:00Z", "1900000000000", "2030-01-01T00:00:00+02:00"):
            assert (await site.ask("GET", f"/v1/memories?updated_since={since}")).json["items"] == []

    play(story)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("tags=a", "tags"),
        ("tag=a&tag=b", "tag"),
        ("tag=%FF", "query"),
        ("updated_since=yesterday", "updated_since"),
        ("&".join(f"p{n}=1" for n in range(40)), "query"),
    ],
)
def test_a_query_that_does_not_fit_names_the_parameter(query: str, field: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", f"/v1/memories?{query}")
        assert (seen.status, seen.error["details"]["field"]) == (422, field)

    play(story)


def test_a_batch_answers_each_line_in_order() -> None:
    async def story(site: Site) -> None:
        ops = [
            {"op": "put", "id": "a", "content": 1},
            {"op": "get", "id": "a"},
            {"op": "put", "id": "b", "content": 1, "tags": [7]},
            {"op": "jump", "id": "a"},
            {"op": "get", "id": "nothing"},
            {"op": "put", "id": "a", "content": 2, "expected_version": "other"},
            {"op": "delete", "id": "a"},
            {"op": "get", "id": ""},
            17,
            {"op": "put", "content": "made"},
        ]
        seen = await site.ask("POST", "/v1/memories/batch", {"ops": ops})
        assert seen.status == 200
        results = seen.json["results"]
        assert [r["status"] for r in results] == [201, 200, 422, 422, 404, 409, 204, 422, 422, 201]
        assert results[1]["record"]["content"] == 1
        assert [results[n]["error"]["details"]["field"] for n in (2, 3, 7, 8)] == [
            "$.ops[2].tags[0]",
            "$.ops[3].op",
            "$.ops[7].id",
            "$.ops[8]",
        ]
        assert results[4]["error"]["details"] == {"confirmed": True}
        assert results[6] == {"status": 204}
        assert seen.headers["X-Spine-Session"] == f"token{site.memories._count}"
        packed = await site.ask(
            "POST",
            "/v1/memories/batch",
            msgspec.msgpack.encode({"ops": [{"op": "put", "id": "z", "content": 1}, {"op": "get"}]}),
            {"Content-Type": "application/msgpack"},
        )
        assert [r["status"] for r in packed.json["results"]] == [201, 422]
        assert (await site.ask("POST", "/v1/memories/batch", {"ops": []})).json == {"results": []}

    play(story)


def test_a_batch_above_its_limit_is_413_and_does_nothing() -> None:
    async def story(site: Site) -> None:
        ops = [{"op": "put", "id": f"m{n}", "content": n} for n in range(4)]
        seen = await site.ask("POST", "/v1/memories/batch", {"ops": ops})
        assert (seen.status, seen.error["details"]) == (413, {"field": "$.ops", "limit": 3})
        assert not site.memories.kept

    play(story, limits=Limits(batch_ops=3))


def test_history_and_losers() -> None:
    async def story(site: Site) -> None:
        for n in range(2):
            await site.ask("PUT", "/v1/memories/a%2Fb", {"content": n})
        seen = await site.ask("GET", "/v1/memories/a%2Fb/versions")
        assert [item["content"] for item in seen.json["items"]] == [1, 0]
        lost = Memory("lost", "w", tags=("t",), updated_at_ms=1)
        site.memories.lost["a/b"] = [Loser("a/b", "r-1", lost, 5, "r-2"), Loser("a/b", "r-0", None, 4, "r-2")]
        items = (await site.ask("GET", "/v1/memories/a%2Fb/conflicts")).json["items"]
        assert [item["deleted"] for item in items] == [False, True]
        assert (items[0]["content"], items[0]["lost_at"]) == ("lost", "1970-01-01T00:00:00.005Z")

    play(story)


# ── the cluster ────────────────────────────────────────────────────────────────────────────────────────────


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


# ── failures ───────────────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/memories/", "/v1/locks/a/acquire", "//", "/v1/memories/a/b/c"]
)
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


# ── access ─────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── serving ────────────────────────────────────────────────────────────────────────────────────────────────


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

        site.memories.get = slow  # type: ignore[method-assign]
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

        site.memories.get = stuck  # type: ignore[method-assign]
        site.server = HttpServer(site.front())
        await site.server.start("127.0.0.1", 0)
        async with aiohttp.ClientSession() as site.client:
            under_way = asyncio.create_task(site.ask("GET", "/v1/memories/a"))
            await begun.wait()
            await site.server.stop(0.05)
            with pytest.raises(aiohttp.ClientError):
                await under_way

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
