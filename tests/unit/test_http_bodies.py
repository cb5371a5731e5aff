"""What bodies are taken, in which formats, and how the others are refused."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
import structlog

from raftspine.core.limits import Limits
from tests.support.http_site import Site, play


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


def test_a_large_memory_survives_chunked_upload_and_a_slow_reader() -> None:
    async def story(site: Site) -> None:
        content = "ü" * (1 << 19)

        async def pieces() -> Any:
            data = json.dumps({"content": content}, ensure_ascii=False).encode()
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        url = f"http://127.0.0.1:{site.server.port}/v1/memories/big"
        async with site.client.put(url, data=pieces(), headers={"Content-Type": "application/json"}) as got:
            assert got.status == 201
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port, limit=1024)
        one = b"GET /v1/memories/big HTTP/1.1\r\nHost: x\r\n"
        writer.write((one + b"\r\n") * 3 + one + b"Connection: close\r\n\r\n")
        received = bytearray()
        while part := await reader.read(4096):
            received += part
        writer.close()
        replies = bytes(received).split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert len(replies) == 4
        for reply in replies:
            assert json.loads(reply.partition(b"\r\n\r\n")[2])["content"] == content

    play(story)


def test_a_client_that_hangs_up_amid_its_body_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def story(site: Site) -> None:
        for head in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
            _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
            writer.write(b"PUT /v1/memories/a HTTP/1.1\r\nHost: x\r\n" + head)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        bad_chunk = b"PUT /v1/memories/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{"
        assert (await site.raw(bad_chunk)).startswith(b"HTTP/1.1 400 ")
        assert (await site.ask("GET", "/healthz")).status == 200
        assert not site.memories.kept

    with structlog.testing.capture_logs() as logs:
        play(story)
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert not caplog.records
