"""What is acknowledged stays, what is refused is told apart from what is unknown, and trouble ends by itself."""

import asyncio
import errno

import pytest

from raftspine.errors import Corrupt, NoSpace, Unavailable, Unknown
from raftspine.ports import Row
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, VirtualLoop, run
from raftspine.storage import keys
from raftspine.storage.engine import Engine
from tests.support.memory_disk import MemoryDisk
from tests.support.storage import new_tree, open_engine, until

MANY = 1_000_000
"""An interval that does not come to pass within a test."""


def row(name: str, value: str | None = "value") -> Row:
    return name.encode(), None if value is None else value.encode()


def everything(engine: Engine) -> dict[bytes, bytes]:
    rows = engine.scan(b"", b"\xff", limit=10_000)
    return {key: value for key, value in rows if not key.startswith(keys.META)}


def test_staged_rows_are_visible_at_once_and_in_the_log_after_the_turn() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY)
        engine.stage([row("a", "1"), row("b", "2")])
        engine.stage(iter([row("a", "3"), row("b", None)]))
        assert (engine.get(b"a"), engine.get(b"b")) == (b"3", None)
        await engine.commit()
        twin = open_engine(disk.copy(), new_tree())
        assert everything(twin) == {b"a": b"3"}

    asyncio.run(story())


def test_interval_answers_before_the_sync_and_always_after_it() -> None:
    async def story() -> None:
        for durability in ("interval", "always"):
            disk = MemoryDisk()
            engine = open_engine(disk, new_tree(), durability=durability, checkpoint_interval_ms=MANY)
            engine.stage([row("a")])
            await engine.commit()
            survived = everything(open_engine(disk.power_cut(), new_tree()))
            assert survived == ({b"a": b"value"} if durability == "always" else {})
            await engine.commit(durable=True)
            assert everything(open_engine(disk.power_cut(), new_tree())) == {b"a": b"value"}

    asyncio.run(story())


def test_the_interval_passes_without_anybody_asking() -> None:
    async def story() -> None:
        disk = MemoryDisk()
        engine = open_engine(disk, new_tree(), checkpoint_interval_ms=MANY)
        engine.stage([row("a")])
        await until(lambda: disk.syncs > 0)
        assert everything(open_engine(disk.power_cut(), new_tree())) == {b"a": b"value"}

    asyncio.run(story())


def test_one_impatient_waiter_does_not_cancel_the_others() -> None:
    async def story() -> None:
        engine = open_engine(MemoryDisk(), new_tree())

        async def wait() -> None:
            await engine.commit()

        engine.stage([row("a")])
        impatient, patient = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        with pytest.raises(asyncio.CancelledError):
            await impatient

    asyncio.run(story())


def test_a_checkpoint_moves_rows_to_the_tree_and_restarts_replay_the_rest() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY, segment_bytes=64)
        for number in range(5):
            engine.stage([row(f"k{number}")])
            await engine.commit()
        await engine.checkpoint()
        assert tree.get(b"k4") == b"value"
        assert len(disk.files) == 1, "segments that the tree has made superfluous are gone"
        engine.stage([row("k0", None), row("k5")])
        await engine.commit()
        tree.crash()
        twin = open_engine(disk.copy(), tree)
        assert set(everything(twin)) == {b"k1", b"k2", b"k3", b"k4", b"k5"}

    asyncio.run(story())


def test_a_log_that_lost_its_end_goes_on_behind_the_tree() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY, sync_interval_ms=MANY)
        for number in range(3):
            engine.stage([row(f"k{number}")])
            await engine.commit()
        await engine.checkpoint()
        after = disk.power_cut()
        second = open_engine(after, tree, checkpoint_interval_ms=MANY)
        second.stage([row("new")])
        await second.commit()
        third = open_engine(after.copy(), tree)
        assert set(everything(third)) == {b"k0", b"k1", b"k2", b"new"}

    asyncio.run(story())


def test_a_log_whose_beginning_is_gone_is_refused() -> None:
    async def story() -> None:
        disk = MemoryDisk()
        engine = open_engine(disk, new_tree(), checkpoint_interval_ms=MANY, segment_bytes=64)
        for number in range(5):
            engine.stage([row(f"k{number}")])
            await engine.commit()
        del disk.files[min(disk.files)]
        with pytest.raises(Corrupt, match="segments are missing"):
            open_engine(disk, new_tree())

    asyncio.run(story())


def test_a_full_disk_leaves_the_turn_unknown_then_refuses_then_recovers() -> None:
    async def story() -> None:
        disk = MemoryDisk()
        engine = open_engine(disk, new_tree(), checkpoint_interval_ms=MANY)
        engine.stage([row("before")])
        await engine.commit()
        disk.room = 5
        engine.stage([row("limbo")])
        with pytest.raises(Unknown):
            await engine.commit()
        assert "No space" in (engine.read_only() or "")
        with pytest.raises(NoSpace):
            engine.stage([row("refused")])
        assert (engine.get(b"limbo"), engine.get(b"refused")) == (b"value", None)
        with pytest.raises(Unknown):
            await engine.commit()
        disk.room = None
        await until(lambda: engine.read_only() is None)
        engine.stage([row("after")])
        await engine.commit()
        assert set(everything(open_engine(disk.copy(), new_tree()))) >= {b"before", b"limbo", b"after"}

    asyncio.run(story())


def test_while_the_log_does_not_fit_the_tree_takes_over() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree)
        engine.stage([row("before", "x" * 500)])
        await engine.commit()
        await engine.checkpoint()
        disk.room = 300
        engine.stage([row("limbo", "x" * 400)])
        with pytest.raises(Unknown):
            await engine.commit()
        await until(lambda: engine.read_only() is None)
        assert tree.get(b"limbo") is not None
        engine.stage([row("after")])
        await engine.commit()
        tree.crash()
        assert set(everything(open_engine(disk.copy(), tree))) == {b"before", b"limbo", b"after"}

    asyncio.run(story())


def test_after_a_failed_sync_all_is_put_into_the_tree_and_the_log_starts_over() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, durability="always")
        engine.stage([row("before")])
        await engine.commit()
        disk.sync_error = OSError(errno.EIO, "Input/output error")
        engine.stage([row("doubtful")])
        with pytest.raises(Unknown):
            await engine.commit()
        assert "cannot be synced" in (engine.read_only() or "")
        disk.sync_error = None
        await until(lambda: engine.read_only() is None)
        engine.stage([row("after")])
        await engine.commit()
        tree.crash()
        assert set(everything(open_engine(disk.power_cut(), tree))) == {b"before", b"doubtful", b"after"}

    asyncio.run(story())


def test_what_a_failed_sync_dropped_is_written_again_by_the_next_life() -> None:
    """It finds the turn in the page cache, where a sync that has nothing to do would call it durable."""

    async def main(loop: VirtualLoop) -> None:
        disk, tree = SimDisk(loop, Dice(1)), new_tree()
        engine = open_engine(disk.directory("data"), tree, durability="always", checkpoint_interval_ms=MANY)
        engine.stage([row("before")])
        await engine.commit()
        disk.broken = True
        engine.stage([row("doubtful", "x" * 2000)])
        with pytest.raises(Unknown):
            await engine.commit()
        disk.broken = False
        disk.crash(power=False)
        second = open_engine(disk.directory("data"), tree, durability="always", checkpoint_interval_ms=MANY)
        assert set(everything(second)) == {b"before", b"doubtful"}
        second.stage([row("after")])
        await second.commit()
        assert len(disk.directory("data").names()) == 1, "what was found stands again, and the old file is gone"
        disk.crash(power=True)
        third = open_engine(disk.directory("data"), tree)
        assert set(everything(third)) == {b"before", b"doubtful", b"after"}

    run(main, seed=1)


def test_a_log_begun_anew_goes_on_where_the_tree_ends_however_often_it_was_restated() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY)
        engine.stage([row("before")])
        await engine.commit(durable=True)
        await engine.checkpoint()
        second = open_engine(disk, tree)
        disk.sync_error = OSError(errno.EIO, "Input/output error")
        with pytest.raises(Unknown):
            await second.commit(durable=True)
        disk.sync_error = None
        await until(lambda: second.read_only() is None)
        third = open_engine(disk.power_cut(), tree)
        assert set(everything(third)) == {b"before"}

    asyncio.run(story())


def test_a_node_starts_and_is_read_on_a_full_disk_and_writes_once_there_is_room() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY)
        engine.stage([row("before")])
        await engine.commit()
        disk.room = 30
        second = open_engine(disk, tree, checkpoint_interval_ms=MANY)
        assert everything(second) == {b"before": b"value"}
        with pytest.raises(NoSpace):
            second.stage([row("refused")])
        disk.room = None
        await until(lambda: second.read_only() is None)
        second.stage([row("after")])
        await second.commit(durable=True)
        tree.crash()
        assert set(everything(open_engine(disk.power_cut(), tree))) == {b"before", b"after"}

    asyncio.run(story())


def test_a_full_tree_refuses_writes_serves_reads_and_recovers() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree)
        tree.full = True
        engine.stage([row("a")])
        await engine.commit()
        await until(lambda: engine.read_only() is not None)
        with pytest.raises(NoSpace):
            engine.stage([row("b")])
        with pytest.raises(NoSpace):
            await engine.freeze()
        assert engine.get(b"a") == b"value"
        assert everything(open_engine(disk.copy(), new_tree())) == {b"a": b"value"}
        tree.full = False
        await until(lambda: engine.read_only() is None)
        engine.stage([row("b")])
        await engine.close()
        assert {b"a", b"b"} <= set(everything(open_engine(disk.copy(), tree)))

    asyncio.run(story())


def test_memory_is_bounded_while_the_tree_is_slow() -> None:
    async def story() -> None:
        tree = new_tree()
        tree.delay_seconds = 0.02
        engine = open_engine(MemoryDisk(), tree, checkpoint_bytes=1000, memtable_limit_bytes=3000)
        with pytest.raises(Unavailable) as caught:
            for number in range(100):
                engine.stage([row(f"k{number}", "x" * 200)])
                await engine.commit()
        assert caught.value.code == "overloaded"
        assert engine.overloaded
        assert engine.read_only() is None
        assert engine.stats().memtable_bytes < 4000
        await until(lambda: not engine.overloaded)
        engine.stage([row("after")])
        await engine.commit()

    asyncio.run(story())


def test_a_frozen_view_holds_what_was_staged_and_nothing_later() -> None:
    async def story() -> None:
        engine = open_engine(MemoryDisk(), new_tree(), checkpoint_interval_ms=MANY)
        engine.stage([row("a", "1")])
        view = await engine.freeze()
        engine.stage([row("a", "2"), row("b")])
        await engine.checkpoint()
        assert (view.get(b"a"), view.get(b"b")) == (b"1", None)
        assert view.scan(b"a", b"b", limit=9) == [(b"a", b"1")]
        view.close()

    asyncio.run(story())


def test_an_idle_engine_has_nothing_to_wake_up_for() -> None:
    async def story() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        engine.stage([row("a")])
        await engine.checkpoint()
        loop = asyncio.get_running_loop()
        scheduled = loop._scheduled  # type: ignore[attr-defined]
        await until(lambda: not [timer for timer in scheduled if not timer.cancelled()][1:])
        batches = engine.stats().checkpoints
        await asyncio.sleep(0.02)
        assert engine.stats().checkpoints == batches

    asyncio.run(story())


def test_closing_keeps_everything_and_refuses_more() -> None:
    async def story() -> None:
        disk, tree = MemoryDisk(), new_tree()
        engine = open_engine(disk, tree, checkpoint_interval_ms=MANY)
        engine.stage([row("a")])
        await engine.close()
        with pytest.raises(Unavailable):
            engine.stage([row("b")])
        assert everything(open_engine(disk.power_cut(), tree)) == {b"a": b"value"}

    asyncio.run(story())


def test_a_key_the_tree_could_not_take_is_refused_before_it_is_seen() -> None:
    async def story() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        for key in ("", "k" * (keys.MAX_KEY_BYTES + 1)):
            with pytest.raises(ValueError, match="511"):
                engine.stage([row("a"), row(key)])
        assert engine.get(b"a") is None

    asyncio.run(story())


def test_an_unknown_durability_is_refused() -> None:
    async def story() -> None:
        with pytest.raises(ValueError, match="durability"):
            open_engine(MemoryDisk(), new_tree(), durability="sometimes")

    asyncio.run(story())
