"""The write gap: how long no write succeeds after a shard group's leader was killed, as its clients feel it.

One client per surviving node writes one strong memory after the other, as fast as each is answered. The leader of the
memory's group is killed at a random moment; a client's gap is the longest time between two of its successes around
that, and the sample is the longer of the clients' gaps: nobody waited more. Then the dead node returns, all nodes
agree, and it is the next leader's turn.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from random import Random

from raftspine import AsyncSpine
from raftspine.errors import Unavailable, Unknown
from tests.support.lab.load import PATHS, STRONG
from tests.support.lab.nodes import Lab

KEY = "failover"
BEFORE_SECONDS = (0.3, 1.3)
"""Load before the kill; its width exceeds a heartbeat, so that kills fall on every moment of it."""

SETTLED = 10
"""Successes of each client after the gap before it counts as over."""


async def measure(lab: Lab, kills: int, chance: Random, tell: Callable[[int, float], None]) -> list[float]:
    """The gaps of so many kills, in seconds. `tell(kill, gap)` after each."""
    gaps: list[float] = []
    while len(gaps) < kills:
        gap = await _gap(lab, chance)
        if gap is not None:
            gaps.append(gap)
            tell(len(gaps), gap)
    return gaps


async def _gap(lab: Lab, chance: Random) -> float | None:
    """None when another node had come to lead before the kill: then nobody was killed."""
    victim = await asyncio.to_thread(lab.await_leader, KEY)
    survivors = [node for node in lab.ids if node != victim]
    times: dict[str, list[float]] = {node: [] for node in survivors}
    stop = asyncio.Event()
    clients = {node: lab.client(node) for node in survivors}
    writers = [asyncio.create_task(_write(client, times[node], stop)) for node, client in clients.items()]
    try:
        await _all(times, lambda seen: len(seen) >= SETTLED)
        await asyncio.sleep(chance.uniform(*BEFORE_SECONDS))  # the moment of the kill is drawn, not awaited
        if await asyncio.to_thread(lab.leader, KEY, survivors) != victim:
            return None
        killed = time.monotonic()
        await asyncio.to_thread(lab.kill, victim)
        # A write that was under way at the leader may be answered after the kill: the gap is over for certain only
        # when somebody else leads.
        await asyncio.to_thread(lab.await_other_leader, KEY, victim, survivors)
        led = time.monotonic()
        await _all(times, lambda seen: sum(at > led for at in seen) >= SETTLED)
    finally:
        stop.set()
        await asyncio.gather(*writers)
        for client in clients.values():
            await client.close()
    await asyncio.to_thread(lab.heal)
    await asyncio.to_thread(lab.wait_ready)
    await asyncio.to_thread(lab.wait_agreement)
    return max(_longest(seen, killed) for seen in times.values())


async def _write(client: AsyncSpine, times: list[float], stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        try:
            await client.put(KEY, number, tags=PATHS[STRONG])
        except (Unknown, Unavailable):
            continue
        times.append(time.monotonic())


async def _all(times: dict[str, list[float]], holds: Callable[[list[float]], bool]) -> None:
    until = time.monotonic() + 60
    while not all(holds(seen) for seen in times.values()):
        if time.monotonic() > until:
            counts = {node: len(seen) for node, seen in times.items()}
            raise AssertionError(f"writes do not go on within a minute; successes so far: {counts}")
        await asyncio.sleep(0.02)


def _longest(seen: list[float], killed: float) -> float:
    before = [at for at in seen if at <= killed][-1:]
    return max(b - a for a, b in pairwise([*before, *(at for at in seen if at > killed)]))


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]
