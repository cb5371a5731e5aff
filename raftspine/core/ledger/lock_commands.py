"""The commands on sessions, locks, elections and fences, as they stand in a shard group's log.

Whatever is chosen by chance (session, lease and request ids) is chosen by the proposer, before the log. Every
command ends in the fields `request`, `fingerprint` and `agent` (as in PutMemory), but for those that only a
leader proposes: ExpireSession, ExpireTicket and Wake are void when they come late, so nobody repeats them.

Order of fields is format: append only, with defaults.
"""

from typing import Any

from msgspec import Struct

LOCK = "lock"
ELECTION = "election"
SPACES = (LOCK, ELECTION)
"""Where a lock's name belongs: locks and elections have the same rules and do not share names."""


class OpenSession(Struct, frozen=True, array_like=True, tag="session-open"):
    """Open a session in this group, or renew it when it is open and of the same owner."""

    id: str
    ttl_ms: int
    owner: str = ""
    metadata: dict[str, Any] = {}
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class RenewSession(Struct, frozen=True, array_like=True, tag="session-renew"):
    """Renew through the log, with another TTL (0: the same). Plain renewals stay in the leader's memory."""

    id: str
    ttl_ms: int = 0
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class SpreadSession(Struct, frozen=True, array_like=True, tag="session-spread"):
    """The session, whose home is this group, is about to be used in another one: remember which."""

    id: str
    group: int
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class CloseSession(Struct, frozen=True, array_like=True, tag="session-close"):
    """End a session and give back all it holds, as its holder wished: no lock delay."""

    id: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ExpireSession(Struct, frozen=True, array_like=True, tag="session-expire"):
    """The leader of `term` has not heard of a session for its TTL. Void when another leader stamped the entry
    (renewals are known to the one who took them), or when the log has heard of the session since: `number`
    and `renewed` are what the leader read in its row."""

    id: str
    number: int
    renewed: int
    term: int


class AcquireLock(Struct, frozen=True, array_like=True, tag="lock-acquire"):
    """Ask for a lock, or ask again with the same `lease` (the ticket) and keep the place.

    session: empty when the lease is its own session, with `ttl_ms`. mode: exclusive, shared or semaphore;
    permits: how many the semaphore has (0: as many as those before said); weight: how many this takes.
    queue: take a place when it is not free. ticket_ttl_ms: how long the place is kept unasked (0: like
    ttl_ms, or the session's). lock_delay_ms: how long nobody may have the lock after an involuntary loss.
    In an election `metadata` is what the winner proclaims.
    """

    name: str
    lease: str
    session: str = ""
    owner: str = ""
    ttl_ms: int = 0
    mode: str = "exclusive"
    permits: int = 0
    weight: int = 1
    priority: int = 0
    lock_delay_ms: int = 0
    queue: bool = False
    ticket_ttl_ms: int = 0
    metadata: Any = None
    space: str = LOCK
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class AcquireAll(Struct, frozen=True, array_like=True, tag="lock-acquire-all"):
    """All of these locks, exclusively, or none. Takes no place in any queue. wait: the caller means to ask
    again until it gets them, so it is told when that could never be (`deadlock`)."""

    names: tuple[str, ...]
    lease: str
    session: str = ""
    owner: str = ""
    ttl_ms: int = 0
    lock_delay_ms: int = 0
    wait: bool = False
    metadata: Any = None
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ReleaseLock(Struct, frozen=True, array_like=True, tag="lock-release"):
    """Give one hold back (`all`: every hold), or give up a place in the queue (`token` 0)."""

    name: str
    lease: str
    token: int = 0
    all: bool = False
    space: str = LOCK
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class BreakLock(Struct, frozen=True, array_like=True, tag="lock-break"):
    """An operator takes a lock away from its holders (`token`: from this one). An involuntary loss."""

    name: str
    reason: str
    token: int = 0
    space: str = LOCK
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ExpireTicket(Struct, frozen=True, array_like=True, tag="ticket-expire"):
    """A place in a queue nobody asked for within its TTL. Void by the same rules as ExpireSession; `asked` is
    what the leader read in its row."""

    name: str
    lease: str
    asked: int
    term: int
    space: str = LOCK


class Proclaim(Struct, frozen=True, array_like=True, tag="election-proclaim"):
    """Say something in office; refused to anyone else."""

    name: str
    lease: str
    token: int
    value: Any = None
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class RaiseFence(Struct, frozen=True, array_like=True, tag="fence-raise"):
    """Remember a token for a resource outside; refused below the highest seen."""

    resource: str
    token: int
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class NoteRefusal(Struct, frozen=True, array_like=True, tag="refusal-note"):
    """`agent`'s key was refused an act that needs a better one."""

    action: str
    subject: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class Wake(Struct, frozen=True, array_like=True, tag="wake"):
    """Do what has come due by the entry's time (`due.py`). Harmless at any moment."""

    limit: int = 64
