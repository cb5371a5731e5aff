"""From a refusal on the wire back to the exception a server raised.

Callers decide by class (`except Conflict`) and by `code`, so both must survive HTTP. The code in the envelope
decides; the status decides only where no code was readable (a proxy's error page, a newer server's new word).
Without that order, a 503 written by a load balancer and one written by the store would look like different
things, or a new conflict code like an internal error.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from raftspine import errors
from raftspine.errors import SpineError

BY_CODE: dict[str, type[SpineError]] = {
    "invalid_request": errors.InvalidRequest,
    "cannot_weaken": errors.InvalidRequest,
    "cross_group": errors.InvalidRequest,
    "unauthorized": errors.Unauthorized,
    "forbidden": errors.Forbidden,
    "not_found": errors.NotFound,
    "too_large": errors.TooLarge,
    "version_conflict": errors.Conflict,
    "lock_held": errors.LockHeld,
    "lease_not_current": errors.LeaseLost,
    "fenced": errors.Fenced,
    "gate_closed": errors.GateClosed,
    "deadlock": errors.Deadlock,
    "stale_token": errors.StaleToken,
    "compacted": errors.Compacted,
    "precondition_failed": errors.PreconditionFailed,
    "wrong_region": errors.Misdirected,
    "wrong_epoch": errors.Misdirected,
    "rate_limited": errors.RateLimited,
    "no_quorum": errors.Unavailable,
    "no_leader": errors.Unavailable,
    "not_ready": errors.Unavailable,
    "session_unavailable": errors.Unavailable,
    "overloaded": errors.Unavailable,
    "no_space": errors.NoSpace,
    "outcome_unknown": errors.Unknown,
}

BY_STATUS: dict[int, type[SpineError]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.Rejected,
    409: errors.Conflict,
    410: errors.Compacted,
    412: errors.PreconditionFailed,
    413: errors.TooLarge,
    415: errors.Rejected,
    421: errors.Misdirected,
    422: errors.InvalidRequest,
    429: errors.RateLimited,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unknown,
    507: errors.NoSpace,
}


def rebuild(status: int, headers: Mapping[str, str], body: bytes) -> SpineError:
    """The exception behind a reply with `status` >= 400. Never raises: an unreadable body gives the class of
    the status and a message that names it."""
    try:
        envelope = msgspec.json.decode(body)["error"]
        return from_envelope(status, envelope, headers.get("Retry-After"))
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        kind = BY_STATUS.get(status, SpineError)
        return _make(
            kind,
            f"the server answered {status} without an explanation",
            None,
            {},
            _milliseconds(headers.get("Retry-After")),
        )


def from_envelope(status: int, envelope: Mapping[str, Any], retry_after: str | None = None) -> SpineError:
    """The exception described by the inner object of an error envelope, also as found in a batch's results."""
    code = str(envelope["code"])
    kind = BY_CODE.get(code) or BY_STATUS.get(status, SpineError)
    details = dict(envelope.get("details") or {})
    if "requestId" in envelope:
        details.setdefault("request_id", envelope["requestId"])
    wait = envelope.get("retry_after_ms")
    return _make(
        kind,
        str(envelope.get("message") or code),
        code,
        details,
        _milliseconds(retry_after) if wait is None else int(wait),
    )


def _make(
    kind: type[SpineError],
    message: str,
    code: str | None,
    details: dict[str, Any],
    retry_after_ms: int | None,
) -> SpineError:
    """InvalidRequest takes a field where the others take details, so both are set after the fact."""
    error = kind(message)
    if code is not None:
        error.code = code
    error.details = details
    error.retry_after_ms = retry_after_ms
    return error


def _milliseconds(retry_after: str | None) -> int | None:
    """Retry-After in its seconds form; its date form is a proxy's, and is as good as none."""
    return (
        int(retry_after) * 1000
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit()
        else None
    )
