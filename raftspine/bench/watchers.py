"""What many watchers of one prefix cost: an event is encoded once for all of them, and each then costs a write.

All watchers sit at one node, which is the hardest case; a writer changes locks under the prefix. Events are counted
at the watchers' ends of the connections, encodings by the node's own counter.
"""

import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from raftspine.bench.coordination import Requests, lease_in, token_in
from raftspine.bench.lanes import exchange
from raftspine.bench.processes import Usage
from raftspine.bench.wire import RECEIVE, Address, Connection, addresses
from raftspine.errors import SpineError
from raftspine.ports import Clock

WATCHERS = 1000
CHANGES = 100
"""Locks taken and given back: two events each."""
PREFIX = "bench-watched-"
DELIVERED_S = 60.0
EVENT = b"\nevent: lock\n"
BOOKMARK = b"\nevent: bookmark\n"
STATS = b"GET /v1/stats HTTP/1.1\r\nHost: bench\r\n\r\n"
ENCODED = "watch_encodings"


class _Ear:
    """A watcher's end: counts events in the stream."""

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection(address)
        self._tail = b""
        self.events = 0
        self.began = False
        request = f"GET /v1/watch?kinds=lock&prefix={PREFIX} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"
        self._socket.sendall(request.encode() + b"\r\n")
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()

    def listen(self) -> int:
        """Events that have come in since the last call."""
        data = self._socket.recv(RECEIVE)
        if not data:
            raise SpineError("a node closed a watcher's connection")
        seen = self._tail + data
        self.began = self.began or BOOKMARK in seen
        if not self.began and seen.startswith(b"HTTP/1.1 ") and seen[9:12] != b"200":
            raise SpineError(f"a watcher was refused: {seen[:300]!r}")
        new = seen.count(EVENT)
        self._tail = seen[-(len(BOOKMARK) - 1) :]
        if EVENT in self._tail:
            self._tail = self._tail[self._tail.rindex(EVENT) + 1 :]
        self.events += new
        return new

    def close(self) -> None:
        self._socket.close()


def measure(
    urls: Sequence[str],
    clock: Clock,
    usage: Callable[[], Usage],
    *,
    watchers: int = WATCHERS,
    changes: int = CHANGES,
) -> dict[str, Any]:
    """`encodings_per_event` at the watchers' node, `cpu_us_per_delivery` of all nodes together, what the changes
    themselves cost included, `per_second` deliveries. Raises SpineError when a watcher misses an event."""
    where = addresses(urls)
    writer = Connection(0, where[-1], keeps_token=False)
    teller = Connection(1, where[0], keeps_token=False)
    ears: dict[int, _Ear] = {}
    poll = select.epoll()
    try:
        for _ in range(watchers):
            ear = _Ear(where[0])
            ears[ear.fd] = ear
            poll.register(ear.fd, select.EPOLLIN)
        _until(lambda: all(ear.began for ear in ears.values()), poll, ears, clock)
        encoded, used, start = _encoded(teller, clock), usage(), clock.monotonic()
        for n in range(changes):
            _change(writer, f"{PREFIX}{n % 16}", clock)
            for fd, _ in poll.poll(0):
                ears[fd].listen()
        events = 2 * changes
        _until(lambda: all(ear.events >= events for ear in ears.values()), poll, ears, clock)
        seconds, cpu_s = clock.monotonic() - start, usage().since(used)
        delivered = sum(ear.events for ear in ears.values())
        if delivered != events * watchers:
            raise SpineError(f"{delivered} events were delivered where {events * watchers} were due")
        encodings = _encoded(teller, clock) - encoded
    finally:
        poll.close()
        for ear in ears.values():
            ear.close()
        writer.close()
        teller.close()
    return {
        "watchers": watchers,
        "events": events,
        "encodings_per_event": round(encodings / events, 3),
        "per_second": round(delivered / seconds),
        "cpu_us_per_event": round(cpu_s / events * 1e6),
        "cpu_us_per_delivery": round(cpu_s / delivered * 1e6, 1),
    }


def _until(over: Callable[[], bool], poll: select.epoll, ears: dict[int, _Ear], clock: Clock) -> None:
    deadline = clock.monotonic() + DELIVERED_S
    while not over():
        if clock.monotonic() > deadline:
            raise SpineError(f"watchers still wait after {DELIVERED_S:.0f} s")
        for fd, _ in poll.poll(0.1):
            ears[fd].listen()


def _change(writer: Connection, name: str, clock: Clock) -> None:
    ask = Requests()
    held = exchange(writer, ask.acquire(name, 0), clock)
    exchange(writer, ask.release(name, lease_in(held), token_in(held)), clock)


def _encoded(teller: Connection, clock: Clock) -> int:
    """The node's counter."""
    told: dict[str, Any] = msgspec.json.decode(exchange(teller, STATS, clock))
    return int(told["coordination"][ENCODED])
