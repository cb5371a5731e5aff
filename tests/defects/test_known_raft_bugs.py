"""Bugs that other Raft implementations have had, each as a scenario against this one.

The kinds are taken from public reports (the numbers name them where there is one) and from the list that etcd's
robustness tests keep of what they would have found. Those that are rows of our own engine's table are in
test_row_*.py: votes and terms lost in a restart (7), a leader that goes on without a quorum (13), a removed member
that campaigns and members forgotten in a restart (18).
"""

import asyncio

import pytest

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import SpineError, Unknown
from raftspine.model import NodeId
from raftspine.ports import Position
from raftspine.sim.disk import SimFile
from raftspine.sim.loop import VirtualLoop, run
from tests.support.raft_cluster import Cluster, Node, command
from tests.support.raft_puppet import GROUP, Puppet, entry
from tests.support.raft_scenes import kinds, others, outcome, play, with_cluster

SMALL = RaftLimits(compact_entries=20, keep_entries=5)


async def _write(cluster: Cluster, prefix: str, count: int) -> None:
    for number in range(count):
        leader = await cluster.until(cluster.leader)
        await leader.host.propose(GROUP, command(f"{prefix}{number}", "append", "k", f"{prefix}{number}"))


def _context(sent) -> int:
    """The read round that heartbeats among these frames announce."""
    return next(out[4] for out in sent if out[1] == frames.HEARTBEAT)


# ── reads ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_read_round_is_never_used_again():
    """Stale reads after a pause: a retried read kept its request id, so an echo to the first try confirmed the second
    (etcd-io/etcd#20418). Here a later term begins a round of its own, and no echo of an earlier one counts in it."""

    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        first = puppet.group.read_index()
        old = _context(await puppet.turn())
        await puppet.hear("c", frames.STALE, term + 1)
        assert isinstance(first.exception(), SpineError)
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        second = puppet.group.read_index()
        new = _context(await puppet.turn())
        assert new > old
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, old)
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term - 2, new)
        assert not second.done()
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, new)
        assert second.result() == puppet.engine.commit

    play(scene)


def test_a_pause_during_a_read_barrier_confirms_no_later_read():
    """A process stopped between asking for a quorum and hearing it wakes up with the old echoes in its sockets: they
    speak for the reads from before the pause only, and the first look at the clock ends the leadership."""

    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        early = puppet.group.read_index()
        asked = _context(await puppet.turn())
        await puppet.pause(10.0)  # stopped; meanwhile b and c elect another and write
        late = puppet.group.read_index()
        puppet.group.deliver(NodeId("b"), [GROUP, frames.HEARTBEAT_ECHO, term, asked])
        await puppet.turn()
        assert early.done() and not late.done()
        await puppet.hear("b", frames.STALE, term + 1)
        assert isinstance(late.exception(), SpineError)

    play(scene)


def test_a_leader_that_wakes_up_from_a_long_pause_steps_down_before_it_reads():
    """After a suspended virtual machine wakes up, its timers fire late: whoever trusted a lease or a timer served
    reads first. A leader that has heard nobody for so long leads no more in that very turn."""

    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        await puppet.pause(60.0)
        read = puppet.group.read_index()
        await puppet.turn(beat=True)
        assert not puppet.engine.leads
        assert isinstance(read.exception(), SpineError)

    play(scene)


def test_no_read_before_an_entry_of_the_own_term():
    """A new leader may not know yet what its predecessor committed; reads at its commit index were stale
    (etcd-io/etcd#7331)."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1), entry(1, "committed by b"))
        term = await puppet.elect()
        assert puppet.engine.commit == 1
        read = puppet.group.read_index()
        sent = await puppet.turn(beat=True)
        for peer in ("b", "c"):
            await puppet.hear(peer, frames.HEARTBEAT_ECHO, term, _context(sent))
        assert not read.done()
        sent = await puppet.hear("b", frames.APPENDED, term, True, 2, puppet.log.last + 1)
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, _context(sent))
        assert read.result() == puppet.log.last == 3

    play(scene)


# ── commits ────────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_of_an_older_term_are_not_committed_by_counting():
    """An entry of an earlier term on a majority may still be overwritten (Raft, figure 8); it is committed only below
    one of the leader's own term (bakwc/PySyncObj#169, async-raft#108)."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 0, entry(1), entry(1, "x"), entry(1, "y"))
        term = await puppet.elect()
        for peer in ("b", "c"):
            await puppet.hear(peer, frames.APPENDED, term, True, 0, 4)
        assert puppet.engine.commit == 0
        await puppet.hear("b", frames.APPENDED, term, True, 3, 5)
        assert puppet.engine.commit == 4

    play(scene)


def test_an_uncommitted_tail_that_was_replaced_is_never_applied():
    """Entries were handed to the state machine from a buffer that a truncation had not reached."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1), *[entry(1, f"lost {number}") for number in range(4)])
        assert puppet.engine.applied == 1
        await puppet.feed("c", 2, 1, 1, 3, entry(2), entry(2, "kept"))
        assert puppet.machine.state(0).lists["k"] == ["kept"]
        assert puppet.engine.applied == puppet.log.last == 3

    play(scene)


@pytest.mark.parametrize("seed", range(10))
def test_a_single_node_answers_for_what_is_on_its_disk(seed):
    """With one voter an entry is committed as soon as it is appended; etcd answered before it was synced and could
    lose the write (etcd-io/etcd#14370)."""

    async def main(loop: VirtualLoop) -> None:
        cluster = Cluster(loop, 1)
        [node] = cluster.nodes.values()
        cluster.start()
        await cluster.until(cluster.leader)
        for number in range(5):
            node.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        kept = await node.host.propose(GROUP, command("last", "append", "k", "last"))
        node.crash(power=True)
        node.start()
        await cluster.settled()
        assert node.machine.state(0).lists["k"][:kept] == [0, 1, 2, 3, 4, "last"]

    run(main, seed=seed)


def test_a_sync_that_failed_is_not_made_good_by_the_next(monkeypatch: pytest.MonkeyPatch):
    """After a failed fsync the kernel may call the pages clean: the next one succeeds without having written them,
    and what rested on them was acknowledged. Here everything is written anew before anything is."""
    synced = SimFile._synced

    def forgets(file: SimFile, future: asyncio.Future[None], covered: int) -> None:
        if file._disk.broken and not file._dead:
            data = file._file.data
            data[file._file.synced : covered] = bytes(covered - file._file.synced)
        synced(file, future, covered)

    monkeypatch.setattr(SimFile, "_synced", forgets)

    async def scene(cluster):
        node = cluster.leader()
        await _write(cluster, "before ", 5)
        node.disk.broken = True
        assert isinstance(await outcome(node.host.propose(GROUP, command("r", "append", "k", "unknown"))), Unknown)
        node.disk.broken = False
        await cluster.until(lambda: node.host.read_only() is None and cluster.leader())
        await _write(cluster, "after ", 5)
        node.crash(power=True)
        node.start()
        await cluster.until(cluster.leader)
        await cluster.settled()
        wanted = [f"{when} {number}" for when in ("before", "after") for number in range(5)]
        assert [value for value in node.machine.state(0).lists["k"] if value != "unknown"] == wanted

    with_cluster(scene, size=1)


@pytest.mark.parametrize("seed", range(8))
def test_what_a_killed_process_left_in_the_page_cache_is_synced_before_it_is_acknowledged(seed):
    """A process dies between writing an entry and syncing it. The next one reads it back, the leader offers it again,
    there is nothing to write, and the acknowledgement left at once: for bytes that only the page cache had."""

    async def main(loop: VirtualLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        leader = await cluster.until(cluster.leader)
        await cluster.settled()
        follower, third = others(cluster, leader)
        third.crash()
        follower.disk.sync_seconds = (0.6, 0.7)
        leader.host.propose(GROUP, command("r", "append", "k", "kept"))
        index = leader.host._groups[GROUP].log.last + 1
        await cluster.until(lambda: follower.host.status(GROUP).last == index)
        follower.crash(power=False)
        follower.start()
        await cluster.until(lambda: any(host.status(GROUP).commit >= index for host in cluster.hosts()))
        for node in (leader, follower):
            node.crash(power=True)
        follower.start()
        third.start()
        survivor = await cluster.until(cluster.leader)
        await survivor.host.wait_applied(GROUP, await survivor.host.read_index(GROUP))
        assert survivor.machine.state(0).lists.get("k") == ["kept"]

    run(main, seed=seed)


# ── elections ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_with_a_higher_term_and_an_older_log_does_not_block_the_others():
    """With PreVote a node whose term had risen refused its leader's appends and could not be elected itself: the
    group was stuck. Here the leader hears of the term, and the next election brings all together."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        behind = others(cluster, leader)[0]
        cut = [(leader.name, behind.name), (others(cluster, leader)[1].name, behind.name)]
        for way in cut:
            cluster.network.cut(*way)
        await _write(cluster, "x", 5)
        behind.host._groups[GROUP].engine.adopt(99, leader.name)
        for way in cut:
            cluster.network.heal(*way)
        await cluster.until(lambda: cluster.leader() and cluster.leader().host.status(GROUP).term >= 99)
        await _write(cluster, "y", 5)
        await cluster.settled()

    with_cluster(scene)


def test_only_the_present_leader_can_ask_for_a_campaign():
    """A late or forged request to take over made a follower disturb a healthy leader."""

    async def scene(puppet):
        await puppet.feed("b", 2, 0, 0, 1, entry(2))
        for source, term in (("c", 2), ("b", 1), ("c", 3), ("b", 3)):
            await puppet.hear(source, frames.TIMEOUT_NOW, term)
            assert not puppet.engine.campaigns and not puppet.group.forced()
        assert frames.VOTE in kinds(await puppet.hear("b", frames.TIMEOUT_NOW, 2))
        assert puppet.engine.term == 3

    play(scene)


def test_a_handover_that_failed_leaves_a_leader_that_works():
    """A leader that waited for a successor which never took over refused proposals for ever."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        to = others(cluster, leader)[0]
        cluster.network.cut(to.name, leader.name)
        cluster.network.cut(leader.name, to.name)
        assert not await leader.host.transfer(GROUP, to.name)
        assert await leader.host.propose(GROUP, command("r", "append", "k", 1)) == 1

    with_cluster(scene)


@pytest.mark.parametrize("hours", [-24, -1, 1, 24])
def test_wall_clocks_that_jump_move_no_leader_and_no_time_back(hours):
    """Leases and timeouts reckoned by the wall clock ended, or never did, when an operator set it."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        await _write(cluster, "x", 3)
        term, stamp = leader.host.status(GROUP).term, leader.machine.state(0).time_ms
        for node in cluster.nodes.values():
            node.clock.offset_ms += hours * 3_600_000
        await cluster.pause(10.0)
        await _write(cluster, "y", 3)
        assert cluster.leader() is leader and leader.host.status(GROUP).term == term
        assert leader.machine.state(0).time_ms >= stamp

    with_cluster(scene)


# ── logs that differ ───────────────────────────────────────────────────────────────────────────────────────


async def _pipe(leader: Puppet, follower: Puppet, echo: int) -> int:
    """Carry appends from one puppet to the other and the answers back, each answer `echo` times, until the logs are
    equal. How many appends that took."""
    appends, sent = 0, await leader.turn(beat=True)
    for _ in range(100):
        if leader.log.rows == follower.log.rows:
            return appends
        answers = []
        for out in sent:
            if out[0] == "b" and out[1] == frames.APPEND:
                appends += 1
                answers += [back for back in await follower.hear("b", *out[1:]) if back[1] == frames.APPENDED]
        sent = []
        for answer in answers:
            for _ in range(echo):
                sent += await leader.hear("b", *answer[1:])
        if not sent:
            await leader.pause(0.35)
            sent = await leader.turn(beat=True)
            await leader.hear("c", frames.HEARTBEAT_ECHO, leader.engine.term, 0)
    raise AssertionError(f"stuck after {appends} appends: {leader.terms()} and {follower.terms()}")


@pytest.mark.parametrize("echo", [1, 3])
def test_logs_that_differ_in_many_terms_meet_again(echo):
    """Leader and follower exchanged the same rejection and hint for ever (etcd-io/etcd#13418). Each round trip must
    get past a whole term, also when every answer arrives three times."""

    async def main(loop: VirtualLoop) -> None:
        leader, follower = Puppet(loop), Puppet(loop)
        mine = [1, 1, 3, 3, 5, 5, 7]
        theirs = [1, 1, 2, 2, 2, 4, 4, 4, 6, 6]
        for puppet, terms in ((leader, mine), (follower, theirs)):
            for index, term in enumerate(terms):
                before = terms[index - 1] if index else 0
                stored = await puppet.feed("c", term, index, before, 0, entry(term, f"{term}.{index}"))
                assert stored[0]
        await leader.pause(5.0)
        await leader.elect()
        assert await _pipe(leader, follower, echo) <= len(set(mine + theirs)) + 2

    run(main)


# ── snapshots ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_snapshot_takes_nothing_that_is_here():
    """An old snapshot, late on the network, cut the entries that followed it (etcd-io/etcd#1763, #1837)."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 5, entry(1), *[entry(1, f"x{number}") for number in range(9)])
        for index in (1, 5, 8, 10):
            assert puppet.group.holds(Position(index, 1)), "committed or in the log: it would add nothing"
        assert not puppet.group.holds(Position(8, 2)) and not puppet.group.holds(Position(11, 1))

    play(scene)


def test_an_append_during_an_installation_is_neither_stored_nor_answered():
    """Entries accepted while the state was being replaced were acknowledged and then dropped with the old log."""

    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 1, entry(1))
        puppet.group.installing = True
        assert kinds(await puppet.hear("b", frames.APPEND, 1, 1, 1, 2, [entry(1, "x")])) == []
        assert puppet.log.last == 1
        puppet.group.installing = False
        assert await puppet.feed("b", 1, 1, 1, 2, entry(1, "x")) == (True, 1, 3)

    play(scene)


def test_a_snapshot_ending_inside_a_divergent_tail_is_followed_by_appends():
    """A follower kept its own entry at the snapshot's last index, refused each append behind it, and was sent the
    same snapshot again and again (hashicorp/raft#704)."""

    async def scene(cluster):
        old = await _divergent(cluster)
        await cluster.settled(10.0)
        assert cluster.watch.counts["snapshots installed"] == 1
        assert old.machine.state(0).lists["k"] == [f"kept {number}" for number in range(60)]

    with_cluster(scene, limits=SMALL)


async def _divergent(cluster: Cluster) -> Node:
    """A node about to be brought back by a snapshot that ends inside of its own, longer tail: it led, was cut off and
    appended what nobody else has."""
    old = cluster.leader()
    assert old is not None and old.host is not None
    await cluster.settled()
    rest = others(cluster, old)
    heal = cluster.network.partition([old.name], [node.name for node in rest])
    log = old.host._groups[GROUP].log
    for number in range(200):
        log.append(entry(log.term, f"lost {number}")[1], log.last + 1, log.term)
    await cluster.until(lambda: cluster.leader() in rest)
    await _write(cluster, "kept ", 60)
    await cluster.until(lambda: all(node.host and node.host._groups[GROUP].log.base > 20 for node in rest))
    for node in rest:
        cluster.network.reset(old.name, node.name)
    heal()
    return old


def test_power_fails_between_a_snapshot_and_the_journal_that_hears_of_it():
    """The state was switched and the log was not: what the disk holds are two halves that seem to contradict each
    other, where the snapshot ends inside a tail that nobody else has."""

    async def scene(cluster):
        old = await _divergent(cluster)
        install, died = old.machine.install, []

        async def dies(*arguments):
            await install(*arguments)
            died.append(1)
            old.machine.install = install
            cluster.loop.call_soon(lambda: old.crash(power=True))

        old.machine.install = dies
        await cluster.until(lambda: died and old.host is None)
        old.start()
        await cluster.settled(10.0)
        assert old.machine.state(0).lists["k"] == [f"kept {number}" for number in range(60)]

    with_cluster(scene, limits=SMALL)


def _slow_install(node, seconds: float) -> None:
    install = node.machine.install

    async def slowly(*arguments):
        await asyncio.sleep(seconds)
        await install(*arguments)

    node.machine.install = slowly


def test_compaction_goes_on_during_an_installation_and_no_second_snapshot_is_needed():
    """The leader's log had moved on by the time a snapshot was installed, so another was due, and so for ever under
    load. Entries above a snapshot stay while it is on its way."""

    async def scene(cluster):
        leader = cluster.leader()
        sleeper = others(cluster, leader)[0]
        sleeper.crash()
        await _write(cluster, "a", 60)
        await cluster.until(lambda: leader.host._groups[GROUP].log.base > 20)
        _slow_install(sleeper, 1.5)
        sleeper.start()
        for number in range(40):
            await _write(cluster, f"b{number}.", 5)
            await cluster.pause(0.05)
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1

    with_cluster(scene, limits=SMALL)


def test_two_snapshots_in_a_row_and_a_power_loss_after_each():
    """The second snapshot found the leftovers of the first, or a log that began elsewhere (etcd lost and reverted
    revisions in crashes around compaction: #13766, #17780)."""

    async def scene(cluster):
        leader = cluster.leader()
        sleeper = others(cluster, leader)[0]
        for life in range(1, 4):
            sleeper.crash(power=True)
            await _write(cluster, f"{life}.", 80)
            await cluster.pause(3.0)
            sleeper.start()
            installed = life  # one more in each life
            await cluster.until(lambda wanted=installed: cluster.watch.counts.get("snapshots installed", 0) == wanted)
            sleeper.crash(power=True)
            sleeper.start()
            await cluster.settled()
            # A transfer that is not known to have ended keeps the log long enough to need no other.
            await cluster.until(lambda: not leader.host._groups[GROUP].sending)
        stored = sleeper.machine.state(0).lists["k"]
        assert stored == [f"{life}.{number}" for life in range(1, 4) for number in range(80)]

    with_cluster(scene, limits=SMALL)


def test_a_new_leader_sends_its_own_snapshot_over_half_of_anothers():
    """Chunks of two leaders' snapshots were mixed into one file."""

    async def scene(cluster):
        leader = cluster.leader()
        sleeper = others(cluster, leader)[0]
        sleeper.crash()
        for number in range(40):
            big = command(f"r{number}", "append", "k", f"{number} " + "x" * 300)
            await leader.host.propose(GROUP, big)
        await cluster.pause(4.0)
        sleeper.start()
        await cluster.until(lambda: cluster.watch.counts.get("snapshots sent", 0) == 1)
        await cluster.pause(0.005)
        assert cluster.watch.counts.get("snapshots installed", 0) == 0
        leader.crash()
        second = await cluster.until(lambda: cluster.leader())
        assert second is not leader
        leader.start()
        await cluster.settled()
        assert len(sleeper.machine.state(0).lists["k"]) == 40

    with_cluster(scene, limits=SMALL)
