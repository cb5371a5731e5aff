"""What moves a request at a gate from one state to the next, whoever's command it is.

The rule: each function stores what it changed, says so to watchers and to the audit chain, and notes when the
request must be looked at again; so that no command can move a request and forget one of the three.
"""

from typing import Any

from msgspec.structs import replace

from raftspine.core.ledger import audit, due, gates, limits
from raftspine.core.ledger import gate_policy as policies
from raftspine.core.ledger.gate_policy import Policy
from raftspine.core.ledger.gate_requests import (
    ENDED,
    ENDED_KEPT,
    ENDS,
    EXPIRED,
    FAILED,
    HISTORY,
    OPEN,
    PENDING,
    QUEUE,
    QUEUED,
    REQUESTS,
    SUBJECTS,
    TALLIES,
    THROUGH,
    WAITING,
    Ref,
    Request,
    Tally,
    blocked,
    is_overridden,
    told,
)
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.tables import digest, pack, unpack
from raftspine.core.ledger.work import Work, invalid

DUE = "gate-request"
"""Kind of the due rows: place is the gate, name the request."""


def slots(work: Work, gate: str, policy: Policy) -> int:
    """How many more may go through, when nobody waits before."""
    waiting = QUEUE.page(work, pack(gate), limit=1)
    return 0 if waiting else policy.concurrent - len(THROUGH.page(work, pack(gate), limit=policy.concurrent))


def advance(work: Work, gate: str, policy: Policy) -> None:
    """Give free slots to those who wait, in order; who cannot use one loses the place."""
    free = policy.concurrent - len(THROUGH.page(work, pack(gate), limit=policy.concurrent))
    start = b""
    while free > 0:
        first = QUEUE.page(work, pack(gate), start=start, limit=1)
        if not first:
            return
        start, ref = first[0][0] + b"\0", first[0][1]
        row = REQUESTS.get(work, gate, ref.id)
        assert row is not None, "who is in the queue is a request"
        work.remove(QUEUE, gate, row.place)
        row = replace(row, state=PENDING, place=0)
        absent = work.time_ms - row.asked_ms > policy.queue_seconds * 1000
        if absent or blocked(work, gate, row, work.time_ms):
            audit.append(
                work, gates.KIND, gate, "unqueue", ref.id, reason="not asked for" if absent else "a condition lapsed"
            )
            keep(work, gate, ref.id, row, "unqueued")
        else:
            open(work, gate, ref.id, row, policy)
            free -= 1


def open(work: Work, gate: str, id: str, row: Request, policy: Policy) -> Request:
    overridden = is_overridden(policy, row, work.time_ms)
    row = replace(
        row,
        state=OPEN,
        token=work.number(),
        opened_at_ms=work.time_ms,
        open_until_ms=work.time_ms + policy.open_seconds * 1000,
        overridden=overridden,
    )
    work.put(THROUGH, gate, id, value=Ref(id))
    audit.append(work, gates.KIND, gate, "admit", id, digest=row.digest, token=row.token, until_ms=row.open_until_ms,
                 overridden=overridden or None, agent=row.requester)  # fmt: skip
    keep(work, gate, id, row, "opened")
    return REQUESTS.get(work, gate, id) or row


def come_due(work: Work, at_ms: int, gate: str, id: str, noted: due.Due) -> None:
    """The time a request was waiting for has come: its end, or a moment at which it may have become ready."""
    row = REQUESTS.get(work, gate, id)
    if row is None or row.state in ENDED or row.due_ms != at_ms:
        return
    if row.state == OPEN:
        if work.time_ms >= row.open_until_ms:
            end(work, gate, id, row, FAILED, "not completed in time")
    elif work.time_ms >= row.expires_at_ms:
        end(work, gate, id, row, EXPIRED, "not admitted in time")
    else:
        keep(work, gate, id, replace(row, due_ms=0), "")


def known(work: Work, command: Any) -> Request | Outcome:
    bad = limits.first(limits.name(command.gate, "gate"), limits.id(command.id, "request"))
    if bad:
        return invalid(command.id, bad)
    row = REQUESTS.get(work, command.gate, command.id)
    return row or Outcome(Status.ABSENT, command.id, reason="there is no such request")


def waiting(work: Work, command: Any, artifact: str | None) -> tuple[Request, Policy] | Outcome:
    """The request, if it still waits, is for this artifact, and somebody acts on it."""
    row = known(work, command)
    if isinstance(row, Outcome):
        return row
    other = None if artifact is None else limits.name(artifact, "artifact_digest")
    if bad := limits.first(limits.name(command.agent, "agent"), other):
        return invalid(command.id, bad)
    gate = gates.show(work, command.gate)
    if gate is None or gate.policy is None:
        return Outcome(Status.WRONG_STATE, command.id, reason="the gate has no policy any more")
    if row.state in WAITING and work.time_ms >= row.expires_at_ms:
        return Outcome(Status.WRONG_STATE, command.id, reason=f"the request is {EXPIRED}", result={"state": EXPIRED})
    if row.state not in WAITING:
        return Outcome(
            Status.WRONG_STATE, command.id, reason=f"the request is {row.state}", result={"state": row.state}
        )
    if artifact is not None and artifact != row.digest:
        audit.append(
            work,
            gates.KIND,
            command.gate,
            "refused",
            command.id,
            refused=True,
            digest=artifact,
            reason="another artifact",
        )
        return Outcome(
            Status.WRONG_DIGEST,
            command.id,
            reason="the request is for another artifact",
            result={"artifact_digest": row.digest},
        )
    return row, gate.policy


def forbidden(work: Work, command: Any, action: str, reason: str) -> Outcome:
    audit.append(work, gates.KIND, command.gate, action, command.id, refused=True, reason=reason)
    return Outcome(Status.FORBIDDEN, command.id, reason=reason)


def keep(
    work: Work, gate: str, id: str, row: Request, change: str, *, created: bool = False, status: Status = Status.DONE
) -> Outcome:
    """Store a request, say what changed, and note when to look at it again."""
    if row.due_ms:
        due.cancel(work, row.due_ms, DUE, gate, id)
    if row.state == OPEN:
        at_ms = row.open_until_ms
    elif row.state in ENDED:
        at_ms = 0
    else:
        closed = blocked(work, gate, row, work.time_ms)
        ripens = policies.ripens_at(closed)
        at_ms = row.expires_at_ms if ripens is None else min(ripens, row.expires_at_ms)
        if not change and not closed and row.state == PENDING:
            change = "ready"
    if at_ms:
        due.note(work, at_ms, DUE, gate, id, row.number)
    row = replace(row, due_ms=at_ms)
    work.put(REQUESTS, gate, id, value=row)
    if change:
        about = {"gate": gate, "request": id, "state": row.state, "by": work.agent}
        work.tell(gates.KIND, f"{gate}/{id}", change, work.number(), **about)
    return outcome(work, gate, id, row, status, created=created)


def end(work: Work, gate: str, id: str, row: Request, state: str, reason: str) -> Request:
    """The last state of a request. Frees what it held; whoever waits behind it goes on."""
    was_through = row.state == OPEN
    if row.place and row.state == QUEUED:
        work.remove(QUEUE, gate, row.place)
    if was_through:
        work.remove(THROUGH, gate, id)
    if row.subject:
        live = SUBJECTS.get(work, gate, digest(row.subject))
        if live is not None and live.id == id:
            work.remove(SUBJECTS, gate, digest(row.subject))
    row = replace(row, state=state, place=0, ended_at_ms=work.time_ms, reason=reason)
    audit.append(work, gates.KIND, gate, state.lower(), id, digest=row.digest, reason=reason, token=row.token or None)
    keep(work, gate, id, row, state.lower())
    _remember(work, gate, id)
    stored = gates.show(work, gate)
    if was_through and stored is not None and stored.policy is not None:
        advance(work, gate, stored.policy)
    return row


def _remember(work: Work, gate: str, id: str) -> None:
    """Count one more that ended; let go of the one that ended first when there are too many."""
    work.put(ENDS, gate, work.number(), value=Ref(id))
    tally = TALLIES.get(work, gate) or Tally()
    tally = replace(tally, live=tally.live - 1, ended=tally.ended + 1)
    if tally.ended > ENDED_KEPT:
        ((key, ref),) = ENDS.page(work, pack(gate), start=pack(gate, tally.oldest), limit=1)
        number = int(unpack(key, str, int)[1])
        gone = REQUESTS.get(work, gate, ref.id)
        assert gone is not None, "an end that is remembered is a request's"
        work.remove(ENDS, gate, number)
        work.remove(HISTORY, gate, gone.number)
        work.remove(REQUESTS, gate, ref.id)
        tally = replace(tally, ended=tally.ended - 1, oldest=number + 1)
    work.put(TALLIES, gate, value=tally)


def outcome(
    work: Work, gate: str, id: str, row: Request, status: Status = Status.DONE, *, created: bool = False
) -> Outcome:
    return Outcome(status, id, created=created, result=told(work, gate, id, row, work.time_ms))
