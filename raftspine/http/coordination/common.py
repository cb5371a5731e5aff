"""What all handlers of coordination share: who asks, names, and times as clients read them.

The rule: the ledger counts in milliseconds since 1970, clients read and write RFC 3339 text. The translation is made
here, by the names of fields, for results and for the details of refusals alike; what clients bring themselves
(metadata, payloads, results, values, and audit details, whose hash depends on them) is never touched.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from raftspine.core.limits import Limits, check_agent, check_id
from raftspine.errors import InvalidRequest, SpineError
from raftspine.http import parse
from raftspine.http.call import Call
from raftspine.http.render import rfc3339
from raftspine.http.reply import Reply
from raftspine.services.coordination.door import Caller
from raftspine.services.requests import digest_of, fingerprint_of

Handler = Callable[[Call], Awaitable[Reply]]

MOMENTS = frozenset(
    {"since_ms", "until_ms", "at_ms", "time_ms", "open_until_ms", "override_until_ms", "not_before_ms"}
)
"""Fields that hold a moment and become text, besides those that end in `_at_ms`."""
THEIRS = frozenset({"metadata", "payload", "result", "value", "details", "content", "memory"})
NAME_BYTES = 255


def shown(value: Any) -> Any:
    """A result with its moments as text: `expires_at_ms: 0` becomes `expires_at: "1970-…"`."""
    if isinstance(value, dict):
        return dict(_shown(name, item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value


def _shown(name: str, value: Any) -> tuple[str, Any]:
    if name in THEIRS:
        return name, value
    if name.endswith("_at_ms") or name in MOMENTS:
        return name[:-3], rfc3339(value) if value else None
    return name, shown(value)


def telling(handler: Handler) -> Handler:
    """A handler whose refusals tell moments as text."""

    async def told(call: Call) -> Reply:
        try:
            return await handler(call)
        except SpineError as error:
            error.details = shown(error.details)
            raise

    return told


def caller(call: Call, limits: Limits, op: str, actor: str = "", field: str = "$.agent_id") -> Caller:
    """Who asks. Where there are API keys the key's name is the actor; else the body's word, else X-Agent-Id."""
    ask = parse.ask(call.headers, None, limits)
    if actor:
        check_agent(actor, limits, field)
    agent = actor or ask.agent_id
    if ask.idempotency_key is None:
        return Caller(agent)
    asked = fingerprint_of(op, "", list(call.params), msgspec.to_builtins(call.body))
    return Caller(agent, digest_of(ask.idempotency_key), asked)


def actor(call: Call, limits: Limits, op: str, named: str, field: str) -> Caller:
    """Who acts on a gate: somebody has to stand for it. A key cannot act in another's name."""
    found = caller(call, limits, op, call.key or named, field)
    if not found.agent:
        raise InvalidRequest(f"{field}: who does this? Name it here or in X-Agent-Id", field=field)
    return found


def name(call: Call, at: int = 0, field: str = "name") -> str:
    """A name from the path."""
    return named(call.params[at], field)


def named(text: str, field: str) -> str:
    """1 to 255 bytes without control characters."""
    check_id(text, Limits(id_bytes=NAME_BYTES), field)
    return text


def ms(seconds: float) -> int:
    return round(seconds * 1000)
