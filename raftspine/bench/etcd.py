"""etcd as the peer of the strong path: three members on the loopback, through its JSON gateway.

The gateway and not gRPC, because one HTTP request per operation is what is compared; the same generator,
values and number of clients on both sides. etcd syncs to disk before it answers, as our strong path does.
"""

import base64
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from raftspine.bench.keys import DRAWN, sequence
from raftspine.bench.machine import program_version
from raftspine.bench.wire import Connection
from raftspine.bench.workloads import READ, VALUES, WRITE, Shape, key_names, values
from raftspine.errors import SpineError

MEMBERS = 3
READY_S = 30.0
STOP_S = 10.0


def installed() -> str | None:
    """etcd's version, or None where it is not installed."""
    return program_version(["etcd", "--version"], r"etcd Version: (\S+)") if shutil.which("etcd") else None


class EtcdWorkload:
    """Puts, or linearizable range reads of one key (etcd's default)."""

    weight = 1

    def __init__(self, shape: Shape, *, reads: bool) -> None:
        self.name = "etcd-range" if reads else "etcd-put"
        self._order = sequence(shape.keys, shape.distribution, shape.seed)
        self._keys = [base64.b64encode(key) for key in key_names(shape.keys, strong=True)]
        self._values = [base64.b64encode(value.encode()) for value in values(shape)]
        self._reads = reads
        self._at = 0

    def next(self, connection: Connection, /) -> bytes:
        at = self._at = (self._at + 1) & (DRAWN - 1)
        key = self._keys[self._order[at]]
        if self._reads:
            connection.kind = READ
            return _post(b"range", b'{"key":"%s"}' % key)
        connection.kind = WRITE
        return _post(b"put", b'{"key":"%s","value":"%s"}' % (key, self._values[at % VALUES]))

    def first(self, connection: Connection, /) -> bytes:
        return self.next(connection)

    def failed_in(self, body: bytes, /) -> int:
        return 0

    def everything(self) -> list[bytes]:
        """One put per key, so that the reads find all of them."""
        return [
            _post(b"put", b'{"key":"%s","value":"%s"}' % (key, self._values[n % VALUES]))
            for n, key in enumerate(self._keys)
        ]


class EtcdCluster:
    """Three members with their data under `folder`, ended with the block."""

    def __init__(self, folder: Path, pause: Callable[[float], object]) -> None:
        self._folder = folder
        self._pause = pause
        self._processes: list[subprocess.Popen[bytes]] = []
        self.urls: list[str] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def __enter__(self) -> "EtcdCluster":
        ports = free_ports(2 * MEMBERS)
        clients, peers = ports[:MEMBERS], ports[MEMBERS:]
        self.urls = [f"http://127.0.0.1:{port}" for port in clients]
        cluster = ",".join(f"e{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
        try:
            for n in range(MEMBERS):
                self._processes.append(self._start(n, self.urls[n], f"http://127.0.0.1:{peers[n]}", cluster))
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, n: int, client: str, peer: str, cluster: str) -> "subprocess.Popen[bytes]":
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "name": f"e{n}",
            "data-dir": str(self._folder / f"e{n}"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": cluster,
            "initial-cluster-state": "new",
        }
        command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
        with (self._folder / f"e{n}.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def _wait(self) -> None:
        """Until every member sees a leader."""
        for _ in range(int(READY_S / 0.1)):
            if any(process.poll() is not None for process in self._processes):
                raise SpineError(f"etcd did not start; see {self._folder}/e*.log")
            if all(_healthy(url) for url in self.urls):
                return
            self._pause(0.1)
        raise SpineError(f"etcd is not ready after {READY_S:.0f} s; see {self._folder}/e*.log")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as reply:
            return bool(json.load(reply)["health"] == "true")
    except (OSError, ValueError, KeyError):
        return False


def _post(method: bytes, body: bytes) -> bytes:
    head = b"POST /v3/kv/%s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" % method
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
