"""ZooKeeper as a peer of the locks: three servers on the loopback, by the lock recipe of its Python client, kazoo.

ZooKeeper speaks no HTTP, so our generator cannot ask it; kazoo runs in processes of its own, each with some of the
clients, since one Python process could not keep three servers busy. What kazoo itself takes of the machine is in the
row as the generator's share, and the servers' CPU per operation is free of it. The transaction log is synced before
an answer (forceSync, ZooKeeper's default).
"""

import multiprocessing
import os
import shutil
import socket
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raftspine.bench.histogram import Histogram
from raftspine.bench.load import Outcome
from raftspine.bench.machine import program_version
from raftspine.bench.peers import MEMBERS, PeerCluster, free_ports
from raftspine.errors import SpineError
from raftspine.ports import Clock
from raftspine.system import SystemClock

JAR = Path("/usr/share/java/zookeeper.jar")
"""Where Debian's package puts it."""
PROCESSES = 4
CONNECT_S = 30.0
HEAP = "-Xmx512m"


def missing() -> str:
    """Why it cannot be measured here, or nothing."""
    for what, there in (("java", shutil.which("java")), (str(JAR), JAR.exists()), ("kazoo", find_spec("kazoo"))):
        if not there:
            return f"{what} not installed"
    return ""


def version() -> str | None:
    """ZooKeeper's version, or None where it cannot be measured."""
    if missing():
        return None
    jar = ["java", "-cp", str(JAR), "org.apache.zookeeper.version.VersionInfoMain"]
    return program_version(jar, r"version: ([\d.]+)") or "unknown"


class ZooKeeperCluster(PeerCluster):
    """`hosts`: where the servers take clients."""

    name = "ZooKeeper"
    hosts: Sequence[str] = ()

    def commands(self) -> Sequence[Sequence[str]]:
        ports = free_ports(3 * MEMBERS)
        clients, quorum, election = ports[:MEMBERS], ports[MEMBERS : 2 * MEMBERS], ports[2 * MEMBERS :]
        self.hosts = [f"127.0.0.1:{port}" for port in clients]
        servers = [f"server.{n + 1}=127.0.0.1:{quorum[n]}:{election[n]}" for n in range(MEMBERS)]
        return [self._command(n, clients[n], servers) for n in range(MEMBERS)]

    def healthy(self) -> bool:
        modes = [_mode(host) for host in self.hosts]
        return modes.count("leader") == 1 and modes.count("follower") == MEMBERS - 1

    def _command(self, n: int, port: int, servers: Sequence[str]) -> list[str]:
        data = (self.folder / str(n)).resolve()
        data.mkdir(parents=True, exist_ok=True)
        (data / "myid").write_text(f"{n + 1}\n")
        config = self.folder / f"{n}.cfg"
        lines = [
            "tickTime=2000",
            "initLimit=10",
            "syncLimit=5",
            f"dataDir={data}",
            f"clientPort={port}",
            "clientPortAddress=127.0.0.1",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "forceSync=yes",
            *servers,
        ]
        config.write_text("\n".join(lines) + "\n")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        return ["java", HEAP, "-Dzookeeper.jmx.log4j.disable=true", "-cp", str(JAR), main, str(config)]


def _mode(host: str) -> str:
    """`leader`, `follower`, or nothing while the server does not serve (the four-letter word srvr)."""
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port)), 1) as connection:
            connection.sendall(b"srvr")
            told = b""
            while data := connection.recv(4096):
                told += data
    except OSError:
        return ""
    _, _, mode = told.partition(b"Mode: ")
    return mode.split(b"\n")[0].decode()


def run(
    hosts: Sequence[str], *, one_name: bool, clients: int, seconds: float, warmup_s: float = 1.0, clock: Clock
) -> Outcome:
    """Acquire and release in a closed loop. Raises SpineError when a client cannot."""
    context = multiprocessing.get_context("spawn")
    processes = min(PROCESSES, clients)
    shares = [range(n, clients, processes) for n in range(processes)]
    barrier = context.Barrier(processes)
    started = clock.monotonic()
    with context.Pool(processes, _share, (barrier,)) as pool:
        asked = [(list(hosts), list(share), one_name, seconds, warmup_s) for share in shares]
        found = pool.starmap(_work, asked, chunksize=1)
    merged = Histogram()
    for share in found:
        merged.merge(share.latency)
    failures = [failure for share in found for failure in share.failures]
    if not merged.total:
        raise SpineError(f"kazoo took no lock: {failures[:1]}")
    errors = {"kazoo": len(failures)} if failures else {}
    total = sum(share.operations for share in found)
    cpu = sum(share.cpu_s for share in found) / (seconds + warmup_s)
    latency = {"write": merged}
    spent = clock.monotonic() - started
    return Outcome(merged.total, seconds, errors, 0, latency, Histogram(), cpu, total, spent)


class _Share:
    """What one process has measured; `operations` warm-up included."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.failures: list[str] = []
        self.operations = 0
        self.cpu_s = 0.0


def _share(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _work(hosts: list[str], numbers: list[int], one_name: bool, seconds: float, warmup_s: float) -> _Share:
    """In a process of its own: a thread and a session per client."""
    from kazoo.client import KazooClient

    clock, share, guard = SystemClock(), _Share(), threading.Lock()
    sessions = [KazooClient(hosts=hosts[n % len(hosts)], timeout=CONNECT_S) for n in numbers]
    for session in sessions:
        session.start(CONNECT_S)
    _barrier.wait(CONNECT_S)
    begun = _cpu_s()
    start = clock.monotonic() + warmup_s
    end = start + seconds

    def work(session: KazooClient, number: int) -> None:
        name = "one" if one_name else f"own-{number}"
        lock = session.Lock(f"/bench/{name}", str(number))
        latency, operations = Histogram(), 0
        try:
            while (began := clock.monotonic()) < end:
                lock.acquire()
                lock.release()
                operations += 1
                done = clock.monotonic()
                if began >= start and done <= end:
                    latency.record(int((done - began) * 1e6))
        except Exception as error:  # noqa: BLE001 - whatever ends a client is told beside the figures
            with guard:
                share.failures.append(repr(error))
        with guard:
            share.latency.merge(latency)
            share.operations += operations

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(sessions, numbers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    share.cpu_s = _cpu_s() - begun
    for session in sessions:
        session.stop()
        session.close()
    return share


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


_barrier: Any = None
