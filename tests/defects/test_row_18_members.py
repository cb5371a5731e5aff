"""Who votes is part of what is stored, and those who do not are not heard."""

import pytest

from raftspine.cluster import raft_frames as frames
from raftspine.errors import Misuse
from raftspine.model import NodeId
from raftspine.ports import Remove
from tests.support.bare_engine import FAIL_REASON, BareNet, Name
from tests.support.defects import bare, ours
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import outcome, play, with_cluster


@bare(18, "members after a restart", "are those of the command line")
def test_bare_members_after_a_restart(disk_net: BareNet) -> None:
    """Until the log has been applied again, a restarted node counts the members it was constructed with. How far it
    may apply is written down once a second, so within a second of a change it is elected by a quorum that is
    none."""
    net = disk_net
    a, b, c = net.nodes("abc", dynamicMembershipChange=True)
    net.elect(a)
    net.settle(rounds=2)
    for name in "de":
        new = net.start(name, "abcde")
        net.rejoin(new)
        a.engine.addNodeToCluster(Name(name))
        net.settle(rounds=3)
    assert b.members == ["a", "c", "d", "e"] and a.commit == a.last
    net.kill(b)
    b = net.start("b", "abc")
    assert b.members == ["a", "c"]
    net.join(b, c)
    net.elect(b, c)
    assert b.leads, "by two votes of five"


@ours(18, "members after a restart", "are those of the journal", "cluster.raft_host.RaftHost.add_group")
def test_ours_members_after_a_restart() -> None:
    """A group's voters are in its journal with the log; what the configuration says counts for a new group only."""

    async def scene(cluster):
        node = cluster.leader()
        voters = node.host.status(GROUP).voters
        assert len(voters) == 3
        node.crash(power=True)
        node.cluster.voters, before = lambda group: [node.name], node.cluster.voters
        node.start()
        node.cluster.voters = before
        assert node.host.status(GROUP).voters == voters

    with_cluster(scene)


@bare(18, "late answer of a removed node", "raises in the leader")
def test_bare_late_answer_of_a_removed_node(net: BareNet) -> None:
    """An acknowledgement that was under way when its sender was removed is a KeyError in the middle of a tick."""
    a, _, c = net.lead(dynamicMembershipChange=True)
    a.beat()
    net.deliver(a, c)
    late = net.take(c, a)
    a.engine.removeNodeFromCluster(Name("c"))
    a.tick()
    with pytest.raises(KeyError):
        net.inject(c, a, late)


@ours(18, "late answer of a removed node", "is not heard", "cluster.raft_group.RaftGroup.deliver")
def test_ours_late_answer_of_a_removed_node() -> None:
    """A frame of a node that does not vote ends before any rule looks at it."""

    async def scene(puppet):
        term = await puppet.elect()
        answered = (frames.APPENDED, term, True, 0, puppet.log.last + 1)
        for stranger in ("z", "d"):
            assert await puppet.hear(stranger, *answered) == []
        assert puppet.engine.leads and puppet.engine.commit == 0

    play(scene)


@bare(18, "removed node", "is not told and deposes the leader")
def test_bare_removed_node(net: BareNet) -> None:
    """The removed node is disconnected when the change is appended, so it never sees it. It campaigns on, and where
    its messages still arrive the healthy leader steps down."""
    a, b, c = net.lead(dynamicMembershipChange=True)
    a.engine.removeNodeFromCluster(Name("c"))
    a.tick()
    net.cut(a, c)
    net.settle(a, b)
    net.cut(b, c)
    assert c.members == ["a", "b"] and a.members == ["b"]
    net.join(a, c)
    c.campaign()
    net.deliver(c, a)
    assert not a.leads and a.term == c.term > 1


@ours(18, "removed node", "cannot move a term", "cluster.raft_group.RaftGroup.deliver")
def test_ours_removed_node() -> None:
    """Neither a pre-vote nor a vote of a node that is no voter is answered, and no term is learned from one."""

    async def scene(puppet):
        term = await puppet.elect()
        for frame in (
            (frames.PREVOTE, term + 9, 1, 99, term + 9),
            (frames.VOTE, term + 9, 99, term + 9, True),
            (frames.STALE, term + 9),
            (frames.APPENDED, term + 9, False, 0, 1),
        ):
            assert await puppet.hear("z", *frame) == []
        assert puppet.engine.leads and puppet.engine.term == term

    play(scene)


@bare(18, "leader removes itself", "is refused for ever")
def test_bare_leader_removes_itself(net: BareNet) -> None:
    """A leader cannot be taken out of its cluster; nothing hands its leadership over first."""
    a, *_ = net.lead(dynamicMembershipChange=True)
    heard: list[object] = []
    a.engine.removeNodeFromCluster(Name("a"), callback=lambda result, reason: heard.append(reason))
    net.settle()
    assert heard == [FAIL_REASON.REQUEST_DENIED] and a.leads


@ours(18, "leader removes itself", "hands leadership over", "cluster.raft_host.RaftHost.transfer")
def test_ours_leader_removes_itself() -> None:
    """A leader refuses to remove itself and can give leadership away at any time; its successor removes it, and
    a node that was no founder is refused a new group."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        assert (await outcome(leader.host.change(GROUP, Remove(leader.member)))).code == "no_leader"
        to = next(name for name in cluster.names if name != leader.name)
        assert await leader.host.transfer(GROUP, to)
        await cluster.until(lambda: cluster.leader() is cluster.nodes[to])
        await cluster.until(lambda: cluster.nodes[to].host.status(GROUP).applied == leader.host.status(GROUP).last)
        assert leader.member not in (await cluster.nodes[to].host.change(GROUP, Remove(leader.member))).voters
        with pytest.raises(Misuse, match="no voter"):
            leader.host.add_group(GROUP + 7, [NodeId("x"), NodeId("y")])

    with_cluster(scene)


@bare(18, "newcomer", "counts before it has a single entry")
def test_bare_newcomer(net: BareNet) -> None:
    """There are no learners: with one of three nodes down, adding a fourth that is still empty and slow stops all
    writes until it has everything."""
    a, b, c = net.lead(dynamicMembershipChange=True)
    net.isolate(c)
    before = a.put("before")
    net.settle(a, b)
    assert before.acknowledged
    d = net.start("d", "abcd")
    net.join(a, d)
    net.hold(a, d)
    a.engine.addNodeToCluster(Name("d"))
    after = a.put("after")
    net.settle(a, b, d, rounds=50)
    assert after.heard == [] and d.last == 1


@ours(18, "newcomer", "counts for nothing until it is a voter", "cluster.raft_host.RaftHost.add_group")
def test_ours_newcomer() -> None:
    """Frames of a node that is not in the journal's list are neither counted nor answered, and the majority stays
    what it was."""

    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert puppet.engine.commit == puppet.log.last
        assert {out[0] for out in await puppet.turn(beat=True)} <= {"b", "c"}

    play(scene)
