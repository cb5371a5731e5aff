"""Done, not done or unknown, and never one for the other."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.errors import (
    Conflict,
    InvalidRequest,
    NoSpace,
    NotFound,
    PreconditionFailed,
    SpineError,
    Unavailable,
    Unknown,
)
from raftspine.model import NodeId
from raftspine.services.refusals import refusal
from raftspine.services.strong import PROPOSE
from raftspine.storage import memories
from raftspine.system import SystemClock
from tests.support.strong_site import GROUP, World, put, settle, until

KEYED: dict[str, Any] = {"request": b"r" * 16, "fingerprint": b"f" * 16}


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def entries(world: World) -> int:
    return len(world.cluster.entries[GROUP])


# ── the ordinary ways ───────────────────────────────────────────────────────────────────────────────────────


def test_the_leader_proposes_itself() -> None:
    async def story() -> None:
        world = World()
        outcome, index = await world["a"].strong.execute(GROUP, put("m"))
        assert (outcome.status, index) == (Status.CREATED, 1) and world.net.calls == []

    run(story)


def test_a_follower_sends_it_to_the_leader_in_one_hop() -> None:
    async def story() -> None:
        world = World()
        outcome, index = await world["b"].strong.execute(GROUP, put("m"))
        assert (outcome.status, index) == (Status.CREATED, 1)
        assert world.net.calls == [("b", "a", PROPOSE)]
        assert memories.strong(world["c"].engine, GROUP, "m") is not None

    run(story)


def test_a_gateway_reaches_the_leader_in_at_most_two_hops() -> None:
    async def story() -> None:
        world = World("abc", "abcd")
        world.elect("c")
        outcome, _ = await world["d"].strong.execute(GROUP, put("m"))
        assert outcome.status is Status.CREATED
        assert world.net.calls == [("d", "a", PROPOSE), ("a", "c", PROPOSE)]

    run(story)


def test_an_outcome_arrives_over_the_link_as_it_was_decided() -> None:
    async def story() -> None:
        world = World()
        here, _ = await world["a"].strong.execute(GROUP, put("m", {"a": [1, None]}, **KEYED))
        there, _ = await world["b"].strong.execute(GROUP, put("m", {"a": [1, None]}, **KEYED))
        assert here == there

    run(story)


def test_a_turns_proposals_share_an_entry() -> None:
    async def story() -> None:
        world = World()
        await asyncio.gather(*(world["a"].strong.execute(GROUP, put(f"m{n}")) for n in range(20)))
        assert entries(world) == 1

    run(story)


# ── not done ────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_leader_it_is_not_done() -> None:
    async def story() -> None:
        world = World(clock=SystemClock())
        world.elect(None)
        for node in "ab":
            with pytest.raises(Unavailable) as caught:
                await world[node].strong.execute(GROUP, put("m"), 30)
            assert caught.value.code == "no_leader"
        assert entries(world) == 0

    run(story)


def test_it_waits_for_a_leader_and_goes_on_when_one_is_elected() -> None:
    async def story() -> None:
        world = World(recheck_ms=60_000)
        world.elect(None)
        waiting = asyncio.ensure_future(world["b"].strong.execute(GROUP, put("m")))
        await settle()
        assert not waiting.done()
        world.elect("c")
        outcome, _ = await waiting
        assert outcome.status is Status.CREATED and world.net.calls == [("b", "c", PROPOSE)]

    run(story)


def test_a_gateway_that_comes_back_goes_on_at_the_link() -> None:
    async def story() -> None:
        world = World("abc", "abcd", recheck_ms=60_000)
        world.net.cut("d")
        waiting = asyncio.ensure_future(world["d"].strong.execute(GROUP, put("m")))
        await settle()
        world.net.join("d")
        for listener in world["d"].rpc.listeners:
            listener(NodeId("a"), True)
        outcome, _ = await waiting
        assert outcome.status is Status.CREATED

    run(story)


def test_a_refusals_hint_is_followed_at_once() -> None:
    async def story() -> None:
        world = World("abc", "abcd", recheck_ms=60_000)
        world.elect("c")
        world.cluster.beliefs[NodeId("b")] = NodeId("a")
        outcome, _ = await world["b"].strong.execute(GROUP, put("m"))
        assert outcome.status is Status.CREATED
        assert world.net.calls == [("b", "a", PROPOSE), ("b", "c", PROPOSE)]

    run(story)


def test_two_nodes_that_believe_in_each_other_do_not_send_a_request_around() -> None:
    async def story() -> None:
        world = World(clock=SystemClock(), recheck_ms=20)
        for node, belief in (("a", "b"), ("b", "a"), ("c", "a")):
            world.cluster.beliefs[NodeId(node)] = NodeId(belief)
        with pytest.raises(Unavailable) as caught:
            await world["c"].strong.execute(GROUP, put("m"), 100)
        assert caught.value.code == "no_leader"
        assert len(world.net.calls) <= 3 * (100 // 20 + 2)

    run(story)


def test_a_full_disk_is_passed_on_at_once() -> None:
    async def story() -> None:
        world = World(recheck_ms=60_000)
        world.cluster.refusals[NodeId("a")] = NoSpace("the disk is full")
        for node in "ab":
            with pytest.raises(NoSpace):
                await world[node].strong.execute(GROUP, put("m"))

    run(story)


# ── unknown, and exactly once ───────────────────────────────────────────────────────────────────────────────


def test_a_leader_without_a_majority_leaves_it_unknown() -> None:
    async def story() -> None:
        world = World(clock=SystemClock())
        world.cluster.stalled = True
        for node in "ab":
            with pytest.raises(Unknown) as caught:
                await world[node].strong.execute(GROUP, put("m", **KEYED), 30, replayable=True)
            assert caught.value.code == "outcome_unknown"

    run(story)


def test_a_lost_reply_of_a_keyless_command_is_unknown_and_never_sent_again() -> None:
    async def story() -> None:
        world = World()
        world.net.lose_replies[PROPOSE] = 1
        with pytest.raises(Unknown):
            await world["b"].strong.execute(GROUP, put("m"))
        assert entries(world) == 1 and world.count(PROPOSE) == 1

    run(story)


@pytest.mark.parametrize("node", ["b", "d"])
def test_a_lost_reply_of_a_keyed_command_is_asked_again_and_applies_once(node: str) -> None:
    async def story() -> None:
        world = World("abc", "abcd")
        world.net.lose_replies[PROPOSE] = 2
        outcome, _ = await world[node].strong.execute(GROUP, put("m", **KEYED), replayable=True)
        assert outcome.status is Status.CREATED and outcome.record is not None
        assert outcome.record.index == 1, "the first one's answer"
        assert entries(world) == 3

    run(story)


def test_a_commit_whose_leader_lost_its_office_applies_once() -> None:
    async def story() -> None:
        world = World()
        world.cluster.lose_answers = 1
        outcome, index = await world["a"].strong.execute(GROUP, put("m", **KEYED), replayable=True)
        assert outcome.record is not None and outcome.record.index == 1 and index == 2
        world.cluster.lose_answers = 1
        with pytest.raises(Unknown):
            await world["a"].strong.execute(GROUP, put("n"))

    run(story)


def test_once_it_may_have_happened_no_failure_says_it_did_not() -> None:
    async def story() -> None:
        world = World(clock=SystemClock())
        world.net.lose_replies[PROPOSE] = 1
        waiting = asyncio.ensure_future(world["b"].strong.execute(GROUP, put("m", **KEYED), 200, replayable=True))
        await until(lambda: entries(world))
        world.elect(None)
        with pytest.raises(Unknown):
            await waiting

    run(story)


def test_a_full_disk_after_a_lost_reply_is_unknown() -> None:
    async def story() -> None:
        world = World()
        world.net.lose_replies[PROPOSE] = 1
        waiting = asyncio.ensure_future(world["b"].strong.execute(GROUP, put("m", **KEYED), replayable=True))
        await until(lambda: entries(world))
        world.cluster.refusals[NodeId("a")] = NoSpace("the disk is full")
        with pytest.raises(Unknown) as caught:
            await waiting
        assert caught.value.details["cause"] == "no_space"

    run(story)


def test_a_cancelled_caller_is_cancelled_and_not_told_unknown() -> None:
    async def story() -> None:
        world = World()
        world.cluster.stalled = True
        waiting = asyncio.ensure_future(world["a"].strong.execute(GROUP, put("m")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(story)


# ── outcomes as errors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "how", "kind", "code"),
    [
        (Status.VERSION_CONFLICT, {}, Conflict, "version_conflict"),
        (Status.VERSION_CONFLICT, {"header": True}, PreconditionFailed, "precondition_failed"),
        (Status.ABSENT, {"patch": True}, NotFound, "not_found"),
        (Status.REQUEST_REUSED, {}, InvalidRequest, "idempotency_key_reused"),
        (Status.VOIDED, {}, Conflict, "request_voided"),
        (Status.INVALID, {}, InvalidRequest, "invalid_request"),
        (Status.MALFORMED, {}, InvalidRequest, "invalid_request"),
        (Status.FENCED, {}, Conflict, "fenced"),
        (Status.RING_BEHIND, {}, Unavailable, "not_ready"),
    ],
)
def test_a_refusal_becomes_the_error_the_caller_knows(
    status: Status, how: dict[str, bool], kind: type[SpineError], code: str
) -> None:
    error = refusal(Outcome(status, "m", current="s-0-1-0"), **how)
    assert type(error) is kind and error.code == code


@pytest.mark.parametrize(
    "status",
    [Status.CREATED, Status.CHANGED, Status.EQUAL, Status.DELETED, Status.DEMOTED, Status.ABSENT],
)
def test_a_success_is_no_refusal(status: Status) -> None:
    assert refusal(Outcome(status, "m")) is None
