"""From what the log decided to what the caller is told.

The ledger answers with values, because replicas must agree on them byte for byte; callers know errors. The
rule: one table of this translation, here, so that the same decision never reaches two front ends as two
codes.
"""

from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    SpineError,
    Unavailable,
)

CONFLICTS = {
    Status.LOCK_HELD: "lock_held",
    Status.NOT_CURRENT: "lease_not_current",
    Status.FENCED: "fenced",
    Status.DEADLOCK: "deadlock",
    Status.STALE_TOKEN: "stale_token",
    Status.GATE_CLOSED: "gate_closed",
    Status.SESSION_GONE: "session_gone",
    Status.TOO_MANY: "too_many",
    Status.EXISTS: "exists",
    Status.WRONG_STATE: "wrong_state",
    Status.OVERTAKEN: "overtaken",
}
"""Refusals of coordination by the stored state: the code each is told as."""


def refusal(outcome: Outcome, *, header: bool = False, patch: bool = False) -> SpineError | None:
    """The error for an outcome that changed nothing, or None for one that is a success.

    `header`: the condition came as a header, so its failure is PreconditionFailed. `patch`: the command
    cannot do without a memory (deleting what is absent is done already). `ring_behind` is Unavailable:
    nothing was decided, and the coordinator is to read the ring again and propose anew.
    """
    status = outcome.status
    if status is Status.VERSION_CONFLICT:
        kind = PreconditionFailed if header else Conflict
        return kind(outcome.reason, details={"id": outcome.id, "current_version": outcome.current})
    if status is Status.ABSENT and patch:
        return NotFound(f"no memory {outcome.id!r}", details={"confirmed": True})
    if status is Status.REQUEST_REUSED:
        return InvalidRequest(
            "this Idempotency-Key was used for another request",
            code="idempotency_key_reused",
            field="Idempotency-Key",
        )
    if status is Status.VOIDED:
        return Conflict("this request was voided and will never apply", code="request_voided")
    if status in (Status.INVALID, Status.MALFORMED):
        return InvalidRequest(outcome.reason or "the log refused the command")
    code = CONFLICTS.get(status)
    if code is not None:
        return Conflict(outcome.reason, code=code, details={"id": outcome.id, **outcome.result})
    if status is Status.RING_BEHIND:
        return Unavailable("the ring was read too early", code="not_ready", retry_after_ms=50)
    return None
