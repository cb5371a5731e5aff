"""A member has one vote, however often it arrives."""

from raftspine.cluster import raft_frames as frames
from tests.support.bare_engine import BareNet
from tests.support.defects import bare, ours
from tests.support.raft_scenes import play


@bare(6, "repeated vote", "elects two leaders in one term")
def test_bare_repeated_vote(net: BareNet) -> None:
    """Votes are counted, not voters: with five nodes a candidate that hears one vote twice believes in a majority of
    three, and so does the one that really has it."""
    a, b, c, d, e = net.nodes("abcde")
    for candidate in (a, d):
        candidate.campaign()
    net.deliver(a, b)
    vote = net.take(b, a)
    net.inject(b, a, vote + vote)
    for voter in (c, e):
        net.deliver(d, voter)
        net.deliver(voter, d)
    assert a.leads and d.leads and a.term == d.term


@ours(6, "repeated vote", "counts once and a stranger's never", "cluster.raft_guard.Guard._voted")
def test_ours_repeated_vote() -> None:
    """The guard hands each member's vote of a term to the engine once."""

    async def scene(puppet):
        while not puppet.engine.campaigns:
            await puppet.pause(0.1)
            for out in await puppet.turn():
                if out[1] == frames.PREVOTE:
                    await puppet.hear(out[0], frames.PREVOTED, out[2], out[3], True)
        term = puppet.engine.term
        for source in ("b", "b", "b", "zz"):
            await puppet.hear(source, frames.VOTED, term)
        await puppet.hear("c", frames.VOTED, term - 1)
        assert not puppet.engine.leads
        await puppet.hear("c", frames.VOTED, term)
        assert puppet.engine.leads

    play(scene, size=5)
