"""How soon a waiting client has the lock once its holder gives it back.

The rule that is checked: a hand-over is a push, not a poll, so it may lag the release by one round trip at most. Both
clients are connected to different nodes, and the names lie in different shard groups, so that the leader is the
holder's node, the waiter's and the third one in turn. All moments are read from one clock, in one process.
"""

import select
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from raftspine.bench.coordination import WAIT_SECONDS, Requests, lease_in, token_in
from raftspine.bench.histogram import Histogram
from raftspine.bench.lanes import ANSWER_S, exchange
from raftspine.bench.wire import Connection, addresses
from raftspine.errors import SpineError
from raftspine.ports import Clock

ROUNDS = 200
NAMES = 32
PLAIN = b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n"


def measure(
    urls: Sequence[str], clock: Clock, *, pause: Callable[[float], object], rounds: int = ROUNDS
) -> dict[str, Any]:
    """Milliseconds: `release` until it is answered, `granted` until the waiter has the lock, both from the sending of
    the release; `lag` between the two answers (0 when the grant comes first); `round_trip` of a request that a node
    answers by itself. `lag_round_trips`: the median lag in median round trips."""
    where = addresses(urls)
    lanes = [Connection(n, where[n % len(where)], keeps_token=False) for n in range(len(where) + 1)]
    times = {name: Histogram() for name in ("release", "granted", "lag", "round_trip")}
    try:
        for turn in range(rounds):
            holder, waiter = lanes[turn % len(where)], lanes[(turn + 1) % len(where)]
            began = clock.monotonic()
            exchange(waiter, PLAIN, clock)
            times["round_trip"].record(int((clock.monotonic() - began) * 1e6))
            released, granted = _hand_over(f"bench-hand-{turn % NAMES}", holder, waiter, lanes[-1], clock, pause)
            times["release"].record(int(released * 1e6))
            times["granted"].record(int(granted * 1e6))
            times["lag"].record(int(max(0.0, granted - released) * 1e6))
    finally:
        for lane in lanes:
            lane.close()
    found: dict[str, Any] = {name: histogram.summary_ms() for name, histogram in times.items()}
    lag, trip = times["lag"].percentile_us(50), times["round_trip"].percentile_us(50)
    return {**found, "rounds": rounds, "lag_round_trips": round(lag / max(trip, 1), 2)}


def _hand_over(
    name: str,
    holder: Connection,
    waiter: Connection,
    onlooker: Connection,
    clock: Clock,
    pause: Callable[[float], object],
) -> tuple[float, float]:
    """Seconds from sending the release until it was answered, and until the waiter was granted the lock."""
    ask = Requests()
    held = exchange(holder, ask.acquire(name, 0), clock)
    waiter.send(ask.acquire(name, WAIT_SECONDS))
    deadline = clock.monotonic() + ANSWER_S
    while not msgspec.json.decode(exchange(onlooker, ask.get(f"locks/{name}"), clock))["waiting"]:
        if clock.monotonic() > deadline:
            raise SpineError("the waiter's place does not show in the lock's queue")
        pause(0.001)
    pause(0.005)  # its place is in the log; the node it asked must have applied that too, as it has in real waits
    sent = clock.monotonic()
    holder.send(ask.release(name, lease_in(held), token_in(held)))
    answered: dict[Connection, float] = {}
    while len(answered) < 2:
        waiting = {lane.fd: lane for lane in (holder, waiter) if lane not in answered}
        ready, _, _ = select.select(list(waiting), [], [], ANSWER_S)
        moment = clock.monotonic()
        if not ready:
            raise SpineError("the lock was not handed over")
        for fd in ready:
            if status := waiting[fd].receive():
                if status >= 300:
                    raise SpineError(f"a hand-over was answered {status}: {waiting[fd].body[:200]!r}")
                answered[waiting[fd]] = moment - sent
    exchange(waiter, ask.release(name, lease_in(waiter.body), token_in(waiter.body)), clock)
    return answered[holder], answered[waiter]
