"""Every way an operation can end other than well, kept apart by what the caller may conclude.

The one distinction that must never blur is between *no* and *unknown*: a caller who is told "no" may safely
try elsewhere, a caller who is told "unknown" may not. So the tree is cut by outcome, not by component::

    SpineError
    ├── Rejected      decided: the request was understood and refused, nothing changed, asking again changes nothing
    │   ├── InvalidRequest    the request itself is at fault (names the field)
    │   │   └── Malformed         … and cannot even be read
    │   ├── TooLarge          a body, content or list above its limit
    │   ├── Unauthorized      no or an unknown API key
    │   ├── Forbidden         the key may not do this
    │   ├── NotFound          no such memory (`confirmed` says whether a majority agreed)
    │   ├── Conflict          decided against the stored state (version …)
    │   │   ├── LockHeld          somebody else holds it; says who, and our place in the queue
    │   │   ├── LeaseLost         the lease, claim, office or session is not current
    │   │   ├── Fenced            a guard's token is not current: this writer has been overtaken
    │   │   ├── StaleToken        a fence has seen a higher token
    │   │   ├── Deadlock          waiting would be for oneself
    │   │   └── GateClosed        says what is unmet
    │   ├── Gone              it was there, and is no longer kept
    │   │   └── Compacted         the events asked for are
    │   ├── PreconditionFailed  an If-Match / If-None-Match header does not hold
    │   └── Misdirected       the right request at the wrong node: region or epoch
    ├── Unavailable   not done: nothing was proposed or it can never apply; retry freely
    │   ├── RateLimited       this caller is above its share
    │   └── NoSpace           the disk or the store's map is full; reads go on
    ├── Unknown       may have happened: retry with the same Idempotency-Key or ask /v1/requests
    ├── Misuse        the operator's fault: configuration, data directory, port, version
    └── Corrupt       stored bytes are not what was written; names the file and the offset

`code` is the machine's word for the error and part of the API contract; `details` holds fields a program may
use; the message is for people. Which HTTP status a code has is the HTTP layer's business (http/problems.py).
"""

from collections.abc import Mapping
from typing import Any


class SpineError(Exception):
    """Root of the tree. Raise a subclass."""

    code = "internal"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after_ms = retry_after_ms


class Rejected(SpineError):
    """Decided: refused, and nothing changed."""

    code = "invalid_request"


class InvalidRequest(Rejected):
    """The request itself is at fault. `field` is the path of the offending field, e.g. ``$.tags[0]``."""

    def __init__(
        self, message: str, *, field: str | None = None, code: str = "invalid_request", **details: Any
    ) -> None:
        if field is not None:
            details = {"field": field, **details}
        super().__init__(message, code=code, details=details)


class Malformed(InvalidRequest):
    """The bytes are not what they claim to be: no body, broken JSON, text that is not UTF-8, a foreign token."""


class TooLarge(Rejected):
    """Above a limit that the configuration sets."""

    code = "too_large"


class Unauthorized(Rejected):
    """No API key, or one that is not known."""

    code = "unauthorized"


class Forbidden(Rejected):
    """The key is known and may not do this."""

    code = "forbidden"


class NotFound(Rejected):
    """No such thing, or it is another tenant's. ``details["confirmed"]`` is false when no majority could be asked."""

    code = "not_found"


class Conflict(Rejected):
    """Refused by the stored state; ``code`` says which rule (version_conflict, lock_held, fenced, gate_closed …)."""

    code = "version_conflict"


class LockHeld(Conflict):
    """Somebody else holds the lock. ``holder`` is its owner, ``position`` the place in the queue this request has or
    would have, ``ticket`` the name that keeps it; None where the store did not say."""

    code = "lock_held"

    @property
    def holder(self) -> str | None:
        return self.details.get("holder")

    @property
    def position(self) -> int | None:
        return self.details.get("position")

    @property
    def ticket(self) -> str | None:
        return self.details.get("ticket")

    @property
    def expires_at(self) -> str | None:
        """When the holder's lease ends if it is not renewed."""
        return self.details.get("expires_at")


class LeaseLost(Conflict):
    """This lease, claim, office or session is not, or can no longer be believed to be, current."""

    code = "lease_not_current"


class Fenced(Conflict):
    """A guard's token is not current, so the write did not happen."""

    code = "fenced"


class StaleToken(Conflict):
    """A fence has seen a higher token: ``highest``."""

    code = "stale_token"

    @property
    def highest(self) -> int | None:
        return self.details.get("highest")


class Deadlock(Conflict):
    """To wait for this would be to wait for oneself."""

    code = "deadlock"


class GateClosed(Conflict):
    """The gate lets nobody through now; ``unmet`` lists why, each with a type and a reason."""

    code = "gate_closed"

    @property
    def unmet(self) -> list[dict[str, Any]]:
        return list(self.details.get("unmet") or ())


class Gone(Rejected):
    """What was asked for was there, and is no longer kept."""

    code = "compacted"


class Compacted(Gone):
    """The events asked for are no longer kept: what happened since must be learned by reading the state."""


class PreconditionFailed(Rejected):
    """An If-Match or If-None-Match header does not hold."""

    code = "precondition_failed"


class Misdirected(Rejected):
    """This node is not the one to ask: another region is home, or the caller's table is of an older epoch."""

    code = "wrong_epoch"
    retryable = True


class Unavailable(SpineError):
    """Not done: nothing was proposed, or it can never apply. Codes: no_quorum, no_leader, not_ready,
    session_unavailable, overloaded."""

    code = "not_ready"
    retryable = True


class RateLimited(Unavailable):
    """This caller is above its share."""

    code = "rate_limited"


class NoSpace(Unavailable):
    """The disk or the store's map is full. Writes are refused, reads go on."""

    code = "no_space"


class Unknown(SpineError):
    """May have happened. Never to be reported as, or turned into, a refusal."""

    code = "outcome_unknown"
    retryable = True


class Misuse(SpineError):
    """The operator's fault: configuration, data directory, port in use, unsupported version."""

    code = "misuse"


class Corrupt(SpineError):
    """Stored bytes are not what was written. ``details`` holds ``file`` and ``offset`` where they are known."""

    code = "corrupt"
