"""Membership: each rule by itself, and each part of defects 2 and 18 (design/strong-path.md §1), which make the bare
engine elect two leaders, break its ticks, or count over members that are no more."""

import asyncio

import pytest

from raftspine.cluster import raft_envelope, raft_members
from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_engine import MEMBERS
from raftspine.cluster.raft_host import RaftLimits
from raftspine.errors import Rejected, SpineError, Unavailable
from raftspine.model import GroupId, MemberId, NodeId
from raftspine.ports import AddLearner, Members, Promote, Remove
from raftspine.sim.loop import run
from tests.support.raft_cluster import Cluster, command
from tests.support.raft_puppet import Puppet, entry

G = GroupId(0)
SMALL = RaftLimits(compact_entries=40, compact_bytes=20_000, keep_entries=8, append_entries=16, window=4)
A, B, C, D = (MemberId(NodeId(name)) for name in "abcd")
THREE = Members((A, B, C))


def with_cluster(scene, size=3, **options):
    async def main(loop):
        cluster = Cluster(loop, size, **options)
        cluster.start()
        await cluster.until(cluster.leader)
        await scene(cluster)

    run(main)


def play(scene, size=3):
    async def main(loop):
        await scene(Puppet(loop, size))

    run(main)


def change_entry(term, members):
    return [term, MEMBERS + raft_envelope.pack_members(members)]


async def change(cluster, wanted, group=G):
    """Carry a change out, whoever leads, as a worker does: by asking again until it is so."""

    def done():
        members = cluster.leader(group) and cluster.leader(group).host.members(group)
        if members is None:
            return False
        if isinstance(wanted, AddLearner):
            return wanted.member in members.learners
        if isinstance(wanted, Promote):
            return wanted.member in members.voters
        return wanted.member not in (*members.voters, *members.learners)

    for _ in range(400):
        leader = cluster.leader(group)
        if leader is not None:
            try:
                async with asyncio.timeout(5):
                    return await leader.host.change(group, wanted)
            except (SpineError, TimeoutError):
                if done():
                    return None
        await cluster.pause(0.05)
    raise AssertionError(f"{wanted} did not come about: {cluster.describe()}")


async def outcome(future):
    try:
        return await asyncio.wait_for(future, 30)
    except SpineError as error:
        return error


def others(cluster, node):
    return [other for other in cluster.nodes.values() if other is not node]


# ── what a change makes of the members ─────────────────────────────────────────────────────────────────────


def test_one_voter_differs_at_most():
    four = raft_members.after(THREE, AddLearner(D))
    assert four == Members((A, B, C), (D,))
    assert raft_members.after(four, Promote(D, 1)) == Members((A, D, B, C))
    assert raft_members.after(four, Remove(D)) == Members((A, B, C), (), (D,))
    gone = raft_members.after(four, Remove(B))
    assert gone == Members((A, C), (D,), (B,))
    assert raft_members.after(gone, AddLearner(B)) == Members((A, C), (D, B))


@pytest.mark.parametrize("wrong", [AddLearner(A), Promote(D, 0), Promote(A, 0), Remove(D)])
def test_a_change_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(Rejected, match="makes no sense"):
        raft_members.after(THREE, wrong)


def test_the_only_voter_stays():
    with pytest.raises(Rejected, match="only voter"):
        raft_members.after(Members((A,), (B,)), Remove(A))


@pytest.mark.parametrize(("able", "decides"), [("abc", True), ("ab", True), ("c", False), ("d", False)])
def test_a_majority_of_the_voters_decides(able, decides):
    assert raft_members.decides(Members((A, B, C), (D,)), lambda member: member in able) is decides


def test_members_of_an_unknown_form_are_not_guessed_at():
    assert raft_envelope.unpack_members(raft_envelope.pack_members(THREE)) == THREE
    for payload in (b"", b"\x94\x02\x90\x90\x90", b"\x01"):
        with pytest.raises(ValueError, match="members of"):
            raft_envelope.unpack_members(payload)


# ── in the log (18: after a restart the bare engine counts over its constructor's list) ───────────────────────


def test_members_are_in_force_when_appended_and_undone_when_cut():
    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 0, entry(1), change_entry(1, Members((A, B))))
        assert puppet.group.members == Members((A, B))
        assert puppet.group.peers == (B,)
        await puppet.feed("c", 2, 1, 1, 0, entry(2))
        assert puppet.group.members.voters == tuple(puppet.names[1:] + puppet.names[:1])
        assert set(puppet.group.peers) == {B, C}

    play(scene)


def test_the_members_at_each_place_of_the_log_are_known():
    async def scene(puppet):
        two, four = Members((A, B)), Members((A, B, D))
        await puppet.feed("b", 1, 0, 0, 4, entry(1), change_entry(1, two), entry(1, "x"), change_entry(1, four))
        known = puppet.group.configurations
        assert [known.at(index) for index in (2, 3, 4)] == [two, two, four]
        puppet.log.rebase(3, 1, 0, known.at(3))
        known.reload()
        assert (known.at(3), known.current, known.index) == (two, four, 4)

    play(scene)


def test_after_a_restart_the_members_are_the_logs_and_not_the_constructors():
    async def scene(cluster):
        gone = cluster.founders[2]
        await change(cluster, Remove(MemberId(gone)))
        for number in range(100):  # into the base of the log, by compaction
            await cluster.leader().host.propose(G, command(f"r{number}", "append", "k", number))
            await cluster.pause(0.05)
        assert all(node.host._groups[G].log.base > 50 for node in cluster.taking_part(0))
        for node in list(cluster.nodes.values()):
            node.crash()
        for name in cluster.founders[:2]:
            cluster.nodes[name].start()
        await cluster.until(cluster.leader)
        await cluster.settled_among(cluster.founders[:2])
        assert set(cluster.leader().host.members(G).voters) == set(cluster.founders[:2])
        assert await cluster.leader().host.propose(G, command("on", "append", "k", 100)) == 101

    with_cluster(scene, limits=SMALL)


# ── one at a time (2: the variable that should see to it is never assigned) ────────────────────────────────────


def test_a_second_change_waits_for_the_first():
    async def scene(cluster):
        host = cluster.leader().host
        await cluster.until(lambda: host.status(G).applied >= 1)
        first = host.change(G, AddLearner(MemberId(NodeId("s1"))))
        assert host.status(G).changing
        second = await outcome(host.change(G, AddLearner(MemberId(NodeId("s2")))))
        assert isinstance(second, Unavailable)
        assert second.code == "change_in_progress"
        assert "s1" in (await outcome(first)).learners
        assert (await outcome(host.change(G, Remove(MemberId(NodeId("s1")))))).removed == ("s1",)

    with_cluster(scene, spares=1)


def test_no_change_before_an_entry_of_the_own_term_is_committed():
    async def scene(puppet):
        await puppet.elect()
        error = await outcome(puppet.group.change(Remove(C), lambda member: True))
        assert error.code == "change_in_progress"
        await puppet.turn()
        await puppet.hear("b", frames.APPENDED, puppet.engine.term, True, 0, puppet.log.last + 1)
        future = puppet.group.change(Remove(C), lambda member: True)
        assert not future.done()
        assert puppet.group.members.voters == (B, A)

    play(scene)


def test_two_disjoint_majorities_cannot_come_about():
    """The story of defect 2: a leader that is cut off changes members, and so do those that elect another."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        apart = [leader.name, cluster.names[-1]]
        rest = [name for name in cluster.founders if name != leader.name]
        heal = cluster.network.partition(apart, rest)
        pending = [
            leader.host.change(G, Remove(MemberId(rest[0]))),
            leader.host.change(G, Remove(MemberId(rest[1]))),
            leader.host.change(G, AddLearner(MemberId(cluster.names[-1]))),
        ]
        answers = [await outcome(future) for future in pending]
        assert all(isinstance(answer, SpineError) for answer in answers), answers
        await cluster.until(lambda: cluster.leader() not in (None, leader))
        assert await outcome(cluster.leader().host.propose(G, command("r", "append", "k", 1))) == 1
        heal()
        await cluster.settled()
        assert set(cluster.leader().host.members(G).voters) == set(cluster.founders)

    with_cluster(scene, spares=1)


def test_a_change_that_would_stop_the_group_is_refused():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        down, up = others(cluster, leader)
        down.crash()
        await cluster.pause(1.5)
        error = await outcome(leader.host.change(G, Remove(up.member)))
        assert error.code == "no_quorum"
        assert (await outcome(leader.host.change(G, Remove(down.member)))).voters == (
            *(member for member in leader.host.members(G).voters),
        )
        assert down.member not in leader.host.members(G).voters

    with_cluster(scene)


# ── learners first (18) ────────────────────────────────────────────────────────────────────────────────────


def test_a_learner_gets_the_log_counts_for_nothing_and_does_not_campaign():
    async def scene(cluster):
        leader = cluster.leader()
        learner = cluster.nodes[cluster.names[-1]]
        await change(cluster, AddLearner(learner.member))
        await cluster.settled()
        assert learner.host.status(G).role == "learner"
        for node in others(cluster, leader):
            if node is not learner:
                node.crash()
        pending = leader.host.propose(G, command("r", "append", "k", 1))
        await cluster.pause(20)
        assert cluster.leader() is None, "a learner's acknowledgement and echo make no majority"
        assert isinstance(await outcome(pending), SpineError)
        assert learner.host.status(G).term == leader.host.status(G).term, "it did not campaign"

    with_cluster(scene, spares=1)


def test_a_learner_is_promoted_only_when_it_has_about_all_of_the_log():
    async def scene(cluster):
        learner = cluster.nodes[cluster.names[-1]]
        learner.crash()
        leader = cluster.leader()
        await change(cluster, AddLearner(learner.member))
        for number in range(100):
            await leader.host.propose(G, command(f"r{number}", "append", "k", number))
        assert (await outcome(leader.host.change(G, Promote(learner.member, 0)))).code == "not_caught_up"
        learner.start()
        await cluster.until(lambda: leader.host.caught_up(G, learner.member))
        members = await outcome(leader.host.change(G, Promote(learner.member, 1)))
        assert members.voters[1] == learner.member
        assert len(members.voters) == 4
        await cluster.settled()
        assert learner.host.status(G).role in ("follower", "leader")

    with_cluster(scene, spares=1)


def test_a_blank_member_takes_a_snapshot_before_any_entry():
    async def scene(cluster):
        leader = cluster.leader()
        learner = cluster.nodes[cluster.names[-1]]
        for number in range(5):
            await leader.host.propose(G, command(f"r{number}", "append", "k", number))
        assert leader.host._groups[G].log.base == 0, "the log reaches back to its beginning, and must not be replayed"
        learner.machine.state(0).lists["k"] = ["left over from another life"]
        await change(cluster, AddLearner(learner.member))
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1
        assert learner.machine.state(0).lists["k"] == list(range(5))

    with_cluster(scene, spares=1)


def test_a_blank_member_neither_votes_nor_campaigns():
    async def scene(cluster):
        learner = cluster.nodes[cluster.names[-1]]
        host = learner.host
        await cluster.pause(10)
        assert (host.status(G).role, host.status(G).term) == ("learner", 0)
        for kind, fields in ((frames.VOTE, (99, 99, True)), (frames.PREVOTE, (1, 99, 99))):
            host._receive(NodeId("n1"), ("n1", host.member, [(0, kind, 50, *fields)]))
        await cluster.pause(1)
        assert host._groups[G].log.vote is None

    with_cluster(scene, spares=1)


# ── leaving (18: removed members are not told, late answers break the tick, a leader cannot go) ────────────────


def test_a_removed_member_is_told_remembers_it_and_keeps_quiet():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        gone = others(cluster, leader)[0]
        await change(cluster, Remove(gone.member))
        await cluster.until(lambda: gone.host.status(G).role == "removed")
        await cluster.pause(10)
        term = leader.host.status(G).term
        for _ in range(2):
            gone.crash()
            gone.start()
            assert gone.host.status(G).role == "removed"
            await cluster.pause(5)
            assert gone.host.status(G).term <= term
        assert cluster.leader().host.status(G).term == term

    with_cluster(scene)


def test_a_member_that_was_away_when_it_was_removed_is_told_on_its_return():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        gone = others(cluster, leader)[0]
        gone.crash()
        await cluster.pause(1.5)
        await change(cluster, Remove(gone.member))
        gone.start()
        await cluster.until(lambda: gone.host.status(G).role == "removed")
        assert sum(node.host._groups[G].ignored_frames for node in cluster.nodes.values()) > 0
        assert set(cluster.leader().host.members(G).voters) == {n.member for n in cluster.nodes.values() if n != gone}

    with_cluster(scene)


def test_a_removed_member_may_come_back():
    async def scene(cluster):
        await cluster.settled()
        gone = others(cluster, cluster.leader())[0]
        await change(cluster, Remove(gone.member))
        await cluster.until(lambda: gone.host.status(G).role == "removed")
        await change(cluster, AddLearner(gone.member))
        await cluster.until(lambda: cluster.leader().host.caught_up(G, gone.member))
        await change(cluster, Promote(gone.member, 0))
        await cluster.settled()
        assert gone.host.status(G).role in ("follower", "leader")

    with_cluster(scene)


def test_late_answers_of_a_removed_member_are_harmless():
    async def scene(puppet):
        term = await puppet.elect()
        await puppet.turn()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        puppet.group.change(Remove(C), lambda member: True)
        last = puppet.log.last
        for kind, fields in (
            (frames.APPENDED, (True, 0, last + 1)),
            (frames.APPENDED, (False, last, 1)),
            (frames.HEARTBEAT_ECHO, (1,)),
            (frames.VOTED, ()),
            (frames.PREVOTED, (1, True)),
        ):
            await puppet.hear("c", kind, term, *fields)
        assert puppet.group.halted is None
        assert puppet.engine.commit < last, "what it holds counts for nothing"
        assert puppet.group.ignored_frames == 5
        await puppet.hear("b", frames.APPENDED, term, True, 0, last + 1)
        assert puppet.engine.commit == last
        assert puppet.group.members.voters == (B, A)

    play(scene)


def test_reads_that_waited_for_a_member_that_is_gone_are_answered():
    async def scene(puppet):
        term = await puppet.elect()
        await puppet.turn()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        reader = puppet.group.read_index()
        await puppet.turn()
        assert not reader.done()
        puppet.group.change(Remove(B), lambda member: True)
        await puppet.turn()
        assert puppet.group.members.voters == (A,)
        assert reader.done() and reader.result() > 0

    play(scene, size=2)


def test_a_leader_gives_leadership_away_before_it_goes():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        error = await outcome(leader.host.change(G, Remove(leader.member)))
        assert error.code == "no_leader"
        successor = others(cluster, leader)[0]
        assert await leader.host.transfer(G, successor.name)
        await cluster.until(lambda: cluster.leader() not in (None, leader))
        await change(cluster, Remove(leader.member))
        await cluster.until(lambda: leader.host.status(G).role == "removed")
        assert await cluster.leader().host.propose(G, command("r", "append", "k", 1)) == 1

    with_cluster(scene)


def test_leadership_goes_to_voters_only():
    async def scene(cluster):
        learner = cluster.nodes[cluster.names[-1]]
        await change(cluster, AddLearner(learner.member))
        assert not await cluster.leader().host.transfer(G, learner.name)

    with_cluster(scene, spares=1)


# ── another life of a node is another member ───────────────────────────────────────────────────────────────


def test_what_is_meant_for_another_life_is_not_heard_and_what_it_says_does_not_count():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        lost, helper = others(cluster, leader)
        lost.crash()
        lost.lose_disk()
        lost.start()
        await cluster.pause(5)
        assert (lost.host.status(G).role, lost.host.status(G).term) == ("learner", 0)
        assert lost.host.ignored_frames > 0
        helper.crash()
        await cluster.pause(5)
        assert cluster.leader() is None, "the new life must not stand in for the old one"

    with_cluster(scene)


def test_a_node_that_lost_its_disk_takes_its_old_place_as_another_member():
    async def scene(cluster):
        for number in range(30):
            await cluster.leader().host.propose(G, command(f"r{number}", "append", "k", number))
        await cluster.settled()
        lost = others(cluster, cluster.leader())[0]
        old, place = lost.member, cluster.leader().host.members(G).voters.index(lost.member)
        lost.crash()
        lost.lose_disk()
        lost.start()
        await change(cluster, AddLearner(lost.member))
        await cluster.until(lambda: cluster.leader().host.caught_up(G, lost.member))
        await change(cluster, Remove(old))
        await change(cluster, Promote(lost.member, place))
        await cluster.settled()
        assert cluster.leader().host.members(G).voters[place] == lost.member
        for node in cluster.nodes.values():
            if node is not lost and node is not cluster.leader():
                node.crash()
                break
        await cluster.until(cluster.leader)
        for _ in range(50):
            answer = await outcome(cluster.leader().host.propose(G, command("on", "append", "k", 30)))
            if not isinstance(answer, SpineError):
                break
            await cluster.until(cluster.leader)
        assert answer == 31

    with_cluster(scene)


def test_a_rolled_back_member_learns_of_it_from_its_leader():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        victim = others(cluster, leader)[0]
        victim.crash(power=False)
        image = victim.disk.image("raft")
        victim.start()
        for number in range(10):
            await leader.host.propose(G, command(f"r{number}", "append", "k", number))
        await cluster.settled()
        victim.crash(power=False)
        victim.disk.restore("raft", image)
        victim.machine.forget()
        victim.start()
        await cluster.until(lambda: victim.void)
        assert "rolled back" in victim.void[0]
        assert victim.host.status(G).role == "halted"
        assert await leader.host.propose(G, command("on", "append", "k", 10)) == 11

    with_cluster(scene)


def test_a_denial_that_was_long_under_way_voids_nobody():
    async def scene(puppet):
        await puppet.feed("b", 3, 0, 0, 0, entry(3), entry(3, "x"))
        await puppet.hear("b", frames.DENIED, 3, 2)
        await puppet.hear("b", frames.DENIED, 2, 9)
        assert not puppet.void
        await puppet.hear("b", frames.DENIED, 3, 3)
        assert puppet.void

    play(scene)
