"""From what the ledger decided to what a client is told when that is a no.

The rule: one table from a status of the ledger to an error of errors.py with the code of the API. A status that
is not in the table is a result; a coordination service therefore never looks at statuses to tell a refusal from a
result, and a new status in the ledger cannot become a success by omission: `refusal` fails on one it does not
know.
"""

import re
from collections.abc import Callable
from typing import Any

from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.errors import Conflict, Corrupt, Forbidden, InvalidRequest, NotFound, SpineError, Unavailable

_NAMED = re.compile(r"(?!(?:there|it|the)\b)[a-z][a-z_.]*(?= is | holds |: | begins )").match

Make = Callable[[Outcome], SpineError]


def _conflict(code: str) -> Make:
    return lambda outcome: Conflict(_reason(outcome), code=code, details=_details(outcome))


def _invalid(outcome: Outcome) -> SpineError:
    """The ledger's reasons begin with the name of what is wrong."""
    named = _NAMED(outcome.reason)
    return InvalidRequest(_reason(outcome), field=named[0] if named else None, **_details(outcome))


def _missing(outcome: Outcome) -> SpineError:
    return NotFound(_reason(outcome), details={"confirmed": True, **_details(outcome)})


def _forbidden(outcome: Outcome) -> SpineError:
    return Forbidden(_reason(outcome), details=_details(outcome))


def _busy(outcome: Outcome) -> SpineError:
    return Unavailable(_reason(outcome), code="overloaded", details=_details(outcome), retry_after_ms=1000)


REFUSED: dict[Status, Make] = {
    Status.ABSENT: _missing,
    Status.INVALID: _invalid,
    Status.REQUEST_REUSED: lambda outcome: InvalidRequest(
        "this Idempotency-Key was used for another request", code="idempotency_key_reused", field="Idempotency-Key"
    ),
    Status.VOIDED: _conflict("request_voided"),
    Status.VERSION_CONFLICT: _conflict("version_conflict"),
    Status.LOCK_HELD: _conflict("lock_held"),
    Status.QUEUED: _conflict("lock_held"),
    Status.NOT_CURRENT: _conflict("lease_not_current"),
    Status.SESSION_GONE: _conflict("lease_not_current"),
    Status.FENCED: _conflict("fenced"),
    Status.DEADLOCK: _conflict("deadlock"),
    Status.STALE_TOKEN: _conflict("stale_token"),
    Status.GATE_CLOSED: _conflict("gate_closed"),
    Status.EXISTS: _conflict("version_conflict"),
    Status.WRONG_STATE: _conflict("version_conflict"),
    Status.WRONG_DIGEST: _conflict("version_conflict"),
    Status.FORBIDDEN: _forbidden,
    Status.TOO_MANY: _busy,
    Status.MALFORMED: _invalid,
}

RESULTS = frozenset(
    (Status.DONE, Status.GRANTED, Status.CREATED, Status.CHANGED, Status.EQUAL, Status.DELETED, Status.DEMOTED)
)


def refusal(outcome: Outcome) -> SpineError | None:
    """The error to raise for an outcome; None when it is a result."""
    if outcome.status in RESULTS:
        return None
    make = REFUSED.get(outcome.status)
    if make is None:
        raise Corrupt(f"the ledger decided {outcome.status!r}, which no answer is written for")
    return make(outcome)


def _reason(outcome: Outcome) -> str:
    return outcome.reason or outcome.status.value.replace("_", " ")


def _details(outcome: Outcome) -> dict[str, Any]:
    return {**({"name": outcome.id} if outcome.id else {}), **outcome.result}
