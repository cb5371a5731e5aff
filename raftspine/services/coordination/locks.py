"""Locks, semaphores and elections: taking, waiting, keeping and giving back.

The rules: a lease is named before the log hears of it, so a request that may have been lost can be made again
without taking a lock twice. Whoever waits has a place in the queue that the log keeps (the ticket); the wait itself
is only an open ear, so a lost connection costs the wait and not the place. While somebody listens, the place's
session is kept alive from here; when nobody does, the place lapses by its own time.

How long a lease lives is always counted from before the last word that its leader has certainly heard.
"""

import asyncio
from typing import Any, NamedTuple

from raftspine.core.ledger import sessions as session_rows
from raftspine.core.ledger.lock_commands import (
    ELECTION,
    LOCK,
    AcquireAll,
    AcquireLock,
    BreakLock,
    Proclaim,
    ReleaseLock,
)
from raftspine.core.ledger.lock_queue import ASKS, LOCKS
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.tables import pack
from raftspine.errors import Conflict, NotFound, SpineError
from raftspine.model import GroupId
from raftspine.ports import Clock
from raftspine.services.coordination.door import Caller, Door
from raftspine.services.coordination.lock_queries import QUERIES
from raftspine.services.coordination.refusals import refusal
from raftspine.services.coordination.sessions import Sessions, ended, lifetime
from raftspine.services.coordination.waits import Waits
from raftspine.services.deadlines import LEAST_SECONDS

TICKET_GRACE_MS = 10_000
"""How long a place is kept beyond the wait that was asked for: time to come back and ask again."""
RETRY_MS = 1000
RENEW_LEASE = "locks.renew"


class Want(NamedTuple):
    """A request for a lock, in milliseconds."""

    owner: str
    ttl_ms: int
    wait_ms: int = 0
    mode: str = "exclusive"
    permits: int = 0
    weight: int = 1
    priority: int = 0
    lock_delay_ms: int = 0
    session: str = ""
    ticket: str = ""
    metadata: Any = None
    space: str = LOCK


class Locks:
    """`waited`: called with the seconds a lock was waited for."""

    def __init__(self, door: Door, waits: Waits, sessions: Sessions, *, waited: Any) -> None:
        self._door = door
        self._waits = waits
        self._sessions = sessions
        self._waited = waited
        for name, query in QUERIES.items():
            door.answers(name, query)

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, caller: Caller, name: str, want: Want) -> dict[str, Any]:
        """The lease. Conflict `lock_held` with the ticket when the time is up, or at once without a wait."""
        door = self._door
        group = door.group(name)
        lease = want.ticket or door.id()
        started = door.clock.monotonic()
        command = AcquireLock(
            name,
            lease,
            want.session,
            want.owner,
            ttl_ms=want.ttl_ms,
            mode=want.mode,
            permits=want.permits,
            weight=want.weight,
            priority=want.priority,
            lock_delay_ms=want.lock_delay_ms,
            queue=want.wait_ms > 0 or bool(want.ticket),
            ticket_ttl_ms=want.wait_ms + TICKET_GRACE_MS,
            metadata=want.metadata,
            space=want.space,
        )
        outcome, index = await door.decide(group, command, caller, repeatable=True)
        if outcome.status is Status.SESSION_GONE and want.session:
            await self._sessions.enter(caller, want.session, group)
            outcome, index = await door.decide(group, command, caller, repeatable=True)
        if outcome.status is Status.GRANTED:
            return leased(door.clock, outcome.result, started)
        if outcome.status is Status.QUEUED and want.wait_ms > 0:
            return await self._wait(group, name, want, outcome, index, started)
        raise await self._refused(group, lease, outcome)

    async def _wait(
        self, group: GroupId, name: str, want: Want, queued: Outcome, index: int, started: float
    ) -> dict[str, Any]:
        """Until the ticket is a lease, or is gone, or the time is up."""
        door, clock = self._door, self._door.clock
        lease, session = queued.result["ticket"], queued.result["session"]
        began, ends = clock.monotonic(), clock.monotonic() + want.wait_ms / 1000
        heard, pause = started, want.ttl_ms / 3000
        if want.session:
            pause = (await door.renew(group, session)) / 3000
        key = pack(want.space, name, lease)
        while True:
            left = ends - clock.monotonic()
            found = await self._waits.until(
                group, ASKS.name, key, "lock.asked", want.space, name, lease, seconds=min(left, pause), index=index
            )
            if found is not None:
                break
            if clock.monotonic() >= ends - LEAST_SECONDS or self._waits.draining:
                self._waited(clock.monotonic() - began)
                raise await self._refused(group, lease, queued)
            now = clock.monotonic()
            try:
                await door.renew(group, session)
            except NotFound:
                raise ended(session) from None
            heard = now
        self._waited(clock.monotonic() - began)
        if not found["token"]:
            raise Conflict("this ticket has lapsed", code="lease_not_current", details={"ticket": lease})
        return leased(clock, {**found, "lease": lease}, heard)

    async def _refused(self, group: GroupId, lease: str, outcome: Outcome) -> SpineError:
        """`lock_held` in the API's words; other refusals as they are."""
        if outcome.status not in (Status.QUEUED, Status.LOCK_HELD):
            return refusal(outcome) or ended(lease)
        told = outcome.result
        holder = told.get("holder")
        left = None if holder is None else await self._door.remaining_ms(group, holder["session"])
        if not left and told.get("free_at_ms"):
            left = max(0, told["free_at_ms"] - self._door.clock.wall_ms())
        return Conflict(
            "the lock is held",
            code="lock_held",
            details={
                "name": told.get("name", outcome.id),
                "holder": None if holder is None else holder["owner"],
                "holder_token": None if holder is None else holder["token"],
                "expires_at_ms": None if left is None else self._door.clock.wall_ms() + left,
                "retry_after_ms": RETRY_MS if not left else max(50, min(RETRY_MS, left)),
                "position": told.get("position") or told.get("waiting", 0) + 1,
                "waiting": told.get("waiting", 0),
                "ticket": lease,
                "queued": outcome.status is Status.QUEUED,
            },
            retry_after_ms=RETRY_MS,
        )

    async def acquire_all(self, caller: Caller, names: list[str], want: Want) -> dict[str, Any]:
        """All of these locks or none; they must share a group."""
        door, clock = self._door, self._door.clock
        group = door.one_group(names, "$.names")
        lease = want.ticket or door.id()
        began, ends = clock.monotonic(), clock.monotonic() + want.wait_ms / 1000
        command = AcquireAll(
            tuple(names),
            lease,
            want.session,
            want.owner,
            want.ttl_ms,
            lock_delay_ms=want.lock_delay_ms,
            wait=want.wait_ms > 0,
            metadata=want.metadata,
        )
        while True:
            started = clock.monotonic()
            outcome, index = await door.decide(group, command, caller, repeatable=True)
            if outcome.status is Status.SESSION_GONE and want.session:
                await self._sessions.enter(caller, want.session, group)
                continue
            if outcome.status is Status.GRANTED:
                self._waited(clock.monotonic() - began)
                return leased(door.clock, outcome.result, started)
            left = ends - clock.monotonic()
            if outcome.status is not Status.LOCK_HELD or left <= LEAST_SECONDS or self._waits.draining:
                raise await self._refused(group, lease, outcome)
            caller = Caller(caller.agent)  # asked again: the first answer is not this one's
            held = outcome.result["name"]
            await self._waits.until(
                group, LOCKS.name, pack(LOCK, held), "lock.free", LOCK, held, seconds=left, index=index
            )

    # ── keeping and giving back ─────────────────────────────────────────────────────────────────────────────

    async def renew(self, name: str, lease: str, token: int, space: str = LOCK) -> dict[str, Any]:
        """Another TTL from now. Conflict(`lease_not_current`)."""
        door = self._door
        group = door.group(name)
        started = door.clock.monotonic()
        found = await door.read(group, "lock.renewable", space, name, lease, token)
        try:
            if found is None:
                raise NotFound("no such lease")
            ttl_ms = await door.renew(group, found["session"])
        except NotFound:
            raise not_current(name, lease) from None
        return leased(door.clock, {**found, "lease": lease, "token": token, "ttl_ms": ttl_ms}, started)

    async def release(
        self, caller: Caller, name: str, lease: str, token: int, *, every: bool = False, space: str = LOCK
    ) -> dict[str, Any]:
        """One hold back (`every`: all of them); with token 0 a place in the queue."""
        command = ReleaseLock(name, lease, token, every, space)
        outcome = await self._door.execute(self._door.group(name), command, caller)
        hold = outcome.result["hold"]
        return {"name": name, "lease_id": lease, "released": hold == 0, "hold": hold}

    async def break_(self, caller: Caller, name: str, reason: str, token: int, space: str = LOCK) -> dict[str, Any]:
        """Take a lock from its holders; written down in the lock's audit chain."""
        command = BreakLock(name, reason, token, space)
        outcome = await self._door.execute(self._door.group(name), command, caller)
        broken = [
            {"lease_id": one["lease"], "owner": one["owner"], "fencing_token": one["token"]}
            for one in outcome.result["broken"]
        ]
        return {"name": name, "broken": broken, "holders": outcome.result["holders"]}

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────

    async def check(self, name: str, token: int, space: str = LOCK) -> dict[str, Any]:
        """Whether a token is current, linearizable, and how long it has left at least."""
        found: dict[str, Any] | None = await self._door.read(self._door.group(name), "lock.check", space, name, token)
        if found is None:
            return {"valid": False, "remaining_ms": 0}
        return {"valid": True, **found}

    async def show(self, name: str) -> dict[str, Any]:
        """A lock that nobody holds is free, and is shown so."""
        found: dict[str, Any] = await self._door.read(self._door.group(name), "lock.shown", LOCK, name)
        return found

    async def page(self, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Locks that are held or waited for, by name, from all groups."""
        groups = self._door.groups()
        pages = await asyncio.gather(
            *(self._door.read(group, "lock.page", LOCK, prefix, after, limit + 1) for group in groups)
        )
        items = sorted((item for page in pages for item in page), key=lambda item: item["name"])
        return {"items": items[:limit], "next_cursor": items[limit - 1]["name"] if len(items) > limit else None}

    # ── elections ───────────────────────────────────────────────────────────────────────────────────────────

    async def proclaim(self, caller: Caller, name: str, lease: str, token: int, value: Any) -> dict[str, Any]:
        """Say something in office."""
        outcome = await self._door.execute(self._door.group(name), Proclaim(name, lease, token, value), caller)
        return {"name": name, "term": outcome.result["term"], "value": value}

    async def observe(self, name: str, known: int | None, wait_ms: int) -> dict[str, Any]:
        """Who leads; with a known revision, once that is no longer the newest or the time is up."""
        group = self._door.group(name)
        office: dict[str, Any] = await self._door.read(group, "election.office", name)
        if known is None or office["revision"] != known or wait_ms <= 0:
            return office
        await self._waits.until(
            group, LOCKS.name, pack(ELECTION, name), "election.news", name, known, seconds=wait_ms / 1000
        )
        found: dict[str, Any] = await self._door.read(group, "election.office", name)
        return found


def leased(clock: Clock, told: dict[str, Any], heard: float) -> dict[str, Any]:
    """A lease as clients see it."""
    shown = {"lease_id": told["lease"], "hold": told.get("hold", 1), "session_id": _public(told["session"])}
    if "token" in told:
        shown["fencing_token"] = told["token"]
    if "tokens" in told:
        shown["fencing_tokens"] = told["tokens"]
    if told.get("mode"):
        shown["mode"] = told["mode"]
    return {**shown, **lifetime(clock, heard, told["ttl_ms"])}


def _public(session: str) -> str | None:
    return None if session.startswith(session_rows.OWN) else session


def not_current(name: str, lease: str) -> Conflict:
    return Conflict("this lease is not current", code="lease_not_current", details={"name": name, "lease_id": lease})
