"""Freezes: nothing goes through, at once, whatever was agreed before.

The rule: a freeze is a row of the group that admits, so an admission and a freeze are decided one after the other
by the same log, and none can slip between. A freeze of many gates is one row in each group; it holds in a group
from the entry that wrote it there. It ends at its time or when it is lifted; who reads it compares the time, so a
freeze that is over binds nobody even before its row is cleared away.
"""

from msgspec import Struct

from raftspine.core.ledger import audit, limits
from raftspine.core.ledger.gate_commands import LiftFreeze, PutFreeze
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table
from raftspine.core.ledger.work import Work, invalid

MOST = 64
"""Freezes in a group: each admission and each verification reads them all."""


KIND = "freeze"
ALL = ""
"""The one audit chain of a group's freezes."""


class Freeze(Struct, frozen=True, array_like=True):
    """As PutFreeze; `by` and `at_ms` say who, when."""

    scope: str
    reason: str
    until_ms: int
    overridable: bool
    by: str
    at_ms: int


FREEZES = Table("freeze", Freeze)


def page(view: LedgerView) -> list[tuple[str, Freeze]]:
    """(id, freeze) of all in this group, also those that are over."""
    return [(key[:-1].decode(), row) for key, row in FREEZES.page(view, b"", limit=MOST)]


def in_force(view: LedgerView, gate: str, now_ms: int, *, overridden: bool = False) -> list[tuple[str, Freeze]]:
    """The freezes that close a gate; with an override, those that reach even so."""
    return [
        (id, freeze)
        for id, freeze in page(view)
        if gate.startswith(freeze.scope)
        and not (overridden and freeze.overridable)
        and (freeze.until_ms == 0 or now_ms < freeze.until_ms)
    ]


def put(work: Work, command: PutFreeze) -> Outcome:
    """Freeze, or change a freeze. `result`: the freeze."""
    bad = limits.first(
        limits.id(command.id, "freeze"),
        limits.name(command.scope, "scope") if command.scope else None,
        limits.name(command.agent, "agent"),
        limits.reason(command.reason),
        None if command.reason else "reason is empty",
        limits.between(command.until_ms, 0, limits.NUMBER, "until_ms"),
        "until_ms has passed" if 0 < command.until_ms <= work.time_ms else None,
    )
    if bad:
        return invalid(command.id, bad)
    known = dict(page(work))
    for id in [id for id, freeze in known.items() if 0 < freeze.until_ms <= work.time_ms]:
        work.remove(FREEZES, id)
        del known[id]
    if command.id not in known and len(known) >= MOST:
        return Outcome(Status.TOO_MANY, command.id, reason=f"there are {MOST} freezes")
    row = Freeze(command.scope, command.reason, command.until_ms, command.overridable, command.agent, work.time_ms)
    work.put(FREEZES, command.id, value=row)
    audit.append(
        work, KIND, ALL, "freeze", command.id, scope=command.scope, reason=command.reason, until_ms=command.until_ms
    )
    work.tell(KIND, command.id, "set", work.number(), scope=command.scope, reason=command.reason)
    return Outcome(Status.DONE, command.id, created=command.id not in known, result=told(command.id, row))


def lift(work: Work, command: LiftFreeze) -> Outcome:
    row = None if limits.id(command.id) else FREEZES.get(work, command.id)
    if row is None:
        return Outcome(Status.ABSENT, command.id, reason="there is no such freeze")
    if bad := limits.first(limits.name(command.agent, "agent"), limits.reason(command.reason)):
        return invalid(command.id, bad)
    work.remove(FREEZES, command.id)
    audit.append(work, KIND, ALL, "unfreeze", command.id, scope=row.scope, reason=command.reason)
    work.tell(KIND, command.id, "lifted", work.number(), scope=row.scope, reason=command.reason)
    return Outcome(Status.DONE, command.id, result=told(command.id, row))


def told(id: str, row: Freeze) -> dict[str, object]:
    return {
        "freeze": id,
        "scope": row.scope,
        "reason": row.reason,
        "until_ms": row.until_ms or None,
        "overridable": row.overridable,
        "by": row.by,
        "at_ms": row.at_ms,
    }
