"""The log keeps every whole record, cuts what was being written, and refuses what was damaged."""

import asyncio
import errno

import pytest

from raftspine.errors import Corrupt, TooLarge
from raftspine.storage import segment
from raftspine.storage.wal import Wal
from tests.support.memory_disk import MemoryDisk

BIG = 1 << 20


def fill(disk: MemoryDisk, payloads: list[bytes], *, segment_bytes: int = BIG) -> list[int]:
    wal = Wal.open(disk, segment_bytes=segment_bytes)
    return [wal.append(payload) for payload in payloads]


def contents(disk: MemoryDisk, *, after: int = 0) -> list[tuple[int, bytes]]:
    return list(Wal.open(disk, segment_bytes=BIG).replay(after))


def only_file(disk: MemoryDisk) -> str:
    (name,) = disk.files
    return name


def test_positions_go_on_across_restarts_and_replay_starts_where_asked() -> None:
    disk = MemoryDisk()
    assert fill(disk, [b"a", b"", b"c"]) == [1, 2, 3]
    assert fill(disk, [b"d"]) == [4]
    assert contents(disk) == [(1, b"a"), (2, b""), (3, b"c"), (4, b"d")]
    assert contents(disk, after=2) == [(3, b"c"), (4, b"d")]
    assert contents(disk, after=4) == []


def test_a_cut_at_every_byte_keeps_the_whole_records_before_it() -> None:
    disk = MemoryDisk()
    payloads = [b"first" * 3, b"", b"x" * 40]
    fill(disk, payloads)
    name = only_file(disk)
    whole = bytes(disk.files[name])
    ends = [segment.HEAD_BYTES]
    for payload in payloads:
        ends.append(ends[-1] + segment.RECORD_BYTES + len(payload))
    for length in range(len(whole)):
        torn = MemoryDisk()
        torn.files[name] = bytearray(whole[:length])
        cuts: list[tuple[str, int, int]] = []
        wal = Wal.open(torn, segment_bytes=BIG, on_cut=lambda *cut, into=cuts: into.append(cut))
        survivors = sum(1 for end in ends[1:] if end <= length)
        assert [payload for _, payload in wal.replay()] == payloads[:survivors]
        kept = ends[survivors] if length >= segment.HEAD_BYTES else 0
        assert cuts == ([(name, kept, length - kept)] if length != kept else [])
        assert wal.append(b"next") == survivors + 1
        assert contents(torn)[-1] == (survivors + 1, b"next")


def test_garbage_or_zeros_behind_the_last_record_are_a_torn_tail() -> None:
    for tail in (b"\0" * 5000, b"\xff" * 37, b"\0\0\0\x04" + b"\0" * 900):
        disk = MemoryDisk()
        fill(disk, [b"kept"])
        disk.files[only_file(disk)] += tail
        assert contents(disk) == [(1, b"kept")]


def test_a_flipped_bit_before_other_records_is_corruption_at_its_offset() -> None:
    disk = MemoryDisk()
    fill(disk, [b"a" * 30, b"b" * 30, b"c" * 30])
    name = only_file(disk)
    second = segment.HEAD_BYTES + segment.RECORD_BYTES + 30
    for offset in range(second, second + segment.RECORD_BYTES + 30):
        damaged = disk.copy()
        damaged.files[name][offset] ^= 0x10
        with pytest.raises(Corrupt) as caught:
            Wal.open(damaged, segment_bytes=BIG)
        assert caught.value.details == {"file": name, "offset": second}
        assert "backup" in caught.value.message


def test_a_damaged_header_is_corruption_unless_nothing_followed_it() -> None:
    disk = MemoryDisk()
    fill(disk, [b"a"])
    disk.files[only_file(disk)][3] ^= 1
    with pytest.raises(Corrupt):
        contents(disk)


def three_segments(disk: MemoryDisk, *, proven: bool) -> list[str]:
    """One record in each. `proven`: the last one was written after a sync of the others."""

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=60)
        wal.append(b"a" * 50)
        wal.append(b"b" * 50)
        if proven:
            await wal.sync()
        wal.append(b"c" * 50)
        await asyncio.sleep(0)

    asyncio.run(story())
    return sorted(disk.files)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("damage", ["shorter", "flipped", "zeros", "header gone", "file gone"])
def test_damage_of_what_a_newer_record_knows_to_be_on_disk_is_corruption(damage: str, place: int) -> None:
    disk = MemoryDisk()
    name = three_segments(disk, proven=True)[place]
    spoil(disk, name, damage)
    if damage == "file gone" and place == 0:
        assert Wal.open(disk, segment_bytes=BIG).beyond == 1, "whether it is needed, its owner knows"
        return
    with pytest.raises(Corrupt, match="on disk"):
        contents(disk)


@pytest.mark.parametrize("damage", ["shorter", "flipped", "zeros", "header gone", "file gone"])
def test_damage_of_what_was_never_promised_ends_the_log_with_all_that_follows(damage: str) -> None:
    disk = MemoryDisk()
    names = three_segments(disk, proven=False)
    spoil(disk, names[1], damage)
    cuts: list[str] = []
    wal = Wal.open(disk, segment_bytes=BIG, on_cut=lambda name, offset, lost: cuts.append(name))
    assert [payload for _, payload in wal.replay()] == [b"a" * 50]
    assert names[2] in cuts and names[2] not in disk.files
    assert wal.append(b"again") == 2
    assert contents(disk) == [(1, b"a" * 50), (2, b"again")]


def spoil(disk: MemoryDisk, name: str, damage: str) -> None:
    content = disk.files[name]
    match damage:
        case "shorter":
            del content[-1:]
        case "flipped":
            content[-1] ^= 1
        case "zeros":
            content[segment.HEAD_BYTES :] = bytes(len(content) - segment.HEAD_BYTES)
        case "header gone":
            content[:] = bytes(len(content))
        case "file gone":
            del disk.files[name]


def hole(disk: MemoryDisk, record: int, size: int) -> MemoryDisk:
    """The same disk with the given record zeroed, as if its page had never been written."""
    torn = disk.copy()
    start = segment.HEAD_BYTES + (record - 1) * (segment.RECORD_BYTES + size)
    torn.files[only_file(disk)][start : start + segment.RECORD_BYTES + size] = bytes(segment.RECORD_BYTES + size)
    return torn


def test_a_hole_that_was_never_synced_is_cut_though_later_pages_arrived() -> None:
    disk = MemoryDisk()
    fill(disk, [b"p" * 1000] * 4)
    assert [position for position, _ in contents(hole(disk, 2, 1000))] == [1]


def test_a_hole_that_had_been_synced_is_corruption() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=BIG)
        for _ in range(3):
            wal.append(b"p" * 1000)
        await wal.sync()
        wal.append(b"p" * 1000)  # the first record that knows of the sync

    asyncio.run(story())
    with pytest.raises(Corrupt):
        contents(hole(disk, 2, 1000))


def test_a_full_disk_leaves_the_log_as_it_was_and_usable() -> None:
    disk = MemoryDisk()
    wal = Wal.open(disk, segment_bytes=BIG)
    wal.append(b"before")
    disk.room = 25
    with pytest.raises(OSError, match="No space"):
        wal.append(b"z" * 100)
    disk.room = None
    assert wal.append(b"after") == 2
    assert contents(disk) == [(1, b"before"), (2, b"after")]


def test_nothing_is_written_behind_leftovers_that_cannot_be_cut() -> None:
    disk = MemoryDisk()
    wal = Wal.open(disk, segment_bytes=BIG)
    wal.append(b"before")
    disk.room = 25
    with pytest.raises(OSError, match="No space"):
        wal.append(b"z" * 100)
    disk.room = None
    disk.truncate_error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        wal.append(b"too early")
    disk.truncate_error = None
    assert contents(disk.copy()) == [(1, b"before")]
    assert wal.append(b"after") == 2
    assert contents(disk) == [(1, b"before"), (2, b"after")]


def test_a_new_segment_that_does_not_fit_leaves_no_trace() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=10)
        wal.append(b"a" * 20)
        disk.room = 5
        with pytest.raises(OSError, match="No space"):
            wal.append(b"b")
        assert len(disk.files) == 1
        disk.room = None
        assert wal.append(b"c") == 2
        await wal.sync()

    asyncio.run(story())
    assert contents(disk) == [(1, b"a" * 20), (2, b"c")]


def test_whole_segments_are_dropped_and_the_current_one_stays() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=BIG)
        wal.append(b"1")
        wal.append(b"2")
        assert wal.rotate() == 3
        assert wal.rotate() == 3, "an empty segment is not rotated again"
        wal.append(b"3")
        wal.drop_before(2)
        assert wal.first_position == 1
        wal.drop_before(3)
        assert wal.first_position == 3
        wal.drop_before(99)
        assert [payload for _, payload in wal.replay()] == [b"3"]
        assert wal.size_bytes == sum(map(len, disk.files.values()))
        await wal.sync()

    asyncio.run(story())
    assert contents(disk) == [(3, b"3")]


def test_a_sync_covers_the_segments_rotated_away() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=40)
        for number in range(5):
            wal.append(b"%d" % number * 30)
        await wal.sync()

    asyncio.run(story())
    assert len(contents(disk.power_cut())) == 5


# ── what no sync can prove ────────────────────────────────────────────────────────────────────────────────────


def dropped_page(disk: MemoryDisk) -> Wal:
    """A log of two records, the second of which the disk never got although its sync came back in the end: as after
    EIO on Linux. Whoever reads the file sees both."""
    wal = Wal.open(disk, segment_bytes=BIG)

    async def story() -> None:
        wal.append(b"kept" * 200)
        await wal.sync()
        wal.append(b"dropped" * 200)
        disk.sync_error = OSError(errno.EIO, "Input/output error")
        with pytest.raises(OSError, match="Input/output"):
            await wal.sync()
        disk.sync_error = None

    asyncio.run(story())
    return wal


def without_dropped_page(disk: MemoryDisk) -> MemoryDisk:
    """What a power loss leaves of the first segment, the others being well."""
    cut = disk.copy()
    content = cut.files[min(cut.files)]
    start = segment.HEAD_BYTES + segment.RECORD_BYTES + len(b"kept" * 200)
    content[start:] = bytes(len(content) - start)
    return cut


def test_nothing_is_appended_to_a_file_whose_sync_failed() -> None:
    disk = MemoryDisk()
    wal = dropped_page(disk)
    first = min(disk.files)
    before = bytes(disk.files[first])
    wal.append(b"new")
    assert disk.files[first] == before and len(disk.files) == 2
    assert [payload for _, payload in wal.replay()] == [b"kept" * 200, b"dropped" * 200, b"new"]


@pytest.mark.parametrize("reopened", [False, True], ids=["in one life", "found by the next"])
def test_what_a_failed_sync_lost_never_looks_like_damage(*, reopened: bool) -> None:
    disk = MemoryDisk()
    wal = dropped_page(disk)
    if reopened:
        wal = Wal.open(disk, segment_bytes=BIG)

    async def story() -> None:
        wal.append(b"new")
        await wal.sync()
        wal.append(b"newer")
        cut = without_dropped_page(disk)
        assert contents(cut) == [(1, b"kept" * 200)], "what was never said again was never promised"
        keep = wal.restate([b"kept" * 200, b"said again"])
        await wal.sync()
        assert contents(without_dropped_page(disk)) == [(5, b"kept" * 200), (6, b"said again")]
        wal.drop_before(keep)
        await wal.sync()
        wal.append(b"after")
        disk.files[min(disk.files)][segment.HEAD_BYTES + 30] ^= 1
        with pytest.raises(Corrupt, match="had been on disk"):
            contents(disk)
        disk.files[min(disk.files)][segment.HEAD_BYTES + 30] ^= 1

    asyncio.run(story())
    assert contents(disk)[-1] == (7, b"after"), "a mark takes no position"


def test_a_sync_that_ends_after_another_one_failed_is_no_proof() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=BIG)
        wal.append(b"one")
        disk.sync_error = OSError(errno.EIO, "Input/output error")
        failing = wal.sync()
        disk.sync_error = None
        wal.append(b"two")
        following = wal.sync()
        for future in (failing, following):
            with pytest.raises(OSError, match=r"Input/output|failed before"):
                await future

    asyncio.run(story())


def test_a_restatement_counts_when_its_mark_is_whole_and_the_old_segments_stay_until_then() -> None:
    disk = MemoryDisk()
    asyncio.run(_synced(disk, [b"a" * 30, b"b" * 30]))
    old = min(disk.files)

    async def restated() -> None:
        wal = Wal.open(disk, segment_bytes=BIG)
        wal.restate([b"c" * 30, b"d" * 30], beyond=2)

    asyncio.run(restated())
    new = max(disk.files)
    whole = bytes(disk.files[new])
    for length in range(len(whole) + 1):
        torn = disk.copy()
        torn.files[new] = bytearray(whole[:length])
        again = Wal.open(torn, segment_bytes=BIG)
        found = [payload[:1] for _, payload in again.replay()]
        if length == len(whole):
            assert (found, again.beyond) == ([b"c", b"d"], 2)
            assert old in torn.files, "the mark may not be on disk yet"
        else:
            survivors = max(0, length - segment.HEAD_BYTES) // (segment.RECORD_BYTES + 30)
            assert (found, again.beyond) == ([b"a", b"b", b"c", b"d"][: 2 + survivors], 0)
        if length == len(whole):
            spoil(torn, old, "flipped")
            assert [payload[:1] for _, payload in Wal.open(torn, segment_bytes=BIG).replay()] == [b"c", b"d"]


async def _synced(disk: MemoryDisk, payloads: list[bytes]) -> None:
    wal = Wal.open(disk, segment_bytes=BIG)
    for payload in payloads:
        wal.append(payload)
    await wal.sync()


def test_shadowed_segments_go_when_what_was_found_has_been_said_again() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        for life in range(3):
            wal = Wal.open(disk, segment_bytes=BIG)
            wal.restate([b"life %d" % life])
        assert len(disk.files) == 3, "nobody had the time to sync"
        wal = Wal.open(disk, segment_bytes=BIG)
        assert [payload for _, payload in wal.replay()] == [b"life 2"]
        keep = wal.restate([b"at last"])
        await wal.sync()
        wal.drop_before(keep)
        assert len(disk.files) == 1

    asyncio.run(story())
    assert [payload for _, payload in contents(disk)] == [b"at last"]


def test_a_failed_sync_is_told_and_restart_begins_anew() -> None:
    disk = MemoryDisk()

    async def story() -> None:
        wal = Wal.open(disk, segment_bytes=BIG)
        wal.append(b"doubtful")
        disk.sync_error = OSError(errno.EIO, "Input/output error")
        with pytest.raises(OSError, match="Input/output"):
            await wal.sync()
        disk.sync_error = None
        wal.restart(7)
        assert wal.append(b"new") == 7
        await wal.sync()
        with pytest.raises(ValueError, match="taken"):
            wal.restart(7)

    asyncio.run(story())
    assert contents(disk.power_cut()) == [(7, b"new")]


def test_a_record_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftspine.storage.wal.MAX_RECORD_BYTES", 10)
    disk = MemoryDisk()
    wal = Wal.open(disk, segment_bytes=BIG)
    with pytest.raises(TooLarge):
        wal.append(b"x" * 11)
    assert wal.append(b"x" * 10) == 1
