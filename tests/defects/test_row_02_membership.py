"""One membership change at a time, and none that the new majority cannot follow."""

import pickle

import pytest

from raftspine.cluster import raft_frames as frames
from raftspine.model import NodeId
from raftspine.ports import AddLearner, Remove
from tests.support.bare_engine import BareNet, Name
from tests.support.defects import bare, ours
from tests.support.raft_puppet import Puppet
from tests.support.raft_scenes import outcome, play


@bare(2, "two changes at once", "commits different entries at one index")
def test_bare_two_changes_at_once(net: BareNet) -> None:
    """The variable that should hold a second change back is never assigned: a cut-off leader adds two nodes, and they
    and it are a majority of five while the other two of the old three are one of theirs."""
    a, b, c = net.lead(dynamicMembershipChange=True)
    d, e = net.start("d", "abcd"), net.start("e", "abce")
    net.cut(a, b)
    net.cut(a, c)
    net.join(a, d)
    net.join(a, e)
    for node in (d, e):
        a.engine.addNodeToCluster(Name(node.name))
    net.settle(a, d, e, rounds=12)
    net.elect(b, c)
    one, other = a.put("one side"), b.put("other side")
    net.settle(a, d, e, rounds=8)
    net.settle(b, c, rounds=8)
    assert one.acknowledged and other.acknowledged
    assert "one side" in a.data and "other side" in b.data and "one side" not in b.data
    shared = [index for index in a.terms if index in b.terms and index <= min(a.commit, b.commit)]
    assert any(a.terms[index] != b.terms[index] for index in shared)


@bare(2, "unreachable newcomer", "commits nothing any more")
def test_bare_unreachable_newcomer(net: BareNet) -> None:
    """A node that does not exist may be added while another is down: the new majority cannot be reached, so neither
    the change nor anything behind it is ever committed."""
    a, b, c = net.lead(dynamicMembershipChange=True)
    net.isolate(c)
    heard = []
    a.engine.addNodeToCluster(Name("nobody"), callback=lambda result, reason: heard.append(reason))
    answer = a.put("x")
    net.settle(a, b, rounds=50)
    assert heard == [] and answer.heard == []
    assert a.members == ["b", "c", "nobody"]


def _engine_changes_have_no_way_in(puppet: Puppet) -> None:
    engine, before = puppet.engine, puppet.group.status(None).voters
    for change in (engine.addNodeToCluster, engine.removeNodeFromCluster):
        with pytest.raises(Exception, match=r"dynamicMembershipChange is disabled|pickle"):
            change("z")
    assert puppet.group.status(None).voters == before
    assert sorted(engine._peers) == sorted(before)


@ours(2, "two changes at once", "the second is refused", "cluster.raft_group.RaftGroup.change")
def test_ours_two_changes_at_once() -> None:
    """Members change by entries of our own, one at a time and only once the leader has committed one of its term. The
    engine's own changes cannot be reached, and an entry of its kind for them halts the group that meets it."""

    async def scene(puppet):
        term = await puppet.elect()
        refused = await outcome(puppet.group.change(Remove(puppet.names[2]), lambda member: True))
        assert refused.code == "change_in_progress"
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        first = puppet.group.change(AddLearner(NodeId("d")), lambda member: True)
        refused = await outcome(puppet.group.change(AddLearner(NodeId("e")), lambda member: True))
        assert refused.code == "change_in_progress" and not first.done()
        assert puppet.group.members.learners == ("d",)

    play(scene)
    play(_engine_has_no_say)


async def _engine_has_no_say(puppet: Puppet) -> None:
    _engine_changes_have_no_way_in(puppet)
    change = b"\x02" + pickle.dumps(["add", "z", "z"])
    await puppet.feed("b", 1, 0, 0, 2, [1, b"\x01"], [1, change])
    assert puppet.group.halted is not None and "2" in puppet.group.halted
    assert sorted(puppet.engine._peers) == sorted(puppet.names)


@ours(2, "unreachable newcomer", "is no voter and is not heard", "cluster.raft_group.RaftGroup.deliver")
def test_ours_unreachable_newcomer() -> None:
    """A majority is one of the voters in the journal, whoever else sends frames."""

    async def scene(puppet):
        term = await puppet.elect()
        for stranger in ("y", "z"):
            await puppet.hear(stranger, frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert puppet.engine.commit == 0
        await puppet.hear("b", frames.APPENDED, term, True, 0, puppet.log.last + 1)
        assert puppet.engine.commit == puppet.log.last
        assert NodeId("z") not in puppet.group.status(None).voters

    play(scene)
