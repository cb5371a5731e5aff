"""Handlers of sessions, locks, elections and fences."""

from raftspine.core.ledger.lock_commands import ELECTION
from raftspine.core.limits import Limits, check_agent
from raftspine.errors import InvalidRequest
from raftspine.http.call import Call
from raftspine.http.coordination.common import caller, ms, name, named, shown
from raftspine.http.coordination.lock_bodies import (
    AcquireAllBody,
    AcquireBody,
    BreakBody,
    CampaignBody,
    CheckBody,
    FenceBody,
    LeaseBody,
    ObserveQuery,
    OpenBody,
    PrefixQuery,
    ProclaimBody,
    ReleaseBody,
)
from raftspine.http.reply import Reply
from raftspine.services.coordination.locks import Want
from raftspine.services.coordination.service import Coordination


class SessionHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._sessions = on.sessions
        self._limits = limits

    async def open(self, call: Call) -> Reply:
        body: OpenBody = call.body
        check_agent(body.owner, self._limits, "$.owner")
        if body.session_id is not None:
            named(body.session_id, "$.session_id")
        asked = caller(call, self._limits, "session.open")
        made = await self._sessions.open(
            asked, ttl_ms=ms(body.ttl_seconds), owner=body.owner, id=body.session_id, metadata=body.metadata
        )
        return call.reply(201, shown(made))

    async def renew(self, call: Call) -> Reply:
        return call.reply(200, shown(await self._sessions.renew(name(call, field="id"))))

    async def close(self, call: Call) -> Reply:
        asked = caller(call, self._limits, "session.close")
        return call.reply(200, shown(await self._sessions.close(asked, name(call, field="id"))))

    async def show(self, call: Call) -> Reply:
        return call.reply(200, shown(await self._sessions.show(name(call, field="id"))))


class LockHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._locks = on.locks
        self._limits = limits

    async def acquire(self, call: Call) -> Reply:
        body: AcquireBody = call.body
        permits = 0 if body.permits is None else body.permits
        if body.mode != "semaphore" and (permits > 1 or body.weight > 1):
            raise InvalidRequest("$.permits: only a semaphore has permits", field="$.permits")
        if permits and body.weight > permits:
            raise InvalidRequest(f"$.weight: the semaphore has {permits} permits", field="$.weight")
        asked = caller(call, self._limits, "lock.acquire")
        want = Want(
            self._owner(body.owner, asked.agent),
            ms(body.ttl_seconds),
            ms(body.wait_seconds),
            body.mode,
            permits if body.mode == "semaphore" else 0,
            body.weight,
            body.priority,
            body.lock_delay_ms,
            body.session_id or "",
            body.ticket or "",
            body.metadata,
        )
        return call.reply(200, shown(await self._locks.acquire(asked, name(call), want)))

    async def acquire_all(self, call: Call) -> Reply:
        body: AcquireAllBody = call.body
        names = list(dict.fromkeys(named(each, "$.names") for each in body.names))
        asked = caller(call, self._limits, "lock.acquire_all")
        want = Want(
            self._owner(body.owner, asked.agent),
            ms(body.ttl_seconds),
            ms(body.wait_seconds),
            lock_delay_ms=body.lock_delay_ms,
            session=body.session_id or "",
            metadata=body.metadata,
        )
        return call.reply(200, shown(await self._locks.acquire_all(asked, names, want)))

    async def renew(self, call: Call) -> Reply:
        body: LeaseBody = call.body
        return call.reply(200, shown(await self._locks.renew(name(call), body.lease_id, body.fencing_token)))

    async def release(self, call: Call) -> Reply:
        body: ReleaseBody = call.body
        asked = caller(call, self._limits, "lock.release")
        given = await self._locks.release(asked, name(call), body.lease_id, body.fencing_token, every=body.all)
        return call.reply(200, shown(given))

    async def check(self, call: Call) -> Reply:
        body: CheckBody = call.body
        return call.reply(200, shown(await self._locks.check(name(call), body.fencing_token)))

    async def break_(self, call: Call) -> Reply:
        body: BreakBody = call.body
        asked = caller(call, self._limits, "lock.break", call.key or body.agent_id)
        return call.reply(
            200, shown(await self._locks.break_(asked, name(call), body.reason, body.fencing_token or 0))
        )

    async def show(self, call: Call) -> Reply:
        return call.reply(200, shown(await self._locks.show(name(call))))

    async def page(self, call: Call) -> Reply:
        query: PrefixQuery = call.query
        return call.reply(200, shown(await self._locks.page(query.prefix, query.cursor, query.limit)))

    def _owner(self, owner: str, agent: str) -> str:
        check_agent(owner, self._limits, "$.owner")
        return owner or agent


class ElectionHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._locks = on.locks
        self._limits = limits

    async def campaign(self, call: Call) -> Reply:
        body: CampaignBody = call.body
        check_agent(body.owner, self._limits, "$.owner")
        asked = caller(call, self._limits, "election.campaign")
        want = Want(
            body.owner or asked.agent,
            ms(body.ttl_seconds),
            ms(body.wait_seconds),
            priority=body.priority,
            session=body.session_id or "",
            ticket=body.ticket or "",
            metadata=body.value,
            space=ELECTION,
        )
        elected = await self._locks.acquire(asked, name(call), want)
        return call.reply(200, shown({**elected, "term": elected["fencing_token"]}))

    async def renew(self, call: Call) -> Reply:
        body: LeaseBody = call.body
        renewed = await self._locks.renew(name(call), body.lease_id, body.fencing_token, ELECTION)
        return call.reply(200, shown({**renewed, "term": renewed["fencing_token"]}))

    async def proclaim(self, call: Call) -> Reply:
        body: ProclaimBody = call.body
        asked = caller(call, self._limits, "election.proclaim")
        said = await self._locks.proclaim(asked, name(call), body.lease_id, body.fencing_token, body.value)
        return call.reply(200, shown(said))

    async def resign(self, call: Call) -> Reply:
        body: ReleaseBody = call.body
        asked = caller(call, self._limits, "election.resign")
        given = await self._locks.release(
            asked, name(call), body.lease_id, body.fencing_token, every=True, space=ELECTION
        )
        return call.reply(200, shown(given))

    async def observe(self, call: Call) -> Reply:
        query: ObserveQuery = call.query
        return call.reply(200, shown(await self._locks.observe(name(call), query.revision, ms(query.wait_seconds))))


class FenceHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._fences = on.fences
        self._limits = limits

    async def advance(self, call: Call) -> Reply:
        body: FenceBody = call.body
        resource = name(call, field="resource")
        highest = await self._fences.advance(caller(call, self._limits, "fence"), resource, body.token)
        return call.reply(200, {"resource": resource, "highest": highest})

    async def show(self, call: Call) -> Reply:
        resource = name(call, field="resource")
        return call.reply(200, {"resource": resource, "highest": await self._fences.highest(resource)})
