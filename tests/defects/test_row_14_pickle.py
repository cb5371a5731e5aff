"""Bytes from outside are data: they are checked before they are read, and nothing in them is run."""

import asyncio
import contextlib
import gzip
import importlib
import pickle
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftspine.cluster import frames
from raftspine.cluster.frames import Sealer
from raftspine.cluster.handshake import MAIN, Dialer, Identity
from raftspine.cluster.peers import Peers
from raftspine.errors import Corrupt
from raftspine.model import NodeId
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, run
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal
from raftspine.system import SystemClock, SystemEntropy
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_puppet import Puppet
from tests.support.tools import free_port, free_ports

LOOPBACK = "127.0.0.1"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def wire(message: Any) -> bytes:
    """As the package frames it."""
    data = zlib.compress(pickle.dumps(message, 2))
    return struct.pack("i", len(data)) + data


@contextlib.contextmanager
def listening(ports: list[int]) -> Iterator[Any]:
    """A real node of the package, as installed, on loopback; the test ticks it. Other members do not exist."""
    package = importlib.import_module("pysyncobj")
    conf = package.SyncObjConf(autoTick=False, raftMinTimeout=1000, raftMaxTimeout=2000, connectionTimeout=2000)
    me, *rest = [f"{LOOPBACK}:{port}" for port in ports]
    node = package.SyncObj(me, rest, conf=conf)
    try:
        yield node
    finally:
        node.destroy()


def _tick_until(node: Any, holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        node.doTick(0.01)


@bare(14, "message of a stranger", "runs its code")
def test_bare_message_of_a_stranger(tmp_path: Path) -> None:
    """Whatever arrives at the port is decompressed and unpickled before anybody asks who sent it."""
    ports, mark = free_ports(2), tmp_path / "owned"
    with listening(ports) as node, socket.create_connection((LOOPBACK, ports[0])) as stranger:
        stranger.sendall(wire(Payload(mark)))
        _tick_until(node, mark.exists)


@bare(14, "forged frame", "moves the node to term 1000002")
def test_bare_forged_frame(tmp_path: Path) -> None:
    """A connection is whoever it says it is: with a member's address for a name it may vote."""
    ports = free_ports(2)
    vote = {"type": "request_vote", "term": 1_000_002, "last_log_index": 1 << 40, "last_log_term": 1 << 40}
    with listening(sorted(ports)) as node, socket.create_connection((LOOPBACK, sorted(ports)[0])) as stranger:
        stranger.sendall(wire(f"{LOOPBACK}:{sorted(ports)[1]}") + wire(vote))
        _tick_until(node, lambda: node.raftCurrentTerm == 1_000_002)


@contextlib.asynccontextmanager
async def _member() -> Any:
    got: list[Any] = []
    peers = Peers(
        NodeId("b"), "test", b"the cluster secret", (LOOPBACK, free_port()), {NodeId("a"): (LOOPBACK, 1)},
        SystemClock(), SystemEntropy(),
    )  # fmt: skip
    peers.on_message(lambda peer, message: got.append(message))
    await peers.start()
    try:
        yield peers, got
    finally:
        await peers.close()


async def _closed_on(peers: Peers, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, peers.port)
    writer.write(data)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@ours(14, "message of a stranger", "closes the connection unread", "cluster.handshake.Handshake.feed")
def test_ours_message_of_a_stranger(tmp_path: Path) -> None:
    """Nothing is decoded before the handshake has proven who is on the other end, and then it is msgpack."""

    async def story() -> None:
        async with _member() as (peers, got):
            await _closed_on(peers, wire(Payload(tmp_path / "owned")))
            await _closed_on(peers, pickle.dumps(Payload(tmp_path / "owned")))
            assert got == [] and peers.counters["rejected.not_raftspine"] == 2

    asyncio.run(story())
    assert not (tmp_path / "owned").exists()


@ours(14, "forged frame", "closes the connection and hears nothing", "cluster.frames.Opener")
def test_ours_forged_frame() -> None:
    """Naming a member is not being one: without the cluster's secret there is no frame, whatever follows HELLO."""

    async def story() -> None:
        forged = Identity(NodeId("a"), "test", b"a guess")
        hello = Dialer(forged, NodeId("b"), MAIN, bytes(32)).hello
        vote = Sealer(b"any key").seal([frames.encode(("raft", [[0, 5, 1_000_002, 9, 9, True]]))])
        async with _member() as (peers, got):
            await _closed_on(peers, hello + vote)
            assert got == [] and not peers.connected(NodeId("a"))
            assert sum(count for name, count in peers.counters.items() if name.startswith("rejected.")) == 1

    asyncio.run(story())


@bare(14, "files", "runs code from its dump")
def test_bare_files(disk_net: BareNet, tmp_path: Path) -> None:
    """The dump and every entry of the journal are pickles too."""
    net, mark = disk_net, tmp_path / "owned"
    node = net.start("a", "abc", logCompactionMinEntries=1000)
    net.kill(node)
    node.dump_file.write_bytes(gzip.compress(pickle.dumps(Payload(mark))))
    net.start("a", "abc", logCompactionMinEntries=1000).tick()
    assert mark.exists()


@ours(14, "files", "refuses them as damaged", "cluster.raft_engine._NoPickle")
def test_ours_files(tmp_path: Path) -> None:
    """The journal is msgpack with checksums, and inside the engine pickle is out of reach."""
    mark = tmp_path / "owned"

    async def main(loop):
        wal = Wal.open(SimDisk(loop, Dice(1)).directory("raft"), segment_bytes=1 << 20)
        wal.append(pickle.dumps(Payload(mark)))
        with pytest.raises(Corrupt):
            Journal.open(wal)
        puppet = Puppet(loop)
        await puppet.feed("b", 1, 0, 0, 2, [1, b"\x01"], [1, b"\x00" + pickle.dumps(Payload(mark))])
        assert puppet.group.halted is not None
        with pytest.raises(RuntimeError, match="pickle"):
            puppet.engine.setCodeVersion(0)

    run(main)
    assert not mark.exists()
