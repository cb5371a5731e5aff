"""Whether a node with very many held locks and waiters is as fast as an empty one, and how much memory they take.

The same measurement (lock acquire and release on names of their own) on the same cluster before and after: `few`
locks held, then `held` of them and `waiting` requests that wait for some of these, each on a connection of
its own as real waiters are. What grows with the number of locks although it should not shows as a ratio.
"""

import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raftspine.bench.coordination import Coordinated, Requests
from raftspine.bench.lanes import drive
from raftspine.bench.load import Generator, Outcome, Plan
from raftspine.bench.processes import Usage
from raftspine.bench.wire import Connection, addresses
from raftspine.errors import SpineError
from raftspine.ports import Clock

FEW = 100
HELD = 100_000
WAITING = 10_000
QUEUES = 100
"""Locks that are waited for: as many waiters each stand in one queue as this divides them."""
TTL_SECONDS = 3600.0
WAIT_SECONDS = 60.0
LANES = 64
CLIENTS = 16
SPARE_FILES = 512
AT_ONCE = 256
"""Waiters that ask before the nodes are given a moment: a listener's backlog is finite."""


def measure(
    urls: Sequence[str],
    clock: Clock,
    usage: Callable[[], Sequence[Usage]],
    *,
    say: Callable[[str], None],
    pause: Callable[[float], object],
    seconds: float,
    held: int = HELD,
    waiting: int = WAITING,
) -> dict[str, Any]:
    """Two measurements, `few` and `many`, each with the latency, the nodes' CPU per operation and the largest node's
    memory; `ratio` of their medians and of CPU; `waiting`: how many waiters still waited at the end. Raises
    SpineError when the process may not open so many files."""
    _allow_files(waiting + SPARE_FILES)
    where, ask = addresses(urls), Requests()
    drive(where, _acquires(ask, 0, FEW), LANES, clock)
    few = _measured(urls, clock, usage, seconds)
    say(f"{held:,} locks taken and held")
    start, before = clock.monotonic(), usage()
    filled = drive(where, _acquires(ask, FEW, held), LANES, clock)
    filling_s, cpu_s = clock.monotonic() - start, _cpu(before, usage())
    waiters: list[Connection] = []
    try:
        say(f"{waiting:,} waiters")
        for n in range(waiting):
            waiter = Connection(n, where[n % len(where)], keeps_token=False)
            waiters.append(waiter)
            waiter.send(ask.acquire(_name(n % QUEUES), WAIT_SECONDS, TTL_SECONDS))
            if n % AT_ONCE == AT_ONCE - 1:
                pause(0.1)
        many = _measured(urls, clock, usage, seconds)
        still = sum(waiter.receive() == 0 for waiter in waiters)
    finally:
        for waiter in waiters:
            waiter.close()
    return {
        "few": {"held": FEW, **few},
        "many": {"held": held, "waiting": still, **many},
        "ratio": {key: round(many[key] / few[key], 2) for key in ("p50_ms", "p99_ms", "cpu_us") if few[key]},
        "filling": {
            "per_second": round((held - FEW) / filling_s),
            "cpu_us": round(cpu_s / max(1, held - FEW) * 1e6, 1),
            "p99_ms": filled.summary_ms()["p99"],
        },
    }


def _measured(
    urls: Sequence[str], clock: Clock, usage: Callable[[], Sequence[Usage]], seconds: float
) -> dict[str, Any]:
    before = usage()
    plan = Plan(addresses(urls), CLIENTS, seconds, 1.0, None, True)
    outcome: Outcome = Generator(Coordinated("lock"), plan, clock).run()
    after = usage()
    if outcome.errors or outcome.unknown or not outcome.operations:
        raise SpineError(f"locks could not be taken: {outcome.errors}, {outcome.unknown} unknown")
    latency = outcome.overall().summary_ms()
    return {
        "per_second": round(outcome.per_second),
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
        "cpu_us": round(_cpu(before, after) / outcome.total_operations * 1e6, 1),
        "rss_mb": round(max(node.rss_bytes for node in after) / 1e6, 1),
    }


def _acquires(ask: Requests, first: int, end: int) -> Iterator[bytes]:
    return (ask.acquire(_name(n), 0, TTL_SECONDS) for n in range(first, end))


def _name(n: int) -> str:
    return f"bench-grown-{n}"


def _cpu(before: Sequence[Usage], after: Sequence[Usage]) -> float:
    return sum(b.since(a) for a, b in zip(before, after, strict=True))


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SpineError(f"{wanted} open files are needed and {hard} allowed (ulimit -Hn)")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
