"""The client against answers that a healthy cluster never gives: what is repeated, and what the caller is
told."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from raftspine import (
    AsyncSpine,
    Conflict,
    NoSpace,
    RateLimited,
    Record,
    SpineError,
    Unauthorized,
    Unavailable,
    Unknown,
)
from raftspine.client.endpoints import LONGEST_PAUSE_MS, Backoff, Endpoints
from tests.support.fake_server import FakeServer, Fault


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def second() -> Iterator[FakeServer]:
    with FakeServer("fake-2") as running:
        yield running


class Fixed:
    """Chance that is none."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.drawn = 0

    def random(self) -> float:
        return self.value

    def token_bytes(self, n: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(n, "big")


def put(urls: str | list[str], timeout: float = 5.0) -> Record:
    async def work() -> Record:
        async with AsyncSpine(urls, timeout=timeout, entropy=Fixed()) as spine:
            return await spine.put("a", "x")

    return asyncio.run(work())


def get(urls: str | list[str], timeout: float = 5.0) -> Record:
    async def work() -> Record:
        async with AsyncSpine(urls, timeout=timeout, entropy=Fixed()) as spine:
            return await spine.get("a")

    return asyncio.run(work())


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


PARTLY = Fault(503, "no_quorum", details={"acked": 1, "needed": 2, "indeterminate": True})
"""A ring write that one replica has: not acknowledged, and it may surface."""

RETRIED = [
    Fault(503, "no_leader"),
    Fault(504, "outcome_unknown", applied=True),
    Fault(504, "outcome_unknown"),
    Fault(502, html=True),
    Fault(cut=True),
    Fault(cut=True, applied=True),
]


@pytest.mark.parametrize("fault", RETRIED, ids=str)
def test_a_write_is_repeated_with_the_same_key(server: FakeServer, fault: Fault) -> None:
    server.faults.extend([fault, fault])
    assert put(server.url).version == "v1", "however often it was sent, it happened once"
    assert {seen.headers["Idempotency-Key"] for seen in server.seen} == {f"{1:032x}"}
    assert [seen.headers["X-Spine-Attempt"] for seen in server.seen] == ["1", "2", "3"]


@pytest.mark.parametrize("fault", RETRIED, ids=str)
def test_a_read_is_repeated(server: FakeServer, fault: Fault) -> None:
    put(server.url)
    server.faults.append(fault)
    assert get(server.url).content == "x"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(409, "version_conflict"), Conflict),
        (Fault(401, "unauthorized"), Unauthorized),
        (Fault(429, "rate_limited", retry_after_ms=10), RateLimited),
        (Fault(507, "no_space"), NoSpace),
        (Fault(500, "internal"), SpineError),
        (Fault(409, "a_rule_of_the_future"), Conflict),
    ],
    ids=str,
)
def test_a_decision_is_final(server: FakeServer, fault: Fault, kind: type[SpineError]) -> None:
    server.faults.append(fault)
    with pytest.raises(kind) as raised:
        put(server.url)
    assert type(raised.value) is kind
    assert raised.value.code == fault.code
    assert raised.value.details["request_id"] == "req-1"
    assert raised.value.retry_after_ms == fault.retry_after_ms
    assert len(server.seen) == 1


def test_a_node_that_is_down_is_left_for_the_next(server: FakeServer) -> None:
    assert put([closed_port(), server.url]).version == "v1"


def test_a_node_that_refuses_is_left_for_the_next_without_a_pause(server: FakeServer, second: FakeServer) -> None:
    async def work() -> None:
        async with AsyncSpine([server.url, second.url], entropy=Fixed()) as spine:
            await spine.put("a", 1)
            server.faults.append(Fault(503, "not_ready", retry_after_ms=60_000))
            await spine.put("b", 2)
            await spine.put("c", 3)

    asyncio.run(work())
    assert list(server.memories) == ["a"]
    assert list(second.memories) == ["b", "c"], "and stays with the one that answers"


def test_nobody_there_is_unavailable(server: FakeServer) -> None:
    with pytest.raises(Unavailable) as raised:
        put([closed_port(), closed_port()], timeout=0.2)
    assert raised.value.code == "unreachable"


@pytest.mark.parametrize(
    "last",
    [
        Fault(503, "no_quorum"),
        Fault(401, "unauthorized"),
        Fault(429, "rate_limited"),
        Fault(507, "no_space"),
        Fault(cut=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [Fault(cut=True), Fault(504, "outcome_unknown"), PARTLY], ids=str)
def test_a_write_once_in_doubt_never_ends_as_refused(server: FakeServer, first: Fault, last: Fault) -> None:
    server.faults.extend([first] + [last] * 100)
    with pytest.raises(Unknown) as raised:
        put(server.url, timeout=0.3)
    assert raised.value.details["idempotency_key"] == f"{1:032x}"


def test_a_write_that_some_replicas_have_is_not_called_refused(server: FakeServer) -> None:
    server.faults.extend([PARTLY] * 100)
    with pytest.raises(Unknown) as raised:
        put(server.url, timeout=0.3)
    assert raised.value.details["acked"] == 1


def test_a_write_once_in_doubt_may_end_as_decided(server: FakeServer) -> None:
    server.faults.extend([Fault(cut=True), Fault(409, "version_conflict")])
    with pytest.raises(Conflict):
        put(server.url)


def test_a_read_in_doubt_is_only_unavailable(server: FakeServer) -> None:
    server.faults.extend([Fault(cut=True)] * 100)
    with pytest.raises(Unavailable) as raised:
        get(server.url, timeout=0.2)
    assert raised.value.code == "no_answer"


def test_a_page_without_an_envelope_keeps_the_meaning_of_its_status(server: FakeServer) -> None:
    server.faults.append(Fault(413, html=True))
    with pytest.raises(SpineError) as raised:
        put(server.url)
    assert type(raised.value).__name__ == "TooLarge"


def test_pauses_come_after_each_round_and_grow() -> None:
    backoff = Backoff(3, Fixed(1.0))
    pauses = [backoff.next_s(None) for _ in range(12)]
    assert pauses == [0, 0, 0.025, 0, 0, 0.05, 0, 0, 0.1, 0, 0, 0.2]
    asked = Backoff(1, Fixed(0.0))
    assert asked.next_s(400) == 0.2, "what the server asks for, jittered to no less than half"
    assert asked.next_s(10**9) * 1000 <= LONGEST_PAUSE_MS
    long_run = Backoff(1, Fixed(1.0))
    assert max(long_run.next_s(None) for _ in range(50)) * 1000 == LONGEST_PAUSE_MS


def test_only_the_address_in_use_is_stepped_away_from() -> None:
    endpoints = Endpoints(["http://a/", "http://b"])
    endpoints.failed("http://a")
    endpoints.failed("http://a")
    assert endpoints.current() == "http://b"
    endpoints.failed("http://b")
    assert endpoints.current() == "http://a"
