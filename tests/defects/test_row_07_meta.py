"""Term, vote and commit index are worth what the log beside them is worth."""

from collections.abc import Sequence
from typing import Any

from raftspine.cluster import raft_frames
from raftspine.errors import SpineError
from raftspine.model import NodeId
from raftspine.sim.loop import VirtualLoop, run
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import Cluster, command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import others, outcome, with_cluster
from tests.support.ring_site import Site, story


@bare(7, "commit index beyond the log", "acknowledges without a quorum")
def test_bare_commit_index_beyond_the_log(disk_net: BareNet) -> None:
    """The commit index is kept in a file of its own. After a power loss that took the younger end of the journals it
    lies beyond the log, and whatever a leader appends below it is committed at once."""
    net = disk_net
    nodes = net.lead()
    synced = {node.name: node.journal_file.read_bytes() for node in nodes}
    nodes[0].put_all("x", 20)
    net.settle(rounds=8)
    net.wait(2.0)
    for node in nodes:
        node.tick()  # writes the commit index down
    for node in nodes:
        net.kill(node)
    restarted = []
    for node in nodes:
        node.journal_file.write_bytes(synced[node.name])
        restarted.append(net.start(node.name, "abc"))
    a, b, _ = restarted
    net.join(a, b)
    net.elect(a, b)
    net.isolate(a)
    answer = a.put("alone")
    a.tick()
    a.tick()
    assert a.commit > a.last
    assert answer.acknowledged, "and no other node is connected"


@ours(7, "commit index beyond the log", "starts at what the state machine holds", "cluster.raft_host.RaftHost._align")
def test_ours_commit_index_beyond_the_log() -> None:
    """No commit index is stored. After a power loss of all nodes a leader that is cut off acknowledges nothing."""

    async def scene(cluster):
        for number in range(20):
            await cluster.leader().host.propose(GROUP, command(f"r{number}", "append", "k", number))
        nodes = list(cluster.nodes.values())
        for node in nodes:
            node.crash(power=True)
        for node in nodes:
            node.start()
            status = node.host.status(GROUP)
            assert status.commit == node.machine.position(GROUP).index <= status.last
        leader = await cluster.until(cluster.leader)
        for other in others(cluster, leader):
            other.crash()
        assert isinstance(await outcome(leader.host.propose(GROUP, command("alone", "append", "k", 1))), SpineError)
        for other in others(cluster, leader):
            other.start()
        await cluster.until(cluster.leader)
        await cluster.settled()
        assert leader.machine.state(0).lists["k"][:20] == list(range(20))

    with_cluster(scene)


@bare(7, "unreadable term and vote", "votes twice in one term")
def test_bare_unreadable_term_and_vote(disk_net: BareNet) -> None:
    """The file with term and vote is replaced without a sync; when it comes back empty, the node has never voted."""
    net = disk_net
    a, b, c = net.nodes("abc")
    a.campaign()
    net.deliver(a, b)
    net.deliver(b, a)
    net.kill(b)
    b.meta_file.write_bytes(b"")
    b = net.start("b", "abc")
    assert b.term == 0
    net.join(b, c)
    c.campaign()
    net.deliver(c, b)
    net.deliver(b, c)
    assert a.leads and c.leads and a.term == c.term


@ours(7, "unreadable term and vote", "a vote leaves only when it is on disk", "cluster.raft_outbox.Outbox")
def test_ours_unreadable_term_and_vote() -> None:
    """The vote is a record of the same log as the entries. In the moment it leaves, power fails at its sender; what
    comes back has voted."""

    def votes(seed: int) -> None:
        async def main(loop: VirtualLoop) -> None:
            cluster = Cluster(loop, 3)
            send, left = cluster.network.send, []

            def watched(source: NodeId, target: NodeId, message: Sequence[Any], *, bulk: bool) -> bool:
                for frame in _frames(message):
                    if frame[1] == raft_frames.VOTED and not left:
                        left.append((source, target, frame[2]))
                        loop.call_soon(lambda: cluster.nodes[source].crash(power=True))
                return send(source, target, message, bulk=bulk)

            cluster.network.send = watched
            cluster.start()
            [(voter, candidate, term)] = await cluster.until(lambda: left)
            await cluster.until(lambda: cluster.nodes[voter].host is None)
            cluster.nodes[voter].start()
            log = cluster.nodes[voter].host._groups[GROUP].log
            assert (log.term, log.vote) == (term, candidate)

        run(main, seed=seed)

    for seed in range(10):
        votes(seed)


def _frames(message: Any) -> list[Any]:
    """The Raft frames in a message between nodes, wherever the layers in between have put them."""
    if raft_frames.well_formed(message):
        return [message]
    if not isinstance(message, (list, tuple)):
        return []
    return [frame for part in message for frame in _frames(part)]


@bare(7, "journal lost as a whole", "starts as if it had never voted")
def test_bare_journal_lost(disk_net: BareNet) -> None:
    """A member whose files are gone takes part at once, under its old name: it and one other elect a leader without
    the entries the three had acknowledged."""
    net = disk_net
    a, b, c = net.lead()
    net.isolate(c)
    answer = a.put("kept?")
    net.settle(a, b)
    assert answer.acknowledged
    net.kill(a)
    net.kill(b)
    b.journal_file.unlink()
    b.meta_file.unlink()
    b = net.start("b", "abc")
    net.join(b, c)
    net.elect(c, b)
    net.settle(b, c)
    assert c.leads and "kept?" not in c.data


@ours(7, "journal lost as a whole", "comes back as another member", "services.identity.Identity")
def test_ours_journal_lost() -> None:
    """A node whose journal is gone takes no part under its old name, whatever else it still has: it asks, is recorded
    under another, and neither votes nor counts before the leaders have put that one in its place."""

    async def main(site: Site) -> None:
        c = site.cluster.hosts[NodeId("c")]
        c.crash(power=True)
        c.wipe(store=False)
        c.start()
        assert c.node is not None and c.node.raft.groups() == ()
        await site.until(lambda: site.cluster.ready(c), "c is ready")
        assert c.node.raft.member.startswith("c~")
        for group in c.node.raft.groups():
            assert "c" not in site.node("a").raft.status(group).voters

    story(main)
