"""Counting holders: what acknowledges a write, what fails it, and what is left behind."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.services.fanout import Fanout, Write
from raftspine.sim import loop as virtual
from raftspine.sim.loop import VirtualLoop

B, C = NodeId("b"), NodeId("c")
G = GroupId(0)


class TurnEngine:
    """Commits as the engine does: all that is staged before its flush shares a future, which the test resolves."""

    def __init__(self) -> None:
        self.commits: list[Future[None]] = []
        self._open: Future[None] | None = None

    def commit(self, *, durable: bool | None = None) -> "Future[None]":
        if self._open is None:
            self._open = asyncio.get_running_loop().create_future()
            self.commits.append(self._open)
            asyncio.get_running_loop().call_soon(self._flush)
        return self._open

    def _flush(self) -> None:
        self._open = None


class Peers:
    """The part of ports.Rpc that a fanout uses."""

    def __init__(self) -> None:
        self.sent: list[tuple[NodeId, int, int]] = []
        self.up = {B, C}
        self._ack: Any = None
        self._link: Any = None

    def serve(self, method: str, handler: Any) -> None:
        self._ack = handler

    def on_link(self, changed: Any) -> None:
        self._link = changed

    def connected(self, peer: NodeId) -> bool:
        return peer in self.up

    def cast(self, peer: NodeId, method: str, body: Any, *, bulk: bool = False) -> bool:
        self.sent.append((peer, body[0], len(body[1])))
        return peer in self.up

    def answer(self, peer: NodeId, batch: int, failed: tuple[int, ...] = (), told: Any = ()) -> None:
        self._ack(peer, (batch, list(failed), told, "clock_drift" if failed else ""))

    def last(self, peer: NodeId) -> int:
        return max(batch for to, batch, _ in self.sent if to == peer)

    def drop(self, peer: NodeId) -> None:
        self.up.discard(peer)
        self._link(peer, False)


class Site:
    def __init__(self, **more: Any) -> None:
        self.engine = TurnEngine()
        self.peers = Peers()
        self.fanout = Fanout(self.engine, self.peers, timeout_ms=2000, **more)  # type: ignore[arg-type]

    def write(self, needed: int = 2) -> Write:
        return self.fanout.start(G, b"version", (B, C), needed)


def story(main: Callable[[Site], Coroutine[Any, Any, None]], **more: Any) -> None:
    async def run(loop: VirtualLoop) -> None:
        await main(Site(**more))

    virtual.run(run)


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def failure(write: Write) -> SpineError:
    with pytest.raises(SpineError) as caught:
        await write.future
    return caught.value


def test_w_holders_acknowledge_and_the_third_changes_nothing() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        await turns()
        site.engine.commits[0].set_result(None)
        await turns()
        assert not write.future.done(), "one holder of two"
        site.peers.answer(B, site.peers.last(B))
        await write.future
        site.peers.answer(C, site.peers.last(C))
        assert site.fanout.inflight == 0

    story(main)


def test_an_answer_that_comes_twice_counts_once() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        await turns()
        batch = site.peers.last(B)
        site.peers.answer(B, batch)
        site.peers.answer(B, batch)
        await turns()
        assert not write.future.done() and write.acked == 1

    story(main)


def test_a_write_is_not_acknowledged_by_the_commit_before_its_own() -> None:
    """Two writes of one turn of the loop, with the engine's flush between them, because a peer's push was staged
    before either."""

    async def main(site: Site) -> None:
        loop = asyncio.get_running_loop()
        writes: list[Write] = []
        site.engine.commit()  # a push was staged: the engine's flush is due next turn, before anything below
        loop.call_soon(lambda: writes.append(site.write()))
        writes.append(site.write())
        await turns()
        assert len(site.engine.commits) == 2, "the second write belongs to a later commit"
        early, late = writes
        site.peers.answer(B, 1)
        site.peers.answer(B, site.peers.last(B))
        site.engine.commits[0].set_result(None)
        await turns()
        assert early.future.done()
        assert not late.future.done(), "its rows are not on disk"
        site.engine.commits[1].set_result(None)
        await late.future

    story(main)


def test_without_w_holders_it_fails_with_the_count_and_says_that_it_may_still_spread() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        await turns()
        site.engine.commits[0].set_result(None)
        site.peers.drop(B)
        await turns()
        assert not write.future.done(), "c may still answer"
        site.peers.drop(C)
        error = await failure(write)
        assert isinstance(error, Unavailable) and error.code == "no_quorum"
        assert error.details["acked"] == 1 and error.details["indeterminate"] is True
        assert site.fanout.inflight == 0

    story(main)


def test_an_unknown_commit_is_not_a_holder_and_not_a_denial() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        await turns()
        site.engine.commits[0].set_exception(Unknown("the write may or may not survive"))
        site.peers.drop(B)
        error = await failure(write)
        assert error.details["acked"] == 0
        assert error.details["indeterminate"] is True, "the rows stay, and c may have them"

    story(main)


def test_silence_ends_in_time() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        await turns()
        site.engine.commits[0].set_result(None)
        started = asyncio.get_running_loop().time()
        error = await failure(write)
        assert error.details["cause"] == "timeout"
        assert 1.9 < asyncio.get_running_loop().time() - started < 2.5
        site.peers.answer(B, site.peers.last(B))  # late: nobody waits any more
        assert site.fanout.inflight == 0

    story(main)


def test_a_peers_refusal_of_one_write_leaves_its_neighbours_alone() -> None:
    async def main(site: Site) -> None:
        first, second = site.write(3), site.write(3)
        await turns()
        site.engine.commits[0].set_result(None)
        await turns()
        site.peers.answer(B, site.peers.last(B), failed=(0,))
        site.peers.answer(C, site.peers.last(C))
        await second.future
        details = (await failure(first)).details
        assert details["needed"] == 3 and details["cause"] == "clock_drift"
        assert (first.acked, second.acked) == (2, 3)

    story(main)


def test_overload_is_said_before_anything_is_staged_and_ends() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        with pytest.raises(Unavailable) as caught:
            site.fanout.check_room()
        assert caught.value.code == "overloaded"
        await turns()
        site.engine.commits[0].set_result(None)
        site.peers.answer(B, site.peers.last(B))
        await write.future
        site.fanout.check_room()

    story(main, max_inflight=1)


def test_a_writer_that_goes_away_leaves_nothing_behind() -> None:
    async def main(site: Site) -> None:
        write = site.write()
        task = asyncio.ensure_future(asyncio.wait_for(write.future, 60))
        await turns()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        site.engine.commits[0].set_result(None)
        site.peers.answer(B, site.peers.last(B))
        site.peers.answer(C, site.peers.last(C))
        await turns()
        assert site.fanout.inflight == 0
        assert not any(site.fanout._sent.values())

    story(main)
