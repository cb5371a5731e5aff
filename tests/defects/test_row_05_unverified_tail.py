"""A follower may call committed only what it has compared with the leader's log."""

from raftspine.cluster import raft_frames as frames
from tests.support.bare_engine import BareNet, BareNode
from tests.support.defects import bare, ours
from tests.support.raft_puppet import entry
from tests.support.raft_scenes import play


def _old_leader_returns(net: BareNet) -> tuple[BareNode, BareNode, list]:
    """`a` led, was cut off with three writes nobody else has, and is linked again to `b`, whose log has been
    compacted since. No process crashed, no message was lost or overtaken."""
    a, b, c = net.lead(logCompactionMinEntries=8, logCompactionBatchSize=64)
    net.isolate(a)
    answers = a.put_all("lost", 3)
    a.tick()
    net.elect(b, c)
    for number in range(30):
        b.put(number)
        net.settle(b, c, rounds=1)
    net.settle(b, c)
    net.join(a, b)
    return a, b, answers


@bare(5, "snapshot chunk", "acknowledges writes that are lost")
def test_bare_snapshot_chunk(disk_net: BareNet) -> None:
    """The chunk names the leader's commit index, and the follower applies its own tail up to there: its clients are
    told of success, then the snapshot replaces the state."""
    net = disk_net
    a, b, answers = _old_leader_returns(net)
    for _ in range(5):
        net.wait(0.11)
        b.tick()
        while net.deliver(b, a, 1):
            a.tick()
        net.deliver(a, b)
    assert all(answer.acknowledged for answer in answers)
    assert not {"lost0", "lost1", "lost2"} & set(b.data)


@ours(5, "snapshot chunk", "commits nothing", "cluster.raft_group.RaftGroup.leader_spoke")
def test_ours_snapshot_chunk() -> None:
    """A chunk proves that the leader lives and nothing about this log."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1), entry(1, "unverified"), entry(1, "too"))
        assert not puppet.group.leader_spoke(puppet.names[2], 2), "a frame has to say first which member leads"
        await puppet.hear("c", frames.HEARTBEAT, 2, 0, 0)
        assert puppet.group.leader_spoke(puppet.names[2], 2)
        await puppet.turn()
        assert puppet.engine.term == 2 and puppet.engine.leader == "c"
        assert puppet.engine.commit == 1
        assert puppet.machine.state(0).lists == {}

    play(scene)


@bare(5, "empty heartbeat", "acknowledges writes that are lost")
def test_bare_empty_heartbeat(disk_net: BareNet) -> None:
    """While the leader is still writing its snapshot, it sends a heartbeat without a place in the log; its commit
    index is believed all the same."""
    net = disk_net
    a, b, answers = _old_leader_returns(net)
    b.private("serializer")._Serializer__pid = -1  # a dump is being written
    net.wait(0.11)
    b.private("sendAppendEntries")()
    [heartbeat] = [message for message in net.in_flight(b, a) if message["type"] == "append_entries"][:1]
    assert heartbeat["serialized"] is None and "prevLogIdx" not in heartbeat
    net.deliver(b, a, 1)
    a.tick()
    assert all(answer.acknowledged for answer in answers)
    assert not {"lost0", "lost1", "lost2"} & set(b.data)


@ours(
    5,
    "empty heartbeat",
    "commits only what was compared",
    "cluster.raft_guard.Guard._take",
    "cluster.raft_flow.Flow.run",
)
def test_ours_empty_heartbeat() -> None:
    """A heartbeat names only what this follower has acknowledged in this term, and an empty append vouches for the
    entries before it alone."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1), entry(1, "unverified"), entry(1, "too"))
        assert await puppet.feed("c", 2, 1, 1, 3) == (True, 1, 2)
        assert puppet.engine.commit == 1
        await puppet.hear("c", frames.HEARTBEAT, 2, 1, 0)
        assert puppet.engine.commit == 1
        assert puppet.machine.state(0).lists == {}

    async def leader(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert puppet.engine.commit == puppet.log.last
        named = {out[0]: out[3] for out in await puppet.turn(beat=True) if out[1] == frames.HEARTBEAT}
        assert named == {"b": puppet.log.last, "c": 0}

    play(scene)
    play(leader)
