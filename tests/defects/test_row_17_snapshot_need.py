"""A follower that needs a snapshot costs the leader one transfer, and one that asks for the wrong place is still
fed."""

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_types import RaftLimits
from tests.support.bare_engine import BareNet, Name
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import entry
from tests.support.raft_scenes import play


@bare(17, "snapshot being written", "sends the same message without end")
def test_bare_snapshot_being_written(disk_net: BareNet) -> None:
    """While the dump is being written there is nothing to send, so the loop that sends goes round until its time is
    up, with a message each time."""
    net = disk_net
    a, b, c = net.lead(logCompactionMinEntries=8)
    net.isolate(c)
    for number in range(30):
        a.put(number)
        net.settle(a, b, rounds=1)
    net.rejoin(c)
    a.private("serializer")._Serializer__pid = 12345  # the child that writes the dump
    a.private("serializer").checkSerializing = lambda: (1, None)
    a.private("raftNextIndex")[Name("c")] = 2
    assert a.log[0][1] > 2
    net.wait(0.11)
    a.tick()
    messages = net.take(a, c)
    assert len(messages) > 1000, "in one tick"
    assert all(message == messages[0] for message in messages)


@ours(17, "snapshot being written", "sends heartbeats only", "cluster.raft_flow.Flow._feed")
def test_ours_snapshot_being_written() -> None:
    """A follower that needs entries the log no longer has is in a state of its own until the transfer has ended."""

    async def scene(puppet):
        term = await puppet.elect()
        for number in range(20):
            puppet.group.propose(command(f"r{number}", "append", "k", number))
            await puppet.turn()
            await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert puppet.group.compact(puppet.engine.applied)
        await puppet.hear("c", frames.APPENDED, term, False, 0, 1)
        puppet.group.flow.reconnected("c")
        for _ in range(5):
            await puppet.pause(0.1)
            await puppet.turn(beat=True)
        assert puppet.group.flow.snapshots_wanted == ["c"]
        for _ in range(20):
            sent = [out[1] for out in await puppet.turn(beat=True) if out[0] == "c"]
            assert sent == [frames.HEARTBEAT]
            await puppet.hear("b", frames.HEARTBEAT_ECHO, term, 0)
        assert puppet.group.flow.snapshots_wanted == ["c"]

    play(scene, limits=RaftLimits(keep_entries=1))


@bare(17, "rejection beyond the log", "starves the follower")
def test_bare_rejection_beyond_the_log(net: BareNet) -> None:
    """An old rejection may point behind the leader's last entry. The place before it does not exist, the message says
    so, and the follower, which knows no such place, asks for the end of its own longer log again."""
    a, b, c = net.lead()
    late = {"type": "next_node_idx", "next_node_idx": 500, "reset": True, "success": False}
    net.inject(c, a, [late])
    for index in range(c.last + 1, 400):  # what it holds from a term in which it led
        c.log.add(b"\1", index, 1)
    answer = a.put("x")
    net.settle(rounds=60)
    assert answer.acknowledged and "x" in b.data
    assert "x" not in c.data and c.applied < a.applied


@ours(17, "rejection beyond the log", "goes on from its own end", "cluster.raft_flow.Flow.refused")
def test_ours_rejection_beyond_the_log() -> None:
    """The next place is never behind what was asked about, so it exists; and the follower's longer tail is cut where
    it differs."""

    async def leader(puppet):
        await puppet.feed("b", 1, 0, 0, 5, *[entry(1, f"old {number}") for number in range(5)])
        term = await puppet.elect()
        first = puppet.log.last
        await puppet.hear("b", frames.APPENDED, term, True, first - 1, first + 1)
        await puppet.hear("c", frames.APPENDED, term, False, first - 1, 500)
        puppet.group.propose(command("r", "append", "k", "x"))
        sent = await puppet.turn()
        await puppet.pause(0.4)
        sent += await puppet.turn(beat=True)
        appends = [out for out in sent if out[0] == "c" and out[1] == frames.APPEND]
        assert appends and all(out[3] <= puppet.log.last for out in appends)

    async def follower(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1), *[entry(1, f"tail {number}") for number in range(99)])
        assert await puppet.feed("c", 2, 1, 1, 1, entry(2), entry(2, "x")) == (True, 1, 4)
        assert puppet.log.last == 3

    play(leader)
    play(follower)
