"""Sessions as clients see them: one life, in however many shard groups what they hold may lie.

The ledger's sessions live in one group each. The rule that makes one of several: a session's home is the group its id
leads to; before it is used in another group, its home notes that group and only then is it opened there. A renewal
goes to all of them and succeeds when all have heard of it. When one has ended it, for whatever reason, it is over
everywhere: half a session, whose locks in one group are lost and in another held, is a thing nobody can reason
about.
"""

import asyncio
from typing import Any

from raftspine.core.ledger import sessions as rows
from raftspine.core.ledger.lock_commands import CloseSession, OpenSession, SpreadSession
from raftspine.core.ledger.outcomes import Status
from raftspine.core.ledger.sessions import SESSIONS
from raftspine.core.ledger.tables import pack
from raftspine.errors import Conflict, NotFound, SpineError
from raftspine.model import GroupId
from raftspine.ports import Clock
from raftspine.services.coordination.door import Caller, Door, Moment
from raftspine.services.coordination.refusals import refusal
from raftspine.services.coordination.waits import Waits

ENTERING_SECONDS = 2.0
"""How long a session that is noted in its home may take to appear in another group. When it does not, whoever was to
open it there has failed, or it has ended there: both mean that it is over."""
SHOWN = 1000
"""Holdings of a session that are listed."""


class Sessions:
    def __init__(self, door: Door, waits: Waits) -> None:
        self._door = door
        self._waits = waits
        door.answers("session.show", _show)
        door.answers("session.here", _here)

    async def open(
        self, caller: Caller, *, ttl_ms: int, owner: str = "", id: str | None = None, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        """Open a session, or with the id of one's own that is open: renew it."""
        door = self._door
        session = id or door.id()
        started = door.clock.monotonic()
        command = OpenSession(session, ttl_ms, owner or caller.agent, metadata)
        outcome = await door.execute(door.group(session), command, caller, repeatable=True)
        told = outcome.result
        life = lifetime(door.clock, started, told["ttl_ms"])
        return {"session_id": told["session"], "owner": owner or caller.agent, "opened_at_ms": told["opened_at_ms"],
                **life}  # fmt: skip

    async def renew(self, session: str) -> dict[str, Any]:
        """Heard of in all its groups. Conflict(`lease_not_current`) when one of them has ended it."""
        door = self._door
        started = door.clock.monotonic()
        home = door.group(session)
        row = await self._row(session)
        if row is None:
            raise ended(session)
        groups = (home, *(GroupId(group) for group in row["groups"]))
        heard = await asyncio.gather(*(door.renew(group, session) for group in groups), return_exceptions=True)
        for result in heard:
            if isinstance(result, NotFound):
                await self._end(session, groups)
                raise ended(session) from result
        for result in heard:
            if isinstance(result, BaseException):
                raise result
        return {"session_id": session, **lifetime(door.clock, started, row["ttl_ms"])}

    async def close(self, caller: Caller, session: str) -> dict[str, Any]:
        """End a session and give back what it holds everywhere; one that is not open holds nothing."""
        row = await self._row(session)
        groups = (self._door.group(session), *(() if row is None else (GroupId(group) for group in row["groups"])))
        released = await self._end(session, groups, caller)
        return {"session_id": session, "released": released}

    async def show(self, session: str) -> dict[str, Any]:
        """NotFound when it is not open."""
        row = await self._row(session)
        if row is None:
            raise NotFound("there is no such session", details={"session_id": session, "confirmed": True})
        others = [GroupId(group) for group in row.pop("groups")]
        found = await asyncio.gather(*(self._door.read(group, "session.show", session) for group in others))
        shown = [each for each in found if each is not None]
        known = [ms for ms in (row.pop("remaining_ms"), *(each["remaining_ms"] for each in shown)) if ms is not None]
        held = [*row.pop("holds"), *(hold for each in shown for hold in each["holds"])]
        ttl_ms = row.pop("ttl_ms")
        life = left(self._door.clock, ttl_ms, min(known, default=ttl_ms))
        return {"session_id": session, **row, **life, "holds": held}

    # ── for the other services ──────────────────────────────────────────────────────────────────────────────

    async def enter(self, caller: Caller, session: str, group: GroupId) -> None:
        """Open a session in one more group. Conflict(`lease_not_current`) when it is not open, or has been in that
        group and has ended there. Another request may be about to open it there; that is waited for."""
        door = self._door
        home = door.group(session)
        own = Caller(caller.agent)
        if group == home:
            raise ended(session)
        outcome, _ = await door.decide(home, SpreadSession(session, group), own)
        if outcome.status is Status.SESSION_GONE:
            raise ended(session)
        if (refused := refusal(outcome)) is not None:
            raise refused
        told = outcome.result
        if told["known"]:
            key = pack(session)
            if await self._waits.until(group, SESSIONS.name, key, "session.here", session, seconds=ENTERING_SECONDS):
                return
            await self._end(session, (home, group))
            raise ended(session)
        command = OpenSession(session, told["ttl_ms"], told["owner"], told["metadata"])
        await door.execute(group, command, own, repeatable=True)

    async def _row(self, session: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._door.read(self._door.group(session), "session.show", session)
        return found

    async def _end(self, session: str, groups: tuple[GroupId, ...], caller: Caller | None = None) -> int:
        """Close in the other groups first: while the home is open, closing can be repeated and finds them all."""
        caller = Caller() if caller is None else Caller(caller.agent)
        command = CloseSession(session)
        closed = await asyncio.gather(
            *(self._door.execute(group, command, caller, repeatable=True) for group in groups[1:])
        )
        closed.append(await self._door.execute(groups[0], command, caller, repeatable=True))
        return sum(outcome.result["released"] for outcome in closed)


def lifetime(clock: Clock, heard: float, ttl_ms: int) -> dict[str, Any]:
    """The fields that say how long something lives that was heard of after the monotonic second `heard`. It is
    counted from before it was said, so that nobody believes in a lease longer than its leader does."""
    return left(clock, ttl_ms, max(0, ttl_ms - int((clock.monotonic() - heard) * 1000)))


def left(clock: Clock, ttl_ms: int, left_ms: int) -> dict[str, Any]:
    """The same fields for what is known to live so much longer."""
    return {
        "ttl_ms": ttl_ms,
        "ttl_remaining_ms": left_ms,
        "expires_at_ms": clock.wall_ms() + left_ms,
        "renew_after_ms": ttl_ms // 3,
    }


def ended(session: str) -> SpineError:
    return Conflict("this session is not, or no longer, open", code="lease_not_current", details={"session": session})


def _here(moment: Moment, session: str) -> bool | None:
    return True if rows.read(moment.view, session) is not None else None


def _show(moment: Moment, session: str) -> dict[str, Any] | None:
    row = rows.read(moment.view, session)
    if row is None:
        return None
    holds = [
        {"kind": kind, "place": names[0], "name": names[1]}
        for kind, names, _ in rows.holdings(moment.view, session, SHOWN)
    ]
    return {
        "owner": row.owner,
        "metadata": row.metadata,
        "opened_at_ms": row.opened_at_ms,
        "ttl_ms": row.ttl_ms,
        "remaining_ms": moment.remaining(session),
        "groups": list(row.groups),
        "holds": holds,
    }
