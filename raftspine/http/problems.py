"""From an exception to what the client sees: one table, one envelope.

The rule: a status is looked up by the class of the error (nearest ancestor first), and nowhere else in the
HTTP layer is a status for a failure written down. Without it the same refusal answers 409 here and 422
there, and, worse, an outcome that is *unknown* gets reported as a refusal by the one handler that forgot.

What is not in the tree of errors.py is a bug of ours: the client gets 500 `internal` and the request id,
the log gets the traceback under the same id.
"""

from http import HTTPStatus
from typing import Any

from msgspec import Struct

from raftspine.errors import (
    Conflict,
    Forbidden,
    Gone,
    InvalidRequest,
    Malformed,
    Misdirected,
    NoSpace,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Rejected,
    SpineError,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unknown,
)


class MethodNotAllowed(Rejected):
    """The path exists, the method on it does not. ``details["allow"]`` lists those that do."""

    code = "method_not_allowed"


class UnsupportedMedia(Rejected):
    """A Content-Type or Content-Encoding that is not understood here."""

    code = "unsupported_media_type"


STATUS: dict[type[SpineError], int] = {
    Malformed: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    Conflict: 409,
    Gone: 410,
    PreconditionFailed: 412,
    TooLarge: 413,
    UnsupportedMedia: 415,
    Misdirected: 421,
    InvalidRequest: 422,
    Rejected: 422,
    RateLimited: 429,
    SpineError: 500,
    Unavailable: 503,
    Unknown: 504,
    NoSpace: 507,
}

RETRY_AFTER_MS: dict[int, int] = {429: 1_000, 503: 1_000, 507: 5_000}
"""Statuses that always carry Retry-After, and what it says when the error itself does not know better. An
election takes one to two seconds; a full disk is not freed within one."""


class ErrorBody(Struct, frozen=True):
    """What every failure says. `code` is the machine's word, `message` is for people, `details` for programs."""

    code: str
    message: str
    details: dict[str, Any]
    requestId: str
    retryable: bool
    retry_after_ms: int | None


class Problem(Struct, frozen=True):
    """The envelope of every failure."""

    error: ErrorBody


def status_of(error: SpineError) -> int:
    """The nearest class in the table decides."""
    for cls in type(error).__mro__:
        status = STATUS.get(cls)
        if status is not None:
            return status
    raise AssertionError("SpineError itself is in the table")


def foreign(error: Exception) -> SpineError:
    """An exception of somebody else's, as one of ours. A timeout says nothing about what happened
    meanwhile, so it becomes Unknown; anything else is a defect whose text stays in the log."""
    if isinstance(error, SpineError):
        return error
    if isinstance(error, TimeoutError):
        return Unknown("no answer came in time; it may have happened")
    return SpineError("an unexpected error; the node's log has it under this request id")


def problem_of(error: SpineError, request_id: str) -> tuple[int, ErrorBody]:
    """Status and body. Damage and misuse on our side are `internal` to a client: their text names files."""
    status = status_of(error)
    if status == 500:
        message = "an unexpected error; the node's log has it under this request id"
        return 500, ErrorBody("internal", message, {}, request_id, False, None)
    wait_ms = error.retry_after_ms
    if wait_ms is None:
        wait_ms = RETRY_AFTER_MS.get(status)
    return status, ErrorBody(error.code, error.message, error.details, request_id, error.retryable, wait_ms)


def extra_headers(status: int, body: ErrorBody) -> str:
    """Header lines that a failure brings besides the usual ones."""
    lines = ""
    if body.retry_after_ms is not None:
        lines += f"Retry-After: {max(1, -(-body.retry_after_ms // 1000))}\r\n"
    if status == 401:
        lines += 'WWW-Authenticate: Bearer realm="raftspine"\r\n'
    if status == 405:
        lines += f"Allow: {', '.join(body.details['allow'])}\r\n"
    return lines


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase
