"""Sessions: who may hold something, for as long as they are heard of.

The rules:

* A session ends by a command in the log and by nothing else, so whether a lease is valid at a log index is a
  fact that all replicas agree on. Its TTL is a lower bound: renewals are not logged; the group's leader keeps them
  in memory, acknowledges one only with a quorum's proof, newer than the request, that it still leads, and proposes
  `ExpireSession` when none came for a TTL. A new leader has heard of nobody and starts every timer in full.
* An expiry is *overtaken* when its entry was stamped by another leader than the one who proposed it, or when
  the log has heard of the session since (`renewed`). So a renewal that was acknowledged, or a command of the
  session that was applied, is never followed by an expiry decided before it.
* What a session holds (leases, places in queues, claims) is indexed by it, so that its end costs what it held.
* A lease or claim without a session is a session of its own, named `~` and the lease's id: one mechanism
  expires everything. It closes when its last holding goes.

A session belongs to one shard group. One that is used in several has a row, and a life, in each: the service
opens and renews them together, and each group decides on its own when it has heard nothing. The row in the group
its id leads to (its home) says which the others are (`groups`); they are noted before they are used.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import limits
from raftspine.core.ledger.lock_commands import ExpireSession, OpenSession, RenewSession, SpreadSession
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack, unpack
from raftspine.core.ledger.work import Work, invalid

OWN = "~"
"""What the id of a lease's own session begins with, and no other."""


class Session(Struct, frozen=True, array_like=True):
    """`number`: unlike that of every other session there ever was, also of the same id. `renewed`: the number of
    its last command in the log. `held`: rows in its index. `own`: it exists for one lease or claim. `groups`: where
    else it is used."""

    number: int
    renewed: int
    ttl_ms: int
    opened_at_ms: int
    owner: str = ""
    metadata: dict[str, Any] = {}
    held: int = 0
    own: bool = False
    groups: tuple[int, ...] = ()


class Held(Struct, frozen=True, array_like=True):
    """A row of the index by session; its key says what is held: kind, then the kind's own names. `ref`: the
    lease or claim."""

    ref: str


SESSIONS = Table("session", Session)
HELD = Table("held", Held)

Release = Callable[[Work, tuple[str, str], Held, bool], None]
"""Gives back one thing: names (of the kind's place, e.g. space and lock), the index row, whether it was lost."""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read(view: LedgerView, id: str) -> Session | None:
    wrong = limits.id(id[len(OWN) :] if id.startswith(OWN) else id)
    return None if wrong else SESSIONS.get(view, id)


def page(view: LedgerView, after: str, limit: int) -> list[tuple[str, Session]]:
    """Sessions in order of their ids, behind `after`: what a new leader sets timers for."""
    start = after.encode() + b"\1" if after else b""
    return [(unpack(key, str)[0], row) for key, row in SESSIONS.page(view, b"", start=start, limit=limit)]


def holdings(view: LedgerView, id: str, limit: int) -> list[tuple[str, tuple[str, str], Held]]:
    """(kind, names, row) of what a session holds, in order of the keys."""
    found = []
    for key, row in HELD.page(view, pack(id), limit=limit):
        _, kind, place, name = unpack(key, str, str, str, str)
        found.append((kind, (place, name), row))
    return found


# ── for the families ────────────────────────────────────────────────────────────────────────────────────────


def named(session: str, lease: str) -> str:
    """The id of the session that a lease belongs to: the one given, else its own."""
    return session or OWN + lease


def enter(work: Work, session: str, lease: str, ttl_ms: int, owner: str) -> Outcome | None:
    """See to it that the session of a new lease is open and has heard of this command; else the refusal."""
    if session:
        wrong = limits.id(session, "session") or ("session begins with ~" if session[0] == OWN else None)
    else:
        wrong = limits.ttl(ttl_ms)
    if wrong := limits.first(wrong, limits.id(lease, "lease")):
        return invalid(lease, wrong)
    id = named(session, lease)
    row = SESSIONS.get(work, id)
    if row is None and session:
        return Outcome(Status.SESSION_GONE, session, reason="there is no such session")
    if row is not None and row.own and row.owner != owner:
        return Outcome(Status.EXISTS, lease, reason="another owner has a lease of this name")
    number = work.number()
    if row is None:
        row = Session(number, number, ttl_ms, work.time_ms, owner, own=True)
    work.put(SESSIONS, id, value=replace(row, renewed=number, ttl_ms=ttl_ms if row.own else row.ttl_ms))
    return None


def full(view: LedgerView, id: str) -> bool:
    """Whether a session holds as much as one may."""
    row = SESSIONS.get(view, id)
    return row is not None and row.held >= limits.HELD_PER_SESSION


def hold(work: Work, id: str, kind: str, place: str, name: str, ref: str) -> None:
    """Index one more holding of an open session."""
    row = SESSIONS.get(work, id)
    assert row is not None, "enter() comes first"
    work.put(SESSIONS, id, value=replace(row, held=row.held + 1))
    work.put(HELD, id, kind, place, name, value=Held(ref))


def let_go(work: Work, id: str, kind: str, place: str, name: str) -> None:
    """Take a holding out of the index; a lease's own session ends with its last one."""
    work.remove(HELD, id, kind, place, name)
    row = SESSIONS.get(work, id)
    if row is None:
        return  # it is ending: `end` took its row away first
    if row.own and row.held <= 1:
        work.remove(SESSIONS, id)
    else:
        work.put(SESSIONS, id, value=replace(row, held=row.held - 1))


def touch(work: Work, id: str, ttl_ms: int = 0) -> Session | None:
    """Note that the log has heard of a session; None when it is not open."""
    row = read(work, id)
    if row is None:
        return None
    row = replace(row, renewed=work.number(), ttl_ms=ttl_ms or row.ttl_ms)
    work.put(SESSIONS, id, value=row)
    return row


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────


def open(work: Work, command: OpenSession) -> Outcome:
    """`result`: session, ttl_ms, opened_at_ms."""
    wrong = limits.first(
        limits.id(command.id, "session"),
        "session begins with ~" if command.id[:1] == OWN else None,
        limits.ttl(command.ttl_ms),
        limits.name(command.owner, "owner") if command.owner else None,
        limits.data(command.metadata, "metadata", limits.METADATA_BYTES),
    )
    if wrong:
        return invalid(command.id, wrong)
    row = SESSIONS.get(work, command.id)
    if row is not None and row.owner != command.owner:
        return Outcome(Status.EXISTS, command.id, reason="another owner has opened this session")
    number = work.number()
    if row is None:
        row = Session(number, number, command.ttl_ms, work.time_ms, command.owner)
    created = row.number == number
    row = replace(row, renewed=number, ttl_ms=command.ttl_ms, metadata=command.metadata)
    work.put(SESSIONS, command.id, value=row)
    return Outcome(Status.DONE, command.id, created=created, result=told(command.id, row))


def renew(work: Work, command: RenewSession) -> Outcome:
    """`result` as of open."""
    if command.ttl_ms and (wrong := limits.ttl(command.ttl_ms)):
        return invalid(command.id, wrong)
    row = touch(work, command.id, command.ttl_ms)
    if row is None:
        return Outcome(Status.SESSION_GONE, command.id, reason="there is no such session")
    return Outcome(Status.DONE, command.id, result=told(command.id, row))


def spread(work: Work, command: SpreadSession) -> Outcome:
    """`result` as of open, with owner, metadata and known: whether this group was noted before."""
    row = touch(work, command.id)
    if row is None:
        return Outcome(Status.SESSION_GONE, command.id, reason="there is no such session")
    if wrong := limits.between(command.group, 0, limits.NUMBER, "group"):
        return invalid(command.id, wrong)
    known = command.group in row.groups
    if not known:
        row = replace(row, groups=(*row.groups, command.group))
        work.put(SESSIONS, command.id, value=row)
    result = {**told(command.id, row), "owner": row.owner, "metadata": row.metadata, "known": known}
    return Outcome(Status.DONE, command.id, result=result)


def told(id: str, row: Session) -> dict[str, Any]:
    return {"session": id, "ttl_ms": row.ttl_ms, "opened_at_ms": row.opened_at_ms, "held": row.held}


def overtaken(work: Work, command: ExpireSession, row: Session) -> bool:
    """Whether the log, or another leader, knows of the session what the proposer could not."""
    return command.term != work.at.term or command.number != row.number or command.renewed != row.renewed
