"""What raised once must not be run again on this replica alone."""

from raftspine.model import GroupId
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import others, with_cluster


@bare(10, "exception in apply", "repeats its side effects for ever")
def test_bare_exception_in_apply(net: BareNet) -> None:
    """The entry is tried again with each tick, on every replica; what it had done before it raised is done each time,
    and nothing behind it is ever applied."""
    a, b, _ = nodes = net.lead()
    a.put("boom")
    behind = a.put("behind")
    raised = 0
    for _ in range(40):
        net.wait(0.11)
        for node in nodes:
            try:
                node.tick()
            except RuntimeError:
                raised += 1
        for one in nodes:
            for other in nodes:
                if one is not other:
                    net.deliver(one, other)
    assert raised > 40
    assert a.data.count("boom") > 10 and b.data.count("boom") > 10
    assert "behind" not in a.data and behind.heard == []


@ours(
    10, "exception in apply", "halts that group there after one try", "cluster.raft_group.RaftGroup._apply_commands"
)
def test_ours_exception_in_apply() -> None:
    """The state machine has no exceptions; should one escape all the same, that group stops on that node with the
    reason. Other groups and other replicas go on."""

    async def scene(cluster):
        leader = cluster.leader()
        follower = others(cluster, leader)[0]
        tries = []

        def fails(group, at):
            if group == 0:
                tries.append(at)
                return RuntimeError("a bug")
            return None

        follower.machine.fail_at = fails
        assert await leader.host.propose(GROUP, command("r", "append", "k", 1)) == 1
        await cluster.until(lambda: follower.host.status(GROUP).role == "halted")
        assert await leader.host.propose(GROUP, command("s", "append", "k", 2)) == 2
        second = await cluster.until(lambda: cluster.leader(1))
        assert await second.host.propose(GroupId(1), command("r", "append", "k", 1)) == 1
        await follower.host.wait_applied(GroupId(1), second.host.status(GroupId(1)).applied)
        await cluster.pause(10.0)
        assert len(tries) == 1
        assert "a bug" in follower.host.status(GROUP).reason

    with_cluster(scene, groups=2)


@bare(10, "exception in a callback", "applies the command again on that node only")
def test_bare_exception_in_a_callback(net: BareNet) -> None:
    """The client's callback runs inside the loop that applies: when it raises, the entry counts as not applied, here
    and nowhere else."""
    a, b, c = net.lead()

    def cancelled(result: object, reason: object) -> None:
        raise ValueError("the caller has gone")

    a.put("once", callback=cancelled)
    for _ in range(6):
        try:
            net.settle(rounds=1)
        except ValueError:
            continue
    net.settle(rounds=3)
    assert a.data.count("once") > 1
    assert b.data == c.data == ["once"]


@ours(10, "exception in a callback", "applies it once", "cluster.raft_proposals.Proposals.applied")
def test_ours_exception_in_a_callback() -> None:
    """Callers get futures, and the loop calls back when the turn is over."""

    async def scene(cluster):
        leader = cluster.leader()
        failed: list[dict] = []
        cluster.loop.set_exception_handler(lambda loop, context: failed.append(context))

        def raises(done):
            raise ValueError("the caller has a bug")

        first = leader.host.propose(GROUP, command("r", "append", "k", 1))
        first.add_done_callback(raises)
        gone = leader.host.propose(GROUP, command("s", "append", "k", 2))
        gone.cancel()
        assert await leader.host.propose(GROUP, command("t", "append", "k", 3)) == 3
        await cluster.settled()
        for node in cluster.nodes.values():
            assert node.machine.state(0).lists["k"] == [1, 2, 3]
        [context] = failed
        assert isinstance(context["exception"], ValueError)

    with_cluster(scene)
