"""The ring's promises, each by name, on three whole nodes in virtual time."""

import asyncio
from typing import Any

import pytest

from raftspine.core.dots import Vector
from raftspine.errors import NotFound, SpineError, Unavailable
from raftspine.model import GroupId, Model, NodeId
from raftspine.services.values import Ask, Expect, ListQuery
from raftspine.storage import keys
from tests.support.ring_site import PUSH, RAFT, VECTORS, Site, stored, story


async def refused(call: Any) -> SpineError:
    with pytest.raises(SpineError) as caught:
        await call
    return caught.value


# ── holders ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_acknowledged_means_w_holders() -> None:
    async def main(site: Site) -> None:
        site.hold("c", PUSH)
        await site.put("a", "x", 1)
        assert site.record("a", "x") == site.record("b", "x") != site.record("c", "x")

    story(main)


def test_without_w_holders_503_says_how_many_and_that_it_may_still_spread() -> None:
    async def main(site: Site) -> None:
        held = site.hold("b", PUSH) + site.hold("c", PUSH)
        error = await refused(site.put("a", "x", 1))
        assert isinstance(error, Unavailable) and error.code == "no_quorum"
        assert (error.details["acked"], error.details["needed"]) == (1, 2)
        assert error.details["indeterminate"] is True
        for each in held:
            each.release()
        assert await site.read("b", "x") == 1, "not acknowledged is not rolled back"

    story(main)


def test_without_links_nothing_is_stored_and_the_reply_says_so() -> None:
    async def main(site: Site) -> None:
        site.isolate("a")
        await site.until(lambda: not site.node("a").rpc.connected(NodeId("b")))
        error = await refused(site.put("a", "x", 1))
        assert error.code == "no_quorum" and error.details["indeterminate"] is False
        assert site.record("a", "x") is None

    story(main)


def test_eventual_needs_one_holder() -> None:
    async def main(site: Site) -> None:
        held = site.hold("b", PUSH) + site.hold("c", PUSH)
        answer = await site.put("a", "x", 1, tags=("metric",))
        assert answer.model is Model.EVENTUAL
        assert await site.read("a", "x", wish=Model.EVENTUAL) == 1
        error = await refused(site.get("b", "x", wish=Model.EVENTUAL))
        assert error.code == "not_found" and error.details["confirmed"] is False
        for each in held:
            each.release()
        await site.until(lambda: site.record("b", "x") is not None, "b has heard of it")
        assert await site.read("b", "x", wish=Model.EVENTUAL) == 1

    story(main)


def test_a_full_disk_refuses_writes_and_loses_none() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "before", 0)
        disk = site.cluster.hosts[NodeId("a")].disk
        disk.full = True
        await site.put("a", "x", 1)  # in flight when the disk was full: b and c hold it
        error = await refused(site.put("a", "y", 2))
        assert error.code == "no_space"
        assert await site.read("a", "before") == 0, "reads go on"
        assert (await site.put("b", "y", 3)).stored is not None, "the others go on"
        disk.full = False
        await site.until(lambda: site.node("a").engine.read_only() is None)
        answer = await site.put("a", "y", 4)
        await site.agreed()
        for node in "abc":
            assert await site.read(node, "y", token=answer.token) == 4
        origin = site.node("a").replica.origin
        assert not site.node("b").replica.vector(site.group("y")).extras.get(origin), "no number is missing"

    story(main)


# ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_read_waits_for_its_write() -> None:
    async def main(site: Site) -> None:
        (held,) = site.hold("c", PUSH)
        token = (await site.put("a", "x", 1)).token
        reading = asyncio.ensure_future(site.read("c", "x", token=token))
        await asyncio.sleep(0.1)
        assert not reading.done()
        held.release()
        assert await reading == 1

    story(main)


def test_a_session_read_merges_when_waiting_does_not_help() -> None:
    async def main(site: Site) -> None:
        site.hold("c", PUSH)
        token = (await site.put("a", "x", 1)).token
        started = site.cluster.loop.time()
        assert await site.read("c", "x", token=token, wait_ms=100) == 1
        assert site.cluster.loop.time() - started >= 0.1
        assert site.record("c", "x") is None, "the answer came from a quorum"

    story(main)


def test_a_session_read_is_refused_and_never_silently_stale() -> None:
    async def main(site: Site) -> None:
        token = (await site.put("a", "x", 1)).token
        await site.agreed()
        site.hold("c", PUSH)
        token = (await site.put("a", "x", 2, token=token)).token
        site.isolate("c")
        await site.until(lambda: not site.node("c").rpc.connected(NodeId("a")))
        error = await refused(site.get("c", "x", token=token))
        assert error.code == "session_unavailable"

    story(main)


def test_without_a_token_a_read_still_meets_every_acknowledged_write() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.agreed()
        site.hold("c", PUSH)
        await site.put("a", "x", 2)
        assert await site.read("c", "x") == 2
        page = await site.node("a").memories.list(Ask(), ListQuery(prefix="x"))
        assert [item.memory.content for item in page.items] == [2]

    story(main)


def test_a_group_too_wide_for_the_token_is_read_by_merging() -> None:
    async def main(site: Site) -> None:
        answer = await site.put("a", "x", 1)
        memories = site.node("c").memories
        token = memories._sessions.extend(memories._sessions.open(answer.token))
        token.dots.clear()
        token.wide.add(site.group("x"))
        site.hold("c", PUSH)
        await site.put("a", "x", 2)
        assert await site.read("c", "x", token=memories._sessions.seal(token)) == 2

    story(main)


# ── concurrent writers ────────────────────────────────────────────────────────────────────────────────────────


def test_a_conflict_keeps_the_loser_where_every_node_shows_it() -> None:
    async def main(site: Site) -> None:
        await asyncio.gather(site.put("a", "x", "from a"), site.put("b", "x", "from b"))
        await site.agreed()
        shown = {await site.read(node, "x") for node in "abc"}
        assert len(shown) == 1
        for node in "abc":
            assert shown | set(await site.losers(node, "x")) == {"from a", "from b"}

    for seed in range(4):
        story(main, seed=seed)


def test_what_the_session_had_written_itself_is_no_conflict() -> None:
    async def main(site: Site) -> None:
        site.cluster.hosts[NodeId("a")].clock.offset_ms += 3000
        site.hold("c", PUSH)
        token = (await site.put("a", "x", "first")).token
        await site.put("c", "x", "second", token=token)
        assert "first" not in await site.losers("a", "x")

    story(main)


def test_a_beaten_write_is_made_again() -> None:
    """One agent writes through a, whose clock runs ahead, then through c, which has not heard of it: by stamps alone
    its second write would lose to its first."""

    async def main(site: Site) -> None:
        site.cluster.hosts[NodeId("a")].clock.offset_ms += 3000
        (held,) = site.hold("c", PUSH)
        await site.put("a", "x", "first")
        await site.put("c", "x", "second")
        assert await site.read("b", "x") == "second"
        held.release()
        await site.agreed()
        for node in "abc":
            assert await site.read(node, "x") == "second"

    story(main)


def test_a_write_over_what_another_request_of_this_node_just_wrote_does_not_swallow_it() -> None:
    """Two conditional writes through one node at the same moment: both read, both pass, and the second must not cover
    the first's dot as if it had seen it."""

    async def main(site: Site) -> None:
        version = stored(await site.put("a", "x", 0)).version
        await site.agreed()
        answers = await asyncio.gather(
            *(site.put("a", "x", n, expect=Expect(version=version)) for n in (1, 2)), return_exceptions=True
        )
        won = [stored(answer).memory.content for answer in answers if not isinstance(answer, BaseException)]
        await site.agreed()
        assert won, "one of them at least"
        lost = set(await site.losers("b", "x"))
        assert set(won) <= lost | {await site.read("b", "x")}, f"{won} were acknowledged"

    for seed in range(8):
        story(main, seed=seed)


# ── deletes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tombstone_hides_replicates_and_survives_a_late_carrier() -> None:
    async def main(site: Site) -> None:
        (held,) = site.hold("c", PUSH)
        token = (await site.put("a", "x", 1)).token
        token = (await site.delete("b", "x", token=token)).token
        for node in "abc":
            error = await refused(site.get(node, "x", token=token))
            assert error.code == "not_found" and error.details["confirmed"] is True
        pushed = held.kept
        late = list(pushed)
        held.drop()
        await site.agreed()
        for peer, body in late:  # the first write arrives at last, after c has learned of the delete from the others
            site.node("c").rpc._handlers[PUSH](peer, body)
        await site.agreed()
        for node in "abc":
            assert (await refused(site.get(node, "x"))).code == "not_found", "a zombie"
        page = await site.node("c").memories.list(Ask(), ListQuery(prefix="x"))
        assert page.items == []

    story(main)


def test_a_delete_through_a_replica_that_has_not_heard_of_the_memory_deletes_it() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.delete("a", "x")
        await site.agreed()
        site.hold("c", PUSH)
        await site.put("a", "x", 2)
        await site.delete("c", "x")
        assert (await refused(site.get("b", "x"))).code == "not_found"

    story(main)


# ── coming back ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_delete_that_found_no_quorum_is_not_acknowledged_by_saying_it_again() -> None:
    """The replica that began it shows nothing any more, and the others still have the memory: the second delete must
    reach a quorum as well."""

    async def main(site: Site) -> None:
        await site.put("a", "m", "alive")
        await site.agreed()
        held = [site.hold(node, method)[0] for node in ("b", "c") for method in (PUSH, VECTORS)]
        with pytest.raises(Unavailable):
            await site.delete("a", "m")
        assert site.record("a", "m").versions[0].memory is None
        for each in held:
            each.drop()
        for node in ("b", "c"):
            site.hold(node, VECTORS)
        await site.delete("a", "m")
        site.cluster.hosts[NodeId("a")].crash(power=True)
        with pytest.raises(NotFound):
            await site.read("b", "m")

    story(main)


def test_a_returned_replica_catches_up_by_vectors() -> None:
    async def main(site: Site) -> None:
        c = site.cluster.hosts[NodeId("c")]
        c.crash(power=True)
        for n in range(30):
            await site.put("a", f"x{n}", n)
        await site.delete("a", "x3")
        c.start()
        await site.agreed()
        catchup = site.node("c")._catchup
        assert catchup.full_syncs_total == 0 and catchup.pulled_total >= 31
        for n in range(30):
            assert (site.record("c", f"x{n}")) == site.record("a", f"x{n}")

    story(main)


def test_a_wiped_replica_takes_whole_groups_and_answers_no_session_alone_before() -> None:
    async def main(site: Site) -> None:
        for n in range(30):
            await site.put("a", f"x{n}", n)
        await site.until(lambda: _trimmed(site), "dot rows are trimmed everywhere", 60)
        sessions = site.node("a").memories._sessions
        token = sessions.seal(sessions.extend(None))  # all it once named is on every replica's disk
        c = site.cluster.hosts[NodeId("c")]
        c.crash(power=True)
        c.wipe()
        c.start()
        held = site.hold("c", VECTORS)
        await site.until(lambda: site.node("c").replica.groups())
        await site.until(lambda: site.node("c").rpc.connected(NodeId("a")))
        assert await site.read("c", "x7", token=token) == 7
        page = asyncio.ensure_future(site.node("c").memories.list(Ask(token=token), ListQuery(prefix="x")))
        await asyncio.sleep(0.1)
        for each in held:
            each.release()
        try:
            assert len((await page).items) == 30, "a list may be refused, and is never short"
        except Unavailable as error:
            assert error.code == "session_unavailable"
        await site.agreed()
        assert site.node("c")._catchup.full_syncs_total > 0
        assert len((await site.node("c").memories.list(Ask(token=token), ListQuery(prefix="x"))).items) == 30
        for n in range(1, 30):
            assert site.record("c", f"x{n}") == site.record("a", f"x{n}")

    story(main)


def _trimmed(site: Site) -> bool:
    nodes = [host.node for host in site.cluster.live() if host.node is not None]
    return all(
        not node.engine.scan(*keys.span(keys.DOT, group), limit=1)
        for node in nodes
        for group in node.replica.groups()
    )


def test_rows_are_trimmed_only_when_every_replica_has_them_on_disk() -> None:
    async def main(site: Site) -> None:
        c = site.cluster.hosts[NodeId("c")]
        c.crash(power=False)
        for n in range(10):
            await site.put("a", f"x{n}", n)
        await asyncio.sleep(10)
        assert not _trimmed(site), "c has none of it"
        c.start()
        await site.until(lambda: _trimmed(site), "now everybody has it", 60)

    story(main)


def test_only_durable_vectors_are_told() -> None:
    """Durability `interval`: b holds a write in memory only. Were it told, a would call it stable."""

    async def main(site: Site) -> None:
        told: list[Any] = []
        handler = site.node("a").rpc._handlers[VECTORS]

        def listen(peer: NodeId, body: Any) -> None:
            if peer == "b":
                told.extend((GroupId(group), Vector.from_wire(wire)) for group, wire in body)
            handler(peer, body)

        site.node("a").rpc._handlers[VECTORS] = listen
        disk = site.cluster.hosts[NodeId("b")].disk
        disk.sync_seconds = (3.0, 3.0)
        answer = await site.put("a", "x", 1)
        origin, seq = site.node("a").replica.origin, 1
        group = site.group("x")
        await site.until(lambda: site.node("b").replica.vector(group).covers(origin, seq), "b has it in memory")
        await asyncio.sleep(2.5)
        assert not any(g == group and v.covers(origin, seq) for g, v in told), "told before it was on disk"
        await site.until(lambda: any(g == group and v.covers(origin, seq) for g, v in told), "told in the end")
        assert answer.token is not None

    story(main, durability="interval")


def test_a_power_loss_takes_record_and_vector_together() -> None:
    async def main(site: Site) -> None:
        writes = [asyncio.ensure_future(site.put("a", f"x{n}", n)) for n in range(40)]
        await asyncio.sleep(site.cluster.dice.uniform(0.0005, 0.004))
        b = site.cluster.hosts[NodeId("b")]
        b.crash(power=True)
        node = b.start()
        await site.until(lambda: node.replica.groups())
        for group in node.replica.groups():
            vector = node.replica.vector(group)
            for n in range(40):
                record = node.replica.record(group, f"x{n}")
                assert record is None or vector.covers(*record.versions[0].dot)
            for key, _ in node.engine.scan(*keys.span(keys.DOT, group), limit=100):
                id = node.engine.get(key)
                assert id is not None and node.replica.record(group, id.decode()) is not None
        await asyncio.gather(*writes, return_exceptions=True)

    for seed in range(6):
        story(main, seed=seed)


def test_a_replica_behind_in_the_log_does_not_answer_for_writes_the_log_took_over() -> None:
    """x is written on the ring, then promoted; one replica got neither. Catch-up brings it the ring write's dot, and
    no record, for the log keeps it. It must apply the promotion before it counts as having seen that write."""

    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        await site.agreed()
        c = next(node for node in site.followers("x"))
        other = next(node for node in "abc" if node != c)
        held = site.hold(c, PUSH, RAFT)
        token = (await site.put(other, "x", 2)).token
        moving = asyncio.ensure_future(site.put(other, "x", 3, tags=("critical",)))
        await asyncio.sleep(1.5)
        node = site.node(c)
        if await _found(site, c, token) == 1:
            raise AssertionError("the session wrote 2 and read 1")
        for each in held:
            each.drop()
        await moving
        await site.agreed()
        assert node.replica.record(site.group("x"), "x") is None
        assert await site.read(c, "x", token=token) == 3

    for seed in range(4):
        story(main, seed=seed)


async def _found(site: Site, node: str, token: str | None) -> Any:
    try:
        return await site.read(node, "x", token=token)
    except Unavailable:
        return None
