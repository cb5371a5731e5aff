"""Real sockets on loopback: two nodes that find each other again, and strangers who get nowhere."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from raftspine.cluster import frames
from raftspine.cluster.frames import Opener, Sealer
from raftspine.cluster.handshake import BULK, MAIN, Dialer, Identity
from raftspine.cluster.peers import MAX_PENDING, Address, Peers
from raftspine.cluster.tls import tls_from_files
from raftspine.errors import Misuse, TooLarge
from raftspine.model import NodeId
from raftspine.system import SystemClock, SystemEntropy
from tests.support.proxy import DelayProxy

SECRET = b"the cluster secret"
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
LOOPBACK = "127.0.0.1"
NOWHERE = (LOOPBACK, 1)


class Node:
    """A Peers with what it was told."""

    def __init__(self, id: NodeId, others: dict[NodeId, Address], port: int = 0, **options: Any) -> None:
        options = {"cluster": "test", "secret": SECRET, **options}
        self.links: list[tuple[NodeId, bool]] = []
        self.got: list[tuple[NodeId, Any]] = []
        self.peers = Peers(
            id,
            listen=(LOOPBACK, port),
            peers=others,
            clock=SystemClock(),
            entropy=SystemEntropy(),
            **options,
        )
        self.peers.on_message(lambda peer, message: self.got.append((peer, message)))
        self.peers.on_link(lambda peer, up: self.links.append((peer, up)))

    def rejected(self) -> dict[str, int]:
        counters = self.peers.counters
        return {key.partition(".")[2]: n for key, n in counters.items() if key.startswith("rejected.")}


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Turn the loop until a condition of the sockets holds, which nothing announces."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 (asks the kernel, which sets no event)
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def started(*nodes: Node) -> AsyncIterator[None]:
    try:
        for node in nodes:
            await node.peers.start()
        yield
    finally:
        for node in nodes:
            await node.peers.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def two(**options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two connected nodes, both lanes up."""
    b = Node(B, {A: NOWHERE}, **options)
    async with started(b):
        a = Node(A, {B: (LOOPBACK, b.peers.port)}, **options)
        async with started(a):
            await until(lambda: len(a.peers._bulk) == len(b.peers._bulk) == 1)
            await until(lambda: a.peers.connected(B) and b.peers.connected(A))
            yield a, b


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    return uvloop.run if request.param == "uvloop" else asyncio.run


Run = Callable[[Awaitable[None]], None]


def test_messages_go_both_ways_in_order_one_write_per_turn(run: Run) -> None:
    async def story() -> None:
        async with two() as (a, b):
            frames_before = a.peers.counters["frames_sent"]
            for n in range(1000):
                assert a.peers.send(B, (0, "n", n))
            assert b.peers.send(A, ("back", {"k": (1, b"\x00")}))
            await until(lambda: len(b.got) == 1000 and len(a.got) == 1)
            assert b.got == [(A, (0, "n", n)) for n in range(1000)]
            assert a.got == [(B, ("back", {"k": [1, b"\x00"]}))]
            assert a.peers.counters["frames_sent"] - frames_before <= 2  # one, and perhaps a keep-alive
            assert a.links == [(B, True)] and b.links == [(A, True)]

    run(story())


def test_large_messages_take_the_bulk_lane(run: Run) -> None:
    async def story() -> None:
        async with two() as (a, b):
            big = bytes(9 * frames.MIB)
            with pytest.raises(TooLarge, match="main lane"):
                a.peers.send(B, (big,))
            with pytest.raises(TooLarge, match="bulk lane"):
                a.peers.send(B, (bytes(41 * frames.MIB),), bulk=True)
            with pytest.raises(TypeError):
                a.peers.send(B, (object(),))
            assert a.peers.send(B, (big,), bulk=True)
            assert a.peers.send(B, ("small",))
            await until(lambda: len(b.got) == 2)
            assert {len(message[0]) for _, message in b.got} == {len(big), 5}

    run(story())


def test_a_node_that_restarts_is_found_again(run: Run) -> None:
    async def story() -> None:
        port = free_port()
        a = Node(A, {B: (LOOPBACK, port)})
        async with started(a):
            assert not a.peers.send(B, ("too early",))
            for round in range(2):
                b = Node(B, {A: NOWHERE}, port=port)
                async with started(b):
                    await until(lambda: a.peers.connected(B))
                    assert a.peers.send(B, (round,))
                    await until(lambda b=b: bool(b.got))
                    assert b.got == [(A, (round,))]
                await until(lambda: not a.peers.connected(B))
                assert not a.peers.send(B, ("gone",))
            assert a.links == [(B, True), (B, False)] * 2

    run(story())


def test_what_was_queued_before_close_still_leaves(run: Run) -> None:
    async def story() -> None:
        b = Node(B, {A: NOWHERE})
        async with started(b):
            a = Node(A, {B: (LOOPBACK, b.peers.port)})
            await a.peers.start()
            await until(lambda: a.peers.connected(B))
            for n in range(100):
                a.peers.send(B, (n, bytes(50_000)))
            await a.peers.close()
            await until(lambda: b.links[-1] == (A, False))
            assert [message[0] for _, message in b.got] == list(range(100))

    run(story())


def test_a_half_open_link_is_noticed_and_replaced(run: Run) -> None:
    async def story() -> None:
        b = Node(B, {A: NOWHERE}, peer_dead_ms=200)
        async with started(b):
            proxy = DelayProxy(0, (LOOPBACK, b.peers.port))
            await proxy.start()
            a = Node(A, {B: (LOOPBACK, proxy.port)}, peer_dead_ms=200)
            async with started(a):
                await until(lambda: a.peers.connected(B) and b.peers.connected(A))
                proxy.mute()
                await until(lambda: not a.peers.connected(B) and not b.peers.connected(A))
                proxy.heal()
                await until(lambda: a.peers.connected(B) and b.peers.connected(A))
                proxy.cut()
                await until(lambda: not a.peers.connected(B))
                proxy.heal()
                await until(lambda: a.peers.connected(B))
                proxy.delay_ms = 30
                a.peers.send(B, ("late",))
                await until(lambda: (A, ("late",)) in b.got)
            await proxy.close()

    run(story())


def test_an_idle_link_lives(run: Run) -> None:
    async def story() -> None:
        async with two(peer_dead_ms=100) as (a, b):
            before = b.peers.counters["frames_received"]
            await until(lambda: b.peers.counters["frames_received"] > before + 20)
            assert a.links == [(B, True)] and b.links == [(A, True)]

    run(story())


def test_a_peer_that_does_not_read_costs_a_bounded_queue(run: Run) -> None:
    async def story() -> None:
        limit = 4 * frames.MIB
        async with two(main_queue_bytes=limit, peer_dead_ms=60_000) as (a, b):
            link = b.peers._main[A]
            assert link._transport is not None
            link._transport.pause_reading()
            blob = bytes(100_000)
            sent = 0
            async with asyncio.timeout(10):
                while a.peers.send(B, (sent, blob)):
                    sent += 1
                    await asyncio.sleep(0)
            assert limit - len(blob) <= a.peers.queued_bytes(B) + 100 <= limit + 100
            assert a.peers.counters["queue_drops"] == 1
            assert a.peers.send(B, ("bulk is free",), bulk=True)
            link._transport.resume_reading()
            await until(lambda: len(b.got) == sent + 1)
            main = [message[0] for _, message in b.got if message[0] != "bulk is free"]
            assert main == list(range(sent))
            assert a.peers.send(B, ("free again",))

    run(story())


def test_set_peers_ends_links_to_strangers_and_dials_new_ones(run: Run) -> None:
    async def story() -> None:
        async with two() as (a, b):
            a.peers.set_peers({})
            await until(lambda: not a.peers.connected(B) and not b.peers.connected(A))
            a.peers.set_peers({B: (LOOPBACK, b.peers.port)})
            await until(lambda: a.peers.connected(B))
            b.peers.set_peers({C: NOWHERE})
            await until(lambda: b.rejected().get("stranger", 0) > 0)
            assert not b.peers.connected(A) and b.links[-1] == (A, False)
            b.peers.set_peers({A: NOWHERE})
            await until(lambda: a.peers.connected(B) and b.peers.connected(A))

    run(story())


def test_a_member_that_moved_is_dialed_at_its_new_address(run: Run) -> None:
    async def story() -> None:
        async with two() as (a, b):
            moved = Node(B, {A: NOWHERE})
            async with started(moved):
                a.peers.set_peers({B: (LOOPBACK, moved.peers.port)})
                await until(lambda: moved.peers.connected(A))
                assert not b.peers.connected(A)
                assert a.peers.send(B, ("new home",))
                await until(lambda: moved.got == [(A, ("new home",))])

    run(story())


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"secret": b"another secret.."}, "proof"), ({"cluster": "elsewhere"}, "cluster")],
)
def test_a_node_of_another_cluster_stays_outside(options: dict[str, Any], reason: str) -> None:
    async def story() -> None:
        b = Node(B, {A: NOWHERE})
        async with started(b):
            a = Node(A, {B: (LOOPBACK, b.peers.port)}, **options)
            with capture_logs() as logs:
                async with started(a):
                    await until(lambda: b.rejected().get(reason, 0) >= 4)
            assert a.links == b.links == [] and b.got == []
            said = [entry for entry in logs if entry.get("reason") == reason]
            assert len(said) == 1, "once per peer, reason and minute"
            assert any(entry.get("detail") == reason for entry in logs), "the dialer hears why"

    asyncio.run(story())


def test_a_receiver_that_fails_keeps_the_rest() -> None:
    async def story() -> None:
        async with two() as (a, b):
            got = []

            def receive(peer: NodeId, message: tuple[Any, ...]) -> None:
                got.append(message)
                if message == (1,):
                    raise RuntimeError("bad message")

            b.peers.on_message(receive)
            with capture_logs() as logs:
                for n in range(3):
                    a.peers.send(B, (n,))
                await until(lambda: len(got) == 3)
            assert [entry["event"] for entry in logs] == ["a message could not be taken"]

    asyncio.run(story())


def test_an_address_in_use_is_named() -> None:
    async def story() -> None:
        b = Node(B, {A: NOWHERE})
        async with started(b):
            twin = Node(C, {}, port=b.peers.port)
            with pytest.raises(Misuse, match=f"127.0.0.1:{b.peers.port}: .*in use"):
                await twin.peers.start()

    asyncio.run(story())


# ── hostile connections ───────────────────────────────────────────────────────────────────────────────────


class Stranger:
    """A raw connection to a node; knows the secret only where the test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, node: Node) -> "Stranger":
        return cls(*await asyncio.open_connection(LOOPBACK, node.peers.port))

    @classmethod
    async def member(cls, node: Node, lane: int = MAIN) -> "Stranger":
        """Shake hands as `a` does: from here on `seal` makes frames the node believes."""
        self = await cls.dial(node)
        dialer = Dialer(Identity(A, "test", SECRET), B, lane, bytes(32))
        self.writer.write(dialer.hello)
        while dialer.session is None:
            self.writer.write(dialer.feed(await self.reader.read(1000)))
        self.sealer = Sealer(dialer.session.send_key)
        self.opener = Opener(dialer.session.receive_key, frames.MAX_FRAME_BYTES)
        return self

    def seal(self, *messages: Any) -> bytes:
        return self.sealer.seal([frames.encode(message) for message in messages])

    async def closed(self) -> bytes:
        """What came until the node closed the connection."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read()
        except ConnectionError:
            return b""
        finally:
            self.writer.close()
            with contextlib.suppress(ConnectionError):  # the node reset it, as it should
                await self.writer.wait_closed()


def hostile(test: Callable[[Node], Awaitable[None]], **options: Any) -> None:
    async def story() -> None:
        b = Node(B, {A: NOWHERE}, **options)
        async with started(b):
            await test(b)

    asyncio.run(story())


def test_a_proven_connection_delivers_and_is_warned_of_nothing() -> None:
    async def test(b: Node) -> None:
        stranger = await Stranger.member(b)
        stranger.writer.write(stranger.seal(("hello",)))
        await until(lambda: b.got == [(A, ("hello",))])
        assert b.rejected() == {}
        stranger.writer.close()
        await stranger.writer.wait_closed()
        await until(lambda: b.links == [(A, True), (A, False)])

    hostile(test)


@pytest.mark.parametrize(
    ("spoil", "reason", "delivered"),
    [
        (lambda good, seal: good[:-1] + bytes([good[-1] ^ 1]), "tag", 0),
        (lambda good, seal: good[:8] + bytes([good[8] ^ 0x80]) + good[9:], "tag", 0),
        (lambda good, seal: good + good, "tag", 1),
        (lambda good, seal: seal(("second",)), "tag", 0),
        (lambda good, seal: b"\xff\xff\xff\xff" + good[4:], "oversize", 0),
        (lambda good, seal: (frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "oversize", 0),
        (lambda good, seal: bytes(4) + good, "short", 0),
        (lambda good, seal: Sealer(b"a key of my own").seal([frames.encode(("x",))]), "tag", 0),
    ],
    ids=["tampered", "forged tag", "replayed", "left out", "huge", "oversize", "empty", "foreign key"],
)
def test_a_bad_frame_ends_the_connection_and_changes_nothing(
    spoil: Callable[[bytes, Callable[..., bytes]], bytes], reason: str, delivered: int
) -> None:
    async def test(b: Node) -> None:
        stranger = await Stranger.member(b)
        good = stranger.seal(("first",))
        with capture_logs() as logs:
            stranger.writer.write(spoil(good, stranger.seal))
            await stranger.closed()
        assert b.got == [(A, ("first",))] * delivered
        assert b.rejected() == {reason: 1}
        assert b.links == [(A, True), (A, False)]
        assert [entry["reason"] for entry in logs if entry["log_level"] == "warning"] == [reason]

    hostile(test)


@pytest.mark.parametrize("kept", [1, 4, 20, -1])
def test_a_frame_that_is_cut_short_ends_with_its_connection(kept: int) -> None:
    async def test(b: Node) -> None:
        stranger = await Stranger.member(b)
        first, second = stranger.seal(("first",)), stranger.seal(("second",))
        stranger.writer.write(first + second[:kept])
        await until(lambda: len(b.got) == 1)
        stranger.writer.write_eof()
        await stranger.closed()
        await until(lambda: b.links == [(A, True), (A, False)])
        assert b.got == [(A, ("first",))]
        assert b.peers.counters["links_lost"] == 1 and b.rejected() == {}

    hostile(test)


def test_frames_of_one_connection_mean_nothing_on_the_next() -> None:
    async def test(b: Node) -> None:
        first = await Stranger.member(b)
        recorded = first.seal(("vote",))
        second = await Stranger.member(b)  # replaces the first
        await first.closed()
        second.writer.write(recorded)
        await second.closed()
        assert b.got == [] and b.rejected() == {"tag": 1}
        assert b.links == [(A, True), (A, False), (A, True), (A, False)]

    hostile(test)


def test_what_the_bulk_lane_may_carry_the_main_lane_may_not() -> None:
    async def test(b: Node) -> None:
        bulk = await Stranger.member(b, BULK)
        bulk.writer.write(bulk.seal((bytes(9 * frames.MIB),)))
        await until(lambda: len(b.got) == 1)
        main = await Stranger.member(b, MAIN)
        main.writer.write(main.seal((bytes(9 * frames.MIB),))[:4096])
        await main.closed()
        assert b.rejected() == {"oversize": 1} and len(b.got) == 1
        bulk.writer.close()
        await bulk.writer.wait_closed()

    hostile(test)


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not_raftspine"),
        (b"\x80\x04\x95" + bytes(100), "not_raftspine"),
        (b"RSPN\x00\x09\x01\x00\x00", "version"),
        (b"RSPN\x00\x01\x01\x00\x02hi", "malformed"),
        (b"RSPN\x00\x01\x03\x00\x20" + bytes(32), "malformed"),
        (b"RSPN\x00\x01\x01\xff\xff", "oversize"),
    ],
)
def test_a_stranger_is_refused(greeting: bytes, reason: str) -> None:
    async def test(b: Node) -> None:
        for _ in range(3):
            stranger = await Stranger.dial(b)
            stranger.writer.write(greeting)
            await stranger.closed()
        assert b.rejected() == {reason: 3}
        assert b.got == b.links == []

    hostile(test)


def test_a_stranger_who_says_nothing_or_too_little_is_let_go() -> None:
    async def test(b: Node) -> None:
        silent, slow = await Stranger.dial(b), await Stranger.dial(b)
        slow.writer.write(b"RSPN\x00")
        await asyncio.gather(silent.closed(), slow.closed())
        assert b.rejected() == {"handshake_timeout": 2}

    hostile(test, peer_dead_ms=100)


def test_a_crowd_of_strangers_does_not_keep_a_member_out() -> None:
    async def test(b: Node) -> None:
        crowd = [await Stranger.dial(b) for _ in range(MAX_PENDING + 20)]
        await until(lambda: b.rejected().get("crowded", 0) >= 20)
        member = await Stranger.member(b)
        member.writer.write(member.seal(("in",)))
        await until(lambda: b.got == [(A, ("in",))])
        for stranger in [*crowd, member]:
            stranger.writer.close()
        await asyncio.gather(*(s.writer.wait_closed() for s in [*crowd, member]), return_exceptions=True)

    hostile(test)


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────────────


def certificate(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A self-signed certificate that is its own authority."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "1", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key, cert


def test_links_over_mutual_tls(run: Run, tmp_path: Path) -> None:
    files = certificate(tmp_path, "cluster")
    tls = tls_from_files(*files)

    async def story() -> None:
        async with two(tls=tls) as (a, b):
            assert a.peers.send(B, ("sealed twice", bytes(300_000)))
            await until(lambda: len(b.got) == 1)
            foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            foreign.check_hostname = False
            foreign.verify_mode = ssl.CERT_NONE
            with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS 1.3 fails at the first read
                reader, writer = await asyncio.open_connection(LOOPBACK, b.peers.port, ssl=foreign)
                try:
                    if await reader.read(1) == b"":
                        raise ConnectionResetError
                finally:
                    writer.close()
            assert a.links == [(B, True)]

    run(story())


def test_tls_files_that_cannot_be_used_are_the_operators_fault(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="TLS between nodes"):
        tls_from_files(tmp_path / "no.crt", tmp_path / "no.key", tmp_path / "no.ca")
