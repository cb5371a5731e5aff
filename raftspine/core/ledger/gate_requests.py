"""Deployments on their way through a gate with a policy.

    PENDING ─ all conditions met ─► READY ─ admit ─► OPEN ─ complete ─► PASSED | FAILED
       ▲                              │  all slots taken
       └── a condition lapsed ◄── QUEUED
    and from any of the first three: REJECTED | EXPIRED | CANCELLED | SUPERSEDED

The rules:

* READY is never stored: whoever reads compares the policy with the facts at that moment, because a window closes
  and a report ages without anybody writing.
* Admission judges everything in one log entry and takes the slot last. Who waits for a slot is judged again when
  one is free, and loses the place when a condition no longer holds or nobody has asked for it for a while.
* Everything is bound to the artifact the request was made for: approvals, reports, overrides and admissions that
  name another digest are refused. Nobody approves twice, nobody overrides alone.
* An OPEN request has a token and an end. `verify` before each irreversible step fails closed: another token,
  another artifact, past its end, frozen or closed since, all mean no.
* Each act is in the gate's audit chain, the refused privileged ones as well.
"""

from typing import Any, NamedTuple

from msgspec import Struct

from raftspine.core.ledger import freezes, gates, limits
from raftspine.core.ledger import gate_policy as policies
from raftspine.core.ledger.gate_policy import Approved, Reported, Unmet
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack

PENDING, READY, QUEUED, OPEN, PASSED, FAILED = "PENDING", "READY", "QUEUED", "OPEN", "PASSED", "FAILED"
REJECTED, EXPIRED, CANCELLED, SUPERSEDED = "REJECTED", "EXPIRED", "CANCELLED", "SUPERSEDED"
WAITING = (PENDING, QUEUED)
ENDED = (PASSED, FAILED, REJECTED, EXPIRED, CANCELLED, SUPERSEDED)

LIVE_MOST = 1000
"""Requests of a gate that have not ended."""
ENDED_KEPT = 1000
"""Ended requests a gate remembers; the audit chain remembers all."""
PEOPLE_MOST = 64
"""Approvals, reports, holds and overrides of each kind on one request."""


class Word(Struct, frozen=True, array_like=True):
    """One person's part of an override."""

    by: str
    reason: str
    at_ms: int


class Request(Struct, frozen=True, array_like=True):
    """`number`: its place in the gate's history. `place`: in the queue (0: none), `asked_ms`: when it was last
    asked for. `override_people`: how many agreed on the override in force. `token`, `opened_at_ms`,
    `open_until_ms`, `overridden`: of its admission. `due_ms`: of its due row."""

    number: int
    digest: str
    requester: str
    subject: str
    requested_at_ms: int
    expires_at_ms: int
    metadata: Any = None
    state: str = PENDING
    approvals: tuple[Approved, ...] = ()
    checks: dict[str, Reported] = {}
    lifted: tuple[str, ...] = ()
    overrides: tuple[Word, ...] = ()
    override_until_ms: int = 0
    place: int = 0
    asked_ms: int = 0
    token: int = 0
    opened_at_ms: int = 0
    open_until_ms: int = 0
    overridden: bool = False
    ended_at_ms: int = 0
    reason: str = ""
    due_ms: int = 0
    override_people: int = 0

    def facts(self) -> policies.Facts:
        return policies.Facts(self.requester, self.requested_at_ms, self.approvals, self.checks, self.lifted)


class Ref(Struct, frozen=True, array_like=True):
    id: str


class Tally(Struct, frozen=True, array_like=True):
    """How many requests of a gate live and how many ended ones it remembers; `oldest`: no remembered one ended at a
    lower number."""

    live: int = 0
    ended: int = 0
    oldest: int = 0


REQUESTS = Table("gate-request", Request)
QUEUE = Table("gate-queue", Ref)
THROUGH = Table("gate-open", Ref)
SUBJECTS = Table("gate-subject", Ref)
HISTORY = Table("gate-history", Ref)
"""By gate and the request's number."""
ENDS = Table("gate-ended", Ref)
"""By gate and the number of the end: which ended one is forgotten next."""
TALLIES = Table("gate-tally", Tally)


class Verdict(NamedTuple):
    """`valid`, or the reasons why not."""

    valid: bool
    reasons: tuple[str, ...]
    request: Request | None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read(view: LedgerView, gate: str, id: str) -> Request | None:
    return None if limits.name(gate) or limits.id(id) else REQUESTS.get(view, gate, id)


def page(view: LedgerView, gate: str, limit: int, before: int = limits.NUMBER) -> list[tuple[str, Request]]:
    """Requests of a gate, newest first, from below the number `before`."""
    if limits.name(gate):
        return []
    rows = view.rows(HISTORY.name, pack(gate), pack(gate, before), limit=limit, reverse=True)
    ids = [HISTORY.decode(data).id for _, data in rows]
    found = [(id, REQUESTS.get(view, gate, id)) for id in ids]
    return [(id, row) for id, row in found if row is not None]


def blocked(view: LedgerView, gate: str, row: Request, now_ms: int) -> list[Unmet]:
    """All that keeps a request from being admitted now, slots aside; empty: it is READY."""
    return _blocked(view, gate, gates.show(view, gate), row, now_ms)


def is_overridden(policy: policies.Policy, row: Request, now_ms: int) -> bool:
    """Whether enough people, by the policy as it is now, have set its conditions aside until later than now."""
    enough = policy.override is not None and row.override_people >= policy.override.people
    return enough and now_ms < row.override_until_ms


def _blocked(view: LedgerView, name: str, gate: "gates.Gate | None", row: Request, now_ms: int) -> list[Unmet]:
    if gate is None or gate.policy is None:
        return [{"type": "policy", "reason": "the gate has no policy"}]
    overridden = is_overridden(gate.policy, row, now_ms)
    why = gates.closed_because(gate, now_ms)
    found: list[Unmet] = [] if why is None else [{"type": "closed", "reason": gate.reason or why}]
    found += [
        {
            "type": "freeze",
            "reason": freeze.reason,
            "freeze": id,
            **({"until_ms": freeze.until_ms} if freeze.until_ms else {}),
        }
        for id, freeze in freezes.in_force(view, name, now_ms, overridden=overridden)
    ]
    return found if overridden else found + policies.unmet(gate.policy, row.facts(), now_ms)


def verify(view: LedgerView, gate: str, id: str, token: int, digest: str | None, now_ms: int) -> Verdict:
    """Whether the deployment that was admitted with this token may take its next irreversible step. For a
    linearizable answer the caller passes a read barrier first, and a time that is not behind the log's."""
    row, stored = read(view, gate, id), gates.show(view, gate)
    if row is None or row.state != OPEN or row.token != token:
        state = (
            "there is no such request" if row is None else f"the request is {row.state}, or the token is another's"
        )
        return Verdict(False, (state,), row)
    reasons = [freeze.reason for _, freeze in freezes.in_force(view, gate, now_ms, overridden=row.overridden)]
    if digest is not None and digest != row.digest:
        reasons.append("this is not the artifact that was admitted")
    if now_ms >= row.open_until_ms:
        reasons.append("the time it was admitted for is over")
    why = gates.closed_because(stored, now_ms)
    if why is not None:
        reasons.append(why)
    return Verdict(not reasons, tuple(reasons), row)


def told(view: LedgerView, gate: str, id: str, row: Request, now_ms: int) -> dict[str, Any]:
    """A request as clients see it, judged at `now_ms`."""
    closed = blocked(view, gate, row, now_ms) if row.state in WAITING else []
    shown = {
        "gate": gate,
        "request": id,
        "state": READY if row.state == PENDING and not closed else row.state,
        "artifact_digest": row.digest,
        "requester": row.requester,
        "subject": row.subject,
        "metadata": row.metadata,
        "requested_at_ms": row.requested_at_ms,
        "expires_at_ms": row.expires_at_ms,
        "unmet": closed,
        "approvals": [
            {"by": one.by, "groups": list(one.groups), "at_ms": one.at_ms, "comment": one.comment}
            for one in row.approvals
        ],
        "checks": [
            {"name": name, "ok": one.ok, "at_ms": one.at_ms, "by": one.by, "details": one.details}
            for name, one in row.checks.items()
        ],
        "lifted": list(row.lifted),
        "overrides": [{"by": word.by, "reason": word.reason, "at_ms": word.at_ms} for word in row.overrides],
        "override_until_ms": row.override_until_ms or None,
        "reason": row.reason,
    }
    if row.state == QUEUED:
        shown["position"] = 1 + len(view.rows(QUEUE.name, pack(gate), pack(gate, row.place), limit=LIVE_MOST))
    if row.token:
        shown |= {
            "fencing_token": row.token,
            "opened_at_ms": row.opened_at_ms,
            "open_until_ms": row.open_until_ms,
            "overridden": row.overridden,
        }
    if row.ended_at_ms:
        shown["ended_at_ms"] = row.ended_at_ms
    return shown
