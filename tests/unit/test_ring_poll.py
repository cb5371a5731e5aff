"""Whom a quorum read asks, when it asks others as well, and that no replica counts twice."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftspine.errors import Unavailable
from raftspine.model import NodeId
from raftspine.services.poll import Poll
from raftspine.sim import loop as virtual
from raftspine.sim.loop import VirtualLoop
from tests.support.ring_site import Site
from tests.support.ring_site import story as cluster_story

B, C, D, E = (NodeId(each) for each in "bcde")


class Peers:
    """The part of ports.Rpc that a poll uses; a test answers each call by hand."""

    def __init__(self) -> None:
        self.calls: dict[NodeId, Future[Any]] = {}
        self.asked: list[tuple[NodeId, float]] = []

    def call(self, peer: NodeId, method: str, body: Any, *, timeout_ms: int, bulk: bool = False) -> "Future[Any]":
        assert peer not in self.calls, "each replica is asked once"
        loop = asyncio.get_running_loop()
        future: Future[Any] = loop.create_future()
        self.calls[peer] = future
        self.asked.append((peer, round(loop.time() - self.started, 3)))
        loop.call_later(timeout_ms / 1000, self.fail, peer)
        return future

    def answer(self, peer: NodeId) -> None:
        self.calls[peer].set_result(f"from {peer}")

    def fail(self, peer: NodeId) -> None:
        if not self.calls[peer].done():
            self.calls[peer].set_exception(Unavailable(f"no answer from {peer}", code="peer_down"))

    def poll(self, peers: tuple[NodeId, ...], needed: int, **how: Any) -> "Future[list[Any]]":
        self.started = asyncio.get_running_loop().time()
        return Poll(self, peers, "ring.get", None, needed, timeout_ms=2000, **how).future  # type: ignore[arg-type]


def story(main: Callable[[Peers], Coroutine[Any, Any, None]]) -> None:
    async def run(loop: VirtualLoop) -> None:
        await main(Peers())

    virtual.run(run)


async def refused(poll: "Future[list[Any]]") -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        await poll
    assert caught.value.code == "no_quorum"
    return caught.value


def test_no_more_are_asked_than_needed_while_they_answer() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C, D), 2)
        peers.answer(B)
        peers.answer(C)
        assert await poll == ["from b", "from c"]
        await asyncio.sleep(3)
        assert peers.asked == [(B, 0), (C, 0)]

    story(main)


def test_a_failure_is_replaced_at_once() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C), 1)
        peers.fail(B)
        await asyncio.sleep(0)
        peers.answer(C)
        assert await poll == ["from c"]
        assert peers.asked == [(B, 0), (C, 0)]

    story(main)


def test_a_hung_replica_is_not_waited_out() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C), 1)
        await asyncio.sleep(0.6)
        assert peers.asked == [(B, 0), (C, 0.5)]
        peers.answer(C)
        assert await poll == ["from c"]
        peers.answer(B)  # late: it changes nothing
        await asyncio.sleep(0)
        assert await poll == ["from c"]

    story(main)


def test_a_slow_replica_still_counts_and_counts_once() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C, D, E), 2)
        await asyncio.sleep(0.6)
        assert peers.asked == [(B, 0), (C, 0), (D, 0.5), (E, 0.5)], "one more for each that is missing"
        peers.answer(B)
        await asyncio.sleep(0.1)
        assert not poll.done(), "b alone is not two"
        peers.answer(E)
        assert await poll == ["from b", "from e"]

    story(main)


def test_too_few_are_refused_as_soon_as_it_is_certain() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C), 2)
        peers.fail(C)
        await refused(poll)
        assert asyncio.get_running_loop().time() == peers.started
        peers.fail(B)
        silent = Peers()
        error = await refused(silent.poll((B, C), 1))
        assert error.details == {"answered": 1, "needed": 2}
        assert asyncio.get_running_loop().time() - silent.started == pytest.approx(2.5)
        assert (await refused(Peers().poll((B,), 2))).details["answered"] == 1, "nobody is asked in vain"

    story(main)


def test_everyone_means_all_that_answer() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C, D), 1, everyone=True)
        peers.answer(B)
        peers.answer(D)
        await asyncio.sleep(1.9)
        assert not poll.done() and [peer for peer, _ in peers.asked] == [B, C, D]
        assert await poll == ["from b", "from d"]
        assert await Peers().poll((), 0, everyone=True) == []

    story(main)


def test_an_error_of_the_program_is_not_a_missing_replica() -> None:
    async def main(peers: Peers) -> None:
        poll = peers.poll((B, C), 1)
        peers.calls[B].set_exception(KeyError("a bug"))
        with pytest.raises(KeyError):
            await poll

    story(main)


def test_a_read_without_a_token_outlives_a_replica_that_hangs() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        first = site.node("a").topology.peers(site.group("x"))[0]
        handlers: dict[str, Any] = site.node(first).rpc._handlers
        handlers["ring.get"] = lambda peer, body: asyncio.get_running_loop().create_future()
        started = site.cluster.loop.time()
        assert await site.read("a", "x") == 1
        timeout = site.cluster.config.timing.ring_timeout_ms / 1000
        assert site.cluster.loop.time() - started < timeout / 2

    cluster_story(main)
