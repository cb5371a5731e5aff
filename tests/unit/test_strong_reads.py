"""A read sees everything acknowledged before it began, and many reads share one question to the leader."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftspine.errors import Unavailable
from raftspine.model import NodeId, StrongRecord
from raftspine.services.deadlines import Bell, Late, within
from raftspine.services.strong import READ, READ_INDEX
from raftspine.system import SystemClock
from tests.support.strong_site import GROUP, ManualClock, World, put, settle, until


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def content(record: StrongRecord | None) -> Any:
    assert record is not None and record.memory is not None
    return record.memory.content


# ── barriers ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("node", ["a", "b"])
def test_the_readers_of_a_turn_share_a_round(node: str) -> None:
    async def story() -> None:
        world = World()
        await world["a"].strong.execute(GROUP, put("m"))
        reads = [world[node].strong.read(GROUP, "m") for _ in range(50)]
        assert {content(record) for record in await asyncio.gather(*reads)} == {"x"}
        assert world["a"].log.rounds == 1
        assert world.count(READ_INDEX) == (0 if node == "a" else 1)

    run(story)


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_reader_never_joins_a_round_that_was_sent(node: str) -> None:
    async def story() -> None:
        world = World()
        strong = world[node].strong
        first = asyncio.ensure_future(strong.barrier(GROUP))
        await until(lambda: world["a"].log.rounds)
        second = asyncio.ensure_future(strong.barrier(GROUP))
        await asyncio.gather(first, second)
        assert world["a"].log.rounds == 2

    run(story)


def test_a_lagging_follower_waits_until_it_has_applied_what_was_acknowledged() -> None:
    async def story() -> None:
        world = World()
        world.cluster.lagging.add(NodeId("b"))
        await world["a"].strong.execute(GROUP, put("m"))
        reading = asyncio.ensure_future(world["b"].strong.read(GROUP, "m"))
        await settle()
        assert not reading.done()
        world.cluster.lagging.clear()
        world.cluster.spread()
        assert content(await reading) == "x"

    run(story)


def test_a_read_without_a_leader_or_a_majority_is_unavailable_and_never_unknown() -> None:
    async def story() -> None:
        world = World("abc", "abcd", clock=SystemClock())
        world.cluster.stalled = True
        for node, code in (("a", "no_quorum"), ("b", "no_quorum"), ("d", "no_quorum")):
            with pytest.raises(Unavailable) as caught:
                await world[node].strong.read(GROUP, "m", 30)
            assert caught.value.code == code
        world.elect(None)
        for node in "ab":
            with pytest.raises(Unavailable) as caught:
                await world[node].strong.read(GROUP, "m", 30)
            assert caught.value.code == "no_leader"

    run(story)


def test_a_barrier_follows_a_change_of_leader() -> None:
    async def story() -> None:
        world = World(recheck_ms=60_000)
        world.net.mute.add(READ_INDEX)
        world.elect(None)
        waiting = asyncio.ensure_future(world["b"].strong.barrier(GROUP))
        await settle()
        world.net.mute.clear()
        world.elect("c")
        assert await waiting == 0 and ("b", "c", READ_INDEX) in world.net.calls

    run(story)


def test_a_lost_answer_is_asked_for_again() -> None:
    async def story() -> None:
        world = World()
        world.net.lose_replies[READ_INDEX] = 2
        assert await world["b"].strong.barrier(GROUP) == 0
        assert world.count(READ_INDEX) == 3

    run(story)


def test_one_readers_deadline_takes_nothing_from_the_others() -> None:
    async def story() -> None:
        world = World(clock=SystemClock())
        world.cluster.lagging.add(NodeId("b"))
        await world["a"].strong.execute(GROUP, put("m"))
        short = asyncio.ensure_future(world["b"].strong.barrier(GROUP, 20))
        long = asyncio.ensure_future(world["b"].strong.barrier(GROUP, 10_000))
        with pytest.raises(Unavailable):
            await short
        world.cluster.lagging.clear()
        world.cluster.spread()
        assert await long == 1

    run(story)


# ── reads elsewhere ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_reads_at_a_replica_and_tries_the_next_one() -> None:
    async def story() -> None:
        world = World("abc", "abcd")
        await world["a"].strong.execute(GROUP, put("m"))
        assert content(await world["d"].strong.read(GROUP, "m")) == "x"
        assert await world["d"].strong.read(GROUP, "nothing") is None
        world.net.cut("a")
        world.elect("b")
        assert content(await world["d"].strong.read(GROUP, "m")) == "x"
        assert ("d", "b", READ) in world.net.calls

    run(story)


def test_a_gateways_barrier_is_the_index_alone() -> None:
    async def story() -> None:
        world = World("abc", "abcd")
        await world["b"].strong.execute(GROUP, put("m"))
        assert await world["d"].strong.barrier(GROUP) == 1

    run(story)


# ── stale reads ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_read_is_local_and_tells_its_age() -> None:
    async def story() -> None:
        clock = ManualClock()
        world = World("abc", "abcd", clock=clock)
        await world["a"].strong.execute(GROUP, put("m"))
        record, age = await world["b"].strong.stale(GROUP, "m")
        assert content(record) == "x" and age is None, "nothing has told b yet"
        await settle()
        clock.now += 0.25
        _, age = await world["b"].strong.stale(GROUP, "m")
        assert age == 250, "asking had a barrier sent"
        _, far = await world["d"].strong.stale(GROUP, "m")
        assert far is not None, "the leader knows its own age at most"

    run(story)


def test_the_age_grows_while_no_majority_confirms() -> None:
    async def story() -> None:
        clock = ManualClock()
        world = World(clock=clock)
        await world["b"].strong.barrier(GROUP)
        world.cluster.stalled = True
        clock.now += 60
        assert world["b"].strong.staleness_ms(GROUP) == 60_000
        assert world["a"].strong.staleness_ms(GROUP) == 1000, "a leader steps down after that long"

    run(story)


def test_waiting_for_an_index() -> None:
    async def story() -> None:
        world = World()
        world.cluster.lagging.add(NodeId("b"))
        await world["a"].strong.execute(GROUP, put("m"))
        strong = world["b"].strong
        assert not await strong.applied(GROUP, 1, 0) and not await strong.applied(GROUP, 1, 10)
        waiting = asyncio.ensure_future(strong.applied(GROUP, 1, 10_000))
        await asyncio.sleep(0)
        world.cluster.lagging.clear()
        world.cluster.spread()
        assert await waiting and await strong.applied(GROUP, 1, 0)

    run(story)


# ── deadlines ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_ends_by_result_deadline_or_cancellation_each_as_itself() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        loop.call_soon(done.set_result, 7)
        assert await within(done, 10, loop) == 7
        with pytest.raises(Late):
            await within(loop.create_future(), 0.001, loop)
        task = asyncio.ensure_future(within(loop.create_future(), 10, loop))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story)


def test_a_bell_wakes_all_who_wait_and_forgets_who_gave_up() -> None:
    async def story() -> None:
        bell, loop = Bell(), asyncio.get_running_loop()
        assert not await bell.heard(0.001, loop) and bell._waiters == []
        early = bell.next(loop)
        bell.ring("any", "arguments")
        assert await bell.heard(0, loop, early)
        both = asyncio.gather(bell.heard(10, loop), bell.heard(10, loop))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bell.ring()
        assert list(await both) == [True, True]

    run(story)
