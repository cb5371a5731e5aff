"""A follower must cut its log only where an entry differs from the leader's."""

from raftspine.cluster import raft_frames as frames
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_puppet import entry
from tests.support.raft_scenes import kinds, play


@bare(1, "repeated append", "cuts entries it acknowledged")
def test_bare_repeated_append(net: BareNet) -> None:
    """Each append cuts everything behind its previous entry, also when nothing differs: an old append that arrives
    twice takes applied entries with it."""
    a, b, _ = net.lead()
    a.put("early")
    a.beat()
    old = net.in_flight(a, b)
    net.settle()
    answers = a.put_all("kept", 5)
    net.settle()
    assert all(answer.acknowledged for answer in answers)
    held = b.last
    net.inject(a, b, old)
    assert b.last < b.applied == held, "entries it has applied are gone from its log"


@ours(1, "repeated append", "cuts nothing", "cluster.raft_guard.Guard._take")
def test_ours_repeated_append() -> None:
    """What the follower has already is skipped and confirmed again."""

    async def scene(puppet):
        early = [entry(1), entry(1, "x")]
        assert await puppet.feed("b", 1, 0, 0, 0, *early) == (True, 0, 3)
        assert await puppet.feed("b", 1, 2, 1, 4, entry(1, "y"), entry(1, "z")) == (True, 2, 5)
        assert await puppet.feed("b", 1, 0, 0, 0, *early) == (True, 0, 3)
        assert puppet.log.last == 4
        assert puppet.machine.state(0).lists["k"] == ["x", "y", "z"]

    play(scene)


@bare(1, "stale rejection", "loses acknowledged writes in a leader crash")
def test_bare_stale_rejection(net: BareNet) -> None:
    """After a reset two rejections are under way. The second one arrives when everything has been sent: the leader
    starts over from the old place, in pieces, and the first piece makes the follower cut what it has acknowledged."""
    a, b, c = net.lead(appendEntriesBatchSizeBytes=60)
    net.cut(a, c)
    a.put_all("early", 2)
    a.beat()
    net.cut(a, b)
    net.join(a, b)
    for _ in range(2):
        a.beat()
    net.deliver(a, b)
    net.deliver(b, a, 1)
    answers = a.put_all("write", 6)
    a.beat()
    net.deliver(a, b)
    net.deliver(b, a, 1)
    a.beat()
    net.deliver(b, a)
    a.tick()
    assert all(answer.acknowledged for answer in answers)
    net.deliver(a, b, 1)
    assert b.last < a.commit, "the only other copy has lost committed entries"
    net.kill(a)
    net.elect(b, c)
    net.settle(b, c)
    assert not {"write3", "write4", "write5"} & set(b.data), "acknowledged, and gone for good"


@ours(1, "stale rejection", "resends nothing acknowledged", "cluster.raft_flow.Flow.refused")
def test_ours_stale_rejection() -> None:
    """A rejection at or below what the follower has acknowledged in this term is an old one."""

    async def scene(puppet):
        term = await puppet.elect()
        for _ in range(2):
            await puppet.hear("b", frames.APPENDED, term, False, puppet.log.last - 1, 1)
        outcome = puppet.group.propose(b"\x94\xa1r\xa6append\xa1k\xa1v")
        await puppet.turn()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert outcome.done() and puppet.engine.commit == puppet.log.last
        sent = await puppet.hear("b", frames.APPENDED, term, False, 0, 1)
        assert frames.APPEND not in kinds([out for out in sent if out[0] == "b"])
        assert puppet.engine.match(puppet.names[1]) == puppet.log.last

    play(scene)
