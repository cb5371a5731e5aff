"""What needs no socket: the error table, parsing, dispatch, keys, the OpenAPI document."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from raftspine import errors
from raftspine.config.apikeys import KeyRole
from raftspine.config.checks import is_loopback
from raftspine.core.limits import Limits
from raftspine.errors import Forbidden, InvalidRequest, Misuse, SpineError, Unauthorized
from raftspine.http import parse, render
from raftspine.http.auth import GRANTS, Access, Auth, user_of
from raftspine.http.cluster import ClusterHandlers
from raftspine.http.dispatch import Bound, Router
from raftspine.http.fake import FakeClock, FakeCluster, FakeMemories
from raftspine.http.memories import MemoryHandlers
from raftspine.http.openapi import document
from raftspine.http.problems import STATUS, MethodNotAllowed, extra_headers, foreign, problem_of, status_of
from raftspine.http.reply import Heads
from raftspine.http.route import Route
from raftspine.http.routes import table
from raftspine.services.values import ANYTHING, Expect


def all_errors(cls: type[SpineError] = SpineError) -> list[type[SpineError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in all_errors(sub))]


def routes() -> tuple[Route, ...]:
    memories, limits = FakeMemories(), Limits()
    return table(MemoryHandlers(memories, limits), ClusterHandlers(FakeCluster(), memories, limits, lambda: b""))


# ── the error table ────────────────────────────────────────────────────────────────────────────────────────

EXPECTED = {
    "InvalidRequest": 422,
    "TooLarge": 413,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "Conflict": 409,
    "PreconditionFailed": 412,
    "Misdirected": 421,
    "Unavailable": 503,
    "RateLimited": 429,
    "NoSpace": 507,
    "Unknown": 504,
    "Misuse": 500,
    "Corrupt": 500,
}


@pytest.mark.parametrize(("name", "status"), EXPECTED.items())
def test_each_error_has_its_status(name: str, status: int) -> None:
    assert status_of(getattr(errors, name)("x")) == status


def test_no_unknown_outcome_is_ever_a_refusal() -> None:
    for cls in all_errors():
        if issubclass(cls, errors.Unknown):
            assert STATUS.get(cls, 504) == 504
        elif issubclass(cls, errors.Rejected):
            assert 400 <= status_of(cls("x")) < 500


def test_every_retryable_refusal_says_when() -> None:
    for cls in all_errors(errors.Unavailable):
        status, body = problem_of(cls("x"), "r")
        assert body.retryable
        assert extra_headers(status, body).startswith("Retry-After: ")


@pytest.mark.parametrize(("ms", "seconds"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (60_000, 60)])
def test_retry_after_is_rounded_up_to_whole_seconds(ms: int, seconds: int) -> None:
    status, body = problem_of(errors.Unavailable("x", retry_after_ms=ms), "r")
    assert extra_headers(status, body) == f"Retry-After: {seconds}\r\n"


def test_damage_on_our_side_is_not_described_to_clients() -> None:
    status, body = problem_of(errors.Corrupt("segment 7 in /var/lib", details={"file": "/var/lib/7"}), "r")
    assert (status, body.code, body.details) == (500, "internal", {})
    assert "/var" not in body.message


def test_foreign_exceptions_become_ours() -> None:
    assert isinstance(foreign(TimeoutError()), errors.Unknown)
    assert status_of(foreign(KeyError("x"))) == 500
    mine = errors.NoSpace("x")
    assert foreign(mine) is mine


# ── parsing ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "version", "expected"),
    [
        ({}, None, ANYTHING),
        ({}, "v", Expect("v")),
        ({}, "*", Expect("*")),
        ({"if-match": '"v"'}, None, Expect("v", header=True)),
        ({"if-match": "v"}, None, Expect("v", header=True)),
        ({"if-match": '"v"'}, "v", Expect("v", header=True)),
        ({"if-match": "*"}, None, Expect("*", header=True)),
        ({"if-none-match": "*"}, None, Expect(absent=True, header=True)),
    ],
)
def test_conditions(headers: dict[str, str], version: str | None, expected: Expect) -> None:
    assert parse.expectation(headers, version) == expected


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"if-match": '"a"'}, "b"),
        ({"if-match": '""'}, None),
        ({"if-match": ""}, None),
        ({"if-match": '"a'}, None),
        ({"if-match": '"a", "b"'}, None),
        ({"if-none-match": "*"}, "v"),
        ({"if-none-match": "*", "if-match": "*"}, None),
        ({}, ""),
        ({}, "a b"),
    ],
)
def test_conditions_that_contradict_or_cannot_be_checked(headers: dict[str, str], version: str | None) -> None:
    with pytest.raises(InvalidRequest):
        parse.expectation(headers, version)


@pytest.mark.parametrize(
    ("accept", "msgpack"),
    [
        ("application/json", False),
        ("application/msgpack", True),
        ("application/x-msgpack", True),
        ("application/vnd.msgpack;q=0.9, application/json;q=0.8", True),
        ("application/msgpack;q=0.1, application/json", False),
        ("application/msgpack, */*", True),
        ("application/msgpack;q=0", False),
        ("text/html, */*;q=0.8", False),
        ("", False),
    ],
)
def test_the_preferred_format(accept: str, msgpack: bool) -> None:
    assert parse.wants_msgpack(accept) is msgpack


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("1700000000000", 1_700_000_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.005", 1_700_000_000_005),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ("2023-11-14T23:13:20 01:00", 1_700_000_000_000),
        ("2023-11-14", 1_699_920_000_000),
    ],
)
def test_moments(text: str, ms: int) -> None:
    assert parse.moment_ms(text, "updated_since") == ms


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "²", "9" * 16, "2023-13-01", "0001-01-01T00:00:00+23:59 x"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse.moment_ms(text, "updated_since")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_005, "2023-11-14T22:13:20.005Z"),
        (10**18, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_times_are_written_with_milliseconds(ms: int, text: str) -> None:
    assert render.rfc3339(ms) == text


# ── dispatch ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_route_of_the_table_is_found_by_its_own_path() -> None:
    router = Router([Bound(route, 1) for route in routes()])
    for route in routes():
        path = route.path.replace("{id}", "a%2Fb").replace("{key}", "k%2F1")
        found, params = router.find(route.method, path)
        assert (found.method, found.path) == (route.method, route.path)
        assert params == (("a/b",) if "{id}" in route.path else ("k/1",) if "{key}" in route.path else ())


def test_the_allowed_methods_of_all_matching_routes_are_named() -> None:
    router = Router([Bound(route, 1) for route in routes()])
    with pytest.raises(MethodNotAllowed) as caught:
        router.find("LOCK", "/v1/memories/batch")
    assert caught.value.details["allow"] == ["DELETE", "GET", "PATCH", "POST", "PUT", "HEAD"]


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_role_includes_what_is_weaker() -> None:
    auth = Auth({sha256(role.encode()).hexdigest(): role for role in KeyRole})
    for role, reach in GRANTS.items():
        for needs in Access:
            if needs <= reach:
                auth.admit(f"Bearer {role}", needs)
            else:
                with pytest.raises(Forbidden):
                    auth.admit(f"Bearer {role}", needs)
    for wrong in (None, "", "Bearer", "Bearer \udcff", "Bearer reader2"):
        auth.admit(wrong, Access.OPEN)
        with pytest.raises(Unauthorized):
            auth.admit(wrong, Access.READ)


def test_a_key_may_come_as_a_password() -> None:
    def basic(text: bytes) -> str:
        return f"Basic {b64encode(text).decode()}"

    auth = Auth({sha256(key).hexdigest(): "writer" for key in (b"a:key", "clé".encode())})
    for right in (basic(b"ada:a:key"), basic(b":a:key"), basic("ü:clé".encode()).replace("Basic", "BASIC")):
        auth.admit(right, Access.WRITE)
        assert auth.allows(right, Access.WRITE) and not auth.allows(right, Access.OPERATE)
    for wrong in (
        basic(b"a:key"),
        basic(b"ada"),
        basic(b"a:key:"),
        "Basic",
        "Basic =",
        "Basic \xff",
        f"Bearer {basic(b'')}",
    ):
        with pytest.raises(Unauthorized):
            auth.admit(wrong, Access.READ)
        assert not auth.allows(wrong, Access.READ)
    assert Auth().allows(None, Access.OPERATE), "where there are no keys"
    assert (user_of(basic(b"ada:x:y")), user_of(basic(b"\xff:")), user_of("Bearer x"), user_of(None)) == (
        "ada",
        "\ufffd",
        "",
        "",
    )


@pytest.mark.parametrize("keys", [{"xyz": "reader"}, {"ab" * 32: "king"}, {"ab": "reader"}])
def test_faulty_key_lists_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(Misuse):
        Auth(keys)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.1.10", False),
        ("spine-1", False),
        ("", False),
    ],
)
def test_only_loopback_is_safe_without_keys(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if not loopback:
        with pytest.raises(Misuse):
            Auth().check_bind(host)
        Auth({"ab" * 32: "reader"}).check_bind(host)


# ── replies ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_date_is_renewed_each_second() -> None:
    clock = FakeClock()
    heads = Heads("n1", clock)
    assert "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n" in heads.start("text/plain", clock.now)
    clock.now += 0.5
    assert "22:13:20" in heads.start("text/plain", clock.now)
    clock.now += 0.6
    assert "22:13:21" in heads.start("text/plain", clock.now)


# ── the document ───────────────────────────────────────────────────────────────────────────────────────────


def refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in refs(value)]
    if isinstance(node, list):
        return [ref for value in node for ref in refs(value)]
    return []


@pytest.fixture(scope="module")
def doc() -> Any:
    return json.loads(document(routes(), "1.2.3"))


def test_all_references_resolve(doc: Any) -> None:
    found = refs(doc)
    assert found
    for ref in found:
        node = doc
        assert ref.startswith("#/")
        for part in ref[2:].split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]


def test_the_document_has_exactly_the_routes_of_the_table(doc: Any) -> None:
    documented = {(method.upper(), path) for path, methods in doc["paths"].items() for method in methods}
    assert documented == {(route.method, route.path) for route in routes()}


def test_the_document_has_the_shape_of_openapi_3_1(doc: Any) -> None:
    assert doc["openapi"] == "3.1.0"
    assert doc["info"]["title"] and doc["info"]["version"] == "1.2.3"
    operations = [op for methods in doc["paths"].values() for op in methods.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)
    for path, methods in doc["paths"].items():
        names = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for op in methods.values():
            assert {p["name"] for p in op["parameters"] if p.get("in") == "path"} == names
            keys = [p.get("$ref") or (p["name"], p["in"]) for p in op["parameters"]]
            assert len(set(keys)) == len(keys)
            assert op["summary"] and op["responses"]
    for response in doc["components"]["responses"].values():
        assert response["description"]


def test_each_operation_lists_its_failures_with_the_envelope(doc: Any) -> None:
    put = doc["paths"]["/v1/memories/{id}"]["put"]["responses"]
    wanted = "200 201 400 401 403 409 412 413 415 421 422 429 500 503 504 507"
    assert sorted(put) == wanted.split()
    for methods in doc["paths"].values():
        for op in methods.values():
            assert {"400", "422", "500"} <= set(op["responses"])
            for status, response in op["responses"].items():
                if status >= "400":
                    name = response["$ref"].rpartition("/")[2]
                    content = doc["components"]["responses"][name]["content"]
                    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_the_document_shows_the_lines_of_a_batch(doc: Any) -> None:
    body = doc["paths"]["/v1/memories/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/BatchShape"}
    assert {"PutLine", "GetLine", "DeleteLine"} <= set(doc["components"]["schemas"])
