"""Read rounds: who is asked, who has confirmed, and that no round is answered by an echo from before it."""

import asyncio
from asyncio import Future

from raftspine.cluster.raft_reads import Reads
from raftspine.model import NodeId

B, C, D, E = (NodeId(name) for name in "bcde")


def asked(reads: Reads, loop: asyncio.AbstractEventLoop, commit: int = 7) -> "Future[int]":
    reader: Future[int] = loop.create_future()
    reads.add(reader)
    assert reads.begin(commit)
    return reader


def confirm(reads: Reads, *peers: NodeId) -> None:
    for peer in peers:
        reads.echo(peer, reads.context)
    reads.settle()


def test_a_round_asks_just_enough_of_those_who_confirmed_the_last() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        reads = Reads((B, C, D, E))
        first = asked(reads, loop)
        assert reads.witnesses() == (B, C, D, E)[: len(reads.witnesses())]
        confirm(reads, C)
        assert not first.done()
        confirm(reads, D)
        assert first.result() == 7
        asked(reads, loop)
        assert reads.witnesses() == (C, D)
        confirm(reads, C, D)

    asyncio.run(story())


def test_when_one_of_them_falls_silent_all_are_asked_next() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        reads = Reads((B, C))
        confirm(reads)
        reader = asked(reads, loop)
        confirm(reads, B)
        reader = asked(reads, loop)
        assert reads.witnesses() == (B,)
        confirm(reads, C)  # B is down; the heartbeat asked C as well
        assert reader.done()
        asked(reads, loop)
        assert reads.witnesses() == (C,)
        confirm(reads, B, C)
        reads.context += 1  # a round nobody confirmed
        asked(reads, loop)
        assert reads.witnesses() == (B, C)

    asyncio.run(story())


def test_an_echo_of_an_older_round_confirms_nothing() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        reads = Reads((B, C))
        asked(reads, loop)
        old = reads.context
        confirm(reads, B)
        second = asked(reads, loop)
        reads.echo(B, old)
        reads.echo(C, old)
        reads.settle()
        assert not second.done()
        confirm(reads, C)
        assert second.done()

    asyncio.run(story())
