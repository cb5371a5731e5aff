"""The driver: who gets which answer, what is held back for the disk, and how a group gets into and out of
trouble."""

import asyncio
from hashlib import sha256

import pytest
from structlog.testing import capture_logs

from raftspine.cluster.raft_host import RaftLimits
from raftspine.errors import Corrupt, Misuse, NoSpace, TooLarge, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Doubt, Mark, Members, Position
from tests.support.raft_cluster import State, command
from tests.support.raft_scenes import others, outcome, with_cluster

G = GroupId(0)


# ── proposals ──────────────────────────────────────────────────────────────────────────────────────────────


def test_proposals_of_one_turn_share_an_entry_and_each_gets_its_own_result():
    async def scene(cluster):
        host = cluster.leader().host
        before = host.status(G).last
        answers = await asyncio.gather(*[host.propose(G, command(f"r{n}", "append", "k", n)) for n in range(100)])
        assert answers == list(range(1, 101))
        assert host.status(G).last == before + 1
        await cluster.settled()

    with_cluster(scene)


def test_large_batches_close_an_entry_at_its_limit():
    async def scene(cluster):
        host = cluster.leader().host
        before = host.status(G).last
        big = [host.propose(G, command(f"r{n}", "append", "k", "x" * 900)) for n in range(10)]
        await asyncio.gather(*big)
        assert host.status(G).last == before + 5
        refused = await outcome(host.propose(G, b"x" * 6000))
        assert isinstance(refused, TooLarge)

    with_cluster(scene, limits=RaftLimits(entry_bytes=2000, command_bytes=5000))


def test_elsewhere_than_the_leader_nothing_is_proposed_and_the_leader_is_named():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        for node in others(cluster, leader):
            for future in (node.host.propose(G, b"x"), node.host.read_index(G)):
                error = await outcome(future)
                assert isinstance(error, Unavailable)
                assert (error.code, error.details["leader"]) == ("no_leader", leader.name)
        error = await outcome(leader.host.propose(GroupId(9), b"x"))
        assert (error.code, error.details["leader"]) == ("no_leader", None)

    with_cluster(scene)


def test_too_many_waiting_proposals_are_refused_as_overload():
    async def scene(cluster):
        host = cluster.leader().host
        futures = [host.propose(G, command(f"r{n}", "append", "k", n)) for n in range(12)]
        answers = [await outcome(future) for future in futures]
        assert answers[:10] == list(range(1, 11))
        assert [answer.code for answer in answers[10:]] == ["overloaded", "overloaded"]
        assert await host.propose(G, command("later", "append", "k", 0)) == 11

    with_cluster(scene, limits=RaftLimits(outstanding=10))


def test_a_deposed_leader_tells_its_callers_unknown_and_not_no():
    async def scene(cluster):
        leader = cluster.leader()
        cluster.network.partition([leader.name], [node.name for node in others(cluster, leader)])
        answer = await outcome(leader.host.propose(G, command("r", "append", "k", 1)))
        assert isinstance(answer, Unknown)
        assert leader.host.status(G).role != "leader"
        assert (await outcome(leader.host.propose(G, b"x"))).code == "no_leader"

    with_cluster(scene)


def test_an_entry_another_leader_replaced_is_unknown_to_its_caller():
    async def scene(cluster):
        leader = cluster.leader()
        heal = cluster.network.partition([leader.name], [node.name for node in others(cluster, leader)])
        lost = leader.host.propose(G, command("r", "append", "k", "lost"))
        await cluster.until(lambda: cluster.leader() is not leader and cluster.leader())
        await cluster.leader().host.propose(G, command("s", "append", "k", "kept"))
        heal()
        assert isinstance(await outcome(lost), Unknown)
        await cluster.settled()
        assert leader.machine.state(0).lists["k"] == ["kept"]

    with_cluster(scene)


def test_wait_applied_wakes_followers_soon_after_the_commit():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        await leader.host.propose(G, command("r", "append", "k", 1))
        index = await leader.host.read_index(G)
        start = cluster.loop.time()
        for node in cluster.nodes.values():
            await node.host.wait_applied(G, index)
            assert node.machine.state(0).lists["k"] == [1]
        assert cluster.loop.time() - start < 0.02

    with_cluster(scene)


# ── the disk ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sole_voter_answers_only_what_its_disk_has():
    async def scene(cluster):
        node = cluster.leader()
        node.disk.sync_seconds = (0.5, 0.5)
        start = cluster.loop.time()
        answer = node.host.propose(G, command("r", "append", "k", 1))
        await cluster.pause(0.4)
        assert node.machine.state(0).lists == {}
        assert await answer == 1
        assert cluster.loop.time() - start == pytest.approx(0.5, abs=0.01)
        node.host.propose(G, command("s", "append", "k", 2))
        await cluster.pause(0.1)
        node.crash()
        node.start()
        await cluster.settled()
        assert node.machine.state(0).lists.get("k") in ([1], [1, 2])

    with_cluster(scene, size=1)


def test_no_vote_and_no_acknowledgement_leaves_before_the_sync():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        for node in others(cluster, leader):
            node.disk.sync_seconds = (2.0, 2.0)
        start = cluster.loop.time()
        assert await leader.host.propose(G, command("r", "append", "k", 1)) == 1
        assert cluster.loop.time() - start >= 2.0

    with_cluster(scene)


@pytest.mark.parametrize(("fault", "kind"), [("full", NoSpace), ("broken", Unavailable)])
def test_a_journal_that_cannot_be_written_acknowledges_nothing_and_recovers(fault, kind):
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        setattr(leader.disk, fault, True)
        waiting = leader.host.propose(G, command("r", "append", "k", 1))
        assert isinstance(await outcome(waiting), Unknown)
        assert "cannot be written" in leader.host.read_only()
        assert "cannot be written" in leader.host.status(G).reason
        assert leader.host.status(G).role == "follower"
        assert type(await outcome(leader.host.propose(G, b"x"))) is kind
        await cluster.until(lambda: cluster.leader() not in (None, leader))
        await cluster.leader().host.propose(G, command("s", "append", "k", 2))
        setattr(leader.disk, fault, False)
        await cluster.settled()
        assert leader.host.read_only() is None
        leader.crash()
        leader.start()
        await cluster.settled()

    with_cluster(scene)


def test_a_snapshot_of_which_only_the_state_machine_got_to_hear_is_where_the_log_goes_on():
    async def scene(cluster):
        node = cluster.leader()
        for number in range(5):
            await node.host.propose(G, command(f"r{number}", "append", "k", number))
        await node.machine.flush()
        ahead = State.load(node.machine.stored[0])
        ahead.position = Position(100, ahead.position.term)
        node.host._groups[G].log.expect(ahead.position, 7, Members((node.name,)))
        await node.host._outbox.flushed()
        node.crash(power=False)
        node.machine.states[0] = ahead
        node.start()
        await cluster.until(cluster.leader)
        assert node.host.status(G).applied >= 100
        assert await node.host.propose(G, command("next", "append", "k", 9)) == 6

    with_cluster(scene, size=1)


@pytest.mark.parametrize("position", [Position(2, 99), Position(3, 1), Position(1000, 1)])
def test_a_state_the_journal_contradicts_refuses_the_start(position):
    async def scene(cluster):
        node = cluster.leader()
        for number in range(20):
            await node.host.propose(G, command(f"r{number}", "append", "k", number))
        await cluster.pause(3)
        node.crash(power=False)
        node.machine.state(0).position = position
        with pytest.raises(Corrupt, match="group 0"):
            node.start()

    limits = RaftLimits(compact_entries=10, keep_entries=4) if position.index == 3 else None
    with_cluster(scene, size=1, limits=limits)


def test_a_node_that_is_no_voter_is_refused():
    async def scene(cluster):
        with pytest.raises(Misuse, match="no voter"):
            cluster.leader().host.add_group(GroupId(5), [NodeId("x"), NodeId("y")])

    with_cluster(scene, size=1)


# ── trouble in the state machine ───────────────────────────────────────────────────────────────────────────


def test_an_exception_in_apply_halts_that_group_there_and_nothing_else():
    async def scene(cluster):
        follower = others(cluster, cluster.leader())[0]
        follower.machine.fail_at = lambda group, at: RuntimeError("a bug") if group == 0 else None
        leader = cluster.leader().host
        assert await leader.propose(G, command("r", "append", "k", 1)) == 1
        await cluster.until(lambda: follower.host.status(G).role == "halted")
        assert "a bug" in follower.host.status(G).reason
        applied = follower.host.status(G).applied
        assert await leader.propose(G, command("s", "append", "k", 2)) == 2
        assert follower.host.status(G).applied == applied
        second = await cluster.until(lambda: cluster.leader(1))
        assert await second.host.propose(GroupId(1), command("r", "append", "k", 1)) == 1
        await follower.host.wait_applied(GroupId(1), second.host.status(GroupId(1)).last)
        error = await outcome(follower.host.wait_applied(G, applied + 1))
        assert "halted" in error.message

    with_cluster(scene, groups=2)


def test_a_leader_whose_group_halts_answers_unknown_and_another_takes_over():
    async def scene(cluster):
        leader = cluster.leader()
        leader.machine.fail_at = lambda group, at: RuntimeError("a bug")
        assert isinstance(await outcome(leader.host.propose(G, command("r", "append", "k", 1))), Unknown)
        assert leader.host.leader(G) is None
        other = await cluster.until(lambda: cluster.leader() is not leader and cluster.leader())
        assert await other.host.propose(G, command("r", "append", "k", 1)) == 1

    with_cluster(scene)


def test_a_state_machine_without_space_is_waited_for():
    async def scene(cluster):
        leader = cluster.leader()
        leader.machine.fail_at = lambda group, at: NoSpace("the map is full")
        assert isinstance(await outcome(leader.host.propose(G, command("r", "append", "k", 1))), (Unknown, int))
        assert "full" in leader.host.status(G).reason
        other = await cluster.until(lambda: cluster.leader() is not leader and cluster.leader())
        await other.host.propose(G, command("s", "append", "k", 2))
        leader.machine.fail_at = None
        await cluster.settled()
        assert leader.host.status(G).reason is None

    with_cluster(scene)


# ── catching up ────────────────────────────────────────────────────────────────────────────────────────────


SMALL = RaftLimits(compact_entries=20, keep_entries=5)


def test_a_follower_left_behind_gets_a_snapshot_and_logs_stay_short():
    async def scene(cluster):
        leader = cluster.leader()
        sleeper = others(cluster, leader)[0]
        sleeper.crash()
        for number in range(200):
            await cluster.leader().host.propose(G, command(f"r{number}", "append", "k", number))
            await cluster.pause(0.02)
        assert cluster.leader().host.status(G).last >= 200
        assert len(cluster.leader().host._groups[G].log.rows) < 150
        sleeper.start()
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1
        assert sleeper.machine.state(0).lists["k"] == list(range(200))
        sleeper.crash()
        sleeper.start()
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1

    with_cluster(scene, limits=SMALL)


def test_a_snapshot_goes_on_where_a_broken_link_stopped_it():
    async def scene(cluster):
        leader = cluster.leader()
        sleeper = others(cluster, leader)[0]
        sleeper.crash()
        for number in range(60):
            await cluster.leader().host.propose(G, command(f"r{number}", "append", "k", "x" * 300))
            await cluster.pause(0.05)
        sleeper.start()
        for _ in range(20):
            await cluster.pause(0.03)
            cluster.network.reset(cluster.leader().name, sleeper.name)
        await cluster.settled()
        assert cluster.watch.counts["snapshots installed"] == 1
        assert cluster.watch.counts["snapshots sent"] <= 2

    with_cluster(scene, limits=SMALL)


def test_a_snapshot_that_is_not_what_was_sent_is_not_installed():
    async def scene(cluster):
        leader = cluster.leader()
        await leader.host.propose(G, command("r", "append", "k", 1))
        await cluster.settled()
        follower = others(cluster, leader)[0]
        term, before = leader.host.status(G).term, follower.machine.state(0).dump()
        receiver = follower.host._receiver

        def offer(anew=False):
            return receiver.offer(leader.name, [0, term, 999, term, 0, follower.host.members(G), anew])

        def chunk(number, data, check=None, term=term):
            sum = sha256(data).digest() if check is None else check
            return receiver.chunk(leader.name, [0, term, 999, term, number, sum, data])

        def install(count, digest):
            return receiver.install(leader.name, [0, term, 999, term, count, digest])

        with pytest.raises(Unavailable, match="was offered"):
            chunk(0, b"unasked")
        assert offer() == [0, 0, sha256().digest()]
        assert chunk(0, b"garbage") == [1, 0]
        assert chunk(0, b"again") == [1, 0], "a chunk that comes twice changes nothing"
        assert chunk(5, b"too early") == [1, 0]
        with pytest.raises(Unavailable, match="damaged"):
            chunk(1, b"changed on the way", check=sha256(b"sent").digest())
        assert offer() == [1, 0, sha256(b"garbage").digest()], "an offer that comes again is told what is here"
        assert offer(anew=True)[0] == 0
        chunk(0, b"garbage")
        with pytest.raises(Unavailable, match="checksum"):
            install(1, b"not the digest")
        with pytest.raises(Unavailable, match="was offered"):
            install(1, sha256(b"garbage").digest())
        with pytest.raises(Unavailable, match="takes no snapshot"):
            chunk(0, b"", term=term - 1)
        assert follower.machine.state(0).dump() == before
        assert await leader.host.propose(G, command("s", "append", "k", 2)) == 2
        await cluster.settled()

    with_cluster(scene)


def test_a_snapshot_for_another_life_of_the_node_leaves_what_is_staged_alone():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        host = others(cluster, leader)[0].host
        receiver, term = host._receiver, leader.host.status(G).term

        def call(to, index):
            body = [to, 0, term, index, term, 0, host.members(G), False]
            return host._receive_snapshot(receiver.offer, leader.name, body)

        assert call(host.member, 999)[0] == 0
        with pytest.raises(Unavailable, match="is for") as refused:
            call(f"{host.member}~1", 1000)
        assert refused.value.code == "snapshot_refused", "a transfer that will never be taken ends at once"
        assert receiver.progress(G).index == 999

    with_cluster(scene)


def test_a_state_in_doubt_is_replaced_also_by_a_snapshot_of_a_place_that_was_installed_before():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        host = others(cluster, leader)[0].host
        receiver, term, group = host._receiver, leader.host.status(G).term, host._groups[G]
        at = host._machine.position(G)
        receiver._finished[G] = at
        body = [0, term, *at, 0, b""]
        assert receiver.install(leader.name, body) is True, "the answer was lost, and is given again"
        group.audit.doubt = Doubt(True, Mark(1, 0, b"x"), "differs")
        with pytest.raises(Unavailable, match="was offered"):
            receiver.install(leader.name, body)

    with_cluster(scene)


@pytest.mark.parametrize("stop", [False, True])
def test_a_rolling_restart_leaves_no_group_without_a_leader_for_a_second(stop):
    """Each node in turn: handed over before a planned stop; killed, after an election at most."""

    async def scene(cluster):
        worst = dict.fromkeys(range(6), 0.0)
        since = {}
        done = False

        async def watch():
            while not done:
                for group in worst:
                    if cluster.leader(group) is not None:
                        since.pop(group, None)
                    else:
                        begun = since.setdefault(group, cluster.loop.time())
                        worst[group] = max(worst[group], cluster.loop.time() - begun)
                await cluster.pause(0.01)

        await cluster.settled()
        watching = asyncio.ensure_future(watch())
        for node in cluster.nodes.values():
            if stop:
                await node.host.step_down_all()
                await node.host.stop()
            node.crash(power=not stop)
            await cluster.pause(1.0)
            node.start()
            await cluster.settled()
            await cluster.pause(12.0)  # leaders spread again
        done = True
        await watching
        assert max(worst.values()) < (1.0 if stop else 3.0), worst

    with_cluster(scene, groups=6)


@pytest.mark.parametrize("body", [None, [], [0, 1, 2, 3, b"x"], ["g", 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, "x", 1, 1]])
@pytest.mark.parametrize("addressed", [True, False])
def test_malformed_messages_are_refused_and_the_node_goes_on(body, addressed):
    async def scene(cluster):
        host = cluster.leader().host
        for answer in (host._receiver.offer, host._receiver.chunk, host._receiver.install):
            call = [host.member, *body] if addressed and body is not None else body
            with pytest.raises(Exception, match=r"malformed|takes no snapshot|is for"):
                host._receive_snapshot(answer, NodeId("n2"), call)
        host._receive(NodeId("n2"), body)
        frames = [[0, 3, 1, 0, 0, 0, [[1, "text"]]], "nonsense", [77, 6, 1]]
        host._receive(NodeId("n2"), ["n2", host.member, frames])
        assert host.ignored_frames >= 3
        assert await host.propose(G, command("r", "append", "k", 1)) == 1

    with_cluster(scene)


def test_a_member_that_sends_what_cannot_be_read_is_reported_once_and_changes_nothing():
    async def scene(cluster):
        await cluster.settled()
        host = cluster.leader().host
        before, ignored = host.status(G), host.ignored_frames
        with capture_logs() as logs:
            for _ in range(5):
                host._receive(NodeId("n2"), ["n2", host.member, [[0, 5, "a term"], [0, 99, 1]]])
                host._receive(NodeId("n2"), "no list")
        assert host.ignored_frames == ignored + 15 and host.frames_ignored() >= host.ignored_frames
        assert [(entry["peer"], entry["log_level"]) for entry in logs] == [("n2", "warning")]
        assert host.status(G) == before

    with_cluster(scene)


# ── leadership ─────────────────────────────────────────────────────────────────────────────────────────────


def test_leadership_is_handed_over_without_an_election_gap():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        to = others(cluster, leader)[1]
        heard = []
        to.host.on_leader_change(lambda group, who: heard.append((group, who)))
        start = cluster.loop.time()
        assert await leader.host.transfer(G, to.name)
        await cluster.until(lambda: cluster.leader() is to)
        assert cluster.loop.time() - start < 0.2
        assert (G, to.name) in heard
        assert not await leader.host.transfer(G, to.name)

    with_cluster(scene)


def test_a_handover_to_a_node_that_is_cut_off_is_called_off():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        gone = others(cluster, leader)[0]
        gone.crash()
        await leader.host.propose(G, command("r", "append", "k", 1))
        moving = asyncio.ensure_future(leader.host.transfer(G, gone.name))
        await cluster.pause(0.05)
        answer = leader.host.propose(G, command("s", "append", "k", 2))
        assert await moving is False
        assert await answer == 2

    with_cluster(scene)


def test_a_planned_stop_gives_all_leaderships_away_and_answers_everybody():
    async def scene(cluster):
        for group in range(6):
            await cluster.until(lambda group=group: cluster.leader(group))
        await cluster.settled()
        node = cluster.nodes[NodeId("n1")]
        assert node.host.leading() >= 1
        await node.host.step_down_all()
        assert node.host.leading() == 0
        waiting = node.host.wait_applied(G, 10_000)
        await node.host.stop()
        assert isinstance(await outcome(waiting), Unavailable)
        assert isinstance(await outcome(node.host.propose(G, b"x")), Unavailable)

    with_cluster(scene, groups=6)


def test_a_planned_stop_amid_a_handover_that_fails_gives_leadership_to_another():
    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        deaf, other = others(cluster, leader)
        cluster.network.cut(leader.name, deaf.name)
        await leader.host.propose(G, command("r", "append", "k", 1))
        handover = leader.host._groups[G].begin_handover(deaf.member, cluster.loop.time() + 0.5)
        assert handover is not None
        await leader.host.step_down_all()
        assert handover.ended.result() is False
        assert leader.host.status(G).role != "leader"
        await cluster.until(lambda: other.host.status(G).role == "leader", 1.0)

    with_cluster(scene)


def test_leaders_spread_to_the_preferred_replicas():
    async def scene(cluster):
        def spread():
            return all(
                (leader := cluster.leader(group)) and leader.name == cluster.voters(group)[0] for group in range(6)
            )

        await cluster.until(spread, 10)
        cluster.nodes[NodeId("n2")].crash()
        await cluster.until(lambda: all(cluster.leader(group) for group in range(6)))
        cluster.nodes[NodeId("n2")].start()
        await cluster.until(spread, 60)

    with_cluster(scene, groups=6)


def test_the_leaders_time_goes_on_where_the_log_left_it_although_its_clock_is_behind():
    async def scene(cluster):
        leader = cluster.leader()
        await leader.host.propose(G, command("r", "append", "k", 1))
        stamped = leader.machine.state(0).time_ms
        for node in others(cluster, leader):
            node.clock.offset_ms -= 3_600_000
        leader.crash()
        second = await cluster.until(cluster.leader)
        await second.host.propose(G, command("s", "append", "k", 2))
        assert second.machine.state(0).time_ms == stamped

    with_cluster(scene)
