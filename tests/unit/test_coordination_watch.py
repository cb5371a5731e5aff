"""Watching through the front doors of a simulated cluster, and streams over real sockets."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from raftspine.core.ledger import events
from raftspine.http.app import HttpServer
from raftspine.http.auth import Auth
from raftspine.http.fake import FakeClock
from raftspine.http.reply import Heads, Reply, Sink, Slow, Stream
from raftspine.model import GroupId
from raftspine.services.coordination import tokens
from tests.support.coordination_site import Said, Site, play


async def poll(site: Site, via: str = "a", **query: Any) -> Said:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return await site.get(f"/v1/watch?{text}", via=via)


def told(said: Said) -> list[tuple[str, str, str]]:
    assert said.status == 200, said
    return [(event["kind"], event["key"], event["change"]) for event in said.json["events"]]


async def take(site: Site, name: str) -> dict[str, Any]:
    got = (await site.post(f"/v1/locks/{name}/acquire", {"owner": "o"})).json
    return {"lease_id": got["lease_id"], "fencing_token": got["fencing_token"]}


class Ear:
    """A sink that keeps what it hears, as server-sent events."""

    def __init__(self) -> None:
        self.text = b""
        self.gone = False

    def write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError
        self.text += data

    async def drain(self) -> None:
        pass

    def events(self) -> list[dict[str, str]]:
        blocks = [block for block in self.text.decode().split("\n\n") if block]
        return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]  # type: ignore[misc]


async def listen(site: Site, via: str, path: str, headers: dict[str, str] | None = None) -> tuple[Ear, Any]:
    from raftspine.http.connection import PlainRequest

    request = PlainRequest("GET", path, {"host": "x", "accept": "text/event-stream", **(headers or {})}, b"")
    reply = await site.door(via).answer(request)
    assert isinstance(reply, Stream), Said(reply.code, reply.head, reply.content)
    ear = Ear()
    return ear, site.background(reply.send(ear))


def test_every_change_is_told_once_in_order_at_any_node() -> None:
    async def story(site: Site) -> None:
        start = (await poll(site)).json
        assert start["events"] == []
        lease = await take(site, "x")
        await site.post("/v1/locks/x/release", lease)
        await site.put("/v1/memories/x", {"content": 1, "tags": ["critical", "t"]})
        await site.put("/v1/gates/g", {"state": "open"})
        await site.post("/v1/tasks/q", {"id": "t"})
        await asyncio.sleep(0.5)  # until every replica has it: a watch tells what its node has, not what is newest
        wanted = [
            ("gate", "g", "opened"), ("lock", "x", "granted"), ("lock", "x", "released"),
            ("memory", "x", "created"), ("task", "q/t", "ready"),
        ]  # fmt: skip
        for via in "abcd":
            seen = await poll(site, via, since=start["next"], wait_seconds=2)
            assert sorted(told(seen)) == wanted
            assert told(await poll(site, via, since=seen.json["next"])) == []
            numbers = [(event["group"], event["number"]) for event in seen.json["events"]]
            assert len(set(numbers)) == len(numbers)
        token, found = start["next"], []
        for n in range(20):
            page = await poll(site, "abcd"[n % 4], since=token, limit=1)
            token = page.json["next"]
            found += told(page)
        assert sorted(found) == wanted, "one at a time, each from another node"
        for query, keys in (
            ({"kinds": "lock,gate"}, ["g", "x", "x"]),
            ({"prefix": "q/"}, ["q/t"]),
            ({"tag": "t"}, ["x"]),
            ({"key": "g"}, ["g"]),
        ):
            assert sorted(key for _, key, _ in told(await poll(site, since=start["next"], **query))) == keys

    play(story, nodes=4, gateways=1)


@pytest.mark.parametrize("via", ["a", "d"])
def test_a_long_poll_ends_with_the_event(via: str) -> None:
    async def story(site: Site) -> None:
        token = (await poll(site, via, kinds="lock", key="x")).json["next"]
        waiting = site.background(poll(site, via, kinds="lock", key="x", since=token, wait_seconds=30))
        await asyncio.sleep(1)
        assert not waiting.done()
        await take(site, "y")
        await take(site, "x")
        now = site.now()
        assert told(await waiting) == [("lock", "x", "granted")]
        assert site.now() - now < 0.1
        none = await poll(site, via, kinds="lock", key="z", wait_seconds=1)
        assert told(none) == []

    play(story, nodes=4, gateways=1)


def test_an_event_is_read_and_encoded_once_however_many_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = events.read

    def counting(*arguments: Any) -> Any:
        reads.append(1)
        return original(*arguments)

    async def story(site: Site) -> None:
        ears = [await listen(site, "b", "/v1/watch?kinds=lock&prefix=w") for _ in range(20)]
        await asyncio.sleep(0.5)
        watch = site.node("b").coordination.watch
        before = watch.encodings
        monkeypatch.setattr(events, "read", counting)
        for n in range(3):
            await take(site, f"w{n}")
            await asyncio.sleep(0.2)
        assert [len(ear.events()) for ear, _ in ears] == [4] * 20, "a bookmark and three locks each"
        assert len({ear.events()[-1]["id"] for ear, _ in ears}) == 1, "who has seen the same stands at the same place"
        assert watch.encodings - before == 3 and len(reads) == 3
        stats = (await site.get("/v1/stats", via="b")).json
        assert stats["coordination"]["watch_encodings"] == watch.encodings
        for _, stream in ears:
            stream.cancel()
        await asyncio.gather(*(stream for _, stream in ears), return_exceptions=True)

    play(story)


@pytest.mark.parametrize("via", ["b", "d"])
def test_a_stream_goes_on_where_it_was_cut(via: str) -> None:
    async def story(site: Site) -> None:
        ear, stream = await listen(site, via, "/v1/watch?kinds=lock")
        await asyncio.sleep(0.5)
        leases = [await take(site, f"l{n}") for n in range(3)]
        await asyncio.sleep(0.5)
        heard = ear.events()
        assert [event["event"] for event in heard] == ["bookmark", "lock", "lock", "lock"]
        middle = heard[2]["id"]
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        watch = site.node(via).coordination.watch
        assert watch.watchers == 0 and not watch._by_group and not watch._pumps
        await site.post("/v1/locks/l0/release", leases[0])
        again, stream = await listen(site, "c", "/v1/watch?kinds=lock", {"last-event-id": middle})
        await asyncio.sleep(0.5)
        changes = [json.loads(event["data"]) for event in again.events() if event["event"] == "lock"]
        assert sorted((one["key"], one["change"]) for one in changes)[-1][1] in ("granted", "released")
        assert len(changes) == 2 and "released" in [one["change"] for one in changes]
        await asyncio.sleep(15)
        assert again.events()[-1]["event"] == "bookmark"
        site.node("c").coordination.drain()
        await asyncio.wait_for(stream, 1)

    play(story, nodes=4, gateways=1)


def test_bad_tokens_and_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: Site) -> None:
        start = (await poll(site)).json["next"]
        cluster = site.node().topology.table.cluster_id
        groups = site.node().topology.group_ids()
        bad = [
            "nonsense", "%00", start[:-2], tokens.seal("other", dict.fromkeys(groups, 0)),
            tokens.seal(cluster, {GroupId(0): 0}), tokens.seal(cluster, dict.fromkeys(groups, 10**6)),
        ]  # fmt: skip
        for token in bad:
            seen = await poll(site, since=token)
            assert (seen.status, seen.details["field"]) == (400, "since"), token
        for query in ({"kinds": "cake"}, {"limit": 0}, {"wait_seconds": 61}):
            assert (await poll(site, **query)).status == 422
        for _ in range(50):  # past TRIM_EVERY
            await site.post("/v1/locks/x/release", await take(site, "x"))
        gone = await poll(site, since=start)
        assert (gone.status, gone.code) == (410, "compacted")
        gone = await poll(site, "d", since=start)
        assert (gone.status, gone.code) == (410, "compacted")

    monkeypatch.setattr(events, "KEPT", 10)
    play(story, nodes=4, gateways=1)


def test_one_event_is_encoded_once_however_many_watch() -> None:
    async def story(site: Site) -> None:
        ears = [await listen(site, "a", "/v1/watch?kinds=lock") for _ in range(20)]
        await asyncio.sleep(0.1)
        encoded: list[Any] = []
        from raftspine.http.coordination import watch

        plain = watch._told
        watch._told = lambda seen: encoded.append(seen) or plain(seen)  # type: ignore[func-returns-value]
        try:
            await take(site, "x")
            await asyncio.sleep(0.5)
        finally:
            watch._told = plain
        assert len(encoded) == 1
        assert all([event["event"] for event in ear.events()] == ["bookmark", "lock"] for ear, _ in ears)
        for _, stream in ears:
            stream.cancel()

    play(story)


# ── sockets ─────────────────────────────────────────────────────────────────────────────────────────────────


class Streaming:
    """A front door whose every answer is a stream made by `send`."""

    def __init__(self, send: Any) -> None:
        self.auth = Auth()
        self.draining = False
        self._head = Heads("n", FakeClock()).start("text/event-stream", 0.0)
        self._send = send

    async def answer(self, request: Any) -> Reply:
        return Stream(200, self._head, self._send)

    async def serve(self, request: Any) -> Reply:
        return await self.answer(request)


def serve(send: Any, client: Any) -> None:
    async def main() -> None:
        server = HttpServer(Streaming(send))  # type: ignore[arg-type]
        await server.start("127.0.0.1", 0)
        try:
            await client(server)
        finally:
            await server.stop(1.0)

    asyncio.run(main())


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n"])
def test_a_stream_comes_in_pieces_and_ends_with_the_connection(extra: str) -> None:
    """By the fast road, and (an unusual header) by aiohttp's."""
    go = asyncio.Event()

    async def send(sink: Sink) -> None:
        sink.write(b"one\n")
        await sink.drain()
        await go.wait()
        sink.write(b"two\n")

    async def client(server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET /v1/watch HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length" not in head and b"Connection: close" in head
        assert await reader.readline() == b"one\n"
        go.set()
        assert await reader.read() == b"two\n"
        writer.close()
        await writer.wait_closed()

    serve(send, client)


def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[BaseException] = []

    async def send(sink: Sink) -> None:
        try:
            while True:
                sink.write(b"x" * 65536)
                await sink.drain()
        except BaseException as error:
            ended.append(error)
            raise

    async def client(server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if ended:
                break
        assert isinstance(ended[0], Slow)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            while True:
                await reader.readexactly(1 << 16)
        writer.close()

    monkeypatch.setattr("raftspine.http.connection.SLOW_SECONDS", 0.1)
    serve(send, client)


def test_a_stream_ends_when_its_client_leaves() -> None:
    ended = asyncio.Event()

    async def send(sink: Sink) -> None:
        try:
            sink.write(b"hello\n")
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def client(server: HttpServer) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{server.port}/v1/watch") as got:
                assert await got.content.readline() == b"hello\n"
                got.close()
            await asyncio.wait_for(ended.wait(), 5)

    serve(send, client)
