"""Replication goes as fast as the followers answer, and a divergence costs round trips, not heartbeats."""

from raftspine.cluster import raft_frames as frames
from tests.support.bare_engine import HEARTBEAT_SECONDS, BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP, entry
from tests.support.raft_scenes import others, play, with_cluster


@bare(16, "waiting for the heartbeat", "a write waits up to 100 ms")
def test_bare_waiting_for_the_heartbeat(net: BareNet) -> None:
    """With the settings it comes with, nothing is sent until the next heartbeat is due, on links that need no
    time."""
    a, b, _ = net.lead()
    net.wait(HEARTBEAT_SECONDS * 1.1)
    a.tick()
    answer, asked = a.put("x"), net.clock.seconds
    while not answer.acknowledged:
        net.wait(0.001)
        a.tick()
        net.deliver(a, b)
        b.tick()
        net.deliver(b, a)
    assert net.clock.seconds - asked > 0.9 * HEARTBEAT_SECONDS


@ours(
    16, "waiting for the heartbeat", "300 puts are one append to each follower", "cluster.raft_group.RaftGroup._enter"
)
def test_ours_waiting_for_the_heartbeat() -> None:
    """What is proposed in a turn is one entry, sent in that turn; the answer takes a round trip and a sync."""

    async def scene(puppet):
        term = await puppet.elect()
        for peer in ("b", "c"):
            await puppet.hear(peer, frames.APPENDED, term, True, 0, puppet.log.last + 1)
        await puppet.turn()
        for number in range(300):
            puppet.group.propose(command(f"r{number}", "append", "k", number))
        sent = await puppet.turn()
        assert sorted(out[0] for out in sent if out[1] == frames.APPEND) == ["b", "c"]

    async def cluster_scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        start = cluster.loop.time()
        for number in range(10):
            await leader.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        assert (cluster.loop.time() - start) / 10 < 0.03

    play(scene)
    with_cluster(cluster_scene)


@bare(16, "divergent log", "needs 44 s for 200 entries")
def test_bare_divergent_log(net: BareNet) -> None:
    """A conflict is walked back one entry for each two heartbeats or so."""
    a, b, c = net.lead()
    net.isolate(a)
    a.put_all("lost", 200)
    a.tick()
    net.elect(b, c)
    b.put_all("kept", 200)
    net.settle(b, c)
    b.set_private("raftState", 0)
    net.elect(b, c)
    net.settle(b, c)
    net.rejoin(a)
    a.never_campaign()
    start, rounds = net.clock.seconds, 0
    while a.terms != b.terms and rounds < 2000:
        net.settle(rounds=1)
        rounds += 1
    assert a.terms == b.terms
    assert 20 < net.clock.seconds - start < 60


@ours(16, "divergent log", "jumps back by whole terms", "cluster.raft_guard.Guard._conflict")
def test_ours_divergent_log() -> None:
    """A follower names the first entry of the whole term that differs: one round trip for each such term."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 2, entry(1), entry(1, "x"))
        await puppet.feed("b", 2, 2, 1, 2, *[entry(2, f"lost {number}") for number in range(200)])
        assert await puppet.feed("c", 3, 202, 3, 2) == (False, 202, 3)
        assert await puppet.feed("c", 3, 2, 1, 2, *[entry(3, f"kept {number}") for number in range(200)])
        assert puppet.terms() == [1, 1] + [3] * 200

    async def cluster_scene(cluster):
        leader = cluster.leader()
        rest = others(cluster, leader)
        heal = cluster.network.partition([leader.name], [node.name for node in rest])
        log = leader.host._groups[GROUP].log
        for number in range(200):
            log.append(entry(log.term, f"lost {number}")[1], log.last + 1, log.term)
        await cluster.until(lambda: cluster.leader() in rest)
        await cluster.leader().host.propose(GROUP, command("r", "append", "k", "kept"))
        heal()
        await cluster.settled(5.0)
        assert leader.machine.state(0).lists["k"] == ["kept"]

    play(scene)
    with_cluster(cluster_scene)
