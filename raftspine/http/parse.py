"""What a client sent, as values: headers, query string, body. Everything that can be wrong with the text of a
request is found here and named by field, so that services only ever see values within limits.

Headers of clients end up in replies and logs, so each is held to visible ASCII or refused.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from raftspine.core.ledger.memory_commands import Guard
from raftspine.core.limits import Limits, check_agent
from raftspine.errors import InvalidRequest, Malformed, SpineError
from raftspine.http import bodies
from raftspine.http.problems import UnsupportedMedia
from raftspine.model import Model
from raftspine.services.values import ANYTHING, Ask, Expect

Q = TypeVar("Q")

ACCEPT = "accept"
CONTENT_TYPE = "content-type"
AUTHORIZATION = "authorization"
IF_MATCH = "if-match"
IF_NONE_MATCH = "if-none-match"
REQUEST_ID = "x-request-id"
AGENT_ID = "x-agent-id"
IDEMPOTENCY_KEY = "idempotency-key"
CONSISTENCY = "x-spine-consistency"
SESSION = "x-spine-session"
MAX_WAIT = "x-spine-max-wait-ms"
ATTEMPT = "x-spine-attempt"
FENCING = "x-spine-fencing"

MAX_WAIT_MS = 60_000
MAX_QUERY_FIELDS = 32

_MODELS = {model.value: model for model in Model}
_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}").fullmatch
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"').fullmatch
_BARE_ETAG = re.compile(r'[^\s",]+').fullmatch
_AT = re.compile(r"(?P<reason>.*) - at `(?P<path>\$[^`]*)`", re.DOTALL).fullmatch
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>[^`]*)`").match

Headers = Mapping[str, str]
"""A multidict that does not mind the case, or a map with names in lower case; so names here are in lower case."""


# ── headers ────────────────────────────────────────────────────────────────────────────────────────────


def ask(headers: Headers, consistency: str | None, limits: Limits) -> Ask:
    """The headers that steer an operation; `consistency` is the query parameter, which goes before the
    header. Raises InvalidRequest naming the header."""
    get = headers.get
    agent = get(AGENT_ID)
    if agent is None:
        agent = ""
    else:
        check_agent(agent, limits, "X-Agent-Id")
    field = "consistency"
    if consistency is None:
        consistency, field = get(CONSISTENCY), "X-Spine-Consistency"
    key = get(IDEMPOTENCY_KEY)
    if key is not None:
        check_idempotency_key(key, "Idempotency-Key")
    token = get(SESSION)
    if token is not None and not token.isascii():
        raise InvalidRequest("not a session token", field="X-Spine-Session")
    wait = get(MAX_WAIT)
    return Ask(
        agent,
        token or None,
        None if consistency is None else model(consistency, field),
        250 if wait is None else _wait_ms(wait),
        key,
        get(ATTEMPT) == "1",
    )


def guards(headers: Headers, body: "Iterable[bodies.Guard]" = ()) -> tuple[Guard, ...]:
    """The guards of a write, from the header `X-Spine-Fencing: lock=token` (several separated by commas; names
    percent-encoded where they hold one) and from the body. Raises InvalidRequest."""
    found = [Guard(guard.lock, guard.token, guard.space) for guard in body]
    text = headers.get(FENCING)
    for part in text.split(",") if text else ():
        lock, equals, token = part.strip().rpartition("=")
        if not (equals and lock and token.isascii() and token.isdigit() and 0 < int(token[:17]) <= 1 << 53):
            raise InvalidRequest("lock=token, a lock's name and its fencing token", field="X-Spine-Fencing")
        found.append(Guard(segment(lock), int(token)))
    return tuple(found)


def check_idempotency_key(key: str, field: str) -> None:
    """Raises InvalidRequest."""
    if not _VISIBLE(key):
        raise InvalidRequest("an idempotency key has 1 to 255 visible ASCII characters", field=field)


def model(name: str, field: str) -> Model:
    """A consistency model by its name; InvalidRequest lists the names there are."""
    found = _MODELS.get(name)
    if found is None:
        allowed = list(_MODELS)
        raise InvalidRequest(f"no such consistency model; one of: {', '.join(allowed)}", field=field, allowed=allowed)
    return found


def _wait_ms(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_WAIT_MS:
        return int(text)
    raise InvalidRequest(f"a whole number of milliseconds, 0 to {MAX_WAIT_MS}", field="X-Spine-Max-Wait-Ms")


def request_id(headers: Headers) -> str | None:
    """The client's own request id, when it is one that may be echoed; anything else is replaced, not refused."""
    given = headers.get(REQUEST_ID)
    return given if given is not None and _REQUEST_ID(given) else None


def expectation(headers: Headers, version: str | None) -> Expect:
    """The condition of a write: If-Match, If-None-Match: * or `expected_version`. InvalidRequest when they
    contradict each other, or ask for what cannot be checked in one step (several or weak etags)."""
    match = headers.get(IF_MATCH)
    none_match = headers.get(IF_NONE_MATCH)
    if match is None and none_match is None:
        return ANYTHING if version is None else Expect(_version(version))
    if none_match is not None:
        if none_match.strip() != "*":
            raise InvalidRequest("a write takes only If-None-Match: *", field="If-None-Match")
        if match is not None or version is not None:
            raise InvalidRequest("excludes every other condition", field="If-None-Match")
        return Expect(None, True, True)
    assert match is not None
    wanted = _strong_etag(match.strip())
    if version is not None and version != wanted:
        raise InvalidRequest("differs from If-Match", field="$.expected_version")
    return Expect(wanted, False, True)


def _version(version: str) -> str:
    if _BARE_ETAG(version):
        return version
    raise InvalidRequest("not a version; use the record's `version` as it is", field="$.expected_version")


def _strong_etag(text: str) -> str:
    if text == "*":
        return text
    quoted = _ETAG(text)
    if quoted and not quoted[1] and quoted[2]:
        return quoted[2]
    if not quoted and _BARE_ETAG(text):  # curl users forget the quotes, and the meaning is plain
        return text
    raise InvalidRequest("one strong entity tag, or *", field="If-Match")


def etag_matches(header: str, version: str) -> bool:
    """If-None-Match of a read: any entity tag of the list, weakly compared (RFC 9110 §13.1.2)."""
    if header.strip() == "*":
        return True
    return any(part.strip().removeprefix("W/").strip('"') == version for part in header.split(","))


@lru_cache(maxsize=256)
def wants_msgpack(accept: str) -> bool:
    """Whether msgpack is preferred to JSON (RFC 9110 §12.5.1, exact names only). A client that accepts
    neither still gets JSON: an error it cannot read would help less."""
    best_json, best_msgpack = 0.0, 0.0
    for part in accept.split(","):
        name, _, params = part.partition(";")
        found = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)", params)
        quality = float(found[1]) if found else 1.0
        if _is_msgpack(name):
            best_msgpack = max(best_msgpack, quality)
        elif name.strip() in ("application/json", "*/*", "application/*"):
            best_json = max(best_json, quality if name.strip() == "application/json" else quality / 10)
    return best_msgpack > best_json


def _is_msgpack(name: str) -> bool:
    return name.strip().lower() in ("application/msgpack", "application/vnd.msgpack", "application/x-msgpack")


@lru_cache(maxsize=256)
def body_is_msgpack(content_type: str) -> bool:
    """Which of the two formats a body is in; UnsupportedMedia for any other, or another charset."""
    name, _, params = content_type.partition(";")
    if _is_msgpack(name):
        return True
    charset = re.search(r'charset\s*=\s*"?([^\s;"]+)', params, re.IGNORECASE)
    if name.strip().lower() == "application/json" and (not charset or charset[1].lower() in ("utf-8", "utf8")):
        return False
    raise UnsupportedMedia(
        "send application/json (UTF-8) or application/msgpack as Content-Type",
        details={"field": "Content-Type", "allowed": ["application/json", "application/msgpack"]},
    )


# ── path and query ─────────────────────────────────────────────────────────────────────────────────────


def segment(raw: str) -> str:
    """One path segment, decoded. InvalidRequest when the bytes are not UTF-8."""
    if "%" not in raw:
        return raw
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequest("percent-encoded bytes are not UTF-8", field="path") from error


@lru_cache(maxsize=256)
def query(text: str, shape: type[Q]) -> Q:
    """The query string as `shape`, which says what is allowed. InvalidRequest names the parameter. Queries are
    few and frozen, so the last ones are remembered."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except UnicodeDecodeError as error:
        raise InvalidRequest("percent-encoded bytes are not UTF-8", field="query") from error
    except ValueError as error:
        raise InvalidRequest(f"more than {MAX_QUERY_FIELDS} parameters", field="query") from error
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise InvalidRequest("given more than once", field=name)
        given[name] = value
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, root="") from error


def moment_ms(text: str, field: str) -> int:
    """RFC 3339, or milliseconds since 1970; without an offset it is UTC."""
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        at = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        elapsed = at - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("neither RFC 3339 nor milliseconds since 1970", field=field) from error
    return (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000


# ── body ───────────────────────────────────────────────────────────────────────────────────────────────


def decode(data: Any, decoder: Any, root: str = "$") -> Any:
    """`data` through a prebuilt msgspec decoder. Malformed when the bytes are no JSON or msgpack,
    InvalidRequest with `field` and `reason` when they are but do not fit; `root` is where in the body
    `data` stands."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise invalid(error, root=root) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body cannot be read: {error}", field=root) from error
    except RecursionError as error:
        raise Malformed("the body is nested too deeply", field=root) from error


def invalid(error: msgspec.ValidationError, *, root: str = "$") -> InvalidRequest:
    """msgspec's message taken apart: which field, and what is wrong with it."""
    text = str(error)
    at = _AT(text)
    reason, path = (at["reason"], at["path"][1:]) if at else (text, "")
    named = _NAMED(reason)
    if named:
        path = f"{path}.{named['name']}"
        reason = "unknown field" if "unknown" in reason else "required, but missing"
    field = f"{root}{path}".lstrip(".") or "$"
    return InvalidRequest(f"{field}: {reason}", field=field, reason=reason)


def within(error: SpineError, root: str) -> SpineError:
    """The same error, its field named as seen from the whole body: ``$.tags`` becomes ``$.ops[3].tags``."""
    field = error.details.get("field")
    if isinstance(field, str) and field.startswith("$"):
        error.details["field"] = root + field[1:]
        error.message = error.message.replace(field, root + field[1:], 1)
    return error
