"""Whoever proposes is owed one answer, and it must be true."""

from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import Unavailable, Unknown
from tests.support.bare_engine import FAIL_REASON, BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import others, outcome, with_cluster


@bare(12, "forwarded and lost", "never answers")
def test_bare_forwarded_and_lost(net: BareNet) -> None:
    """A follower passes commands on to its leader and waits without a limit; a reset in between leaves the caller
    waiting for ever."""
    a, b, _ = net.lead()
    answer = b.put("x")
    b.tick()
    assert [message["type"] for message in net.in_flight(b, a)] == ["apply_command"]
    net.cut(a, b)
    net.join(a, b)
    net.settle(rounds=600)
    assert answer.heard == [] and "x" not in a.data


@ours(12, "forwarded and lost", "says who leads and forwards nothing", "cluster.raft_group.RaftGroup.propose")
def test_ours_forwarded_and_lost() -> None:
    """A follower refuses at once, with the leader's name; nothing was appended anywhere."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        for node in others(cluster, leader):
            refused = node.host.propose(GROUP, b"x")
            assert refused.done()
            error = refused.exception()
            assert isinstance(error, Unavailable) and error.code == "no_leader"
            assert error.details["leader"] == leader.name

    with_cluster(scene)


@bare(12, "leader changed", "tells of failure what was applied")
def test_bare_leader_changed(net: BareNet) -> None:
    """The error that the leader has changed reaches a caller whose command is committed everywhere; it tries again,
    and the command is applied twice."""
    a, b, c = net.lead()
    answer = b.put("x")
    b.tick()
    net.deliver(b, a)
    a.tick()
    net.inject(a, b, [message for message in net.take(a, b) if message["type"] != "apply_command_response"])
    net.settle()
    assert "x" in b.data
    net.elect(c, b)
    net.settle(b, c)
    assert answer.reasons == [FAIL_REASON.LEADER_CHANGED]
    again = b.put("x")
    net.settle(b, c)
    assert again.acknowledged and c.data.count("x") == 2


@ours(
    12,
    "leader changed",
    "says unknown, and a repeated request counts once",
    "cluster.raft_proposals.Proposals.superseded",
)
def test_ours_leader_changed() -> None:
    """Of an entry in the log a deposed leader knows only that it may yet be applied; the same request id tried again
    at the next leader is applied once."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        request = command("r", "append", "k", "x")
        heals = [cluster.network.cut(other.name, leader.name) for other in others(cluster, leader)]
        first = leader.host.propose(GROUP, request)  # reaches the others; their answers do not come back
        assert isinstance(await outcome(first), Unknown)
        second = await cluster.until(lambda: cluster.leader() in others(cluster, leader) and cluster.leader())
        assert await second.host.propose(GROUP, request) == 1
        for other in others(cluster, leader):
            cluster.network.heal(other.name, leader.name)
        await cluster.settled()
        assert second.machine.state(0).lists["k"] == ["x"]
        assert len(heals) == 2

    with_cluster(scene)


@bare(12, "covered by a snapshot", "never answers")
def test_bare_covered_by_a_snapshot(disk_net: BareNet) -> None:
    """The caller waits for an index to be applied; a snapshot jumps over it."""
    net = disk_net
    a, b, c = net.lead(logCompactionMinEntries=8)
    answer = b.put("x")
    b.tick()
    net.deliver(b, a)
    a.tick()
    net.deliver(a, b)
    net.isolate(b)
    for number in range(30):
        a.put(number)
        net.settle(a, c, rounds=1)
    net.rejoin(b)
    net.settle(rounds=50)
    assert "x" in b.data and b.applied == a.applied
    assert answer.heard == []


@ours(12, "covered by a snapshot", "says unknown", "cluster.raft_proposals.Proposals.covered")
def test_ours_covered_by_a_snapshot() -> None:
    """Callers of entries a snapshot stands for are told that it does not say what became of them."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        cut = [node.name for node in others(cluster, leader)]
        heal = cluster.network.partition([leader.name], cut)
        waiting = leader.host.propose(GROUP, command("r", "append", "k", "mine"))
        second = await cluster.until(lambda: cluster.leader() not in (None, leader) and cluster.leader())
        for number in range(30):
            await second.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        await cluster.until(lambda: second.host._groups[GROUP].log.base > 10, 10)
        for name in cut:
            cluster.network.reset(leader.name, name)  # what is on its way is lost
        heal()
        assert isinstance(await outcome(waiting), Unknown)
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1
        assert leader.machine.state(0).lists["k"] == list(range(30))

    with_cluster(scene, limits=RaftLimits(compact_entries=5, keep_entries=2))
