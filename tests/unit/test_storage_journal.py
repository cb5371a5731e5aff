"""The Raft journal: what comes back is a state the node was in, however the log ended."""

import asyncio

import pytest

from raftspine import codec
from raftspine.errors import Corrupt
from raftspine.model import GroupId, NodeId
from raftspine.ports import Members, Position
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, run
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal

A, B = GroupId(0), GroupId(0xFFFF)
VOTERS = (NodeId("n1"), NodeId("n2"), NodeId("n3"))


def opened(disk, **options):
    return Journal.open(Wal.open(disk.directory("raft"), segment_bytes=1 << 20), **options)


def picture(journal):
    return {
        group: (
            held.rows,
            held.term,
            held.vote,
            held.members,
            held.time_ms,
            held.size_bytes,
            held.expected,
            held.removed_at,
        )
        for group in journal.groups()
        if (held := journal.group(group)) is not None
    }


def segments(disk):
    return disk.directory("raft").names()


def on_disk(scene, seed=0):
    async def main(loop):
        await scene(SimDisk(loop, Dice(seed)))

    run(main)


async def some_history(journal):
    """A little of everything; yields after each commit."""
    a = journal.create(A, VOTERS)
    b = journal.create(B, VOTERS, index=7, term=3, time_ms=5)
    for number in range(1, 6):
        a.append(b"a%d" % number, number, 1)
    a.set_term(1, "n2")
    yield await journal.commit()
    a.truncate(4)
    a.append(b"anew", 4, 2)
    a.set_term(2, None)
    b.append(b"b", 8, 4)
    yield await journal.commit()
    a.rebase(2, 1, 99, Members(VOTERS, VOTERS[:1], VOTERS[1:]))
    a.expect(Position(9, 2), 3, Members(VOTERS))
    a.remove(12)
    yield await journal.commit()
    b.reset(50, 6, 77, Members(VOTERS[:1]))
    b.append(b"after", 51, 6)
    yield await journal.commit()


def test_what_was_committed_comes_back():
    async def scene(disk):
        journal = opened(disk)
        async for _ in some_history(journal):
            assert picture(opened(disk)) == picture(journal)
        again = opened(disk)
        assert again.group(A).rows == [(b"", 2, 1), (b"a3", 3, 1), (b"anew", 4, 2)]
        assert again.group(B).rows == [(b"", 50, 6), (b"after", 51, 6)]
        assert again.group(B).members == Members(VOTERS[:1])
        assert again.dirty and [again.group(g).durable for g in (A, B)] == [0, 0], (
            "read back is not proven to be stored"
        )
        await again.commit()
        assert not again.dirty and [again.group(g).durable for g in (A, B)] == [4, 51]

    on_disk(scene)


def test_records_from_before_membership_could_change_are_read():
    async def scene(disk):
        wal = Wal.open(disk.directory("raft"), segment_bytes=1 << 20)
        state = [5, 0, 4, 2, 99, ["n1", "n2"], 3, "n2", 1]
        wal.append(codec.encode([state, [1, 0, 5, 3, b"x"], [4, 0, 5, 3, 100, ["n1", "n2"]]]))
        await wal.sync()
        group = opened(disk).group(A)
        assert group.members == Members(("n1", "n2"))
        assert (group.base, group.term, group.vote, group.removed_at, group.expected) == (5, 3, "n2", 0, None)

    on_disk(scene)


def test_an_identity_lives_and_dies_with_the_promises_beside_it():
    async def scene(disk):
        journal = opened(disk, rotate_bytes=200)
        journal.identify(b"who I am")
        a = journal.create(A, VOTERS)
        await journal.commit()
        for number in range(1, 60):
            a.append(b"x" * 20, number, 1)
            a.rebase(number, 1, 0, Members(VOTERS))
            await journal.commit()
        assert len(segments(disk)) <= 2
        assert opened(disk).identity == b"who I am"
        disk.erase("raft")
        assert opened(disk).identity == b""

    on_disk(scene)


def test_cut_at_any_byte_the_log_gives_an_earlier_state():
    async def scene(disk):
        journal = opened(disk)
        states = [{}]
        async for _ in some_history(journal):
            states += [{group: (list(p[0]), *p[1:]) for group, p in picture(journal).items()}]
        name = segments(disk)[-1]
        whole = disk.directory("raft").read(name)
        seen = []
        for length in range(len(whole), 24, -1):
            copy = SimDisk(disk.loop, Dice(1))
            copy.directory("raft").open(name).append(whole[:length])
            state = picture(opened(copy))
            assert state in states
            if not seen or seen[-1] != state:
                seen.append(state)
        assert seen == states[::-1]

    on_disk(scene)


def test_durable_follows_the_disk_and_never_covers_what_was_cut():
    async def scene(disk):
        journal = opened(disk)
        a = journal.create(A, VOTERS)
        a.append(b"1", 1, 1)
        a.append(b"2", 2, 1)
        done = journal.commit()
        assert a.durable == 0
        a.truncate(2)
        a.append(b"other", 2, 2)
        await done
        assert a.durable < 2
        assert journal.dirty
        await journal.commit()
        assert a.durable == 2
        a.truncate(2)
        assert a.durable == 1

    on_disk(scene)


@pytest.mark.parametrize("payload_bytes", [1 << 20, 60])
def test_the_log_stays_bounded_and_survives_a_crash_at_every_step_of_a_rotation(payload_bytes, monkeypatch):
    """With small payloads a group's restatement is several records, and can be torn between them."""
    monkeypatch.setattr("raftspine.storage.journal._PAYLOAD_BYTES", payload_bytes)

    async def scene(disk):
        journal = opened(disk, rotate_bytes=2000)
        a, b = journal.create(A, VOTERS), journal.create(B, VOTERS)
        largest, rotations, committed = 0, 0, {}
        for number in range(1, 400):
            a.append(b"x" * 20, number, 1)
            b.append(b"y" * 20, number, 1)
            if number % 10 == 0:
                a.rebase(number - 3, 1, number, Members(VOTERS))
                b.rebase(number - 3, 1, number, Members(VOTERS))
            done = journal.commit()
            if len(segments(disk)) == 2:
                rotations += 1
                await crash_inside(disk, committed, copied(journal))
            await done
            committed = copied(journal)
            largest = max(largest, disk.size())
            assert picture(opened(disk)) == committed
        assert rotations > 5
        assert largest < 12_000

    def copied(journal):
        return {group: (list(rows), *rest) for group, (rows, *rest) in picture(journal).items()}

    async def crash_inside(disk, before, after):
        """Both segments are there, the new one unsynced: cut it anywhere, and nothing may be missing."""
        old, new = segments(disk)
        sealed, whole = disk.directory("raft").read(old), disk.directory("raft").read(new)
        for length in range(0, len(whole), 7):
            copy = SimDisk(disk.loop, Dice(2))
            copy.directory("raft").open(old).append(sealed)
            copy.directory("raft").open(new).append(whole[:length])
            reopened = opened(copy)
            found = copied(reopened)
            for group in (A, B):
                assert found[group] in (before[group], after[group])
            # What a torn restatement left must not swallow what is written next.
            held = reopened.group(B)
            held.append(b"next", held.last + 1, 1)
            await reopened.commit()
            assert picture(opened(copy)) == picture(reopened)

    on_disk(scene)


@pytest.mark.parametrize("fault", ["full", "broken"])
def test_after_a_failed_write_everything_is_written_anew(fault):
    async def scene(disk):
        journal = opened(disk)
        a = journal.create(A, VOTERS)
        a.append(b"1", 1, 1)
        await journal.commit()
        setattr(disk, fault, True)
        a.append(b"2", 2, 1)
        for _ in range(3):
            with pytest.raises(OSError, match="simulated disk"):
                await journal.commit()
            assert journal.dirty
            assert a.durable == 1
        setattr(disk, fault, False)
        a.append(b"3", 3, 1)
        await journal.commit()
        assert a.durable == 3
        assert not journal.dirty
        disk.crash(power=True)
        assert picture(opened(disk)) == picture(journal)

    on_disk(scene)


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "killed"])
def test_what_a_failed_sync_dropped_is_written_again_before_it_counts(*, dies):
    """Seed 1294: the next life read it from the page cache, and a sync that had nothing to do called it durable."""

    async def scene(disk):
        journal = opened(disk)
        journal.create(A, VOTERS).append(b"1" * 600, 1, 1)
        await journal.commit()
        journal.group(A).append(b"2" * 600, 2, 1)
        disk.broken = True
        with pytest.raises(OSError, match="simulated disk"):
            await journal.commit()
        disk.broken = False
        if dies:
            disk.crash(power=False)
            journal = opened(disk)
        assert journal.group(A).last == 2 and journal.group(A).durable < 2
        await journal.commit()
        assert journal.group(A).durable == 2
        journal.group(A).append(b"3", 3, 1)
        await journal.commit()
        disk.crash(power=True)
        assert picture(opened(disk)) == picture(journal)

    on_disk(scene)


def test_a_node_never_refuses_its_own_disk_for_what_a_failed_sync_dropped():
    """Power fails at each step after the failed sync: what was committed is there, and nothing looks damaged."""

    async def scene(disk):
        for seed in range(60):
            disk = SimDisk(disk.loop, Dice(seed))
            journal = opened(disk)
            a = journal.create(A, VOTERS)
            promised = 0
            for number in range(1, 13):
                a.append(b"x" * disk.dice.below(700), number, 1)
                disk.broken = disk.dice.chance(0.4)
                done = journal.commit()
                done.add_done_callback(lambda ended: ended.exception())
                if number == 12:
                    await asyncio.sleep(disk.dice.uniform(0, 0.004))
                    break
                await asyncio.wait([done])
                promised = promised if done.exception() else a.durable
                if disk.dice.chance(0.2):
                    disk.crash(power=False)
                    journal = opened(disk)
                    a = journal.group(A) or journal.create(A, VOTERS)
                    if a.last < number:
                        break
            disk.crash(power=True)
            again = opened(disk).group(A)
            assert promised <= (0 if again is None else again.last), seed

    on_disk(scene)


def test_power_loss_takes_only_what_no_commit_covered():
    async def scene(disk):
        for seed in range(30):
            disk = SimDisk(disk.loop, Dice(seed))
            journal = opened(disk)
            a = journal.create(A, VOTERS)
            for number in range(1, 20):
                a.append(b"x" * 700, number, 1)
                await journal.commit()
            a.append(b"unsynced" * 400, 20, 1)
            done = journal.commit()
            disk.crash(power=True)
            assert opened(disk).group(A).last in (19, 20)
            assert not done.done()

    on_disk(scene)


def test_damage_in_the_middle_refuses_the_start_and_names_the_place():
    async def scene(disk):
        journal = opened(disk)
        a = journal.create(A, VOTERS)
        for number in range(1, 50):
            a.append(b"x" * 100, number, 1)
            await journal.commit()
        name = segments(disk)[0]
        disk.damage("raft", name, 1500)
        with pytest.raises(Corrupt) as caught:
            opened(disk)
        assert caught.value.details["file"] == name
        assert caught.value.details["offset"] > 0

    on_disk(scene)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x01\x91\x95\x01\x00\x05\x01\xc4\x01x",  # an entry of a group nobody began
        b"\x01\x91\x92\x63\x00",  # an unknown kind of record
        b"\x02\x90",  # an unknown format
        b"\x01\x01",  # not a list
        b"\x01\xc1",  # not msgpack
    ],
)
def test_records_that_make_no_sense_are_refused(payload):
    async def scene(disk):
        wal = Wal.open(disk.directory("raft"), segment_bytes=1 << 20)
        wal.append(payload)
        await wal.sync()
        with pytest.raises(Corrupt, match="Raft journal"):
            opened(disk)

    on_disk(scene)


def test_misuse_of_a_group_is_refused_before_it_is_recorded():
    async def scene(disk):
        journal = opened(disk)
        a = journal.create(A, VOTERS)
        a.append(b"1", 1, 2)
        for wrong in (
            lambda: a.append(b"3", 3, 2),
            lambda: a.append(b"2", 2, 1),
            lambda: a.truncate(0),
            lambda: a.truncate(2),
            lambda: a.rebase(2, 2, 0, Members(VOTERS)),
            lambda: a.rebase(1, 9, 0, Members(VOTERS)),
            lambda: journal.create(A, VOTERS),
        ):
            with pytest.raises(ValueError, match=r"entry|cut|base|exists"):
                wrong()
        with pytest.raises(IndexError):
            a.term_at(-1)
        await journal.commit()
        assert picture(opened(disk)) == picture(journal)

    on_disk(scene)


def test_large_commits_are_split_and_still_come_back():
    async def scene(disk):
        journal = opened(disk)
        a = journal.create(A, VOTERS)
        for number in range(1, 12):
            a.append(bytes([number]) * 300_000, number, 1)
        await asyncio.wait_for(journal.commit(), 5)
        assert picture(opened(disk)) == picture(journal)

    on_disk(scene)


def test_a_log_that_grows_a_little_in_each_life_is_rotated_all_the_same():
    async def scene(disk):
        sizes = []
        for life in range(20):
            wal = Wal.open(disk.directory("raft"), segment_bytes=1 << 20)
            journal = Journal.open(wal, rotate_bytes=4000)
            group = journal.group(A) or journal.create(A, VOTERS)
            for _ in range(10):
                group.append(b"x" * 100, group.last + 1, 1)
                group.rebase(group.last, 1, life, Members(VOTERS))
            await journal.commit()
            sizes.append(wal.size_bytes)
        assert max(sizes) < 8000, sizes
        assert journal.group(A).last == 200

    on_disk(scene)
