"""The acts on a request at a gate: ask, approve, report, lift a hold, reject, cancel, override, admit, complete.

The rule: an act is refused unless the request waits, is for the artifact the act names, and somebody stands for
the act; only then is it looked at for itself. What it came to is stored and told by gate_steps.py. `result` of
every outcome is the request as `gate_requests.told` shows it.
"""

from msgspec.structs import replace

from raftspine.core.ledger import audit, gates, limits
from raftspine.core.ledger import gate_policy as policies
from raftspine.core.ledger import gate_steps as steps
from raftspine.core.ledger.gate_commands import (
    AdmitRequest,
    ApproveRequest,
    CompleteRequest,
    EndRequest,
    LiftHold,
    OverrideRequest,
    ReportCheck,
    RequestGate,
)
from raftspine.core.ledger.gate_policy import Approved, Reported
from raftspine.core.ledger.gate_requests import (
    CANCELLED,
    FAILED,
    HISTORY,
    LIVE_MOST,
    OPEN,
    PASSED,
    PEOPLE_MOST,
    QUEUE,
    QUEUED,
    REJECTED,
    REQUESTS,
    SUBJECTS,
    SUPERSEDED,
    TALLIES,
    WAITING,
    Ref,
    Request,
    Tally,
    Word,
    blocked,
)
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.tables import digest
from raftspine.core.ledger.work import Work, invalid


def request(work: Work, command: RequestGate) -> Outcome:
    """`result` here and below: the request as `told`."""
    bad = limits.first(
        limits.name(command.gate, "gate"),
        limits.id(command.id, "request"),
        limits.name(command.digest, "artifact_digest"),
        limits.name(command.agent, "requester"),
        limits.name(command.subject, "subject") if command.subject else None,
        limits.data(command.metadata, "metadata", limits.METADATA_BYTES),
    )
    if bad:
        return invalid(command.id, bad)
    gate = gates.show(work, command.gate)
    if gate is None or gate.policy is None:
        return Outcome(Status.ABSENT, command.gate, reason="there is no gate of this name with a policy")
    if REQUESTS.get(work, command.gate, command.id) is not None:
        return Outcome(Status.EXISTS, command.id, reason="there is a request of this id")
    tally = TALLIES.get(work, command.gate) or Tally()
    if tally.live >= LIVE_MOST:
        return Outcome(Status.TOO_MANY, command.gate, reason=f"{LIVE_MOST} requests wait at this gate")
    if gate.policy.supersede and command.subject:
        _supersede(work, command)
    row = Request(
        number=work.number(),
        digest=command.digest,
        requester=command.agent,
        subject=command.subject,
        requested_at_ms=work.time_ms,
        expires_at_ms=work.time_ms + gate.policy.request_seconds * 1000,
        metadata=command.metadata,
    )
    tally = TALLIES.get(work, command.gate) or Tally()
    work.put(TALLIES, command.gate, value=replace(tally, live=tally.live + 1))
    work.put(HISTORY, command.gate, row.number, value=Ref(command.id))
    if command.subject:
        work.put(SUBJECTS, command.gate, digest(command.subject), value=Ref(command.id))
    audit.append(work, gates.KIND, command.gate, "request", command.id, digest=row.digest, deploys=row.subject)
    return steps.keep(work, command.gate, command.id, row, "requested", created=True)


def _supersede(work: Work, command: RequestGate) -> None:
    before = SUBJECTS.get(work, command.gate, digest(command.subject))
    row = None if before is None else REQUESTS.get(work, command.gate, before.id)
    if before is not None and row is not None and row.state in WAITING:
        steps.end(work, command.gate, before.id, row, SUPERSEDED, f"by {command.id}")


def approve(work: Work, command: ApproveRequest) -> Outcome:
    """Forbidden to the requester where an approval of the policy must be another person's."""
    found = steps.waiting(work, command, command.digest)
    if isinstance(found, Outcome):
        return found
    row, policy = found
    if len(command.groups) > policies.GROUPS_MOST or len(command.comment.encode()) > limits.REASON_BYTES:
        return invalid(command.id, "groups or comment are too long")
    if bad := limits.first(*(policies.wrong_name(group, "groups") for group in command.groups)):
        return invalid(command.id, bad)
    wanted = [condition for condition in policy.conditions if isinstance(condition, policies.Approval)]
    if command.agent == row.requester and wanted and all(one.distinct_from_requester for one in wanted):
        return steps.forbidden(work, command, "approve", "the requester may not approve")
    others = tuple(one for one in row.approvals if one.by != command.agent)
    if len(others) >= PEOPLE_MOST:
        return Outcome(Status.TOO_MANY, command.id, reason="too many approvals")
    given = Approved(command.agent, command.groups, work.time_ms, command.comment)
    audit.append(
        work,
        gates.KIND,
        command.gate,
        "approve",
        command.id,
        digest=row.digest,
        groups=list(command.groups),
        comment=command.comment,
    )
    return steps.keep(work, command.gate, command.id, replace(row, approvals=(*others, given)), "approved")


def report(work: Work, command: ReportCheck) -> Outcome:
    found = steps.waiting(work, command, command.digest)
    if isinstance(found, Outcome):
        return found
    row, _ = found
    bad = limits.first(
        policies.wrong_name(command.check, "check"),
        None if len(command.details.encode()) <= limits.REASON_BYTES else "details are too long",
    )
    if bad:
        return invalid(command.id, bad)
    checks = {**row.checks, command.check: Reported(command.ok, work.time_ms, command.agent, command.details)}
    if len(checks) > PEOPLE_MOST:
        return Outcome(Status.TOO_MANY, command.id, reason="too many checks")
    audit.append(work, gates.KIND, command.gate, "report", command.id, digest=row.digest, check=command.check,
                 verdict="ok" if command.ok else "failed", notes=command.details)  # fmt: skip
    return steps.keep(work, command.gate, command.id, replace(row, checks=checks), "reported")


def lift_hold(work: Work, command: LiftHold) -> Outcome:
    found = steps.waiting(work, command, None)
    if isinstance(found, Outcome):
        return found
    row, policy = found
    holds = [condition.name for condition in policy.conditions if isinstance(condition, policies.Hold)]
    if command.hold not in holds:
        return Outcome(Status.ABSENT, command.id, reason="the policy has no such hold")
    lifted = tuple(name for name in row.lifted if name != command.hold)
    if command.lifted and len(lifted) >= PEOPLE_MOST:
        return Outcome(Status.TOO_MANY, command.id, reason="too many holds")
    row = replace(row, lifted=(*lifted, command.hold) if command.lifted else lifted)
    audit.append(work, gates.KIND, command.gate, "lift" if command.lifted else "hold", command.id, hold=command.hold)
    return steps.keep(work, command.gate, command.id, row, "lifted" if command.lifted else "held")


def end(work: Work, command: EndRequest) -> Outcome:
    """Reject or cancel."""
    found = steps.waiting(work, command, None)
    if isinstance(found, Outcome):
        return found
    if len(command.reason.encode()) > limits.REASON_BYTES:
        return invalid(command.id, "reason is too long")
    row, _ = found
    if not command.rejected and command.agent != row.requester:
        return steps.forbidden(
            work, command, "cancel", "only its requester cancels a request; an approver rejects it"
        )
    row = steps.end(work, command.gate, command.id, row, REJECTED if command.rejected else CANCELLED, command.reason)
    return steps.outcome(work, command.gate, command.id, row)


def override(work: Work, command: OverrideRequest) -> Outcome:
    found = steps.waiting(work, command, command.digest)
    if isinstance(found, Outcome):
        return found
    row, policy = found
    if not command.reason or len(command.reason.encode()) > limits.REASON_BYTES:
        return invalid(command.id, "an override has a reason of at most 1024 bytes")
    if policy.override is None:
        return steps.forbidden(work, command, "override", "the policy allows no override")
    if any(word.by == command.agent for word in row.overrides):
        return steps.forbidden(work, command, "override", "an override needs another person")
    if len(row.overrides) >= PEOPLE_MOST:
        return Outcome(Status.TOO_MANY, command.id, reason="too many overrides")
    row = replace(row, overrides=(*row.overrides, Word(command.agent, command.reason, work.time_ms)))
    enough = len(row.overrides) >= policy.override.people
    if enough:
        # A later one, after the first has run out, needs everybody anew.
        until_ms = work.time_ms + policy.override.seconds * 1000
        row = replace(row, override_until_ms=until_ms, override_people=len(row.overrides), overrides=())
    audit.append(work, gates.KIND, command.gate, "override", command.id, digest=row.digest, reason=command.reason,
                 until_ms=row.override_until_ms if enough else None)  # fmt: skip
    return steps.keep(work, command.gate, command.id, row, "overridden" if enough else "override asked")


def admit(work: Work, command: AdmitRequest) -> Outcome:
    """GRANTED, QUEUED, or GATE_CLOSED with what is unmet. Asked again while OPEN: the same token."""
    row = steps.known(work, command)
    if isinstance(row, Outcome):
        return row
    if row.state == OPEN and row.digest == command.digest and work.time_ms < row.open_until_ms:
        return steps.outcome(work, command.gate, command.id, row, Status.GRANTED)
    found = steps.waiting(work, command, command.digest)
    if isinstance(found, Outcome):
        return found
    row, policy = found
    closed = blocked(work, command.gate, row, work.time_ms)
    if closed:
        return Outcome(Status.GATE_CLOSED, command.id, reason=closed[0]["reason"], result={"unmet": closed})
    if row.place:
        row = replace(row, asked_ms=work.time_ms)
        work.put(REQUESTS, command.gate, command.id, value=row)
    steps.advance(work, command.gate, policy)
    row = REQUESTS.get(work, command.gate, command.id) or row
    if row.state == OPEN:
        return steps.outcome(work, command.gate, command.id, row, Status.GRANTED)
    if not row.place:
        if steps.slots(work, command.gate, policy) > 0:
            row = steps.open(work, command.gate, command.id, row, policy)
            return steps.outcome(work, command.gate, command.id, row, Status.GRANTED)
        if not command.queue:
            busy = [{"type": "busy", "reason": "as many are through as may be"}]
            return Outcome(Status.GATE_CLOSED, command.id, reason="the gate is taken", result={"unmet": busy})
        row = replace(row, state=QUEUED, place=work.number(), asked_ms=work.time_ms)
        work.put(QUEUE, command.gate, row.place, value=Ref(command.id))
        audit.append(work, gates.KIND, command.gate, "queue", command.id)
        return steps.keep(work, command.gate, command.id, row, "queued", status=Status.QUEUED)
    return steps.outcome(work, command.gate, command.id, row, Status.QUEUED)


def complete(work: Work, command: CompleteRequest) -> Outcome:
    """A completion repeated, or that came after the end, gets the end that was recorded."""
    row = steps.known(work, command)
    if isinstance(row, Outcome):
        return row
    if not row.token or row.token != command.token:
        return Outcome(Status.NOT_CURRENT, command.id, reason="the token is not this request's")
    if len(command.details.encode()) > limits.REASON_BYTES:
        return invalid(command.id, "details are too long")
    if row.state == OPEN:
        row = steps.end(work, command.gate, command.id, row, PASSED if command.ok else FAILED, command.details)
    return steps.outcome(work, command.gate, command.id, row)
