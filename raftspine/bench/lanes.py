"""A given list of requests over some connections, each once: for filling, and for what a generator's loop cannot."""

import select
from collections.abc import Iterable, Iterator, Sequence

from raftspine.bench.histogram import Histogram
from raftspine.bench.wire import Address, Connection
from raftspine.errors import SpineError
from raftspine.ports import Clock

ANSWER_S = 60.0


def exchange(connection: Connection, request: bytes, clock: Clock) -> bytes:
    """One request, waited for; the body of its reply. Raises SpineError when it is refused or not answered."""
    connection.send(request)
    deadline = clock.monotonic() + ANSWER_S
    while not (status := connection.receive()):
        left = deadline - clock.monotonic()
        if left <= 0:
            raise SpineError(f"{connection.address.host}:{connection.address.port} does not answer")
        select.select([connection.fd], [], [], left)
    if status >= 300:
        raise SpineError(f"a request was answered {status}: {connection.body[:200].decode(errors='replace')}")
    return connection.body


def drive(addresses: Sequence[Address], requests: Iterable[bytes], lanes: int, clock: Clock) -> Histogram:
    """Send all of them, one at a time per lane; how long each took. Raises SpineError when one is refused."""
    source = iter(requests)
    latency = Histogram()
    open_: dict[int, Connection] = {}
    poll = select.epoll()
    try:
        for number in range(lanes):
            connection = Connection(number, addresses[number % len(addresses)], keeps_token=False)
            open_[connection.fd] = connection
            poll.register(connection.fd, select.EPOLLIN)
        busy = sum(_next(connection, source, clock) for connection in open_.values())
        while busy:
            ready = poll.poll(ANSWER_S)
            if not ready:
                raise SpineError(f"no answer within {ANSWER_S:.0f} s")
            for fd, _ in ready:
                connection = open_[fd]
                status = connection.receive()
                if not status:
                    continue
                if status >= 300:
                    said = connection.body[:200].decode(errors="replace")
                    raise SpineError(f"a request was answered {status}: {said}")
                latency.record(int((clock.monotonic() - connection.intended) * 1e6))
                busy -= not _next(connection, source, clock)
        return latency
    finally:
        poll.close()
        for connection in open_.values():
            connection.close()


def _next(connection: Connection, source: Iterator[bytes], clock: Clock) -> bool:
    """Whether there was another request to send."""
    request = next(source, None)
    if request is None:
        return False
    connection.intended = clock.monotonic()
    connection.send(request)
    return True
