"""Whatever a client sends, it is read or refused by name; nothing else ever leaves the parsing."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftspine.core.limits import Limits
from raftspine.errors import InvalidRequest, SpineError
from raftspine.http import parse, render
from raftspine.http.bodies import BatchLine, ListParams, StoreBody
from raftspine.http.dispatch import Bound, Router
from raftspine.http.fake import FakeMemories
from raftspine.http.memories import MemoryHandlers
from raftspine.http.route import Route
from raftspine.http.routes import _memories

JSON = msgspec.json.Decoder(StoreBody)
PACKED = msgspec.msgpack.Decoder(StoreBody)
LINE = msgspec.json.Decoder(BatchLine)

header_text = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=40)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def routes() -> list[Route]:
    return list(_memories(MemoryHandlers(FakeMemories(), Limits())))


ROUTER = Router([Bound(route, 1) for route in routes()])


@given(st.binary(max_size=200))
@example(b"[" * 5000)
@example(b'{"content":' + b"[" * 5000)
@example(b"\x91" * 5000)
@example(b"\x81\xa7content" + b"\x91" * 5000)
def test_no_bytes_break_the_decoders(data: bytes) -> None:
    for decoder in (JSON, PACKED, LINE):
        try:
            parse.decode(data, decoder)
        except InvalidRequest as error:
            assert error.details["field"].startswith("$")


@given(st.dictionaries(st.sampled_from(["content", "tags", "importance", "metadata", "id", "x", "pinned"]), plain))
def test_every_misfit_names_its_field(body: dict[str, Any]) -> None:
    try:
        parse.decode(msgspec.json.encode(body), JSON)
    except InvalidRequest as error:
        top = error.details["field"].removeprefix("$.").partition(".")[0].partition("[")[0]
        assert top == "content" or top in body


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "X-Agent-Id",
                "X-Spine-Session",
                "X-Spine-Consistency",
                "X-Spine-Max-Wait-Ms",
                "Idempotency-Key",
                "X-Spine-Attempt",
                "If-Match",
                "If-None-Match",
                "X-Request-Id",
            ]
        ),
        header_text,
    )
)
def test_no_header_breaks_the_parsing_and_none_can_split_a_reply(headers: dict[str, str]) -> None:
    echoed = parse.request_id(headers)
    assert echoed is None or (echoed.isascii() and echoed.isprintable() and " " not in echoed)
    for read in (lambda: parse.ask(headers, None, Limits()), lambda: parse.expectation(headers, None)):
        try:
            read()
        except InvalidRequest as error:
            assert error.details["field"] in headers


@given(header_text)
def test_accept_and_etag_lists_never_fail(text: str) -> None:
    assert parse.wants_msgpack(text) in (True, False)
    assert parse.etag_matches(text, "v") in (True, False)


@given(st.text(min_size=1))
def test_an_encoded_id_comes_back(id: str) -> None:
    try:
        encoded = quote(id, safe="")
    except UnicodeEncodeError:
        return
    route, params = ROUTER.find("GET", f"/v1/memories/{encoded}")
    assert (route.path, params) == ("/v1/memories/{id}", (id,))
    route, params = ROUTER.find("GET", f"/v1/memories/{encoded}/conflicts")
    assert (route.path, params) == ("/v1/memories/{id}/conflicts", (id,))


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    st.sampled_from(["GET", "PUT", "POST", "LOCK"]),
)
def test_any_path_is_found_or_refused(path: str, method: str) -> None:
    for target in (path, f"/v1/memories/{path}"):
        try:
            ROUTER.find(method, target)
        except SpineError as error:
            assert error.message


@given(st.lists(st.tuples(st.sampled_from(["tag", "limit", "prefix", "nope"]), st.text(max_size=8)), max_size=5))
def test_a_query_is_read_or_its_parameter_named(pairs: list[tuple[str, str]]) -> None:
    try:
        text = urlencode(pairs)
    except UnicodeEncodeError:
        return
    try:
        read = parse.query(text, ListParams)
    except InvalidRequest as error:
        assert error.details["field"] in dict(pairs)
    else:
        for name, value in pairs:
            assert str(getattr(read, name)) == value or (name == "limit" and read.limit == int(value))


@given(st.integers(0, 253_402_300_799_999))
def test_times_survive_the_round_trip(ms: int) -> None:
    text = render.rfc3339(ms)
    assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert parse.moment_ms(text, "t") == ms


@given(plain)
def test_both_formats_say_the_same(value: Any) -> None:
    assert msgspec.json.decode(render.body(value, False)) == msgspec.msgpack.decode(render.body(value, True))


def test_the_reader_of_queries_is_bounded() -> None:
    with pytest.raises(InvalidRequest):
        parse.query("&".join(f"a{n}=1" for n in range(100)), ListParams)
