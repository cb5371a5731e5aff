"""An acknowledgement counts in the term it was given in, and in no other."""

from raftspine.cluster import raft_frames as frames
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_scenes import play


@bare(4, "answer from an older term", "commits a write on two of five nodes")
def test_bare_answer_from_an_older_term(net: BareNet) -> None:
    """A leader's entries are cut by a successor; it is elected again and new entries take the same indexes. An
    acknowledgement of the old ones, late on its way, counts for the new ones."""
    a, b, c, d, e = nodes = net.lead("abcde")
    a.put_all("cut", 8)
    a.beat()
    for far in (c, d, e):
        net.take(a, far)
    net.deliver(a, b)
    late = [message for message in net.take(b, a) if message["type"] == "next_node_idx"]
    net.elect(c, d, e)
    net.settle(c, d, e, rounds=3)
    net.settle(rounds=3)
    for one in nodes:
        for other in nodes:
            net.take(one, other)
    net.elect(a, d, e)
    answers = a.put_all("new", 3)
    a.beat()
    for far in (b, c, e):
        net.take(a, far)
    net.deliver(a, d)
    net.deliver(d, a)
    before = a.commit
    net.inject(b, a, late)
    a.tick()
    assert a.commit > before and all(answer.acknowledged for answer in answers)
    holders = [node.name for node in nodes if node.terms.get(a.commit) == a.term]
    assert holders == ["a", "d"], "two of five"
    net.isolate(a)
    net.isolate(d)
    net.elect(b, c, e)
    net.settle(b, c, e)
    assert not {"new0", "new1", "new2"} & set(b.data)


@ours(4, "answer from an older term", "counts for nothing", "cluster.raft_guard.Guard._current_answer")
def test_ours_answer_from_an_older_term() -> None:
    """Every frame carries its sender's term; an answer of another term is not one."""

    async def scene(puppet):
        term = await puppet.elect()
        outcome = puppet.group.propose(b"x")
        await puppet.turn()
        for peer in ("b", "c", "d", "e"):
            await puppet.hear(peer, frames.APPENDED, term - 1, True, 0, puppet.log.last + 1)
        assert puppet.engine.commit == 0
        assert not outcome.done()

    play(scene, size=5)
