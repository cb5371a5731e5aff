"""An entry of any permitted size reaches every replica as it is."""

import pytest

from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import with_cluster

BATCH = 1 << 16


@bare(15, "sizes near a multiple of 64 KiB", "can never be replicated")
def test_bare_sizes(net: BareNet) -> None:
    """A large entry is sent in pieces of its pickle, but the last piece is found by the length of the command: for
    some sizes it is announced too early, the follower unpickles half an entry and fails, and so for ever."""
    a, b = net.lead("ab")
    a.engine._applyCommand(b"x" * (2 * BATCH - 21), None, 1)
    for _ in range(10):
        with pytest.raises(EOFError):
            net.settle(rounds=3)
        net.take(a, b)
        net.take(b, a)
        net.cut(a, b)
        net.join(a, b)
        a.set_private("raftNextIndex", dict.fromkeys(a.engine.otherNodes, b.last + 1))
    assert b.last < a.last and a.commit < a.last


@ours(
    15, "sizes near a multiple of 64 KiB", "arrive", "cluster.frames.Sealer", "cluster.raft_flow.Flow._entries_from"
)
def test_ours_sizes() -> None:
    """Entries are not cut; frames have one length, in front."""

    async def scene(cluster):
        sizes = [near + step for near in (BATCH, 2 * BATCH, 4 * BATCH) for step in (-60, -40, -21, -20, -1, 0, 1, 20)]
        for number, size in enumerate(sizes):
            value = "x" * size
            await cluster.leader().host.propose(GROUP, command(f"r{number}", "append", "k", value))
        await cluster.settled()
        for node in cluster.nodes.values():
            assert [len(value) for value in node.machine.state(0).lists["k"]] == sizes

    with_cluster(scene)
