"""Idempotency-Keys on the ring: a retry returns the same write, and nothing is done twice."""

import asyncio
from typing import Any

import pytest

from raftspine.errors import SpineError
from raftspine.model import NodeId
from raftspine.services.values import ANYTHING, Ask, Patch
from tests.support.ring_site import PUSH, RAFT, Site, stored, story

STRONG = ("critical",)


async def refused(call: Any) -> SpineError:
    with pytest.raises(SpineError) as caught:
        await call
    return caught.value


def test_a_retry_returns_the_same_dot_from_any_node() -> None:
    async def main(site: Site) -> None:
        first = await site.put("a", "x", 1, key="k", first=True)
        for node in "abc":
            again = await site.put(node, "x", 1, key="k")
            assert stored(again).version == stored(first).version
            assert again.created == first.created is True
            assert again.token is not None
        record = site.record("a", "x")
        assert record is not None and len(record.versions) == 1

    story(main)


def test_a_retry_through_a_node_that_never_saw_the_write_finds_it() -> None:
    async def main(site: Site) -> None:
        site.hold("c", PUSH)
        first = await site.put("a", "x", 1, key="k", first=True)
        again = await site.put("c", "x", 1, key="k")
        assert stored(again).version == stored(first).version

    story(main)


def test_a_write_without_a_quorum_is_made_sure_of_by_its_retry() -> None:
    async def main(site: Site) -> None:
        held = site.hold("b", PUSH) + site.hold("c", PUSH)
        error = await refused(site.put("a", "x", 1, key="k", first=True))
        assert error.code == "no_quorum"
        made = site.record("a", "x")
        for each in held:
            each.drop()
        again = await site.put("a", "x", 1, key="k")
        assert made is not None and stored(again).version.endswith(f"-{made.versions[0].seq}")
        for node in "bc":
            assert site.record(node, "x") == made

    story(main)


def test_another_body_under_the_same_key_is_refused() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1, key="k")
        error = await refused(site.put("b", "x", 2, key="k"))
        assert error.code == "idempotency_key_reused"
        assert await site.read("a", "x") == 1

    story(main)


def test_a_retry_after_others_have_written_changes_nothing() -> None:
    async def main(site: Site) -> None:
        first = await site.put("a", "x", 1, key="k")
        await site.put("b", "x", 2)
        again = await site.put("c", "x", 1, key="k")
        assert stored(again).version == stored(first).version
        assert await site.read("a", "x") == 2
        patched = await site.node("a").memories.patch(Ask(idempotency_key="p"), "x", Patch(content=3), ANYTHING)
        await site.put("b", "x", 4)
        again = await site.node("c").memories.patch(Ask(idempotency_key="p"), "x", Patch(content=3), ANYTHING)
        assert stored(again).version == stored(patched).version
        assert await site.read("a", "x") == 4

    story(main)


def test_a_delete_is_not_done_twice() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.delete("a", "x", key="k")
        await site.put("b", "x", 2)
        await site.delete("c", "x", key="k")
        assert await site.read("a", "x") == 2

    story(main)


def test_a_voided_request_is_refused_ever_after() -> None:
    async def main(site: Site) -> None:
        status = await site.node("b").memories.void_request("k")
        assert status.state == "void"
        for node in "abc":
            error = await refused(site.put(node, "x", 1, key="k"))
            assert error.code == "request_voided"
        assert (await site.node("c").memories.request_status("k")).state == "void"

    story(main)


def test_voiding_a_request_that_was_done_says_so() -> None:
    async def main(site: Site) -> None:
        first = await site.put("a", "x", 1, key="k")
        status = await site.node("c").memories.void_request("k")
        assert (status.state, status.id, status.version) == ("done", "x", stored(first).version)

    story(main)


def test_a_demoting_write_that_is_retried_is_found_on_the_ring() -> None:
    """The first attempt went through the log and took the memory out of it; its retry is a ring write."""

    async def main(site: Site) -> None:
        await site.put("a", "x", 1, tags=STRONG)
        first = await site.put("a", "x", 2, key="k", first=True)
        await site.put("b", "x", 3)
        await site.agreed()
        again = await site.put("c", "x", 2, key="k")
        assert stored(again).version == stored(first).version
        assert await site.read("a", "x") == 3

    story(main)


def test_a_write_the_promotion_beat_is_carried_out_once_by_the_log() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.agreed()
        behind = site.followers("x")[0]
        held = site.hold(behind, RAFT)
        await site.put(site.leader("x"), "x", "strong", tags=STRONG)
        writing = asyncio.ensure_future(site.put(behind, "x", "mine", key="k", first=True))
        await asyncio.sleep(0.05)
        for each in held:
            each.release()
        first = await writing
        again = await site.put("c", "x", "mine", key="k")
        assert stored(again).version == stored(first).version
        await site.agreed()
        for node in "abc":
            assert await site.read(node, "x") == "mine"

    story(main)


def test_a_client_that_goes_away_leaves_no_write_under_way() -> None:
    async def main(site: Site) -> None:
        site.hold("b", PUSH)
        site.hold("c", PUSH)
        writing = asyncio.ensure_future(site.put("a", "x", 1))
        reading = asyncio.ensure_future(site.node("a").replica.covered(site.group("x"), {"nobody~0": 1}, 60_000))
        await asyncio.sleep(0.05)
        writing.cancel()
        reading.cancel()
        await asyncio.gather(writing, reading, return_exceptions=True)
        assert not site.node("a").replica._waiting
        await asyncio.sleep(5)
        assert site.node("a")._fanout.inflight == 0

    story(main)


def test_nodes_that_restart_never_use_a_dot_again() -> None:
    async def main(site: Site) -> None:
        versions = set()
        for n in range(4):
            versions.add(stored(await site.put("a", "x", n)).version)
            host = site.cluster.hosts[NodeId("a")]
            host.crash(power=True)
            host.start()
            await site.until(lambda: site.cluster.ready(site.cluster.hosts[NodeId("a")]))
            await site.until(lambda: site.node("a").rpc.connected(NodeId("b")))
        assert len(versions) == 4

    story(main)


def test_an_id_drawn_for_a_keyed_request_is_the_same_on_every_node() -> None:
    """Else its repetition through another node would be another memory."""

    async def main(site: Site) -> None:
        ask = Ask(idempotency_key="k")
        drawn = {site.node(node).memories.new_id(ask) for node in "abc"}
        assert len(drawn) == 1
        assert site.node("a").memories.new_id(ask, 1) not in drawn
        free = [site.node("a").memories.new_id(Ask()) for _ in range(2)]
        assert free[0] != free[1]

    story(main)
