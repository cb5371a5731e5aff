"""Whoever proposed gets one answer, and the right one of three."""

import pytest

from raftspine.cluster import raft_envelope, raft_history
from raftspine.cluster.raft_proposals import Proposals
from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, run
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal


def scene(play, **limits):
    async def main(loop):
        play(Proposals(GroupId(0), loop, RaftLimits(**limits)))

    run(main)


def entered(proposals, index, term=1, count=1):
    futures = [proposals.submit(b"x") for _ in range(count)]
    proposals.enter(lambda commands: index, term)
    return futures


def test_results_go_to_those_whose_very_entry_was_applied():
    def play(proposals):
        mine = entered(proposals, 5, term=1, count=2)
        other = entered(proposals, 6, term=1)
        proposals.applied(5, 1, ["a", "b"])
        proposals.applied(6, 2, ["not yours"])
        assert [future.result() for future in mine] == ["a", "b"]
        assert isinstance(other[0].exception(), Unknown)
        assert not proposals.entered

    scene(play)


def test_only_the_queue_can_be_refused():
    def play(proposals):
        in_log, in_queue = entered(proposals, 5), proposals.submit(b"y")
        proposals.refuse(Unavailable("no leader"))
        assert isinstance(in_queue.exception(), Unavailable)
        assert not in_log[0].done()
        proposals.abandon("nobody knows")
        assert isinstance(in_log[0].exception(), Unknown)

    scene(play)


def test_cut_and_covered_entries_are_unknown_and_the_others_wait():
    def play(proposals):
        a, b, c = (entered(proposals, index)[0] for index in (5, 6, 7))
        proposals.superseded(7)
        proposals.covered(5)
        assert isinstance(c.exception(), Unknown)
        assert isinstance(a.exception(), Unknown)
        assert not b.done()

    scene(play)


def test_every_ending_frees_its_place():
    def play(proposals):
        for round_number in range(5):
            futures = entered(proposals, round_number, count=2)
            queued = proposals.submit(b"z")
            assert proposals.submit(b"one too many").exception().code == "overloaded"
            futures[0].cancel()
            proposals.refuse(Unavailable("no"))
            proposals.applied(round_number, 1, [1, 2])
            assert futures[1].result() == 2
            assert queued.exception()

    scene(play, outstanding=3)


def test_a_command_is_bytes():
    def play(proposals):
        with pytest.raises(TypeError):
            proposals.submit("text")

    scene(play)


def test_an_entry_of_an_unknown_version_or_form_is_not_guessed_at():
    assert raft_envelope.unpack(raft_envelope.pack(7, [b"a", b"b"])) == (7, [b"a", b"b"])
    for wrong in (b"", b"\xc1", b"\x93\x02\x07\x90", b"\x92\x01\x07", b"\x93\x01\x07\x91\x01"):
        with pytest.raises(ValueError, match="entry of"):
            raft_envelope.unpack(wrong)


def test_a_log_keeps_what_anybody_still_needs():
    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        journal = Journal.open(Wal.open(disk.directory("raft"), segment_bytes=1 << 20))
        log = journal.create(GroupId(0), (NodeId("a"),))
        for index in range(1, 101):
            log.append(b"x" * 10, index, 1)
        limits = RaftLimits(compact_entries=50, keep_entries=5)
        assert raft_history.oversized(log, limits)

        def compacted(applied, *needed):
            raft_history.compact(
                log, limits, members_at=lambda _: log.members, applied=applied, applied_ms=1, needed=needed
            )
            return log.base

        assert compacted(90, 80) == 0, "not while it is not on disk"
        await journal.commit()
        assert compacted(90, 10) == 10
        assert compacted(30, 80) == 30
        assert compacted(100, 100, 40) == 40
        assert compacted(100, 100) == 95
        assert not raft_history.oversized(log, limits)
        assert compacted(100, 100) == 95, "there is nothing left to drop"

    run(main)
