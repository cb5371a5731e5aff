"""A request applies once, however often it is sent.

The rule: the first time a request digest is applied its outcome is remembered for a day of leader time;
later ones get the same outcome and change nothing. A request that nobody could learn the fate of can be
voided: from then on it can never apply, so "unknown" becomes "no". Without the row in the same log, a retry
after a lost reply would apply twice.
"""

from collections.abc import Callable

from raftspine.core.ledger.memory_commands import VoidRequest
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import Effect, LedgerView, Place, RequestRow, Result, SetRequest

REMEMBER_MS = 24 * 3600 * 1000

_UNDECIDED = frozenset((Status.RING_BEHIND, Status.SESSION_GONE))
"""Outcomes that ask for the same request again, and so must not be remembered as its answer: a session is opened in a
group when its first command there is refused."""


_DIGEST_BYTES = 64
"""Digests have 16 bytes; what is far longer is none, and would be no key in any store."""
_NO_DIGEST = f"digests of requests have at most {_DIGEST_BYTES} bytes"


def _is_digest(data: bytes) -> bool:
    return len(data) <= _DIGEST_BYTES


def live(view: LedgerView, digest: bytes, time_ms: int) -> RequestRow | None:
    """The row of a request, unless it has expired."""
    row = view.request(digest)
    return None if row is None or row.expires_at_ms <= time_ms else row


def once(view: LedgerView, digest: bytes, fingerprint: bytes, time_ms: int, decide: Callable[[], Result]) -> Result:
    """`decide()`, or what came of it the first time. An empty digest is always decided afresh."""
    if not digest:
        return decide()
    if not (_is_digest(digest) and _is_digest(fingerprint)):
        return Outcome(Status.INVALID, reason=_NO_DIGEST), []
    row = live(view, digest, time_ms)
    if row is not None:
        if row.outcome is None:
            return Outcome(Status.VOIDED, reason="the request was voided"), []
        if row.fingerprint != fingerprint:
            return Outcome(Status.REQUEST_REUSED, reason="the key was used for another request"), []
        return row.outcome, []
    outcome, effects = decide()
    if outcome.status not in _UNDECIDED:
        effects.append(SetRequest(digest, RequestRow(fingerprint, outcome, time_ms + REMEMBER_MS)))
    return outcome, effects


def void(view: LedgerView, command: VoidRequest, at: Place, group: int, time_ms: int) -> Result:
    """Close a request that has not applied; answer with the outcome of one that has."""
    if not command.request:
        return Outcome(Status.INVALID, reason="no request was named"), []
    if not _is_digest(command.request):
        return Outcome(Status.INVALID, reason=_NO_DIGEST), []
    row = live(view, command.request, time_ms)
    if row is not None and row.outcome is not None:
        return row.outcome, []
    outcome = Outcome(Status.VOIDED, reason="the request was voided")
    effects: list[Effect] = []
    if row is None:
        effects.append(SetRequest(command.request, RequestRow(b"", None, time_ms + REMEMBER_MS)))
    return outcome, effects
