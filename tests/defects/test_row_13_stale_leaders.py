"""Whoever cannot reach a majority is no leader, and must notice; whoever was cut off must not depose one."""

from raftspine.cluster import raft_frames as frames
from raftspine.errors import SpineError
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import kinds, others, outcome, play, with_cluster


@bare(13, "no quorum", "goes on as leader for 30 s")
def test_bare_no_quorum(net: BareNet) -> None:
    """A leader hears nobody and calls itself leader until half a minute has passed; its successor has long been
    writing."""
    a, b, c = net.lead()
    net.isolate(a)
    net.elect(b, c)
    net.settle(b, c)
    cut_at = net.clock.seconds
    while a.leads:
        net.wait(0.5)
        a.tick()
    assert 25 < net.clock.seconds - cut_at < 35
    assert b.leads and b.term > a.term


@ours(13, "no quorum", "steps down within a second", "cluster.raft_types.RaftTiming")
def test_ours_no_quorum() -> None:
    """CheckQuorum: a majority must have been heard within the last second."""

    async def scene(puppet):
        await puppet.elect()
        await puppet.pause(0.9)
        await puppet.turn(beat=True)
        assert puppet.engine.leads
        await puppet.pause(0.2)
        await puppet.turn(beat=True)
        assert not puppet.engine.leads
        assert puppet.group.leader is None

    play(scene)


@bare(13, "returning node", "deposes a healthy leader")
def test_bare_returning_node(net: BareNet) -> None:
    """A node that hears nobody raises its term with each attempt; when it is heard again, everybody follows it into
    that term."""
    a, b, c = net.lead()
    for other in (a, b):
        net.hold(other, c)
        net.hold(c, other)
    c.set_private("raftElectionDeadline", 0)
    net.settle(rounds=300)
    assert a.leads and a.term == 1 and c.term > 10
    for other in (a, b):
        for way in ((other, c), (c, other)):
            net.take(*way)
            net.release(*way)
    c.campaign()
    net.deliver(c, a)
    assert not a.leads and a.term > 10


@ours(13, "returning node", "leaves the term as it is", "cluster.raft_guard.Guard.may_campaign")
def test_ours_returning_node() -> None:
    """PreVote: the term rises only when a majority would vote, and nobody votes against a leader that is heard."""

    async def alone(puppet):
        for _ in range(100):
            await puppet.pause(0.1)
            assert set(kinds(await puppet.turn())) <= {frames.PREVOTE}
        assert puppet.engine.term == 0

    async def loyal(puppet):
        await puppet.feed("b", 1, 0, 0, 0, [1, b"\x01"])
        assert await puppet.hear("c", frames.PREVOTE, 1, 5, 9, 9) == [("c", frames.PREVOTED, 1, 5, False)]
        assert await puppet.hear("c", frames.VOTE, 2, 9, 9, False) == []
        assert puppet.engine.term == 1

    play(alone)
    play(loyal)


@bare(13, "read at a deposed leader", "returns what was overwritten")
def test_bare_read_at_a_deposed_leader(net: BareNet) -> None:
    """There is no read but that of the local state, and nothing tells whether it is still the latest."""
    a, b, c = net.lead()
    a.put("old")
    net.settle()
    net.isolate(a)
    net.elect(b, c)
    answer = b.put("new")
    net.settle(b, c)
    net.wait(10)
    a.tick()
    assert answer.acknowledged and a.leads
    assert a.data == ["old"]


@ours(13, "read at a deposed leader", "is refused", "cluster.raft_reads.Reads")
def test_ours_read_at_a_deposed_leader() -> None:
    """ReadIndex: a read waits for a majority's echo from after the question."""

    async def scene(cluster):
        leader = cluster.leader()
        await leader.host.propose(GROUP, command("r", "write", "k", "old"))
        heal = cluster.network.partition([leader.name], [node.name for node in others(cluster, leader)])
        reads = [leader.host.read_index(GROUP)]
        second = await cluster.until(lambda: cluster.leader() is not leader and cluster.leader())
        await second.host.propose(GROUP, command("s", "write", "k", "new"))
        reads.append(leader.host.read_index(GROUP))
        for read in reads:
            assert isinstance(await outcome(read), SpineError)
        heal()

    with_cluster(scene)
