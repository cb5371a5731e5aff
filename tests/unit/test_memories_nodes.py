"""Through any node: gateways, forwarding, lists over groups held elsewhere, batches, causes."""

import asyncio
from typing import Any

import pytest

from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import Model, NodeId
from raftspine.services.forward import METHOD as FORWARD
from raftspine.services.values import ANYTHING, Answer, Ask, BatchOp, Draft, Expect, ListQuery, Patch
from tests.support.ring_site import PUSH, Site, stored, story

GATEWAY: dict[str, Any] = {"nodes": 4, "gateways": 1}


async def refused(call: Any) -> SpineError:
    with pytest.raises(SpineError) as caught:
        await call
    return caught.value


# ── gateways ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_forwards_everything() -> None:
    async def main(site: Site) -> None:
        door = site.node("d")
        assert not door.replica.groups()
        memories = door.memories
        answer = await site.put("d", "x", 1, tags=("t",))
        assert answer.created and answer.model is Model.READ_YOUR_WRITES
        assert await site.read("d", "x", token=answer.token) == 1
        patched = await memories.patch(Ask(token=answer.token), "x", Patch(content=2), ANYTHING)
        assert stored(patched).memory.tags == ("t",)
        assert (await refused(site.put("d", "x", 3, expect=Expect(absent=True)))).code == "version_conflict"
        strong = await site.put("d", "s", 1, tags=("critical",))
        assert strong.model is Model.STRONG and (await site.get("d", "s")).model is Model.STRONG
        page = await memories.list(Ask(), ListQuery())
        assert [(item.id, item.memory.content) for item in page.items] == [("s", 1), ("x", 2)]
        assert (await memories.conflicts(Ask(), "x")) == []
        assert (await memories.explain((), "x", "")).group == site.group("x")
        await site.put("d", "y", 1, key="k")
        assert (await memories.request_status("k")).state == "done"
        await site.delete("d", "x", token=patched.token)
        error = await refused(site.get("d", "x"))
        assert error.code == "not_found" and error.details["confirmed"] is True
        results = await memories.batch(
            Ask(), [BatchOp("put", "b", Draft(1)), BatchOp("get", "b"), BatchOp("delete", "b"), BatchOp("get", "b")]
        )
        assert isinstance(results[1], Answer) and stored(results[1]).memory.content == 1
        assert isinstance(results[3], SpineError) and results[3].code == "not_found"

    story(main, **GATEWAY)


def test_a_forwarded_write_whose_answer_is_lost_is_unknown_and_not_made_again() -> None:
    async def main(site: Site) -> None:
        done: list[str] = []
        for host in site.cluster.live():
            assert host.node is not None
            handler = host.node.rpc._handlers[FORWARD]

            async def carry_out(peer: NodeId, body: Any, node: Any = host.node, handler: Any = handler) -> Any:
                done.append(node.id)
                result = await handler(peer, body)
                site.cluster.network.reset(NodeId(node.id), NodeId("d"))
                await asyncio.sleep(1)
                return result

            host.node.rpc._handlers[FORWARD] = carry_out
        with pytest.raises(Unknown):
            await site.put("d", "x", 1)
        assert len(done) == 1, "another replica would do it a second time"
        assert await site.read("a", "x") == 1, "it happened"
        await site.until(lambda: all(site.node("d").rpc.connected(NodeId(n)) for n in "abc"))
        done.clear()
        error = await refused(site.get("d", "x"))
        assert isinstance(error, Unavailable) and len(done) == 3, "a read is asked of every replica, and did no harm"

    story(main, **GATEWAY)


def test_a_forwarded_write_that_may_still_spread_is_not_made_again() -> None:
    async def main(site: Site) -> None:
        for node in "abc":
            site.hold(node, PUSH)
        error = await refused(site.put("d", "x", 1))
        assert error.code == "no_quorum" and error.details["indeterminate"] is True
        records = [record for node in "abc" if (record := site.record(node, "x")) is not None]
        assert {version.dot for record in records for version in record.versions} == {records[0].versions[0].dot}

    story(main, **GATEWAY)


def test_a_gateway_passes_over_a_replica_that_did_nothing() -> None:
    async def main(site: Site) -> None:
        first = site.node("d").topology.replicas(site.group("x"))[0]
        host = site.cluster.hosts[first]
        host.disk.full = True
        await site.put(str(first), "y", 1)  # meets the full disk
        error = await refused(site.put(str(first), "y", 2))
        assert error.code == "no_space"
        assert (await site.put("d", "x", 1)).created

    story(main, **GATEWAY)


def test_a_node_that_does_not_hold_the_group_refuses_what_was_forwarded() -> None:
    async def main(site: Site) -> None:
        ask = Ask(group=int(site.group("x")))
        error = await refused(site.node("d").memories.get(ask, "x"))
        assert error.code == "wrong_epoch" and error.details["epoch"] == 1

    story(main, **GATEWAY)


# ── lists ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_covers_own_writes_over_all_groups_with_filters_and_cursor() -> None:
    async def main(site: Site) -> None:
        token = None
        for n in range(25):
            tags = ("critical",) if n % 5 == 0 else ("even",) if n % 2 == 0 else ("odd",)
            answer = await site.put("abcde"[n % 5], f"x{n:02}", n, tags=tags, token=token, agent=f"agent-{n % 2}")
            token = answer.token
        await site.delete("a", "x03", token=token)
        for node in "abcde":
            memories = site.node(node).memories
            for how in (None, token):
                seen: list[int] = []
                cursor = None
                while True:
                    page = await memories.list(Ask(token=how), ListQuery(prefix="x", limit=4, after=cursor))
                    seen += [item.memory.content for item in page.items]
                    cursor = page.next
                    if cursor is None:
                        break
                assert seen == [n for n in range(25) if n != 3]
                page = await memories.list(Ask(token=how), ListQuery(tag="odd", agent_id="agent-1"))
                assert [item.memory.content for item in page.items] == [1, 7, 9, 11, 13, 17, 19, 21, 23]

    story(main, nodes=5)


@pytest.mark.parametrize("node", ["a", "d"])
def test_a_listed_memory_says_the_model_that_its_tags_ask_for(node: str) -> None:
    async def main(site: Site) -> None:
        wanted = {
            "critical": Model.STRONG,
            "metric": Model.EVENTUAL,
            "plain": Model.READ_YOUR_WRITES,
            "thread": Model.CAUSAL,
        }
        for tag in wanted:
            await site.put("a", tag, 1, tags=(tag,))
        items = (await site.node(node).memories.list(Ask(), ListQuery())).items
        assert {item.id: item.model for item in items} == wanted
        for item in items:
            assert stored(await site.get(node, item.id)).model is item.model, "as a read says"

    story(main, **GATEWAY)


def test_a_list_is_refused_when_it_would_miss_own_writes() -> None:
    async def main(site: Site) -> None:
        held = site.hold("c", PUSH)
        token = (await site.put("a", "x", 1)).token
        for how in (None, token):
            error = await refused(site.node("c").memories.list(Ask(token=how), ListQuery(prefix="x")))
            assert error.code == "session_unavailable"
        for each in held:
            each.release()
        page = await site.node("c").memories.list(Ask(token=token), ListQuery(prefix="x"))
        assert len(page.items) == 1

    story(main)


def test_a_list_without_a_token_waits_for_a_write_that_lies_above_a_gap() -> None:
    """b holds the second write of an origin and not the first: its vector has a gap, and the second was acknowledged
    all the same."""

    async def main(site: Site) -> None:
        (held,) = site.hold("b", PUSH)
        site.hold("c", PUSH)
        ids = (f"x{n}" for n in range(1, 99))
        same = next(id for id in ids if site.group(id) == site.group("x0"))
        gap = asyncio.ensure_future(site.put("a", "x0", 0))
        await asyncio.sleep(0.01)
        held.drop()
        await site.put("a", same, 1)
        group, origin = site.group("x0"), site.node("a").replica.origin
        assert site.node("b").replica.vector(group).extras[origin] == {2}
        site.cluster.hosts[NodeId("a")].crash(power=False)
        (seen,) = await site.node("c").memories._listing._seen_by_others(group)
        assert not site.node("c").replica.has(group, seen), "c lacks it, and must not answer as if it had it"
        gap.cancel()
        await asyncio.gather(gap, return_exceptions=True)

    story(main)


def test_a_gateways_list_passes_over_a_replica_that_cannot_answer() -> None:
    async def main(site: Site) -> None:
        token = (await site.put("a", "x", 1)).token
        first = site.node("d").topology.replicas(site.group("x"))[0]

        def mute(peer: NodeId, body: Any) -> Any:
            raise Unavailable("starting", code="not_ready")

        site.node(str(first)).rpc._handlers[FORWARD] = mute
        page = await site.node("d").memories.list(Ask(token=token), ListQuery(prefix="x"))
        assert [item.memory.content for item in page.items] == [1]

    story(main, **GATEWAY)


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("node", ["a", "d"])
def test_a_batch_keeps_the_order_of_each_id(node: str) -> None:
    async def main(site: Site) -> None:
        ops = []
        for n in range(20):
            ops += [BatchOp("put", f"x{n % 3}", Draft(n)), BatchOp("get", f"x{n % 3}")]
        ops.append(BatchOp("put", "s", Draft(1, tags=("critical",))))
        ops.append(BatchOp("put", "s", Draft(2), Expect(absent=True)))
        ops.append(BatchOp("get", "s"))
        results = await site.node(node).memories.batch(Ask(), ops)
        for n in range(20):
            for place in (2 * n, 2 * n + 1):
                answer = results[place]
                assert isinstance(answer, Answer) and stored(answer).memory.content == n
        assert isinstance(results[-2], SpineError) and results[-2].code == "version_conflict"
        assert isinstance(results[-1], Answer) and stored(results[-1]).memory.content == 1
        tokens = {answer.token for answer in results if isinstance(answer, Answer) and answer.token}
        (token,) = tokens
        for n in (17, 18, 19):
            assert await site.read("b", f"x{n % 3}", token=token) == n

    story(main, **GATEWAY)


# ── causes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_reads_an_effect_reads_its_causes() -> None:
    async def main(site: Site) -> None:
        held = site.hold("c", PUSH)
        question = await site.put("a", "question", "?")
        strong = await site.put("b", "decision", "yes", tags=("critical",), token=question.token)
        answer = await site.put("b", "answer", "!", tags=("thread",), token=strong.token)
        assert answer.model is Model.CAUSAL
        reader = await site.get("b", "answer")
        assert reader.token is not None, "the reader's token now names what the answer depends on"
        reading = asyncio.ensure_future(site.read("c", "question", token=reader.token))
        await asyncio.sleep(0.05)
        assert not reading.done(), "c has not got the question and must not deny it"
        for each in held:
            each.release()
        assert await reading == "?"
        token = site.node("c").memories._sessions.open(reader.token)
        assert token is not None and token.index[site.group("decision")] == strong.index, (
            "causes in the log count too"
        )

    story(main)


def test_a_causal_read_of_any_memory_extends_the_token() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "x", 1)
        assert (await site.get("a", "x")).token is None
        read = await site.get("a", "x", wish=Model.CAUSAL)
        assert read.model is Model.CAUSAL and read.token is not None
        assert await site.read("c", "x", token=read.token) == 1

    story(main)


# ── other ways to cut the key space ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", ["agent", "tag"])
def test_an_id_is_found_wherever_its_first_writer_put_it(strategy: str) -> None:
    async def main(site: Site) -> None:
        for n in range(8):
            first = await site.put("abcde"[n % 5], f"x{n}", n, agent=f"agent-{n}", tags=(f"tag-{n}",))
            assert first.created
            for node in "abcde":
                assert await site.read(node, f"x{n}", agent="somebody else", token=first.token) == n
            again = await site.put("abcde"[(n + 1) % 5], f"x{n}", -n, agent="another", tags=("other",))
            assert not again.created, "one id, one place"
            assert await site.read("abcde"[(n + 2) % 5], f"x{n}") == -n
            await site.delete("abcde"[(n + 3) % 5], f"x{n}")
            assert (await refused(site.get("abcde"[n % 5], f"x{n}"))).code == "not_found"
        page = await site.node("a").memories.list(Ask(), ListQuery(prefix="x"))
        assert page.items == []

    story(main, nodes=5, strategy=strategy)


def test_an_id_is_not_denied_by_a_replica_that_has_not_heard_of_it() -> None:
    async def main(site: Site) -> None:
        site.hold("c", PUSH)
        token = (await site.put("a", "x", 1, agent="writer")).token
        assert await site.read("c", "x", agent="reader", token=token) == 1

    story(main, strategy="agent")
