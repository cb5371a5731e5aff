"""Faults at a chosen moment: what a random one would hit once in a thousand runs."""

import asyncio
import json
import time
from dataclasses import dataclass
from random import Random

import pytest

from raftspine.errors import NoSpace, Unavailable, Unknown
from tests.support.cluster import await_that
from tests.support.lab.failover import measure
from tests.support.lab.faults import both_ways
from tests.support.lab.load import PATHS, RING, STRONG
from tests.support.lab.nodes import KEY, PORT, Lab, on_clients_host

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

STEP_DOWN_SECONDS = 1.0
"""`timing.check_quorum_ms` of the preset in use: a leader without a majority gives up after this."""

LATE_SECONDS = 0.5
"""For answers to get through a busy machine and be noticed by the client."""


@dataclass
class Answer:
    sent: float
    at: float
    status: int
    body: bytes

    @property
    def content(self) -> object:
        return json.loads(self.body)["content"]


async def ask(lab: Lab, node: str, request: str, body: bytes = b"") -> Answer:
    """One bare HTTP request on a connection of its own, without any retry."""
    reader, writer = await asyncio.open_connection(lab.network.address(node), PORT)
    try:
        head = (
            f"{request} HTTP/1.1\r\nHost: {node}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sent = time.monotonic()
        writer.write(head.encode() + body)
        answer = await reader.read()
        top, _, rest = answer.partition(b"\r\n\r\n")
        return Answer(sent, time.monotonic(), int(top.split()[1]), rest)
    finally:
        writer.close()


async def write(lab: Lab, key: str, value: int, *nodes: str, path: str = STRONG) -> None:
    """Written for certain, through these nodes."""
    async with lab.client(*nodes, timeout=30) as client:
        await client.put(key, value, tags=PATHS[path])


def test_an_isolated_leader_answers_nothing_after_a_second(lab: Lab) -> None:
    key = "isolated"
    on_clients_host(write(lab, key, 0))
    leader = lab.await_leader(key)
    others = [node for node in lab.ids if node != leader]

    async def story() -> tuple[float, list[Answer]]:
        asked: list[asyncio.Task[Answer]] = []
        cutting = asyncio.create_task(asyncio.to_thread(lab.network.cut, both_ways([leader], others)))
        cut = 0.0
        while not cut or time.monotonic() < cut + 3 * STEP_DOWN_SECONDS:
            if not cut and cutting.done():
                cut = time.monotonic()
            asked.append(asyncio.create_task(ask(lab, leader, f"GET /v1/memories/{key}?consistency=strong")))
            body = json.dumps({"content": len(asked), "tags": PATHS[STRONG]}).encode()
            asked.append(asyncio.create_task(ask(lab, leader, f"PUT /v1/memories/{key}", body)))
            await asyncio.sleep(0.05)  # the pace of the questions
        return cut, await asyncio.gather(*asked)

    cut, answers = on_clients_host(story())
    late = [answer for answer in answers if answer.at > cut + STEP_DOWN_SECONDS + LATE_SECONDS]
    assert len(late) > 50
    assert {answer.status for answer in late} <= {503, 504}
    lab.heal()
    lab.wait_ready()
    lab.wait_agreement()


def test_a_leader_stopped_in_a_read_barrier_never_shows_what_was_replaced(lab: Lab) -> None:
    """Its peers' echoes are under way when it is stopped; while it stands still another leader commits a new value.
    What is asked of it then, or had been asked before, is answered when it goes on, with those old echoes first in
    its buffers. A read that was under way all the time may return either value; one that was sent after the new
    value was acknowledged must not return the old one."""
    key = "barrier"
    on_clients_host(write(lab, key, 1))
    leader = lab.await_leader(key)
    others = [node for node in lab.ids if node != leader]
    read = f"GET /v1/memories/{key}?consistency=strong"
    lab.network.degrade(delay_ms=40)

    async def story() -> tuple[list[Answer], list[Answer]]:
        before = [asyncio.create_task(ask(lab, leader, read)) for _ in range(20)]
        await asyncio.sleep(0.06)  # the barrier's question is at the peers, their echoes on the way
        lab.pause(leader)
        await asyncio.to_thread(lab.await_other_leader, key, leader, others)
        await write(lab, key, 2, *others)
        after = [asyncio.create_task(ask(lab, leader, read)) for _ in range(20)]
        await asyncio.sleep(0.2)  # they lie in its sockets now
        lab.resume(leader)
        return await asyncio.gather(*before), await asyncio.gather(*after)

    before, after = on_clients_host(story())
    assert {answer.content for answer in before if answer.status == 200} <= {1, 2}
    assert {answer.content for answer in after if answer.status == 200} <= {2}
    assert {answer.status for answer in before + after} <= {200, 503, 504}
    lab.heal()
    lab.wait_agreement()


def test_writes_go_on_after_a_leader_was_killed(lab: Lab) -> None:
    """How long they pause is scripts/torture --failover's to measure."""
    gaps = on_clients_host(measure(lab, 2, Random(1), lambda number, gap: None))
    assert len(gaps) == 2 and all(gap > 0 for gap in gaps)


def test_a_clock_an_hour_ahead_stops_nobody_else_and_nobody_once_it_is_right(lab: Lab) -> None:
    """What the node wrote meanwhile nobody accepts, and so it was not acknowledged. It must not drag along the clocks
    of those who replace it, nor keep its own node from writing once the clock is set right."""
    wrong, *others = lab.ids
    for path in PATHS:
        on_clients_host(write(lab, f"clock-{path}", 0, path=path))
    lab.set_clock(wrong, 3600)

    async def try_wrong() -> str | None:
        async with lab.client(wrong, timeout=2) as client:
            try:
                await client.put("clock-ring", 1, tags=PATHS[RING])
            except (Unknown, Unavailable) as error:
                return str(error.details.get("cause"))
        return None

    await_that(lambda: on_clients_host(try_wrong()) == "clock_drift", "the wrong clock is noticed")
    for node in others:
        for path in PATHS:
            on_clients_host(write(lab, f"clock-{path}", 2, node, path=path))
    lab.heal()
    await_that(lambda: on_clients_host(try_wrong()) is None, "its clock is right and its writes are accepted")
    for node in lab.ids:
        for path in PATHS:
            on_clients_host(write(lab, f"clock-{path}", 3, node, path=path))
    lab.wait_agreement()


def test_a_leader_without_a_byte_left_hands_over_to_one_with_room(lab: Lab) -> None:
    """No other group has traffic, so nothing but its own refusals tells it. What the store frees by itself is taken
    again, as whatever filled the disk would."""
    key = "full"
    on_clients_host(write(lab, key, 0))
    lab.wait_agreement()
    leader = lab.await_leader(key)
    others = [node for node in lab.ids if node != leader]

    async def try_write() -> None:
        async with lab.client(*others, timeout=2) as client:
            try:
                await client.put(key, 1, tags=PATHS[STRONG])
            except (NoSpace, Unavailable, Unknown):
                return

    def moved() -> bool:
        lab.disks[leader].fill()
        on_clients_host(try_write())
        return lab.leader(key, others) not in (None, leader)

    await_that(moved, "another node leads")
    on_clients_host(write(lab, key, 2, *others))
    lab.heal()
    lab.wait_ready()
    lab.wait_agreement()
