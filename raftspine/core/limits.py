"""How large and of what shape the fields of a memory may be, checked once, before anything is stored.

The rule: what passes here can be stored, replicated and rendered by every node; what does not is refused
with the name of the field. Without it a lone surrogate or a NaN is accepted by the parser, travels to three
replicas and then breaks the encoder of whoever reads it.

The order of the checks within a function is that of likelihood: the common case leaves early.
"""

import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct, json

from raftspine.errors import Forbidden, InvalidRequest, TooLarge

IMPORTANCES = frozenset(("low", "medium", "high", "critical"))
MAX_DEPTH = 64
"""Nesting of JSON content and metadata; far below where a recursive encoder would give up."""

RESERVED = "terraform/"
"""How the ids of memories begin that hold Terraform states."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INT64 = 1 << 63
_encode_json = json.Encoder().encode


class Limits(Struct, frozen=True):
    """Limits as configured. Bytes are of UTF-8 or encoded JSON."""

    content_bytes: int = 1 << 20
    body_bytes: int = 2 << 20
    batch_body_bytes: int = 32 << 20
    tags: int = 32
    tag_chars: int = 64
    id_bytes: int = 255
    agent_bytes: int = 128
    namespace_bytes: int = 200
    metadata_bytes: int = 64 << 10
    batch_ops: int = 1000
    list_limit: int = 1000
    token_chars: int = 1500
    ttl_seconds_max: int = 10 * 366 * 86400


DEFAULTS = Limits()


def check_id(id: str, limits: Limits = DEFAULTS, field: str = "id") -> None:
    """1 to 255 bytes of UTF-8 without control characters; slashes and any script are allowed. InvalidRequest."""
    if not isinstance(id, str):
        raise InvalidRequest(f"{field} must be text", field=field)
    if not id:
        raise InvalidRequest(f"{field} must not be empty", field=field)
    _check_name(id, limits.id_bytes, field)


def check_free(id: str, field: str = "id") -> None:
    """Forbidden for ids of memories that are written under a lock, by a door of their own."""
    if id.startswith(RESERVED):
        raise Forbidden(
            "a Terraform state is written through /v1/terraform, under its lock", details={"field": field, "id": id}
        )


def check_agent(agent_id: str, limits: Limits = DEFAULTS, field: str = "$.agent_id") -> None:
    """At most 128 bytes without control characters; may be empty. InvalidRequest."""
    _check_name(agent_id, limits.agent_bytes, field)


def check_namespace(namespace: str, limits: Limits = DEFAULTS, field: str = "$.namespace") -> None:
    """At most 200 bytes without control characters; may be empty. InvalidRequest."""
    _check_name(namespace, limits.namespace_bytes, field)


def check_draft_fields(
    content: Any,
    agent_id: str,
    namespace: str,
    tags: Sequence[str],
    importance: str | float,
    metadata: dict[str, Any],
    ttl_seconds: int | None,
    limits: Limits = DEFAULTS,
) -> tuple[str, ...]:
    """Check all writable fields of a memory; returns the tags without repetitions, in the writer's order.

    InvalidRequest or TooLarge with ``details["field"]``.
    """
    check_content(content, limits)
    if agent_id:
        check_agent(agent_id, limits)
    if namespace:
        check_namespace(namespace, limits)
    if importance != "medium":
        check_importance(importance)
    if metadata:
        check_metadata(metadata, limits)
    if ttl_seconds is not None:
        check_ttl(ttl_seconds, limits)
    return check_tags(tags, limits) if tags else ()


def check_content(content: Any, limits: Limits = DEFAULTS, field: str = "$.content") -> None:
    """Text, or any JSON value but null: what is absent is not a memory. InvalidRequest, TooLarge."""
    if isinstance(content, str):
        size = len(content) if content.isascii() else _utf8_bytes(content, field)
    elif content is None:
        raise InvalidRequest("content must be text or a JSON value", field=field)
    else:
        size = _json_bytes(content, field)
    if size > limits.content_bytes:
        raise _too_large(field, size, limits.content_bytes)


def check_metadata(metadata: dict[str, Any], limits: Limits = DEFAULTS, field: str = "$.metadata") -> None:
    """A JSON object, at most 64 KiB encoded. InvalidRequest, TooLarge."""
    if not isinstance(metadata, dict):
        raise InvalidRequest("metadata must be an object", field=field)
    size = _json_bytes(metadata, field)
    if size > limits.metadata_bytes:
        raise _too_large(field, size, limits.metadata_bytes)


def check_tags(tags: Sequence[str], limits: Limits = DEFAULTS, field: str = "$.tags") -> tuple[str, ...]:
    """At most 32 tags of 1 to 64 characters without control characters; returns them without repetitions."""
    if isinstance(tags, str) or not isinstance(tags, (list, tuple)):
        raise InvalidRequest("tags must be a list of texts", field=field)
    for i, tag in enumerate(tags):
        if not isinstance(tag, str) or not tag or len(tag) > limits.tag_chars:
            raise InvalidRequest(f"a tag is a text of 1 to {limits.tag_chars} characters", field=f"{field}[{i}]")
        if not (tag.isascii() and tag.isprintable()):
            _check_text(tag, f"{field}[{i}]")
    unique = tuple(dict.fromkeys(tags))
    if len(unique) > limits.tags:
        raise InvalidRequest(
            f"{len(unique)} tags are more than the {limits.tags} allowed", field=field, limit=limits.tags
        )
    return unique


def check_importance(importance: str | float, field: str = "$.importance") -> None:
    """One of the four words, or a number from 0 to 1. InvalidRequest."""
    if isinstance(importance, str):
        if importance in IMPORTANCES:
            return
    elif isinstance(importance, (int, float)) and not isinstance(importance, bool) and 0 <= importance <= 1:
        return
    raise InvalidRequest("importance must be low, medium, high, critical or a number from 0 to 1", field=field)


def check_ttl(ttl_seconds: int, limits: Limits = DEFAULTS, field: str = "$.ttl_seconds") -> None:
    """Whole seconds from 1 to the maximum. InvalidRequest."""
    whole = isinstance(ttl_seconds, int) and not isinstance(ttl_seconds, bool)
    if not whole or not 1 <= ttl_seconds <= limits.ttl_seconds_max:
        raise InvalidRequest(
            f"ttl_seconds must be a whole number from 1 to {limits.ttl_seconds_max}",
            field=field,
            limit=limits.ttl_seconds_max,
        )


def _check_name(text: str, limit_bytes: int, field: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(f"{field} must be text", field=field)
    if text.isascii() and text.isprintable():
        size = len(text)
    else:
        _check_text(text, field)
        size = len(text.encode())
    if size > limit_bytes:
        raise InvalidRequest(f"{field} has {size} bytes, more than {limit_bytes}", field=field, limit=limit_bytes)


def _check_text(text: str, field: str) -> None:
    if _CONTROL.search(text):
        raise InvalidRequest(f"{field} contains a control character", field=field)
    if _SURROGATE.search(text):
        raise InvalidRequest(f"{field} contains half a surrogate pair", field=field)


def _utf8_bytes(text: str, field: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} contains half a surrogate pair", field=field) from None


def _json_bytes(value: Any, field: str) -> int:
    _check_json(value, field, 0)
    return len(_encode_json(value))


def _check_json(value: Any, field: str, depth: int) -> None:
    """Only what JSON can say and msgpack can carry: no NaN, no infinity, no integer beyond 64 bits, text keys."""
    if isinstance(value, str):
        if not value.isascii():
            _utf8_bytes(value, field)
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, int):
        if not -_INT64 <= value < 2 * _INT64:
            raise InvalidRequest(f"{field}: an integer beyond 64 bits", field=field)
    elif isinstance(value, float):
        if value - value != 0.0:
            raise InvalidRequest(f"{field}: NaN and infinity are not JSON", field=field)
    elif depth == MAX_DEPTH:
        raise InvalidRequest(f"{field}: nested deeper than {MAX_DEPTH}", field=field)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidRequest(f"{field}: the keys of an object must be text", field=field)
            _check_json(key, field, depth)
            _check_json(item, field, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, field, depth + 1)
    else:
        raise InvalidRequest(f"{field}: {type(value).__name__} is not a JSON value", field=field)


def _too_large(field: str, size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"{field} has {size} bytes, more than the {limit} allowed",
        details={"field": field, "size": size, "limit": limit},
    )
