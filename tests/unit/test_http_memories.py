"""The memory routes as a client sees them: one memory, conditions, sessions, many at once."""

from hashlib import sha256

import msgspec
import pytest

from raftspine.core.limits import Limits
from raftspine.model import Memory, Model
from raftspine.services.values import Loser
from tests.support.http_site import Site, play


def test_a_memory_is_stored_read_changed_and_deleted() -> None:
    async def story(site: Site) -> None:
        body = {"content": "ship it", "tags": ["critical"], "importance": 0.5, "ttl_seconds": 60}
        new = await site.ask("PUT", "/v1/memories/dep-42", body, {"X-Agent-Id": "agent-7"})
        assert new.status == 201
        assert new.json == {
            "id": "dep-42",
            "namespace": "",
            "agent_id": "agent-7",
            "content": "ship it",
            "tags": ["critical"],
            "importance": 0.5,
            "metadata": {},
            "ttl_seconds": 60,
            "expires_at": "2023-11-14T22:14:20.000Z",
            "pinned": False,
            "version": "r-n1~0-1",
            "content_sha256": sha256(b"ship it").hexdigest(),
            "consistency": "strong",
            "created_at": "2023-11-14T22:13:20.000Z",
            "updated_at": "2023-11-14T22:13:20.000Z",
            "updated_by": "agent-7",
            "last_accessed_at": None,
            "access_count": 0,
            "merged_from": [],
        }
        assert new.headers["ETag"] == '"r-n1~0-1"'
        assert new.headers["X-Spine-Session"] == "token1"
        assert new.headers["X-Spine-Consistency"] == "strong"
        assert new.headers["X-Spine-Index"] == "1"
        assert new.headers["X-Spine-Node"] == "n1"
        assert new.headers["Content-Type"] == "application/json"
        assert new.headers["X-Request-Id"]
        read = await site.ask("GET", "/v1/memories/dep-42")
        assert (read.status, read.json) == (200, new.json)
        assert read.headers["X-Spine-Staleness-Ms"] == "0"
        changed = await site.ask("PATCH", "/v1/memories/dep-42", {"content": {"a": [1, None]}})
        assert (changed.status, changed.json["content"]) == (200, {"a": [1, None]})
        assert changed.json["tags"] == ["critical"]
        again = await site.ask("PUT", "/v1/memories/dep-42", {"content": "x"})
        assert (again.status, again.json["tags"]) == (200, ["critical"])
        gone = await site.ask("DELETE", "/v1/memories/dep-42")
        assert (gone.status, gone.body) == (204, b"")
        assert "Content-Length" not in gone.headers
        assert (await site.ask("DELETE", "/v1/memories/dep-42")).status == 204
        missing = await site.ask("GET", "/v1/memories/dep-42")
        assert (missing.status, missing.error["code"]) == (404, "not_found")
        assert missing.error["details"] == {"confirmed": True}
        assert missing.error["requestId"] == missing.headers["X-Request-Id"]

    play(story)


@pytest.mark.parametrize("path", ["/v1/memories", "/api/v1/memory/store"])
def test_post_makes_an_id_unless_it_is_given_one(path: str) -> None:
    async def story(site: Site) -> None:
        made = await site.ask("POST", path, {"content": 1})
        assert made.status == 201
        assert made.headers["Location"] == f"/v1/memories/{made.json['id']}"
        given = await site.ask("POST", path, {"content": 1, "id": "a/b c"})
        assert given.json["id"] == "a/b c"
        assert given.headers["Location"] == "/v1/memories/a%2Fb%20c"
        assert (await site.ask("GET", given.headers["Location"])).status == 200

    play(story)


def test_a_repeated_post_and_batch_mean_the_same_memories() -> None:
    """Whichever node a repetition reaches: the id it draws follows from the key."""

    async def story(site: Site) -> None:
        key = {"Idempotency-Key": "k"}
        made = [(await site.ask("POST", "/v1/memories", {"content": 1}, key)).json["id"] for _ in range(2)]
        assert made[0] == made[1]
        lines = {"ops": [{"op": "get", "id": "absent"}, {"op": "put", "content": 1}]}
        other = {"Idempotency-Key": "other"}
        batches = [(await site.ask("POST", "/v1/memories/batch", lines, other)).json["results"] for _ in range(2)]
        ids = [batch[1]["record"]["id"] for batch in batches]
        assert ids[0] == ids[1] == "of-other-1"

    play(story)


@pytest.mark.parametrize(
    ("path", "id"),
    [
        ("a%2Fb", "a/b"),
        ("%C3%BC", "ü"),
        ("a+b", "a+b"),
        ("batch", "batch"),
        ("..", ".."),
        ("versions", "versions"),
        ("x" * 255, "x" * 255),
        ("a%2Fversions", "a/versions"),
        ("a%3Fb%23", "a?b#"),
    ],
)
def test_ids_come_through_the_path_unchanged(path: str, id: str) -> None:
    async def story(site: Site) -> None:
        put = await site.ask("PUT", f"/v1/memories/{path}", {"content": "x"})
        assert (put.status, put.json["id"]) == (201, id)
        assert list(site.memories.kept) == [id]

    play(story)


@pytest.mark.parametrize("path", ["", "x" * 256, "%00", "a%0Ab", "%FF", "%ED%A0%80"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_bad_ids_are_refused_by_name(path: str, method: str) -> None:
    async def story(site: Site) -> None:
        body = {"content": "x"} if method == "PUT" else None
        seen = await site.ask(method, f"/v1/memories/{path}", body)
        assert (seen.status, seen.error["code"]) == (422, "invalid_request")
        assert seen.error["details"]["field"] in ("id", "path")
        assert not site.memories.kept

    play(story)


def test_raw_slashes_in_an_id_are_answered_with_the_remedy() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a/b")
        assert (seen.status, seen.error["code"]) == (404, "not_found")
        assert "%2F" in seen.error["message"]

    play(story)


def test_head_answers_as_get_without_a_body() -> None:
    async def story(site: Site) -> None:
        await site.ask("PUT", "/v1/memories/a", {"content": "x"})
        read = await site.ask("GET", "/v1/memories/a")
        for path, length in (("/v1/memories/a", len(read.body)), ("/healthz", None)):
            seen = await site.ask("HEAD", path)
            assert (seen.status, seen.body) == (200, b"")
            assert length is None or seen.headers["Content-Length"] == str(length)

    play(story)


def test_conditions_by_header_are_412_and_by_field_409() -> None:
    async def story(site: Site) -> None:
        put = await site.ask("PUT", "/v1/memories/a", {"content": 1}, {"If-None-Match": "*"})
        assert put.status == 201
        path, etag = "/v1/memories/a", put.headers["ETag"]
        refused = await site.ask("PUT", path, {"content": 2}, {"If-None-Match": "*"})
        assert (refused.status, refused.error["code"]) == (412, "precondition_failed")
        refused = await site.ask("PUT", path, {"content": 2}, {"If-Match": '"other"'})
        assert refused.status == 412
        refused = await site.ask("PUT", path, {"content": 2, "expected_version": "other"})
        assert (refused.status, refused.error["code"]) == (409, "version_conflict")
        assert refused.error["details"] == {"current_version": put.json["version"]}
        refused = await site.ask("DELETE", f"{path}?expected_version=other")
        assert refused.status == 409
        done = await site.ask("PUT", path, {"content": 2}, {"If-Match": etag})
        assert (done.status, done.json["precondition"]) == (200, "advisory")
        done = await site.ask("PATCH", path, {"content": 3, "expected_version": done.json["version"]})
        assert (done.status, done.json["precondition"]) == (200, "advisory")
        plain = await site.ask("PUT", path, {"content": 4})
        assert "precondition" not in plain.json
        assert (await site.ask("PATCH", path, {"content": 5}, {"If-Match": "*"})).status == 200
        assert (await site.ask("DELETE", path, None, {"If-Match": '"no"'})).status == 412

    play(story)


def test_a_reader_who_has_the_version_gets_304() -> None:
    async def story(site: Site) -> None:
        etag = (await site.ask("PUT", "/v1/memories/a", {"content": 1})).headers["ETag"]
        for header in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            seen = await site.ask("GET", "/v1/memories/a", None, {"If-None-Match": header})
            assert (seen.status, seen.body, seen.headers["ETag"]) == (304, b"", etag)
        assert (await site.ask("GET", "/v1/memories/a", None, {"If-None-Match": '"x"'})).status == 200

    play(story)


def test_what_a_request_asks_reaches_the_service() -> None:
    async def story(site: Site) -> None:
        headers = {
            "X-Agent-Id": "agent-7",
            "X-Spine-Session": "abc",
            "X-Spine-Consistency": "causal",
            "X-Spine-Max-Wait-Ms": "60000",
            "Idempotency-Key": "k-1",
            "X-Spine-Attempt": "1",
        }
        await site.ask("PUT", "/v1/memories/a", {"content": 1, "agent_id": "writer"}, headers)
        ask = site.memories.asks[-1]
        assert (ask.agent_id, ask.token, ask.consistency) == ("agent-7", "abc", Model.CAUSAL)
        assert (ask.max_wait_ms, ask.idempotency_key, ask.first_attempt) == (60000, "k-1", True)
        assert site.memories.kept["a"].memory.agent_id == "writer"
        seen = await site.ask("GET", "/v1/memories/a?consistency=eventual", None, headers)
        assert site.memories.asks[-1].consistency is Model.EVENTUAL
        assert seen.headers["X-Spine-Consistency"] == "eventual"
        await site.ask("GET", "/v1/memories/a")
        ask = site.memories.asks[-1]
        assert (ask.agent_id, ask.token, ask.consistency) == ("", None, None)
        assert (ask.max_wait_ms, ask.idempotency_key, ask.first_attempt) == (250, None, False)

    play(story)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Idempotency-Key", "k" * 256),
        ("Idempotency-Key", "a b"),
        ("Idempotency-Key", "ü"),
        ("X-Spine-Max-Wait-Ms", "-1"),
        ("X-Spine-Max-Wait-Ms", "60001"),
        ("X-Spine-Max-Wait-Ms", "1.5"),
        ("X-Spine-Consistency", "linearizable"),
        ("X-Spine-Session", "ü"),
        ("X-Agent-Id", "a" * 129),
        ("X-Agent-Id", "a\tb"),
        ("If-Match", '"a", "b"'),
        ("If-Match", 'W/"a"'),
        ("If-None-Match", '"a"'),
    ],
)
def test_bad_headers_are_named(header: str, value: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("PUT", "/v1/memories/a", {"content": 1}, {header: value})
        assert (seen.status, seen.error["code"]) == (422, "invalid_request")
        assert seen.error["details"]["field"] == header
        assert not site.memories.kept

    play(story)


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a?consistency=best")
        assert seen.status == 422
        assert seen.error["details"]["allowed"] == ["strong", "causal", "read-your-writes", "eventual"]

    play(story)


def test_a_valid_request_id_is_echoed_and_a_bad_one_replaced() -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", "/v1/memories/a", None, {"X-Request-Id": "trace-1"})
        assert (seen.headers["X-Request-Id"], seen.error["requestId"]) == ("trace-1", "trace-1")
        seen = await site.ask("GET", "/v1/memories/a", None, {"X-Request-Id": "a b"})
        assert seen.headers["X-Request-Id"] == seen.error["requestId"] == "0000000001-1"

    play(story)


def test_listing_pages_and_filters() -> None:
    async def story(site: Site) -> None:
        for n in range(5):
            await site.ask("PUT", f"/v1/memories/m{n}", {"content": n, "tags": ["even"] if n % 2 == 0 else []})
        first = (await site.ask("GET", "/v1/memories?limit=2&prefix=m")).json
        assert [item["id"] for item in first["items"]] == ["m0", "m1"]
        rest = (await site.ask("GET", f"/v1/memories?cursor={first['next_cursor']}")).json
        assert [item["id"] for item in rest["items"]] == ["m2", "m3", "m4"]
        assert rest["next_cursor"] is None
        even = (await site.ask("GET", "/v1/memories?tag=even")).json["items"]
        assert [item["content"] for item in even] == [0, 2, 4]
        for since in ("2030-01-01T00:00:00Z", "1900000000000", "2030-01-01T00:00:00+02:00"):
            assert (await site.ask("GET", f"/v1/memories?updated_since={since}")).json["items"] == []

    play(story)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("tags=a", "tags"),
        ("tag=a&tag=b", "tag"),
        ("tag=%FF", "query"),
        ("updated_since=yesterday", "updated_since"),
        ("&".join(f"p{n}=1" for n in range(40)), "query"),
    ],
)
def test_a_query_that_does_not_fit_names_the_parameter(query: str, field: str) -> None:
    async def story(site: Site) -> None:
        seen = await site.ask("GET", f"/v1/memories?{query}")
        assert (seen.status, seen.error["details"]["field"]) == (422, field)

    play(story)


def test_a_batch_answers_each_line_in_order() -> None:
    async def story(site: Site) -> None:
        ops = [
            {"op": "put", "id": "a", "content": 1},
            {"op": "get", "id": "a"},
            {"op": "put", "id": "b", "content": 1, "tags": [7]},
            {"op": "jump", "id": "a"},
            {"op": "get", "id": "nothing"},
            {"op": "put", "id": "a", "content": 2, "expected_version": "other"},
            {"op": "delete", "id": "a"},
            {"op": "get", "id": ""},
            17,
            {"op": "put", "content": "made"},
        ]
        seen = await site.ask("POST", "/v1/memories/batch", {"ops": ops})
        assert seen.status == 200
        results = seen.json["results"]
        assert [r["status"] for r in results] == [201, 200, 422, 422, 404, 409, 204, 422, 422, 201]
        assert results[1]["record"]["content"] == 1
        assert [results[n]["error"]["details"]["field"] for n in (2, 3, 7, 8)] == [
            "$.ops[2].tags[0]",
            "$.ops[3].op",
            "$.ops[7].id",
            "$.ops[8]",
        ]
        assert results[4]["error"]["details"] == {"confirmed": True}
        assert results[6] == {"status": 204}
        assert seen.headers["X-Spine-Session"] == f"token{site.memories._count}"
        packed = await site.ask(
            "POST",
            "/v1/memories/batch",
            msgspec.msgpack.encode({"ops": [{"op": "put", "id": "z", "content": 1}, {"op": "get"}]}),
            {"Content-Type": "application/msgpack"},
        )
        assert [r["status"] for r in packed.json["results"]] == [201, 422]
        assert (await site.ask("POST", "/v1/memories/batch", {"ops": []})).json == {"results": []}

    play(story)


def test_a_batch_above_its_limit_is_413_and_does_nothing() -> None:
    async def story(site: Site) -> None:
        ops = [{"op": "put", "id": f"m{n}", "content": n} for n in range(4)]
        seen = await site.ask("POST", "/v1/memories/batch", {"ops": ops})
        assert (seen.status, seen.error["details"]) == (413, {"field": "$.ops", "limit": 3})
        assert not site.memories.kept

    play(story, limits=Limits(batch_ops=3))


def test_history_and_losers() -> None:
    async def story(site: Site) -> None:
        for n in range(2):
            await site.ask("PUT", "/v1/memories/a%2Fb", {"content": n})
        seen = await site.ask("GET", "/v1/memories/a%2Fb/versions")
        assert [item["content"] for item in seen.json["items"]] == [1, 0]
        lost = Memory("lost", "w", tags=("t",), updated_at_ms=1)
        site.memories.lost["a/b"] = [Loser("a/b", "r-1", lost, 5, "r-2"), Loser("a/b", "r-0", None, 4, "r-2")]
        items = (await site.ask("GET", "/v1/memories/a%2Fb/conflicts")).json["items"]
        assert [item["deleted"] for item in items] == [False, True]
        assert (items[0]["content"], items[0]["lost_at"]) == ("lost", "1970-01-01T00:00:00.005Z")

    play(story)
