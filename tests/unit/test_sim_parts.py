"""The simulated world itself: time that jumps, a disk that forgets, a network that fails, and all of it
repeatable."""

import asyncio
import errno

import pytest

from raftspine.model import NodeId
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, Owner, Stuck, VirtualClock, run
from raftspine.sim.net import Network, Weather

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


# ── loop ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_time_passes_only_when_idle():
    async def main(loop):
        start = loop.time()
        for _ in range(100):
            await asyncio.sleep(0)
        assert loop.time() == start
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(10))
        assert loop.time() == pytest.approx(start + 3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        return "done"

    assert run(main) == "done"


def test_waiting_for_nothing_is_an_error_and_not_a_hang():
    async def main(loop):
        await loop.create_future()

    with pytest.raises(Stuck):
        run(main)


def test_an_exception_in_a_callback_ends_the_run():
    async def main(loop):
        loop.call_later(1, lambda: 1 / 0)
        await asyncio.sleep(100)

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_a_stopped_process_stands_still_and_a_killed_one_never_goes_on():
    async def main(loop):
        ticks = []

        async def tick(owner):
            while True:
                await asyncio.sleep(1)
                ticks.append((owner.name, loop.time()))

        stopped, killed = Owner(loop, "stopped"), Owner(loop, "killed")
        tasks = [loop.create_task(tick(owner), context=owner.context.copy()) for owner in (stopped, killed)]
        await asyncio.sleep(1.5)
        stopped.pause()
        killed.kill()
        await asyncio.sleep(3)
        assert ticks == [("stopped", 1.0), ("killed", 1.0)]
        stopped.resume()
        await asyncio.sleep(1.2)
        assert ticks[2:] == [("stopped", 4.5), ("stopped", 5.5)], "what was due happens at once, the rest in its time"
        assert not any(task.done() for task in tasks)

    run(main)


def test_a_run_whose_time_stands_still_is_an_error_and_not_a_hang():
    async def main(loop):
        def again():
            loop.call_soon(again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(Stuck, match="time no longer passes"):
        run(main)


def test_dice_repeat_and_are_fair_enough():
    def draw(seed):
        dice = Dice(seed)
        return [dice.bits(), dice.random(), dice.token_bytes(5), dice.below(10), dice.fork().bits()]

    assert draw(5) == draw(5) != draw(6)
    assert Dice(0).bits() == 0xE220A8397B1DCDAF  # the published first value of SplitMix64
    dice = Dice(1)
    assert sum(dice.random() for _ in range(10_000)) == pytest.approx(5000, abs=150)
    items = list(range(20))
    dice.shuffle(items)
    assert sorted(items) == list(range(20)) != items


def test_a_nodes_clock_may_be_wrong():
    async def main(loop):
        right, wrong = VirtualClock(loop), VirtualClock(loop, offset_ms=-5000, rate=2.0)
        await asyncio.sleep(10)
        assert right.monotonic() == pytest.approx(10)
        assert wrong.monotonic() == pytest.approx(20)
        assert wrong.wall_ms() - right.wall_ms() == pytest.approx(5000, abs=1)

    run(main)


# ── disk ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_power_loss_keeps_what_was_synced_and_a_part_of_the_rest():
    async def main(loop):
        lengths, holes = set(), 0
        for seed in range(200):
            disk = SimDisk(loop, Dice(seed))
            file = disk.directory("d").open("f")
            file.append(b"s" * 1000)
            await file.sync()
            file.append(b"u" * 2000)
            lost = file.sync()
            disk.crash(power=True)
            await asyncio.sleep(1)
            assert not lost.done()
            data = disk.directory("d").read("f")
            assert data[:1000] == b"s" * 1000
            assert set(data[1000:]) <= set(b"u\0")
            lengths.add(len(data))
            holes += b"\0" in data
            file.append(b"from the grave")
            assert disk.directory("d").read("f") == data
        assert min(lengths) < 1300
        assert max(lengths) > 2700
        assert holes > 5

    run(main)


def test_a_killed_process_loses_nothing_it_wrote():
    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        disk.directory("d").open("f").append(b"written")
        disk.crash(power=False)
        assert disk.directory("d").read("f") == b"written"

    run(main)


def test_what_a_failed_sync_was_for_is_lost_although_the_next_one_succeeds():
    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        file = disk.directory("d").open("f")
        file.append(b"1" * 600)
        disk.broken = True
        with pytest.raises(OSError, match="fails to sync"):
            await file.sync()
        disk.broken = False
        file.append(b"2" * 600)
        await file.sync()
        assert disk.directory("d").read("f") == b"1" * 600 + b"2" * 600, "the page cache still has it"
        left = bytes(512) + b"1" * 88 + b"2" * 600
        assert disk.safe("d") == {"f": left}, "but for the sector that was written again"
        assert [disk.is_safe("d", "f", *part) for part in ((0, 10), (500, 520), (512, 1200))] == [False, False, True]
        disk.crash(power=True)
        assert disk.directory("d").read("f") == left

    run(main)


def test_what_was_appended_to_a_lost_sector_is_lost_with_it():
    async def main(loop):
        for seed in range(20):
            disk = SimDisk(loop, Dice(seed))
            file = disk.directory("d").open("f")
            file.append(b"1" * 10)
            disk.broken = True
            with pytest.raises(OSError, match="fails to sync"):
                await file.sync()
            file.append(b"2" * 10)
            disk.crash(power=True)
            assert not any(disk.directory("d").read("f"))

    run(main)


def test_a_full_disk_and_a_failing_one():
    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        file = disk.directory("d").open("f")
        disk.full = True
        with pytest.raises(OSError) as caught:
            file.append(b"x" * 100)
        assert caught.value.errno == errno.ENOSPC
        disk.full, disk.broken = False, True
        with pytest.raises(OSError, match="sync"):
            await file.sync()
        file = disk.directory("d").open("f", truncate_at=3)
        assert file.size() <= 3
        with pytest.raises(FileNotFoundError):
            disk.directory("d").remove("nothing")
        disk.directory("d").remove("f")
        assert disk.directory("d").names() == []

    run(main)


# ── network ────────────────────────────────────────────────────────────────────────────────────────────────


class End:
    def __init__(self, network, name):
        self.transport = network.join(name)
        self.got, self.links = [], []
        self.transport.on_message(lambda source, message: self.got.append((source, message)))
        self.transport.on_link(lambda peer, up: self.links.append((peer, up)))


async def connected(network, *names):
    ends = [End(network, name) for name in names]
    await asyncio.sleep(1)
    return ends


def test_links_keep_order_and_carry_plain_data():
    async def main(loop):
        network = Network(loop, Dice(3), Weather(stragglers=0.2))
        a, b = await connected(network, A, B)
        for number in range(100):
            assert a.transport.send(B, (number, b"x", [1, {"k": "v"}]))
        await asyncio.sleep(60)
        assert [message[0] for _, message in b.got] == list(range(100))
        assert b.got[0] == (A, (0, b"x", [1, {"k": "v"}]))
        assert not a.transport.send(C, (1,))
        with pytest.raises(TypeError):
            a.transport.send(B, (object(),))

    run(main)


def test_a_cut_holds_messages_back_until_it_heals_or_the_link_is_given_up():
    async def main(loop):
        network = Network(loop, Dice(4))
        a, b = await connected(network, A, B)
        network.cut(A, B)
        a.transport.send(B, ("late",))
        b.transport.send(A, ("there",))
        await asyncio.sleep(1)
        assert (b.got, a.got) == ([], [(B, ("there",))])
        network.heal(A, B)
        await asyncio.sleep(1)
        assert b.got == [(A, ("late",))]
        network.cut(A, B)
        a.transport.send(B, ("lost",))
        await asyncio.sleep(5)
        assert not a.transport.connected(B)
        assert a.links[-1] == (B, False)
        network.heal(A, B)
        await asyncio.sleep(2)
        assert a.links[-1] == (B, True)
        assert b.got == [(A, ("late",))]

    run(main)


def test_a_reset_loses_what_was_in_flight_and_a_partition_heals_as_one():
    async def main(loop):
        network = Network(loop, Dice(5))
        a, b, c = await connected(network, A, B, C)
        a.transport.send(B, ("in flight",))
        network.reset(A, B)
        await asyncio.sleep(2)
        assert b.got == []
        heal = network.partition([A], [B, C])
        for end in (a, b):
            end.transport.send(C, ("x",))
        await asyncio.sleep(1)
        assert c.got == [(B, ("x",))]
        heal()
        await asyncio.sleep(1)
        assert (A, ("x",)) in c.got
        network.leave(C)
        assert not a.transport.connected(C)
        assert not c.transport.send(A, ("ghost",))

    run(main)


def test_datagrams_vanish_repeat_and_overtake():
    async def main(loop):
        weather = Weather(datagrams=True, loss=0.2, duplicates=0.2, stragglers=0.2)
        network = Network(loop, Dice(6), weather)
        a, b = await connected(network, A, B)
        for number in range(500):
            a.transport.send(B, (number,))
        await asyncio.sleep(10)
        numbers = [message[0] for _, message in b.got]
        assert 300 < len(set(numbers)) < 480
        assert len(numbers) > len(set(numbers))
        assert numbers != sorted(numbers)

    run(main)
