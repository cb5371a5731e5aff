"""A snapshot on its way in: what of it a crash leaves, and what may be trusted of that; and the pace it leaves at."""

import asyncio
from hashlib import sha256
from pathlib import Path

import pytest

from raftspine.cluster.raft_snapshot import Pace
from raftspine.cluster.raft_staging import Staged, Staging, Target
from raftspine.errors import Corrupt
from raftspine.model import GroupId, NodeId
from raftspine.ports import Members, Position
from raftspine.sim.loop import VirtualClock, run
from raftspine.storage.files import FileDirectory
from tests.support.memory_disk import MemoryDisk

G = GroupId(7)
NAME = "00007.snapshot"
TARGET = Target(Position(100, 5), 1234, Members((NodeId("a"), NodeId("b"))))
CHUNKS = [bytes([n]) * (500 + n) for n in range(6)]


def filled(disk: MemoryDisk, count: int = len(CHUNKS)) -> tuple[Staging, Staged]:
    staging = Staging(disk)
    staged = staging.begin(G, TARGET)
    for chunk in CHUNKS[:count]:
        staging.add(staged, chunk)
    return staging, staged


def test_what_was_staged_is_there_after_a_restart() -> None:
    disk = MemoryDisk()
    filled(disk, 4)
    staged = Staging(disk).get(G)
    assert staged is not None and staged.target == TARGET and not staged.complete
    assert (staged.chunks, staged.size_bytes) == (4, sum(map(len, CHUNKS[:4])))
    assert staged.digest.digest() == sha256(b"".join(CHUNKS[:4])).digest()
    staging = Staging(disk)
    again = staging.get(G)
    assert again is not None
    for chunk in CHUNKS[4:]:
        staging.add(again, chunk)
    staging.finish(again)
    assert list(staging.chunks(G)) == CHUNKS
    last = Staging(disk).get(G)
    assert last is not None and last.complete and last.chunks == 6


@pytest.mark.parametrize("lost", [1, 5, 500, 505, 542, 1100, 3000])
def test_a_torn_tail_costs_the_chunks_it_touches(lost: int) -> None:
    disk = MemoryDisk()
    staging, staged = filled(disk)
    staging.finish(staged)
    del disk.files[NAME][-lost:]
    held = Staging(disk).get(G)
    assert held is not None and not held.complete
    assert held.digest.digest() == sha256(b"".join(CHUNKS[: held.chunks])).digest()
    again = Staging(disk)
    resumed = again.get(G)
    assert resumed is not None and resumed.chunks == held.chunks
    for chunk in CHUNKS[resumed.chunks :]:
        again.add(resumed, chunk)
    assert list(again.chunks(G)) == CHUNKS


def test_every_damaged_byte_is_noticed() -> None:
    disk = MemoryDisk()
    staging, staged = filled(disk, 2)
    staging.finish(staged)
    whole = bytes(disk.files[NAME])
    for place in range(0, len(whole), 7):
        rotten = MemoryDisk()
        rotten.files[NAME] = bytearray(whole)
        rotten.files[NAME][place] ^= 0x40
        held = Staging(rotten).get(G)
        assert held is None or (not held.complete and held.chunks <= 2)
        if held is not None:
            assert held.target == TARGET
            assert held.digest.digest() == sha256(b"".join(CHUNKS[: held.chunks])).digest()


def test_a_stage_that_rots_while_it_waits_is_not_read_as_whole() -> None:
    disk = MemoryDisk()
    staging, staged = filled(disk)
    staging.finish(staged)
    disk.files[NAME][700] ^= 1
    with pytest.raises(Corrupt):
        list(staging.chunks(G))


def test_a_file_without_a_head_is_removed_and_foreign_files_are_left_alone() -> None:
    disk = MemoryDisk()
    disk.files = {NAME: bytearray(b"RSPSNAP\x01H\0"), "00009.snapshot": bytearray(), "notes.txt": bytearray(b"mine")}
    assert Staging(disk).groups() == []
    assert disk.names() == ["notes.txt"]


def test_another_snapshot_takes_the_place_of_the_one_before() -> None:
    disk = MemoryDisk()
    staging, _ = filled(disk)
    other = TARGET._replace(at=Position(200, 6))
    staged = staging.begin(G, other)
    staging.add(staged, b"new")
    assert list(staging.chunks(G)) == [b"new"]
    held = Staging(disk).get(G)
    assert held is not None and held.target == other and held.chunks == 1
    staging.drop(G)
    staging.drop(G)
    assert disk.names() == []


def test_power_loss_leaves_what_was_synced() -> None:
    async def story() -> None:
        disk = MemoryDisk()
        staging, staged = filled(disk, 3)
        assert staged.synced == 0
        await staging.sync(staged)
        assert staged.synced == 3 and staged.unsynced_bytes == 0
        staging.add(staged, CHUNKS[3])
        held = Staging(disk.power_cut()).get(G)
        assert held is not None and held.chunks == held.synced == 3

    asyncio.run(story())


def test_real_files_do_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        directory = FileDirectory(tmp_path, loop)
        staging = Staging(directory)
        staged = staging.begin(G, TARGET)
        for chunk in CHUNKS:
            staging.add(staged, chunk)
        staging.finish(staged)
        await staging.sync(staged)
        staging.close()
        directory.close()
        again = FileDirectory(tmp_path, loop)
        assert list(Staging(again).chunks(G)) == CHUNKS
        again.close()

    asyncio.run(story())


def test_transfers_share_the_pace_and_none_gets_a_burst() -> None:
    async def main(loop: object) -> None:
        virtual = asyncio.get_running_loop()
        pace = Pace(VirtualClock(virtual), 1000)
        took: list[float] = []

        async def send(count: int) -> None:
            for _ in range(count):
                await pace.take(100)
                took.append(virtual.time())

        await asyncio.gather(send(10), send(10))
        assert took == pytest.approx([n / 10 for n in range(20)])
        await asyncio.sleep(60)
        start = virtual.time()
        await send(10)
        assert virtual.time() - start == pytest.approx(0.9), "an idle minute saves nothing up"

    run(main)
