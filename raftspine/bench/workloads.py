"""What is asked of the store: the workloads, as prebuilt bytes.

A workload is a mix of four requests (store, read, read-modify-write, batch) over a sequence of keys.
Everything that can be computed before the measurement is: a request is a concatenation of five byte strings.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from raftspine.bench.keys import DRAWN, SplitMix, sequence, zipf_ranks
from raftspine.errors import Misuse

READ, WRITE, MODIFY = 0, 1, 2
KINDS = ("read", "write", "read-modify-write")

VALUES = 64
"""Different contents in turn, so that a write is seldom equal to what is stored."""

BATCH = 100


class Asking(Protocol):
    """A connection, as far as a workload needs to know it (see `wire.Connection`)."""

    number: int
    kind: int
    session: bytes
    body: bytes
    follow: "Follow | None"


Follow = Callable[[Any], bytes]
"""Called with the connection once a reply is there; the operation's next request."""

Source = Callable[[Asking], bytes]
"""The next request of a connection; sets its `kind` and, where it takes several requests, its `follow`."""


class Mix(NamedTuple):
    """Shares of the operations; what is left are writes. `latest` reads what was inserted last (YCSB D)."""

    reads: float = 0.0
    modifies: float = 0.0
    strong: bool = False
    batch: bool = False
    latest: bool = False
    session: bool = True
    text: str = ""


MIXES: Mapping[str, Mix] = {
    "write": Mix(session=False, text="default write, W=2"),
    "read": Mix(reads=1.0, text="default read with a session token, R=1"),
    "mixed": Mix(reads=0.9, text="90 % reads, 10 % writes, with session tokens"),
    "strong-write": Mix(strong=True, session=False, text="strong write, fsynced on a majority"),
    "strong-read": Mix(reads=1.0, strong=True, session=False, text="linearizable read"),
    "batch": Mix(batch=True, session=False, text=f"default write, {BATCH} memories per request"),
    "ycsb-a": Mix(reads=0.5, text="YCSB A: 50 % reads, 50 % updates"),
    "ycsb-b": Mix(reads=0.95, text="YCSB B: 95 % reads, 5 % updates"),
    "ycsb-c": Mix(reads=1.0, text="YCSB C: reads only"),
    "ycsb-d": Mix(reads=0.95, latest=True, text="YCSB D: 95 % reads of the latest, 5 % inserts"),
    "ycsb-f": Mix(reads=0.5, modifies=0.5, text="YCSB F: 50 % reads, 50 % read-modify-writes"),
}


class Shape(NamedTuple):
    """How much data, and whose key to send."""

    value_bytes: int = 256
    keys: int = 10_000
    distribution: str = "zipfian"
    api_key: str | None = None
    seed: int = 1


class Workload:
    """One mix over one shape. `next` is the Source; `weight` says how many operations a request stands for."""

    def __init__(self, name: str, shape: Shape) -> None:
        """Raises Misuse for a name that is not in MIXES."""
        if name not in MIXES:
            raise Misuse(f"no workload {name!r}; there are {', '.join(MIXES)}")
        self.name = name
        self.mix = MIXES[name]
        self.shape = shape
        self.weight = BATCH if self.mix.batch else 1
        self._keys = key_names(shape.keys, strong=self.mix.strong)
        self._order = sequence(shape.keys, shape.distribution, shape.seed)
        self._at = 0
        chance = SplitMix(shape.seed + 1)
        self._kinds = [self._draw(chance.random()) for _ in range(DRAWN)]
        self._recent = zipf_ranks(shape.keys, DRAWN, chance) if self.mix.latest else []
        self._common = common_headers(shape.api_key)
        bodies = [store_body(value, strong=self.mix.strong) for value in values(shape)]
        self._stores = [self._common + entity(body) for body in bodies]
        model = b"?consistency=strong" if self.mix.strong else b""
        self._read_line = model + b" HTTP/1.1\r\n"
        self._lines = self._batch_lines() if self.mix.batch else []
        self.next: Source = self._next_batch if self.mix.batch else self._next

    def first(self, connection: Asking) -> bytes:
        """A connection's first request: a write of its own, which gives it a session token worth the name."""
        connection.kind = WRITE
        return self._store(connection, b"bench-session-%d" % connection.number, 0)

    def failed_in(self, body: bytes) -> int:
        """How many operations of a batch that was answered 200 failed."""
        return BATCH - body.count(b'"status":20') if self.mix.batch else 0

    def _draw(self, chance: float) -> int:
        if chance < self.mix.reads:
            return READ
        return MODIFY if chance < self.mix.reads + self.mix.modifies else WRITE

    def _next(self, connection: Asking) -> bytes:
        at = self._at = (self._at + 1) & (DRAWN - 1)
        kind = connection.kind = self._kinds[at]
        if self._recent:
            return self._next_latest(connection, at, kind)
        key = self._keys[self._order[at]]
        if kind == WRITE:
            return self._store(connection, key, at)
        if kind == MODIFY:
            second = self._store(connection, key, at)
            connection.follow = lambda _: second
        return b"GET /v1/memories/" + key + self._read_line + connection.session + self._common + b"\r\n"

    def _next_latest(self, connection: Asking, at: int, kind: int) -> bytes:
        if kind == WRITE:
            key = b"bench-%08d" % len(self._keys)
            self._keys.append(key)
            return self._store(connection, key, at)
        # The very last may still be on its way; a reader can only know of what was acknowledged before.
        key = self._keys[-(self._recent[at] + 256) % len(self._keys)]
        return b"GET /v1/memories/" + key + self._read_line + connection.session + self._common + b"\r\n"

    def _store(self, connection: Asking, key: bytes, at: int) -> bytes:
        return b"PUT /v1/memories/" + key + b" HTTP/1.1\r\n" + connection.session + self._stores[at % VALUES]

    def _next_batch(self, connection: Asking) -> bytes:
        connection.kind = WRITE
        start = self._at = (self._at + BATCH) % (DRAWN - BATCH)
        chosen = dict.fromkeys(self._order[start : start + BATCH])
        lines = [self._lines[key] for key in chosen]
        short = BATCH - len(lines)  # a skewed sequence repeats itself; a batch must not
        lines += [line for key, line in enumerate(self._lines[: BATCH * 2]) if key not in chosen][:short]
        body = b'{"ops":[' + b",".join(lines) + b"]}"
        return b"POST /v1/memories/batch HTTP/1.1\r\n" + self._common + entity(body)

    def _batch_lines(self) -> list[bytes]:
        contents = values(self.shape)
        return [
            msgspec.json.encode({"op": "put", "id": key.decode(), "content": contents[n % VALUES]})
            for n, key in enumerate(self._keys)
        ]


def key_names(n: int, *, strong: bool) -> list[bytes]:
    """The ids of the benchmark's memories; the two paths do not share any."""
    prefix = b"bench-strong-" if strong else b"bench-"
    return [b"%s%08d" % (prefix, i) for i in range(n)]


def values(shape: Shape) -> list[str]:
    """Contents of exactly the wanted size that do not compress to nothing."""
    chance = SplitMix(shape.seed + 2)
    return [
        "".join(f"{chance.next():016x}" for _ in range(-(-shape.value_bytes // 16)))[: shape.value_bytes]
        for _ in range(VALUES)
    ]


def store_body(value: str, *, strong: bool) -> bytes:
    return msgspec.json.encode({"content": value, "tags": ["critical"]} if strong else {"content": value})


def common_headers(api_key: str | None) -> bytes:
    key = b"" if api_key is None else b"Authorization: Bearer %s\r\n" % api_key.encode()
    return b"Host: bench\r\n" + key


def entity(body: bytes) -> bytes:
    return b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
