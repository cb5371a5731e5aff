"""What became of a request: done, void, or honestly unknown."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftspine.core.ledger.commands import DeleteMemory, encode
from raftspine.core.ledger.outcomes import Status
from raftspine.errors import Unavailable
from raftspine.model import GroupId, NodeId, Path
from raftspine.services.requests import DONE, UNKNOWN, VOID, Requests, Trace, digest_of, fingerprint_of
from raftspine.services.values import ANYTHING, Draft, Expect
from raftspine.system import SystemClock
from tests.support.strong_site import World, put, settle

KEY = "key-1"


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


class FakeRingRequests:
    def __init__(self) -> None:
        self.done: Trace | None = None
        self.voided = False

    async def find(self, digest: bytes) -> Trace | None:
        assert digest == digest_of(KEY)
        return self.done or (Trace(VOID, Path.RING) if self.voided else None)

    async def void(self, digest: bytes) -> Trace | None:
        self.voided = self.done is None
        return self.done


class Desk:
    """A world with four groups and a Requests on each node."""

    def __init__(self, members: str = "abcd", **how: Any) -> None:
        self.world = World("abc", members, groups=4, **how)
        self.ring = FakeRingRequests()
        self.requests = {
            n: Requests(s.strong, s.topology, s.rpc, s.engine, ring=self.ring) for n, s in self.world.sites.items()
        }

    async def write(self, group: int = 2, id: str = "m") -> None:
        command = put(id, request=digest_of(KEY), fingerprint=fingerprint_of("put", id))
        await self.world["a"].strong.execute(GroupId(group), command)


@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_a_request_is_found_from_any_node_without_its_id(node: str) -> None:
    async def story() -> None:
        desk = Desk()
        await desk.write()
        found = await desk.requests[node].status(KEY)
        assert (found.state, found.path, found.id, found.status) == (DONE, Path.STRONG, "m", 201)
        assert found.version == "s-2-1-0"
        assert (await desk.requests[node].void(KEY)) == found, "what is done cannot be voided"

    run(story)


@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_without_a_trace_it_is_unknown_until_it_is_voided_and_then_never_applies(node: str) -> None:
    async def story() -> None:
        desk = Desk()
        assert (await desk.requests[node].status(KEY)).state == UNKNOWN
        assert (await desk.requests[node].void(KEY)).state == VOID
        assert (await desk.requests[node].status(KEY)).state == VOID and desk.ring.voided
        command = put("m", request=digest_of(KEY), fingerprint=fingerprint_of("put", "m"))
        outcome, _ = await desk.world["a"].strong.execute(GroupId(2), command)
        assert outcome.status is Status.VOIDED
        assert (await desk.requests[node].void(KEY)).state == VOID, "voiding twice is voiding once"

    run(story)


def test_a_void_that_reached_only_some_groups_leaves_it_unknown() -> None:
    async def story() -> None:
        desk = Desk(clock=SystemClock())
        desk.world.elect(None, group=3)
        with pytest.raises(Unavailable):
            await desk.requests["a"].void(KEY, deadline_ms=30)
        desk.world.elect("a", group=3)
        assert (await desk.requests["a"].status(KEY)).state == UNKNOWN
        assert (await desk.requests["a"].void(KEY)).state == VOID

    run(story)


def test_a_group_that_cannot_be_asked_makes_no_answer_but_does_not_hide_one() -> None:
    async def story() -> None:
        desk = Desk(clock=SystemClock())
        desk.world.elect(None, group=3)
        for node in "ad":
            with pytest.raises(Unavailable):
                await desk.requests[node].status(KEY, deadline_ms=30)
        await desk.write(group=1)
        assert (await desk.requests["a"].status(KEY, deadline_ms=30)).state == DONE

    run(story)


def test_a_gateway_tries_the_next_replica() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.write()
        desk.world.net.cut("a")
        for group in range(4):
            desk.world.elect("b", group)
        assert (await desk.requests["d"].status(KEY)).state == DONE

    run(story)


def test_the_ring_has_its_say() -> None:
    async def story() -> None:
        desk = Desk()
        desk.ring.done = Trace(DONE, Path.RING, "m", "r-n~1-1", 201)
        for ask in (desk.requests["a"].status, desk.requests["a"].void):
            found = await ask(KEY)
            assert (found.state, found.path, found.version) == (DONE, Path.RING, "r-n~1-1")

    run(story)


def test_a_lagging_replica_does_not_deny_a_request() -> None:
    async def story() -> None:
        desk = Desk()
        desk.world.cluster.lagging.add(NodeId("b"))
        await desk.write()
        asking = asyncio.ensure_future(desk.requests["b"].status(KEY))
        await settle()
        assert not asking.done()
        desk.world.cluster.lagging.clear()
        desk.world.cluster.spread()
        assert (await asking).state == DONE

    run(story)


def test_a_refused_request_is_done_and_says_how() -> None:
    async def story() -> None:
        desk = Desk()
        command = DeleteMemory("m", request=digest_of(KEY))
        await desk.world["a"].strong.execute(GroupId(0), encode(command))
        found = await desk.requests["a"].status(KEY)
        assert (found.state, found.id, found.status) == (DONE, "m", None)

    run(story)


def test_digests_keep_tenants_apart_and_fingerprints_tell_bodies_apart() -> None:
    assert len(digest_of("k")) == 16 and digest_of("k") != digest_of("k", "t") != digest_of("tk")
    assert digest_of("b", "a") != digest_of("ab") and digest_of("1:ab", "") != digest_of("b", "a")
    a = Draft({"x": 1, "y": 2}, metadata={"p": 1, "q": 2})
    b = Draft({"y": 2, "x": 1}, metadata={"q": 2, "p": 1})
    same = fingerprint_of("put", "m", a, ANYTHING)
    assert len(same) == 16 and same == fingerprint_of("put", "m", b, ANYTHING)
    others = [
        fingerprint_of("patch", "m", a, ANYTHING),
        fingerprint_of("put", "n", a, ANYTHING),
        fingerprint_of("put", "m", Draft({"x": 1}), ANYTHING),
        fingerprint_of("put", "m", a, Expect(version="*")),
        fingerprint_of("put", "m", Draft({"x": True, "y": 2}, metadata={"p": 1, "q": 2}), ANYTHING),
    ]
    assert same not in others and len(set(others)) == len(others)
