"""One live id, one path: promotion, demotion, and what lies between them, on whole nodes in virtual time."""

import asyncio
from typing import Any

import pytest
from msgspec import UNSET

from raftspine.errors import SpineError
from raftspine.model import Model, NodeId
from raftspine.services.values import ANYTHING, Ask, Expect, ListQuery, Patch
from tests.support.ring_site import PUSH, RAFT, Site, stored, story

STRONG = ("critical",)


async def refused(call: Any) -> SpineError:
    with pytest.raises(SpineError) as caught:
        await call
    return caught.value


async def listed(site: Site, node: str, token: str | None = None) -> list[Any]:
    page = await site.node(node).memories.list(Ask(token=token), ListQuery(prefix="x"))
    return [item.memory.content for item in page.items]


# ── promotion ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_promotion_takes_the_memory_over_and_the_ring_lets_go() -> None:
    async def main(site: Site) -> None:
        first = stored(await site.put("a", "x", 1))
        answer = await site.put("b", "x", 2, tags=STRONG)
        assert answer.model is Model.STRONG and not answer.created
        assert stored(answer).memory.created_at_ms == first.memory.created_at_ms
        await site.agreed()
        for node in "abc":
            got = await site.get(node, "x")
            assert got.model is Model.STRONG and stored(got).memory.content == 2
            assert site.record(node, "x") is None
            assert await listed(site, node) == [2]
        assert await site.losers("a", "x") == [], "it was seen"

    story(main)


def test_a_deleted_strong_memory_does_not_bring_its_ring_past_back() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", "on the ring")
        token = (await site.put("a", "x", "in the log", tags=STRONG)).token
        token = (await site.delete("b", "x", token=token)).token
        for node in "abc":
            for how in (None, token):
                error = await refused(site.get(node, "x", token=how))
                assert error.code == "not_found" and error.details["confirmed"] is True
            assert await listed(site, node, token) == []
        error = await refused(site.get("c", "x", wish=Model.EVENTUAL))
        assert error.code == "not_found"

    story(main)


def test_a_deleted_strong_memory_stays_deleted_for_a_reader_whose_peer_is_behind_in_the_log() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", "on the ring")
        await site.agreed()
        behind = site.followers("x")[0]
        here = next(node for node in "abc" if node != behind)
        held = site.hold(behind, RAFT)
        await site.put(here, "x", "in the log", tags=STRONG)
        await site.delete(here, "x")
        assert (await refused(site.get(here, "x"))).code == "not_found"
        for each in held:
            each.release()

    story(main)


def test_an_expired_strong_memory_shows_nothing_and_can_be_written_over() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", "on the ring")
        await site.put("a", "x", "in the log", tags=STRONG, ttl=2)
        await asyncio.sleep(3)
        for node in "abc":
            assert (await refused(site.get(node, "x"))).code == "not_found"
        answer = await site.put("b", "x", "new")
        assert answer.created
        for node in "abc":
            assert await site.read(node, "x", token=answer.token) == "new"
            assert await listed(site, node) == ["new"]

    story(main)


def test_a_plain_write_over_a_deleted_strong_memory_reaches_every_replica() -> None:
    """A follower that has not applied the delete still has the strong record; were the write an ordinary ring write,
    it would be the loser there, for good, and its dot counted as seen."""

    async def main(site: Site) -> None:
        await site.put("a", "x", "strong", tags=STRONG)
        await site.agreed()
        leader = site.leader("x")
        held = [each for node in site.followers("x")[:1] for each in site.hold(node, RAFT)]
        await site.delete(leader, "x")
        answer = await site.put(leader, "x", "plain")
        assert answer.created and stored(answer).model is Model.READ_YOUR_WRITES
        await site.put(leader, "x", "plain again", token=answer.token)
        for each in held:
            each.release()
        await site.agreed()
        for node in "abc":
            assert await site.read(node, "x") == "plain again"
            assert site.record(node, "x") == site.record("a", "x")

    story(main)


def test_a_concurrent_ring_write_the_promotion_did_not_see_goes_to_the_conflict_log() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.agreed()
        behind = site.followers("x")[0]
        held = site.hold(behind, RAFT) + [each for n in "abc" if n != behind for each in site.hold(n, PUSH)]
        writing = asyncio.ensure_future(site.put(behind, "x", "unseen", tags=()))
        await asyncio.sleep(0.02)
        moving = asyncio.ensure_future(site.put(site.leader("x"), "x", "promoted", tags=STRONG))
        await asyncio.sleep(0.1)
        for each in held:
            each.release()
        await moving
        answer = await writing
        await site.agreed()
        shown = {await site.read(node, "x") for node in "abc"}
        assert len(shown) == 1
        everything = shown.union(*[set(await site.losers(node, "x")) for node in "abc"])
        assert {"unseen", "promoted"} <= everything or shown == {"unseen"}, everything
        assert answer.stored is not None

    for seed in range(6):
        story(main, seed=seed)


def test_a_ring_write_through_a_replica_behind_in_the_log_is_made_again_there() -> None:
    """The promotion was acknowledged. A plain write through a replica that has not applied it is told so by the
    others, and becomes what it is: a change to a strong memory."""

    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.agreed()
        behind = site.followers("x")[0]
        held = site.hold(behind, RAFT)
        await site.put(site.leader("x"), "x", "strong", tags=STRONG)
        writing = asyncio.ensure_future(site.put(behind, "x", "kept tags", tags=UNSET))
        await asyncio.sleep(0.05)
        for each in held:
            each.release()
        answer = await writing
        assert stored(answer).memory.tags == STRONG and answer.model is Model.STRONG
        for node in "abc":
            assert await site.read(node, "x") == "kept tags"

    story(main)


def test_without_a_token_a_promotion_is_read_at_a_replica_behind_in_the_log() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", "ring")
        await site.agreed()
        behind = site.followers("x")[0]
        held = site.hold(behind, RAFT)
        await site.put(site.leader("x"), "x", "strong", tags=STRONG)
        reading = asyncio.ensure_future(site.read(behind, "x"))
        await asyncio.sleep(0.2)
        assert not reading.done(), "it cannot know yet"
        for each in held:
            each.release()
        assert await reading == "strong"

    story(main)


# ── demotion ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_demotion_hands_the_memory_back_to_the_ring() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1, tags=STRONG)
        answer = await site.put("b", "x", 2)
        assert stored(answer).model is Model.READ_YOUR_WRITES and not answer.created
        await site.agreed()
        for node in "abc":
            got = await site.get(node, "x", token=answer.token)
            assert got.model is Model.READ_YOUR_WRITES and stored(got).memory.content == 2
            assert site.node(node).replica.strong(site.group("x"), "x") is None
            assert site.record(node, "x") == site.record("a", "x")
        again = await site.put("c", "x", 3, token=answer.token)
        assert again.model is Model.READ_YOUR_WRITES
        assert await site.read("a", "x", token=again.token) == 3

    story(main)


def test_ring_writes_after_a_demotion_reach_a_replica_that_has_not_applied_it() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", "strong", tags=STRONG)
        await site.agreed()
        leader, behind = site.leader("x"), site.followers("x")[0]
        held = site.hold(behind, RAFT)
        token = (await site.put(leader, "x", "left the log")).token
        token = (await site.put(leader, "x", "after", token=token)).token
        assert site.node(behind).replica.strong(site.group("x"), "x") is not None
        for each in held:
            each.release()
        await site.agreed()
        for node in "abc":
            assert await site.read(node, "x", token=token) == "after"
            assert site.record(node, "x") == site.record(leader, "x")
        assert "after" not in await site.losers(behind, "x")

    story(main)


def test_there_and_back_again_many_times() -> None:
    async def main(site: Site) -> None:
        token = None
        for n in range(12):
            node, tags = "abc"[n % 3], STRONG if n % 2 else ()
            token = (await site.put(node, "x", n, tags=tags, token=token)).token
            assert await site.read("abc"[(n + 1) % 3], "x", token=token) == n
        await site.agreed()
        assert await site.losers("a", "x") == []

    story(main)


# ── tags and wishes ───────────────────────────────────────────────────────────────────────────────────────────


def test_put_without_tags_keeps_tags_on_both_paths() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "ring", 1, tags=("one", "two"))
        await site.put("a", "log", 1, tags=STRONG)
        await site.agreed()
        for id, tags, model in (("ring", ("one", "two"), Model.READ_YOUR_WRITES), ("log", STRONG, Model.STRONG)):
            answer = await site.put("b", id, 2, tags=UNSET)
            assert stored(answer).memory.tags == tags and answer.model is model

    story(main)


def test_put_without_tags_keeps_tags_the_coordinator_had_not_heard_of() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1, tags=("old",))
        await site.agreed()
        site.hold("c", PUSH)
        await site.put("a", "x", 2, tags=("new",))
        answer = await site.put("c", "x", 3, tags=UNSET)
        assert stored(answer).memory.tags == ("new",)
        assert stored(await site.get("b", "x")).memory.tags == ("new",)

    story(main)


def test_a_strong_wish_takes_a_plain_memory_into_the_log() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        answer = await site.put("b", "x", 2, wish=Model.STRONG)
        assert answer.model is Model.STRONG and answer.index is not None
        assert (await site.get("c", "x")).model is Model.STRONG

    story(main)


def test_a_strong_read_of_a_ring_memory_merges_after_the_barrier() -> None:
    async def main(site: Site) -> None:
        site.hold("c", PUSH)
        await site.put("a", "x", 1)
        got = await site.get("c", "x", wish=Model.STRONG)
        assert stored(got).memory.content == 1 and got.model is Model.READ_YOUR_WRITES, "the reply says which"

    story(main)


def test_a_weaker_read_of_a_strong_memory_says_that_it_is_stale() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1, tags=STRONG)
        await site.agreed()
        got = await site.get("b", "x", wish=Model.EVENTUAL)
        assert got.model is Model.EVENTUAL and stored(got).memory.content == 1
        assert got.staleness_ms is None or got.staleness_ms >= 0

    story(main)


def test_a_write_cannot_be_weakened() -> None:
    async def main(site: Site) -> None:
        error = await refused(site.put("a", "x", 1, tags=STRONG, wish=Model.EVENTUAL))
        assert error.code == "cannot_weaken"
        assert (await refused(site.get("a", "x"))).code == "not_found"

    story(main)


# ── preconditions ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_precondition_on_the_ring_is_checked_by_quorum_and_is_advisory() -> None:
    async def main(site: Site) -> None:
        (held,) = site.hold("c", PUSH)
        first = await site.put("a", "x", 1)
        assert not first.advisory
        second = await site.put("c", "x", 2, expect=Expect(version=stored(first).version))
        assert second.advisory and not second.created
        error = await refused(site.put("c", "x", 3, expect=Expect(version=stored(first).version, header=True)))
        assert error.code == "precondition_failed"
        assert error.details["current_version"] == stored(second).version
        error = await refused(site.put("b", "x", 3, expect=Expect(absent=True)))
        assert error.code == "version_conflict"
        held.release()
        await site.agreed()
        assert await site.losers("a", "x") == []

    story(main)


def test_patch_changes_what_it_names_and_keeps_the_rest() -> None:
    async def main(site: Site) -> None:
        (held,) = site.hold("c", PUSH)
        await site.put("a", "x", 1, tags=("t",), ttl=100)
        memories = site.node("c").memories
        answer = await memories.patch(Ask(), "x", Patch(importance="high"), ANYTHING)
        memory = stored(answer).memory
        assert (memory.content, memory.tags, memory.importance, memory.ttl_seconds) == (1, ("t",), "high", 100)
        held.release()
        answer = await memories.patch(Ask(), "x", Patch(tags=STRONG), ANYTHING)
        assert answer.model is Model.STRONG and stored(answer).memory.importance == "high"
        error = await refused(memories.patch(Ask(), "nowhere", Patch(content=1), ANYTHING))
        assert error.code == "not_found" and error.details["confirmed"] is True

    story(main)


# ── 404 ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_not_found_is_confirmed_by_a_majority_and_says_when_it_is_not() -> None:
    async def main(site: Site) -> None:
        error = await refused(site.get("a", "x"))
        assert error.details["confirmed"] is True
        leader = site.leader("x")
        behind, other = site.followers("x")
        site.hold(behind, RAFT)  # it no longer hears who leads
        site.hold(other, RAFT)
        site.cluster.hosts[NodeId(leader)].crash(power=False)
        await asyncio.sleep(0.5)
        error = await refused(site.get(behind, "x"))
        assert error.code == "not_found" and error.details["confirmed"] is False

    story(main)


def test_a_strong_memory_this_replica_has_not_applied_is_not_denied() -> None:
    async def main(site: Site) -> None:
        behind = site.followers("x")[0]
        held = site.hold(behind, RAFT)
        await site.put(site.leader("x"), "x", 1, tags=STRONG)
        reading = asyncio.ensure_future(site.read(behind, "x", wait_ms=3000))
        await asyncio.sleep(0.1)
        for each in held:
            each.release()
        assert await reading == 1

    story(main)
