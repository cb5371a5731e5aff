"""Gates: open or closed, for so many uses, until then; or with a policy that says who goes through when.

The rule: a passage is decided in the log, by the entry's time and in one order with everything else, and consumes
a use in the same step; so a gate of one use lets one through, however many ask at once and however often they
repeat themselves. Whatever is not plainly open is closed: a gate that nobody set, one whose time has passed, one
without uses. Its fencing token tells whoever is passed apart from those before.

A gate with a policy is passed by requests (gate_requests.py) and never plainly: what its conditions ask for would be
worth nothing if there were a way round them. Setting a gate is an act of its audit chain, and so is each passage.
"""

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import audit, due, freezes, gate_policy, limits
from raftspine.core.ledger.gate_policy import Policy
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, unpack
from raftspine.core.ledger.task_commands import DeleteGate, PassGate, PutGate
from raftspine.core.ledger.work import Work, invalid

OPEN, CLOSED = "open", "closed"
KIND = "gate"


class Gate(Struct, frozen=True, array_like=True):
    """uses: what is left (None: no limit). expires_at_ms: closed from then on (0: never). passes: how many went
    through since it was made. reason: why it was last set. policy: None for a simple gate."""

    state: str
    uses: int | None = None
    expires_at_ms: int = 0
    set_by: str = ""
    set_at_ms: int = 0
    reason: str = ""
    passes: int = 0
    revision: int = 0
    policy: Policy | None = None


GATES = Table("gate", Gate)


def put(work: Work, command: PutGate) -> Outcome:
    """`result`: state, uses, expires_at_ms, revision."""
    name, expires_at_ms = command.name, command.expires_at_ms
    wrong = limits.first(
        limits.name(name),
        None if command.state in (OPEN, CLOSED) else "state is neither open nor closed",
        None if command.uses is None else limits.between(command.uses, 0, limits.NUMBER, "uses"),
        limits.between(expires_at_ms, 0, limits.NUMBER, "expires_at_ms"),
        "expires_at_ms has passed" if 0 < expires_at_ms <= work.time_ms else None,
        limits.reason(command.reason),
        None if command.policy is None else gate_policy.wrong(command.policy),
        "uses count passages, and a gate with a policy is passed by requests"
        if command.policy and command.uses is not None
        else None,
    )
    if wrong:
        return invalid(name, wrong)
    old = GATES.get(work, name)
    gate = Gate(
        command.state,
        command.uses,
        expires_at_ms,
        work.agent,
        work.time_ms,
        command.reason,
        0 if old is None else old.passes,
        work.number(),
        command.policy,
    )
    if old is not None:
        _forget_expiry(work, name, old)
    if expires_at_ms:
        due.note(work, expires_at_ms, KIND, "", name, gate.revision)
    work.put(GATES, name, value=gate)
    told = {"state": gate.state, "uses": gate.uses, "expires_at_ms": expires_at_ms}
    policy = None if command.policy is None else gate_policy.spelled(command.policy)
    audit.append(work, KIND, name, "set", details={"policy": policy, "reason": command.reason, **told})
    work.tell(KIND, name, "opened" if gate.state == OPEN else "closed", gate.revision, agent=work.agent, **told)
    return Outcome(Status.DONE, name, created=old is None, result={**told, "revision": gate.revision})


def pass_through(work: Work, command: PassGate) -> Outcome:
    """`result`: pass_id, token, uses_left (None: no limit)."""
    name = command.name
    if wrong := limits.first(limits.name(name), limits.id(command.pass_id, "pass_id")):
        return invalid(name, wrong)
    gate = GATES.get(work, name)
    why = closed_because(gate, work.time_ms) or _asks_for_requests(gate) or _frozen(work, name)
    if gate is None or why is not None:
        return Outcome(Status.GATE_CLOSED, name, reason=why or "")
    token = work.number()
    left = None if gate.uses is None else gate.uses - 1
    work.put(GATES, name, value=replace(gate, uses=left, passes=gate.passes + 1, revision=token))
    audit.append(work, KIND, name, "pass", command.pass_id, token=token, uses_left=left)
    work.tell(KIND, name, "passed", token, agent=work.agent, pass_id=command.pass_id, token=token, uses_left=left)
    return Outcome(Status.DONE, name, result={"pass_id": command.pass_id, "token": token, "uses_left": left})


def delete(work: Work, command: DeleteGate) -> Outcome:
    gate = None if limits.name(command.name) else GATES.get(work, command.name)
    if gate is None:
        return Outcome(Status.ABSENT, command.name, reason="there is no such gate")
    _forget_expiry(work, command.name, gate)
    work.remove(GATES, command.name)
    audit.append(work, KIND, command.name, "delete")
    work.tell(KIND, command.name, "deleted", work.number(), agent=work.agent)
    return Outcome(Status.DELETED, command.name)


def closed_because(gate: Gate | None, time_ms: int) -> str | None:
    """Why a gate lets nobody through at a time of the log; None when it does."""
    if gate is None:
        return "there is no such gate"
    if gate.state != OPEN:
        return "the gate is closed"
    if 0 < gate.expires_at_ms <= time_ms:
        return "the gate's time has passed"
    return "no uses are left" if gate.uses == 0 else None


def _asks_for_requests(gate: Gate | None) -> str | None:
    return None if gate is None or gate.policy is None else "the gate has a policy: request, then admit"


def _frozen(work: Work, name: str) -> str | None:
    found = freezes.in_force(work, name, work.time_ms)
    return f"frozen: {found[0][1].reason}" if found else None


def expired(work: Work, at_ms: int, place: str, name: str, row: due.Due) -> None:
    """A gate's time has passed: it is closed by rule already; say so in its row and to those who watch."""
    gate = GATES.get(work, name)
    if gate is None or gate.expires_at_ms != at_ms or gate.state != OPEN:
        return
    revision = work.number()
    work.put(GATES, name, value=replace(gate, state=CLOSED, expires_at_ms=0, reason="expired", revision=revision))
    audit.append(work, KIND, name, "expire")
    work.tell(KIND, name, "expired", revision)


def show(view: LedgerView, name: str) -> Gate | None:
    return None if limits.name(name) else GATES.get(view, name)


def page(view: LedgerView, prefix: str, after: str, limit: int) -> list[tuple[str, Gate]]:
    """Gates by name, behind `after`."""
    start = after.encode() + b"\1" if after else b""
    return [(unpack(key, str)[0], row) for key, row in GATES.page(view, prefix.encode(), start=start, limit=limit)]


def _forget_expiry(work: Work, name: str, gate: Gate) -> None:
    if gate.expires_at_ms:
        due.cancel(work, gate.expires_at_ms, KIND, "", name)
