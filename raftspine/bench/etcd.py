"""etcd as the peer of the strong path: three members on the loopback, through its JSON gateway.

The gateway and not gRPC, because one HTTP request per operation is what is compared; the same generator,
values and number of clients on both sides. etcd syncs to disk before it answers, as our strong path does.
"""

import base64
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence

from raftspine.bench.keys import DRAWN, sequence
from raftspine.bench.machine import program_version
from raftspine.bench.peers import MEMBERS, PeerCluster, free_ports
from raftspine.bench.wire import Connection
from raftspine.bench.workloads import READ, VALUES, WRITE, Shape, key_names, values
from raftspine.errors import SpineError

LEASE_SECONDS = 300

_LEASE = re.compile(rb'"ID":"(\d+)"')
_KEY = re.compile(rb'"key":"([^"]+)"')


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
            return _post(b"kv/range", b'{"key":"%s"}' % key)
        connection.kind = WRITE
        return _post(b"kv/put", b'{"key":"%s","value":"%s"}' % (key, self._values[at % VALUES]))

    def first(self, connection: Connection, /) -> bytes:
        return self.next(connection)

    def failed_in(self, body: bytes, /) -> int:
        return 0

    def everything(self) -> list[bytes]:
        """One put per key, so that the reads find all of them."""
        return [
            _post(b"kv/put", b'{"key":"%s","value":"%s"}' % (key, self._values[n % VALUES]))
            for n, key in enumerate(self._keys)
        ]


class EtcdLocks:
    """Its lock service: lock and unlock under a lease that each client has taken beforehand, which is how etcd's own
    clients do it."""

    weight = 1

    def __init__(self, *, one_name: bool) -> None:
        self.name = "etcd-lock-one" if one_name else "etcd-lock"
        self._one_name = one_name
        self._leases: dict[int, bytes] = {}

    def first(self, connection: Connection, /) -> bytes:
        connection.kind = WRITE
        return _post(b"lease/grant", b'{"TTL":%d}' % LEASE_SECONDS)

    def next(self, connection: Connection, /) -> bytes:
        connection.kind = WRITE
        lease = self._leases.get(connection.number)
        if lease is None:  # the last reply is that to `first`
            lease = self._leases[connection.number] = _found(_LEASE, connection.body)
        name = b"bench-lock" if self._one_name else b"bench-lock-%d" % connection.number
        connection.follow = _unlock
        return _post(b"lock/lock", b'{"name":"%s","lease":"%s"}' % (base64.b64encode(name), lease))

    def failed_in(self, body: bytes, /) -> int:
        return 0


def _unlock(connection: Connection) -> bytes:
    return _post(b"lock/unlock", b'{"key":"%s"}' % _found(_KEY, connection.body))


def _found(pattern: re.Pattern[bytes], body: bytes) -> bytes:
    found = pattern.search(body)
    if found is None:
        raise SpineError(f"etcd's reply has no {pattern.pattern.decode()}: {body[:200].decode(errors='replace')}")
    return found.group(1)


class EtcdCluster(PeerCluster):
    """`urls`: where the members take requests."""

    name = "etcd"
    urls: Sequence[str] = ()

    def commands(self) -> Sequence[Sequence[str]]:
        ports = free_ports(2 * MEMBERS)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports[:MEMBERS]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[MEMBERS:]]
        cluster = ",".join(f"e{n}={peer}" for n, peer in enumerate(peers))
        return [self._command(n, self.urls[n], peers[n], cluster) for n in range(MEMBERS)]

    def healthy(self) -> bool:
        return all(_healthy(url) for url in self.urls)

    def _command(self, n: int, client: str, peer: str, cluster: str) -> list[str]:
        options = {
            "name": f"e{n}",
            "data-dir": str(self.folder / f"e{n}"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": cluster,
            "initial-cluster-state": "new",
        }
        return ["etcd", *(f"--{name}={value}" for name, value in options.items())]


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as reply:
            return bool(json.load(reply)["health"] == "true")
    except (OSError, ValueError, KeyError):
        return False


def _post(method: bytes, body: bytes) -> bytes:
    head = b"POST /v3/%s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" % method
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
