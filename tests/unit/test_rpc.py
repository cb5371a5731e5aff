"""Calls over a transport whose every move the test decides: outcomes never mix."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from raftspine import errors
from raftspine.cluster.rpc import Rpcs, flatten, rebuild
from raftspine.errors import Conflict, InvalidRequest, SpineError, TooLarge, Unavailable, Unknown
from raftspine.model import NodeId

A, B = NodeId("a"), NodeId("b")


class HandClock:
    now = 100.0

    def wall_ms(self) -> int:
        raise AssertionError("rpc has no business with wall time")

    def monotonic(self) -> float:
        return self.now


class Fixed:
    def random(self) -> float:
        return 0.5

    def token_bytes(self, n: int) -> bytes:
        return b"\x01" * n


class Wire:
    """One end of a link; the test says when what was sent arrives."""

    def __init__(self, name: NodeId) -> None:
        self.name = name
        self.other: Wire
        self.up = True
        self.full = False
        self.max_bytes = 1000
        self.sent: list[tuple[bytes, bool]] = []

    def send(self, peer: NodeId, message: Sequence[Any], *, bulk: bool = False) -> bool:
        if not self.up or self.full:
            return False
        data = msgspec.msgpack.encode(message)
        if len(data) > self.max_bytes:
            raise TooLarge("above the lane's frame")
        self.sent.append((data, bulk))
        return True

    def connected(self, peer: NodeId) -> bool:
        return self.up

    def on_message(self, receive: Callable[[NodeId, tuple[Any, ...]], None]) -> None:
        self.receive = receive

    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None:
        self.changed = changed

    def deliver(self) -> None:
        """Let all that was sent from here arrive."""
        sent, self.sent = self.sent, []
        for data, _ in sent:
            self.other.receive(self.name, tuple(msgspec.msgpack.decode(data)))

    def link(self, up: bool) -> None:
        self.up = up
        self.changed(self.other.name, up)


class Pair:
    def __init__(self, **limits: int) -> None:
        self.clock = HandClock()
        self.wire_a, self.wire_b = Wire(A), Wire(B)
        self.wire_a.other, self.wire_b.other = self.wire_b, self.wire_a
        self.a = Rpcs(self.wire_a, self.clock, Fixed(), **limits)
        self.b = Rpcs(self.wire_b, self.clock, Fixed(), **limits)

    async def settle(self) -> None:
        for _ in range(5):
            self.wire_a.deliver()
            self.wire_b.deliver()
            await asyncio.sleep(0)


def story(test: Callable[[Pair], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        pair = Pair(**limits)
        try:
            await test(pair)
        finally:
            await pair.a.close()
            await pair.b.close()

    asyncio.run(run())


def test_a_cast_arrives_and_is_not_answered() -> None:
    async def test(pair: Pair) -> None:
        got: list[Any] = []
        pair.b.serve("note", lambda peer, body: got.append((peer, body)))
        assert pair.a.cast(B, "note", (1, {"k": b"v"}))
        await pair.settle()
        assert got == [(A, [1, {"k": b"v"}])]
        assert pair.wire_b.sent == []
        pair.wire_a.link(False)
        assert not pair.a.cast(B, "note", 2)

    story(test)


@pytest.mark.parametrize("way", ["plain", "coroutine", "future", "none"])
def test_a_call_is_answered_whatever_the_handler_returns(way: str) -> None:
    async def test(pair: Pair) -> None:
        async def later(body: Any) -> Any:
            await asyncio.sleep(0)
            return body * 2

        def handler(peer: NodeId, body: Any) -> Any:
            if way == "coroutine":
                return later(body)
            if way == "future":
                future = asyncio.get_running_loop().create_future()
                future.set_result(body * 2)
                return future
            return body * 2 if way == "plain" else None

        pair.b.serve("double", handler)
        call = pair.a.call(B, "double", 21, timeout_ms=1000)
        await pair.settle()
        assert await call == (42 if way != "none" else None)
        assert pair.a.outstanding(B) == 0

    story(test)


def test_replies_go_back_on_the_lane_of_the_call() -> None:
    async def test(pair: Pair) -> None:
        pair.b.serve("echo", lambda peer, body: body)
        pair.a.call(B, "echo", 1, timeout_ms=1000, bulk=True)
        pair.a.call(B, "echo", 1, timeout_ms=1000)
        assert [bulk for _, bulk in pair.wire_a.sent] == [True, False]
        pair.wire_a.deliver()
        assert [bulk for _, bulk in pair.wire_b.sent] == [True, False]
        await pair.settle()

    story(test)


def test_an_error_of_the_handler_arrives_as_itself() -> None:
    async def test(pair: Pair) -> None:
        async def refuse(peer: NodeId, body: Any) -> None:
            raise Unavailable("ask b", code="no_leader", details={"leader": "b"}, retry_after_ms=50)

        def reject(peer: NodeId, body: Any) -> None:
            raise InvalidRequest("bad tags", field="$.tags[0]")

        pair.b.serve("later", refuse)
        pair.b.serve("now", reject)
        for method, kind, code, details, retry in (
            ("later", Unavailable, "no_leader", {"leader": "b"}, 50),
            ("now", InvalidRequest, "invalid_request", {"field": "$.tags[0]"}, None),
        ):
            call = pair.a.call(B, method, None, timeout_ms=1000)
            await pair.settle()
            with pytest.raises(kind) as raised:
                await call
            error = raised.value
            assert (type(error), error.code, error.details, error.retry_after_ms) == (
                kind,
                code,
                details,
                retry,
            )

    story(test)


def test_a_failure_nobody_foresaw_is_unknown_and_logged_where_it_happened() -> None:
    async def test(pair: Pair) -> None:
        def broken(peer: NodeId, body: Any) -> None:
            raise KeyError("secret detail")

        async def broken_later(peer: NodeId, body: Any) -> None:
            raise ZeroDivisionError

        pair.b.serve("broken", broken)
        pair.b.serve("later", broken_later)
        for method in ("broken", "later"):
            with capture_logs() as logs:
                call = pair.a.call(B, method, None, timeout_ms=1000)
                await pair.settle()
            with pytest.raises(Unknown) as raised:
                await call
            assert "secret detail" not in str(raised.value)
            assert [(entry["event"], entry["method"]) for entry in logs] == [("call failed", method)]
            assert logs[0]["exc_info"] is not None
        with capture_logs() as logs:
            pair.a.cast(B, "broken", None)
            pair.a.cast(B, "later", None)
            await pair.settle()
        assert [entry["event"] for entry in logs] == ["cast failed", "cast failed"]

    story(test)


def test_nothing_sent_is_unavailable_and_a_lost_link_is_unknown() -> None:
    async def test(pair: Pair) -> None:
        seen: list[tuple[NodeId, bool]] = []
        pair.a.on_link(lambda peer, up: seen.append((peer, up)))
        call = pair.a.call(B, "slow", None, timeout_ms=60_000)
        pair.wire_a.link(False)
        with pytest.raises(Unknown) as unknown:
            await call
        assert unknown.value.code == "outcome_unknown"
        with pytest.raises(Unavailable) as down:
            await pair.a.call(B, "slow", None, timeout_ms=1000)
        assert down.value.code == "peer_down"
        pair.wire_a.link(True)
        pair.wire_a.full = True
        with pytest.raises(Unavailable) as full:
            await pair.a.call(B, "slow", None, timeout_ms=1000)
        assert full.value.code == "overloaded"
        assert seen == [(B, False), (B, True)]

    story(test)


def test_a_deadline_is_unknown_and_a_late_reply_is_ignored() -> None:
    async def test(pair: Pair) -> None:
        pair.b.serve("echo", lambda peer, body: body)
        short = pair.a.call(B, "echo", 1, timeout_ms=100)
        long = pair.a.call(B, "echo", 2, timeout_ms=10_000)
        pair.clock.now += 0.2
        with pytest.raises(Unknown, match="in time"):
            await asyncio.wait_for(short, 5)
        assert not long.done()
        await pair.settle()
        assert await long == 2
        again = pair.a.call(B, "echo", 3, timeout_ms=100)
        await pair.settle()
        assert await again == 3

    story(test)


def test_an_answer_owed_to_the_process_before_is_not_taken() -> None:
    async def test(pair: Pair) -> None:
        call = pair.a.call(B, "echo", None, timeout_ms=1000)
        pair.wire_a.receive(B, (2, 1, "for someone else"))
        pair.wire_a.receive(B, (3, 2, ["x", "Unknown", "", {}, None]))
        assert not call.done()

    story(test)


def test_calls_are_bounded_on_both_sides() -> None:
    async def test(pair: Pair) -> None:
        release: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait(peer: NodeId, body: Any) -> None:
            await asyncio.shield(release)

        pair.b.serve("wait", wait)
        calls = [pair.a.call(B, "wait", None, timeout_ms=100) for _ in range(3)]
        with pytest.raises(Unavailable, match="queued") as asked:
            await calls[2]
        assert asked.value.code == "overloaded"
        await pair.settle()
        pair.clock.now += 1
        for call in calls[:2]:
            with pytest.raises(Unknown):
                await asyncio.wait_for(call, 5)
        refused = pair.a.call(B, "wait", None, timeout_ms=1000)  # the peer still works on the two
        await pair.settle()
        with pytest.raises(Unavailable, match="unfinished"):
            await refused
        release.set_result(None)
        await pair.settle()
        served = pair.a.call(B, "wait", None, timeout_ms=1000)
        await pair.settle()
        assert await served is None

    story(test, max_outstanding=2, max_running=2)


def test_what_does_not_fit_says_so_without_claiming_nothing_happened() -> None:
    async def test(pair: Pair) -> None:
        with pytest.raises(TooLarge):
            await pair.a.call(B, "echo", "x" * 2000, timeout_ms=1000)
        with pytest.raises(TooLarge):
            pair.a.cast(B, "echo", "x" * 2000)
        pair.b.serve("big", lambda peer, body: "x" * 2000)
        pair.b.serve("odd", lambda peer, body: object())
        for method in ("big", "odd"):
            with capture_logs():
                call = pair.a.call(B, method, None, timeout_ms=1000)
                await pair.settle()
            with pytest.raises(Unknown, match="cannot be sent"):
                await call

    story(test)


def test_an_unknown_method_is_not_done() -> None:
    async def test(pair: Pair) -> None:
        call = pair.a.call(B, "future.method", None, timeout_ms=1000)
        await pair.settle()
        with pytest.raises(Unavailable, match="does not serve"):
            await call

    story(test)


def test_nonsense_from_a_member_is_logged_and_changes_nothing() -> None:
    async def test(pair: Pair) -> None:
        with capture_logs() as logs:
            for message in (
                (),
                (0,),
                (1, 2),
                (2, [], {}),
                (99, 1),
                ("x",),
                (0, ["list"], 1),
                (1, {}, "m", 0),
            ):
                pair.wire_b.receive(A, message)
        assert len(logs) == 6  # the two well-formed ones are a late reply and a call to an unknown method

    story(test)


def test_closing_fails_what_waits_and_ends_what_runs() -> None:
    async def run() -> None:
        pair = Pair()
        ended = asyncio.Event()

        async def forever(peer: NodeId, body: Any) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        pair.b.serve("forever", forever)
        call = pair.a.call(B, "forever", None, timeout_ms=60_000)
        pair.wire_a.deliver()
        await asyncio.sleep(0)
        await pair.b.close()
        assert ended.is_set()
        await pair.a.close()
        with pytest.raises(Unknown):
            await call
        with pytest.raises(Unavailable):
            await pair.a.call(B, "forever", None, timeout_ms=1)

    asyncio.run(run())


@pytest.mark.parametrize(
    "kind", [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, SpineError)]
)
def test_every_error_class_survives_the_wire(kind: type[SpineError]) -> None:
    error = (
        kind("why", code="some_code", details={"a": 1}, retry_after_ms=7)
        if kind is not InvalidRequest
        else (InvalidRequest("why", field="$.a", code="some_code"))
    )
    again = rebuild(msgspec.msgpack.decode(msgspec.msgpack.encode(flatten(error))))
    assert type(again) is kind
    assert (again.code, again.message, again.details, str(again)) == (error.code, "why", error.details, "why")
    assert again.retry_after_ms == error.retry_after_ms


def test_subclasses_travel_as_their_ancestor_and_the_unreadable_is_unknown() -> None:
    class Special(Conflict):
        def __init__(self) -> None:
            super().__init__("held", code="lock_held", details={"by": {1, 2}, "at": object})

    again = rebuild(flatten(Special()))
    assert type(again) is Conflict and again.code == "lock_held"
    assert sorted(again.details["by"]) == [1, 2]
    for parts in (
        None,
        [],
        ["c", "NoSuchError", "m", {}, None],
        ["c", "Any", "m", {}, None],
        ["c", 5, "m", {}, 1],
    ):
        assert type(rebuild(parts)) is Unknown


def test_a_method_is_served_once() -> None:
    async def test(pair: Pair) -> None:
        pair.a.serve("x", lambda peer, body: None)
        with pytest.raises(ValueError, match="already"):
            pair.a.serve("x", lambda peer, body: None)

    story(test)
