"""Compaction may drop what a snapshot holds, and nothing else, at whatever moment the process dies."""

from pathlib import Path

import pytest

from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import SpineError
from raftspine.sim.loop import VirtualLoop, run
from tests.support.bare_engine import BareNet, Killed, on_disk, write_entries
from tests.support.defects import bare, ours
from tests.support.raft_cluster import Cluster, Node, command
from tests.support.raft_puppet import GROUP, entry
from tests.support.raft_scenes import play

SMALL = RaftLimits(compact_entries=20, keep_entries=4)


@bare(8, "killed after the dump", "clears the journal at the next start")
def test_bare_killed_after_the_dump(disk_net: BareNet) -> None:
    """A dump is newer than the journal when the process dies between writing the one and shortening the other. The
    next start finds that they do not begin at one place and empties the journal, with all that was acknowledged
    since."""
    net = disk_net
    a, b, c = net.lead(logCompactionMinEntries=20)
    a.put_all("x", 12)
    net.settle(rounds=5)
    a.put_all("y", 10)
    for _ in range(30):
        net.wait(0.11)
        a.tick()
        net.deliver(a, b)
        net.deliver(a, c)
        c.tick()
        net.deliver(c, a)
        b.tick()
        if b.dump_file.exists():
            break
        net.deliver(b, a)
    a.put_all("after", 7)
    a.beat()
    net.deliver(a, b)
    acknowledged = max(message["next_node_idx"] - 1 for message in net.in_flight(b, a) if message["success"])
    assert acknowledged == b.last
    net.kill(b)
    b = net.start("b", "abc")
    b.tick()
    assert b.last < acknowledged


@bare(8, "killed while shortening", "keeps 9 of 500 entries")
def test_bare_killed_while_shortening(tmp_path: Path) -> None:
    """The journal is shortened by clearing it and adding what is to stay, in place."""
    journal = write_entries(tmp_path / "j", 1000)
    add, count = journal.add, 0

    def dies(*entry: object) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise Killed
        add(*entry)

    journal.add = dies
    with pytest.raises(Killed):
        journal.deleteEntriesTo(500)
    journal._destroy()
    held = on_disk(tmp_path / "j")
    assert [index for _, index, _ in held] == list(range(501, 510)), "501 to 1000 should be here"


async def _write_until_it_dies(cluster: Cluster, node: Node) -> list[int]:
    """What it acknowledged."""
    kept: list[int] = []
    for number in range(400):
        if node.host is None:
            break
        done = node.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        await cluster.until(lambda done=done: done.done() or node.host is None)
        if not done.done() or isinstance(done.exception(), SpineError):
            break
        kept.append(number)
        await cluster.pause(0.05)
    return kept


def _life(*, dies_at: int | None = None, power: bool = False) -> list[bool]:
    """One node under writes, its log compacted and its journal rotated all the while. It dies when sync number
    `dies_at` begins, and must come back with all it acknowledged. Tells for each sync whether a rotation was under
    way."""
    rotating: list[bool] = []

    async def story(loop: VirtualLoop) -> None:
        cluster = Cluster(loop, 1, limits=SMALL, rotate_bytes=1000)
        [node] = cluster.nodes.values()
        cluster.start()
        await cluster.until(cluster.leader)

        def begins() -> None:
            if len(rotating) == dies_at:
                loop.call_soon(lambda: node.crash(power=power))
            rotating.append(len(node.disk.directory("raft").names()) > 1)

        node.disk.on_sync = begins
        kept = await _write_until_it_dies(cluster, node)
        node.disk.on_sync = None
        if dies_at is not None:
            assert node.host is None, "it did not die"
            node.start()
            await cluster.until(cluster.leader)
        await cluster.settled()
        assert node.machine.state(0).lists.get("k", [])[: len(kept)] == kept

    run(story, seed=3)
    return rotating


def _dies_at_every_kind_of_moment(*, power: bool) -> None:
    """Around each of the first rotations, and here and there between them."""
    rotations = [sync for sync, rotating in enumerate(_life()) if rotating]
    assert len(rotations) >= 3
    around = {sync + step for sync in rotations[:5] for step in (-1, 0, 1)}
    for sync in sorted({*around, 5, 25, 55, 80}):
        _life(dies_at=sync, power=power)


@ours(8, "killed after the dump", "keeps all it acknowledged", "cluster.raft_history.compact")
def test_ours_killed_after_the_dump() -> None:
    """State is stored in a transaction with its position, and the log starts wherever it ends: entries are dropped
    only once the state that holds them is on disk."""
    _dies_at_every_kind_of_moment(power=False)


@ours(8, "killed while shortening", "keeps all it acknowledged", "storage.journal.Journal._restate")
def test_ours_killed_while_shortening() -> None:
    """A new segment is written and synced as a whole before the old ones go; power fails at every kind of moment."""
    _dies_at_every_kind_of_moment(power=True)


@bare(8, "compaction beyond the log", "empties the journal")
def test_bare_compaction_beyond_the_log(disk_net: BareNet) -> None:
    """A dump is written for an index; before it is finished, a repeated append cuts the log below that index (row 1).
    The journal is then shortened by more than it holds, and each message fails from there on."""
    net = disk_net
    a, b, _ = net.lead(logCompactionMinEntries=20)
    a.put("early")
    a.beat()
    old = net.in_flight(a, b)
    net.settle()
    for number in range(30):
        a.put(number)
        net.wait(0.11)
        a.tick()
        net.deliver(a, b)
        b.tick()
        if b.dump_file.exists():
            break
        for other in net:
            net.deliver(a, other)
            net.deliver(other, a)
    assert b.dump_file.exists()
    net.inject(a, b, old)
    b.tick()
    assert len(b.log) == 0
    for _ in range(3):
        with pytest.raises(IndexError):
            net.inject(a, b, old)


@ours(8, "compaction beyond the log", "never passes what is applied", "cluster.raft_history.compact")
def test_ours_compaction_beyond_the_log() -> None:
    """Whatever position the state machine names, only what is applied and on disk here may leave."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 5, entry(1), *[entry(1, f"x{n}") for n in range(9)])
        assert puppet.engine.applied == 5
        assert puppet.group.compact(10_000)
        assert puppet.log.base == 5, "no further than what is applied here"
        assert [row[1] for row in puppet.log.rows[1:]] == [6, 7, 8, 9, 10]
        assert not puppet.group.compact(10_000)

    play(scene, limits=RaftLimits(keep_entries=1))
