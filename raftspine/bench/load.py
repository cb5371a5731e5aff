"""The load generator: one thread, one poll loop, a fixed number of connections.

Closed loop: each connection sends its next request when its last one is answered; what is measured is
throughput. Open loop: requests are due at a fixed rate, and latency counts from the moment a request was
*due*, whether or not a connection was free to send it. Measured from the sending instead, a store that stalls
for a second would be charged for a handful of requests and not for the thousands that had to wait (Tene's
"coordinated omission").
"""

import os
import select
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from raftspine.bench.histogram import Histogram
from raftspine.bench.wire import Address, Connection
from raftspine.bench.workloads import KINDS, READ
from raftspine.errors import SpineError, Unavailable
from raftspine.ports import Clock

QUANTUM_S = 0.00025
"""Open loop: the shortest sleep. Waking for each request alone would take the CPU from the nodes."""

FIRST_S = 15.0
"""How long a connection's first write may take; the store may still be busy with what was loaded before."""

DRAIN_S = 5.0
"""Open loop: how long to wait for the last answers; what is missing then counts as unknown."""


BEHIND_S = 30.0
"""Open loop: how long after its end to go on sending what was due in it."""


class Asked(Protocol):
    """What the generator needs of a workload."""

    name: str
    weight: int

    def next(self, connection: Connection, /) -> bytes: ...
    def first(self, connection: Connection, /) -> bytes: ...
    def failed_in(self, body: bytes, /) -> int: ...


class Plan(NamedTuple):
    """`rate` in operations a second makes an open loop; None a closed one."""

    addresses: Sequence[Address]
    clients: int = 64
    seconds: float = 10.0
    warmup_s: float = 1.0
    rate: float | None = None
    session: bool = False


class Outcome(NamedTuple):
    """What a run came to. `errors` counts by status; `unknown` are 504s and connections that broke while a
    write was under way. `generator_cpu` is the share of one core this process took."""

    operations: int
    seconds: float
    errors: dict[str, int]
    unknown: int
    latency: dict[str, Histogram]
    late: Histogram
    generator_cpu: float
    total_operations: int
    total_seconds: float

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    def overall(self) -> Histogram:
        merged = Histogram()
        for histogram in self.latency.values():
            merged.merge(histogram)
        return merged

    def document(self) -> dict[str, Any]:
        """Plain data, times in milliseconds."""
        kinds = {kind: h.summary_ms() for kind, h in self.latency.items() if h.total}
        return {
            "operations": self.operations,
            "seconds": round(self.seconds, 3),
            "per_second": round(self.per_second, 1),
            "errors": self.errors,
            "unknown": self.unknown,
            "latency_ms": self.overall().summary_ms(),
            "latency_ms_by_kind": kinds,
            "sent_late_ms": self.late.summary_ms() if self.late.total else None,
            "generator_cpu": round(self.generator_cpu, 3),
            "total_operations": self.total_operations,
            "total_seconds": round(self.total_seconds, 3),
        }


class Tally:
    """What has been counted so far."""

    __slots__ = ("done", "errors", "late", "latency", "unknown")

    def __init__(self) -> None:
        self.done = 0
        self.errors: dict[str, int] = {}
        self.unknown = 0
        self.latency = tuple(Histogram() for _ in KINDS)
        self.late = Histogram()

    def error(self, what: str, count: int = 1) -> None:
        self.errors[what] = self.errors.get(what, 0) + count


class Generator:
    """One run of one workload."""

    def __init__(self, workload: Asked, plan: Plan, clock: Clock) -> None:
        self._workload = workload
        self._plan = plan
        self._now = clock.monotonic
        self._poll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._tally = Tally()
        self._uncounted = 0

    def run(self) -> Outcome:
        """Connect, warm up, measure. Raises Unavailable when no node takes connections."""
        plan = self._plan
        started = self._now()
        try:
            for number in range(plan.clients):
                self._open(number)
            loop = self._closed if plan.rate is None else self._open_loop
            if plan.warmup_s > 0:
                loop(plan.warmup_s)
                self._uncounted += self._tally.done
                self._tally = Tally()
            cpu, start = _cpu_s(), self._now()
            seconds = loop(plan.seconds)
            cpu, elapsed = _cpu_s() - cpu, self._now() - start
            return self._outcome(seconds, cpu / elapsed, self._now() - started)
        finally:
            for connection in self._by_fd.values():
                connection.close()
            self._poll.close()

    def _outcome(self, seconds: float, cpu: float, total_s: float) -> Outcome:
        tally, weight = self._tally, self._workload.weight
        latency = dict(zip(KINDS, tally.latency, strict=True))
        operations = tally.done * weight - tally.errors.get("batch", 0)
        total = (tally.done + self._uncounted) * weight
        return Outcome(operations, seconds, tally.errors, tally.unknown, latency, tally.late, cpu, total, total_s)

    # ── the loops ───────────────────────────────────────────────────────────────────────────────────────────

    def _closed(self, seconds: float) -> float:
        """Send on every connection, and again on each answer; what is unanswered at the end is not counted.
        Returns the seconds it was measured for."""
        now = self._now
        start = now()
        end = start + seconds
        for connection in list(self._by_fd.values()):
            self._keep_busy(connection)
        source = self._workload.next
        while (moment := now()) < end:
            for fd, _ in self._poll.poll(end - moment):
                connection = self._by_fd[fd]
                if self._answered(connection):
                    connection.intended = now()
                    try:
                        connection.send(source(connection))
                    except OSError:
                        self._broken(connection)
                        self._keep_busy(connection)
        measured, self._tally = self._tally, Tally()
        self._drain(set(self._by_fd.values()), now() + DRAIN_S)
        self._uncounted += self._tally.done
        self._tally = measured
        return moment - start

    def _open_loop(self, seconds: float) -> float:
        """Send what is due, as far as there are free connections; then wait for what comes first. Returns the
        seconds until the last answer: a store that cannot keep up takes longer than asked, and that shows."""
        assert self._plan.rate is not None
        interval = self._workload.weight / self._plan.rate
        now = self._now
        start = now()
        end = start + seconds
        free = deque(self._by_fd.values())
        sent = 0
        while True:
            moment = now()
            due = start + sent * interval
            while due <= moment and due < end and free:
                connection = free.popleft()
                self._tally.late.record(int((moment - due) * 1e6))
                if not self._send(connection, due):
                    free.append(connection)
                sent += 1
                due = start + sent * interval
            if due >= end:
                break
            wait = max(due - moment, QUANTUM_S) if free else DRAIN_S
            self._collect(wait, free)
            if moment > end + BEHIND_S:
                self._tally.error("never sent", int(seconds / interval) - sent)
                break
        waiting = set(self._by_fd.values()).difference(free)
        self._tally.unknown += self._drain(waiting, now() + DRAIN_S)  # they were due, so they count
        return max(seconds, now() - start)

    def _collect(self, wait_s: float, free: deque[Connection]) -> None:
        """Take in answers for up to `wait_s`. select(2) has the resolution that epoll's milliseconds lack."""
        if wait_s < 0.01:
            select.select([self._poll], [], [], wait_s)
            wait_s = 0
        for fd, _ in self._poll.poll(wait_s):
            connection = self._by_fd[fd]
            if self._answered(connection):
                free.append(connection)

    def _drain(self, waiting: set[Connection], deadline: float) -> int:
        """Wait for the answers still out; those that never come leave their number and a fresh connection."""
        while waiting and (moment := self._now()) < deadline:
            for fd, _ in self._poll.poll(deadline - moment):
                connection = self._by_fd[fd]
                if self._answered(connection):
                    waiting.discard(connection)
        for connection in waiting:
            self._reopen(connection)
        return len(waiting)

    # ── one connection ──────────────────────────────────────────────────────────────────────────────────────

    def _open(self, number: int) -> None:
        addresses = self._plan.addresses
        connection = Connection(number, addresses[number % len(addresses)], keeps_token=self._plan.session)
        self._register(connection)
        if self._plan.session:
            self._exchange(connection, self._workload.first(connection))

    def _exchange(self, connection: Connection, request: bytes) -> None:
        """One request before the measurement, waited for, and sent again while the store says *not now*."""
        deadline = self._now() + FIRST_S
        while True:
            connection.send(request)
            while not (status := connection.receive()):
                if self._now() > deadline:
                    raise Unavailable(f"{connection.address.host}:{connection.address.port} does not answer")
                self._poll.poll(0.1)
            if status < 400:
                if connection.follow is None:
                    return
                follow, connection.follow = connection.follow, None
                request = follow(connection)
                continue
            if status != 503 or self._now() > deadline:
                said = connection.body[:200].decode(errors="replace")
                raise SpineError(f"the first write was answered {status}: {said}")
            self._poll.poll(0.2)

    def _register(self, connection: Connection) -> None:
        self._by_fd[connection.fd] = connection
        self._poll.register(connection.fd, select.EPOLLIN)

    def _send(self, connection: Connection, intended: float) -> bool:
        """Whether the next request is on its way; if not, it is recorded and the connection is a new one."""
        connection.intended = intended
        try:
            connection.send(self._workload.next(connection))
        except OSError:
            self._broken(connection)
            return False
        return True

    def _keep_busy(self, connection: Connection) -> None:
        while not self._send(connection, self._now()):
            pass  # on another node by now; Unavailable when there is none

    def _answered(self, connection: Connection) -> bool:
        """Whether the connection's operation is over, and recorded."""
        try:
            status = connection.receive()
            if status == 0:
                return False
            if connection.follow is not None and status < 300:
                follow, connection.follow = connection.follow, None  # which may set another
                connection.send(follow(connection))
                return False
        except OSError:
            self._broken(connection)
            return True
        connection.follow = None
        tally = self._tally
        if status < 300:
            tally.done += 1
            tally.latency[connection.kind].record(int((self._now() - connection.intended) * 1e6))
            if self._workload.weight > 1 and (failed := self._workload.failed_in(connection.body)):
                tally.error("batch", failed)
        elif status == 504:
            tally.unknown += 1
        else:
            tally.error(str(status))
        return True

    def _broken(self, connection: Connection) -> None:
        """The connection went away with its request: a read has failed, a write may have happened."""
        if connection.kind == READ:
            self._tally.error("connection")
        else:
            self._tally.unknown += 1
        self._reopen(connection)

    def _reopen(self, connection: Connection) -> None:
        """Connect again, to the next node that takes connections. Raises Unavailable when none does."""
        self._by_fd.pop(connection.fd)
        connection.close()  # which also takes it out of the poll set
        connection.follow = None
        addresses = self._plan.addresses
        first = addresses.index(connection.address) + 1
        for n in range(len(addresses)):
            try:
                connection.connect(addresses[(first + n) % len(addresses)])
            except Unavailable:
                continue
            self._register(connection)
            return
        raise Unavailable("none of the nodes takes connections any more")


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system
