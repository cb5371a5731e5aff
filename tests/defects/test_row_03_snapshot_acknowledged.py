"""A follower may acknowledge a snapshot only when it has it."""

from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import Unavailable, Unknown
from raftspine.model import GroupId
from tests.support.bare_engine import BareNet, BareNode
from tests.support.defects import bare, ours
from tests.support.raft_cluster import Cluster, Node, command
from tests.support.raft_scenes import others, outcome, with_cluster

GARBAGE = (b"not a snapshot", True, False), (b"", False, True)
GROUP = GroupId(0)
SMALL = RaftLimits(compact_entries=20, keep_entries=5)


def _install(net: BareNet, a: BareNode, b: BareNode) -> list[dict]:
    """A snapshot from `a` that cannot be loaded arrives at `b`; what `b` answers."""
    for piece in GARBAGE:
        message = {"type": "append_entries", "term": a.term, "commit_index": a.commit, "serialized": piece}
        net.inject(a, b, [message])
    return net.in_flight(b, a)


async def _left_behind(cluster: Cluster) -> tuple[Node, Node]:
    """A node that is down and needs a snapshot when it returns, and the leader that would send it."""
    leader = cluster.leader()
    assert leader is not None and leader.host is not None
    sleeper = others(cluster, leader)[0]
    sleeper.crash()
    for number in range(60):
        await leader.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        await cluster.pause(0.05)
    await cluster.until(lambda: leader.host._groups[GROUP].log.base > 10)
    return sleeper, leader


@bare(3, "failed load", "answers that it was installed")
def test_bare_failed_load(disk_net: BareNet) -> None:
    """The exception in loading a dump is logged and swallowed, and the answer is the follower's own log end as if it
    had been compared."""
    net = disk_net
    a, b, _ = net.lead(logCompactionMinEntries=1000)
    before = b.terms, b.applied
    [answer] = _install(net, a, b)
    assert answer["success"] and answer["next_node_idx"] == b.last + 1
    assert (b.terms, b.applied) == before, "nothing was installed"


@ours(3, "failed load", "refuses and keeps the old state", "cluster.raft_snapshot.SnapshotReceiver._install")
def test_ours_failed_load() -> None:
    """What fails while it is installed is an error to the sender, and no acknowledgement: the old state stays, and
    the transfer is tried again."""

    async def scene(cluster):
        sleeper, _ = await _left_behind(cluster)
        install, refused = sleeper.machine.install, []

        async def refuses(group, at, chunks):
            if len(refused) < 2:
                refused.append(sleeper.machine.state(0).dump())
                status = cluster.leader().host._groups[GROUP]
                assert status.engine.match(sleeper.name) == 0, "nothing is counted for it"
                raise Unavailable("this disk is slow today")
            await install(group, at, chunks)

        sleeper.machine.install = refuses
        before = sleeper.machine.state(0).dump()
        sleeper.start()
        await cluster.settled()
        assert refused == [before, before]
        assert cluster.watch.counts["snapshots installed"] == 1

    with_cluster(scene, limits=SMALL)


@bare(3, "isolated leader", "acknowledges a write nobody else has")
def test_bare_isolated_leader(disk_net: BareNet) -> None:
    """A follower with a long tail of its own, left over from when it led, answers a snapshot it could not load with
    the end of that tail. The leader, cut off from everybody who has its entries, takes that for a majority."""
    net = disk_net
    b, a, c = net.lead("bac", logCompactionMinEntries=8)
    net.isolate(b)
    b.put_all("never", 40)
    b.tick()
    net.elect(a, c)
    for number in range(20):
        a.put(number)
        net.settle(a, c, rounds=1)
    net.settle(a, c)
    net.isolate(c)
    net.join(a, b)
    answers = a.put_all("alone", 3)
    a.tick()
    assert b.last > a.last
    net.take(a, b)
    _install(net, a, b)
    net.deliver(b, a)
    a.tick()
    assert all(answer.acknowledged for answer in answers)
    assert "alone2" in a.data and "alone2" not in b.data + c.data


@ours(3, "isolated leader", "is told nothing it could count", "cluster.raft_flow.Flow.snapshot_failed")
def test_ours_isolated_leader() -> None:
    """The follower's state machine refuses the snapshot; the leader, cut off from the third node, acknowledges
    nothing."""

    async def scene(cluster):
        sleeper, leader = await _left_behind(cluster)
        [third] = [node for node in others(cluster, leader) if node is not sleeper]
        third.crash()
        asked = []

        async def install(group, at, chunks):
            asked.append(at)
            raise RuntimeError("the disk ate it")

        sleeper.machine.install = install
        sleeper.start()
        await cluster.until(lambda: asked)
        answer = leader.host.propose(GROUP, command("alone", "append", "k", "alone"))
        assert isinstance(await outcome(answer), Unknown)
        assert sleeper.host.status(GROUP).role == "halted"
        assert "the disk ate it" in sleeper.host.status(GROUP).reason

    with_cluster(scene, limits=SMALL)
