"""From what the log decided on a memory to what the caller is told; of coordination, coordination/refusals.py tells.

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
    if status is Status.FENCED:
        return Conflict(outcome.reason, code="fenced", details={"id": outcome.id, **outcome.result})
    if status is Status.RING_BEHIND:
        return Unavailable("the ring was read too early", code="not_ready", retry_after_ms=50)
    return None
