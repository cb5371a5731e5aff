"""The client against answers that come as they should: what is sent, and what is made of the reply."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from raftspine import AsyncSpine, Conflict, InvalidRequest, Misuse, NotFound, PreconditionFailed, Spine
from tests.support.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def test_put_and_get_carry_every_field(server: FakeServer) -> None:
    with Spine(server.url, agent_id="agent-7") as spine:
        stored = spine.put(
            "dep/42 ü",
            {"text": "hello"},
            tags=["critical"],
            agent_id="agent-1",
            namespace="team/api",
            importance=0.5,
            metadata={"a": 1},
            ttl_seconds=60,
            pinned=True,
        )
        assert spine.get("dep/42 ü") == stored
    assert stored.tags == ("critical",)
    assert stored.consistency == "strong"
    assert stored.etag == f'"{stored.version}"'
    assert server.memories["dep/42 ü"]["metadata"] == {"a": 1}
    sent = server.seen[0]
    assert sent.path == "/v1/memories/dep%2F42%20%C3%BC"
    assert sent.headers["X-Agent-Id"] == "agent-7"
    assert sent.body["agent_id"] == "agent-1"


def test_fields_not_given_are_not_sent(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        spine.put("a", "x")
        spine.patch("a", ttl_seconds=None, tags=["t"])
    assert server.seen[0].body == {"content": "x"}
    assert server.seen[1].body == {"ttl_seconds": None, "tags": ["t"]}


def test_each_write_has_a_key_of_its_own_and_reads_have_none(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        spine.put("a", 1)
        spine.put("a", 2)
        spine.delete("a", idempotency_key="mine")
        spine.add("drawn")
        spine.page()
    keys = [seen.headers.get("Idempotency-Key") for seen in server.seen]
    assert keys[2] == "mine"
    assert keys[4] is None
    assert len(set(keys)) == 5
    # a key of the caller's may have been sent before, by a call that ended in doubt
    assert [seen.headers.get("X-Spine-Attempt") for seen in server.seen] == ["1", "1", "2", "1", None]


def test_conditions_refuse_with_their_own_exception(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        first = spine.put("a", 1)
        spine.put("a", 2, expected_version=first.version)
        with pytest.raises(Conflict) as conflict:
            spine.put("a", 3, expected_version=first.version)
        with pytest.raises(PreconditionFailed):
            spine.put("a", 3, if_absent=True)
        with pytest.raises(Conflict):
            spine.delete("a", expected_version="other")
        with pytest.raises(NotFound) as missing:
            spine.get("b")
    assert conflict.value.code == "version_conflict"
    assert conflict.value.details["version"] == "v2"
    assert missing.value.details["confirmed"] is True
    assert len(server.seen) == 6, "a decision is never asked for twice"


def test_list_follows_the_cursor(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        for n in range(7):
            spine.put(f"k{n}", n, tags=["even"] if n % 2 == 0 else [])
        assert [r.id for r in spine.list(limit=3)] == [f"k{n}" for n in range(7)]
        assert [r.content for r in spine.list(tag="even", limit=1)] == [0, 2, 4, 6]


def test_async_list_follows_the_cursor(server: FakeServer) -> None:
    async def ids() -> list[str]:
        async with AsyncSpine(server.url) as spine:
            for n in range(5):
                await spine.put(f"k{n}", n)
            return [record.id async for record in spine.list(limit=2)]

    assert asyncio.run(ids()) == [f"k{n}" for n in range(5)]


def test_batch_gives_one_result_each(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        ops: list[dict[str, Any]] = [
            {"op": "put", "id": "a", "content": 1},
            {"op": "get", "id": "b"},
            {"op": "delete", "id": "a"},
        ]
        put, got, deleted = spine.batch(ops)
    assert put.ok and put.record is not None and put.record.content == 1
    assert isinstance(got.error, NotFound) and got.id == "b"
    assert deleted.ok and deleted.status == 204 and deleted.record is None


def test_the_rest_of_the_api(server: FakeServer) -> None:
    server.topology = {"epoch": 9}
    with Spine(server.url) as spine:
        record = spine.put("a", 1, idempotency_key="k1")
        assert spine.request_status("k1")["state"] == "done"
        assert spine.void_request("k2")["state"] == "void"
        assert spine.route(tags=["critical"], id="a")["path"] == "strong"
        assert spine.topology() == {"epoch": 9}
        assert spine.status()["cluster"] == "fake"
        assert spine.conflicts("a") == ()
        assert spine.versions("a") == (record,)


def test_a_session_keeps_its_token_and_the_client_has_none(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        session, other = spine.session(agent_id="a1"), spine.session()
        session.put("a", 1)
        after_put = session.token
        session.get("a")
        other.get("a")
        spine.get("a")
        assert after_put == "token-1"
        assert session.token == "token-2"
        assert other.token == "token-3"
        continued = spine.session(token=session.token)
        continued.get("a")
    assert [seen.headers.get("X-Spine-Session") for seen in server.seen] == [
        None,
        "token-1",
        None,
        None,
        "token-2",
    ]
    assert [seen.headers.get("X-Agent-Id") for seen in server.seen] == ["a1", "a1", None, None, None]


def test_parallel_calls_of_one_session_lose_no_token(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncSpine(server.url) as spine:
            session = spine.session()
            await asyncio.gather(*(session.put(f"k{n}", n) for n in range(5)))

    asyncio.run(work())
    tokens = [seen.headers.get("X-Spine-Session") for seen in server.seen]
    assert tokens == [None, "token-1", "token-2", "token-3", "token-4"]


def test_consistency_is_asked_for_in_a_header(server: FakeServer) -> None:
    with Spine(server.url, consistency="causal") as spine:
        spine.put("a", 1)
        spine.get("a", consistency="strong")
    assert [seen.headers["X-Spine-Consistency"] for seen in server.seen] == ["causal", "strong"]


def test_an_api_key_is_sent_as_bearer(server: FakeServer) -> None:
    with Spine(server.url, api_key="s3cret") as spine:
        spine.put("a", 1)
    assert server.seen[0].headers["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("url", ["", "localhost:8788", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(Misuse):
        AsyncSpine(url)
    with pytest.raises(Misuse):
        AsyncSpine([])


def test_bad_arguments_never_reach_the_network(server: FakeServer) -> None:
    with Spine(server.url) as spine:
        with pytest.raises(InvalidRequest) as unencodable:
            spine.put("a", object())
        with pytest.raises(InvalidRequest):
            spine.get("")
        assert spine.put("..", 1).id == ".."
    assert unencodable.value.details["field"] == "$.content"
    assert [seen.path for seen in server.seen] == ["/v1/memories/%2E%2E"]


def test_a_closed_client_says_so_and_leaves_no_thread(server: FakeServer) -> None:
    before = threading.active_count()
    spine = Spine(server.url)
    spine.put("a", 1)
    spine.close()
    spine.close()
    assert threading.active_count() == before
    with pytest.raises(Exception, match="closed"):
        spine.get("a")
