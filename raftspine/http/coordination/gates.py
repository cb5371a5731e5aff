"""Handlers of gates, freezes and audits."""

from typing import Any

from raftspine.core.ledger import gate_commands as acts
from raftspine.core.ledger.limits import NUMBER
from raftspine.core.ledger.task_commands import PutGate
from raftspine.core.limits import Limits, check_id
from raftspine.errors import InvalidRequest
from raftspine.http import parse
from raftspine.http.call import Call
from raftspine.http.coordination import gate_bodies as bodies
from raftspine.http.coordination.common import actor, caller, ms, name, named, shown
from raftspine.http.coordination.lock_bodies import PrefixQuery
from raftspine.http.reply import Reply
from raftspine.services.coordination.service import Coordination


class GateHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._gates = on.gates
        self._limits = limits

    async def put(self, call: Call) -> Reply:
        body: bodies.GateBody = call.body
        gate = name(call)
        ends_ms = 0 if body.expires_at is None else parse.moment_ms(str(body.expires_at), "$.expires_at")
        policy = None if body.policy is None else bodies.policy_of(body.policy)
        asked = caller(call, self._limits, "gate.put", call.key or body.agent_id)
        command = PutGate(gate, body.state, body.uses, ends_ms, body.reason, policy=policy)
        told, new = await self._gates.put(asked, gate, command)
        return call.reply(201 if new else 200, shown(told))

    async def show(self, call: Call) -> Reply:
        return call.reply(200, _told_gate(await self._gates.show(name(call))))

    async def delete(self, call: Call) -> Reply:
        await self._gates.delete(caller(call, self._limits, "gate.delete", call.key or ""), name(call))
        return call.empty(204)

    async def page(self, call: Call) -> Reply:
        query: PrefixQuery = call.query
        page = await self._gates.page(query.prefix, query.cursor, query.limit)
        return call.reply(200, {**page, "items": [_told_gate(item) for item in page["items"]]})

    async def pass_(self, call: Call) -> Reply:
        body: bodies.PassBody = call.body
        asked = caller(call, self._limits, "gate.pass", body.agent_id)
        return call.reply(200, await self._gates.pass_(asked, name(call)))


class RequestHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._gates = on.gates
        self._limits = limits

    async def request(self, call: Call) -> Reply:
        body: bodies.RequestBody = call.body
        asked = actor(call, self._limits, "gate.request", body.requester, "$.requester")
        made = await self._gates.request(
            asked, name(call), body.id, body.artifact_digest, body.subject, body.metadata
        )
        return call.reply(201, shown(made))

    async def show(self, call: Call) -> Reply:
        return call.reply(200, shown(await self._gates.shown(*_request(call))))

    async def page(self, call: Call) -> Reply:
        query: bodies.RequestsQuery = call.query
        if query.cursor and not query.cursor.isdigit():
            raise InvalidRequest("cursor: not one that a page gave", field="cursor")
        before = int(query.cursor[:16]) if query.cursor else NUMBER
        return call.reply(200, shown(await self._gates.requests(name(call), before, query.limit)))

    async def approve(self, call: Call) -> Reply:
        body: bodies.ApproveBody = call.body
        command = acts.ApproveRequest(*_request(call), body.artifact_digest, body.groups, body.comment)
        return await self._act(call, command, "approve", body.approver, "$.approver")

    async def reject(self, call: Call) -> Reply:
        body: bodies.EndBody = call.body
        return await self._act(call, acts.EndRequest(*_request(call), True, body.reason), "reject", body.agent_id)

    async def cancel(self, call: Call) -> Reply:
        body: bodies.EndBody = call.body
        return await self._act(call, acts.EndRequest(*_request(call), False, body.reason), "cancel", body.agent_id)

    async def report(self, call: Call) -> Reply:
        body: bodies.ReportBody = call.body
        command = acts.ReportCheck(*_request(call), body.artifact_digest, body.check, body.ok, body.details)
        return await self._act(call, command, "report", body.agent_id)

    async def hold(self, call: Call) -> Reply:
        body: bodies.HoldBody = call.body
        return await self._act(call, acts.LiftHold(*_request(call), body.hold, False), "hold", body.agent_id)

    async def lift(self, call: Call) -> Reply:
        body: bodies.HoldBody = call.body
        return await self._act(call, acts.LiftHold(*_request(call), body.hold), "lift", body.agent_id)

    async def override(self, call: Call) -> Reply:
        body: bodies.OverrideBody = call.body
        command = acts.OverrideRequest(*_request(call), body.artifact_digest, body.reason)
        return await self._act(call, command, "override", body.approver, "$.approver")

    async def admit(self, call: Call) -> Reply:
        body: bodies.AdmitBody = call.body
        asked = actor(call, self._limits, "gate.admit", body.agent_id, "$.agent_id")
        queue = body.queue or body.wait_seconds > 0
        command = acts.AdmitRequest(*_request(call), body.artifact_digest, queue)
        return call.reply(200, shown(await self._gates.admit(asked, command, ms(body.wait_seconds))))

    async def verify(self, call: Call) -> Reply:
        body: bodies.VerifyBody = call.body
        verdict = await self._gates.verify(*_request(call), body.fencing_token, body.artifact_digest)
        return call.reply(200, shown(verdict))

    async def complete(self, call: Call) -> Reply:
        body: bodies.DoneBody = call.body
        command = acts.CompleteRequest(*_request(call), body.fencing_token, body.ok, body.details)
        return await self._act(call, command, "complete", body.agent_id)

    async def _act(self, call: Call, command: Any, what: str, who: str, field: str = "$.agent_id") -> Reply:
        asked = actor(call, self._limits, f"gate.{what}", who, field)
        return call.reply(200, shown(await self._gates.act(asked, command.gate, command)))


class FreezeHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._gates = on.gates
        self._limits = limits

    async def freeze(self, call: Call) -> Reply:
        body: bodies.FreezeBody = call.body
        scope = body.scope or ("prefix" if body.prefix else "all")
        if (scope == "prefix") != bool(body.prefix):
            raise InvalidRequest("$.prefix: goes with the scope `prefix`, and with no other", field="$.prefix")
        until_ms = 0 if body.until is None else parse.moment_ms(str(body.until), "$.until")
        asked = actor(call, self._limits, "gate.freeze", body.agent_id, "$.agent_id")
        command = acts.PutFreeze(body.freeze_id or "", body.prefix, body.reason, until_ms, body.overridable)
        return call.reply(200, _told_freeze(await self._gates.freeze(asked, command)))

    async def unfreeze(self, call: Call) -> Reply:
        body: bodies.UnfreezeBody = call.body
        asked = actor(call, self._limits, "gate.unfreeze", body.agent_id, "$.agent_id")
        return call.reply(200, _told_freeze(await self._gates.unfreeze(asked, body.freeze_id, body.reason)))

    async def page(self, call: Call) -> Reply:
        return call.reply(200, {"items": [_told_freeze(freeze) for freeze in await self._gates.freezes()]})


class AuditHandlers:
    """Entries go out as they were hashed: their times stay numbers."""

    def __init__(self, on: Coordination) -> None:
        self._gates = on.gates

    async def gate(self, call: Call) -> Reply:
        query: bodies.AuditQuery = call.query
        return call.reply(200, await self._gates.audit("gate", name(call), query.after, query.limit))

    async def chains(self, call: Call) -> Reply:
        query: bodies.ChainsQuery = call.query
        if query.kind is None or (query.name is None and query.group is None):
            return call.reply(200, {"chains": await self._gates.chains(query.kind)})
        chain = "" if query.name is None else named(query.name, "name")
        if query.group is not None and query.group >= self._gates.group_count():
            raise InvalidRequest("group: there is no such shard group", field="group")
        return call.reply(200, await self._gates.audit(query.kind, chain, query.after, query.limit, query.group))


def _request(call: Call) -> tuple[str, str]:
    check_id(call.params[1], Limits(id_bytes=100), "id")
    return name(call), call.params[1]


def _told_gate(gate: dict[str, Any]) -> dict[str, Any]:
    policy = bodies.policy_told(gate["policy"])
    told: dict[str, Any] = shown({field: value for field, value in gate.items() if field != "queue_seconds"})
    return {**told, "policy": policy}


def _told_freeze(freeze: dict[str, Any]) -> dict[str, Any]:
    prefix = freeze["scope"]
    return {**shown(freeze), "freeze_id": freeze["freeze"], "scope": "prefix" if prefix else "all", "prefix": prefix}
