"""Gates: simple ones with uses, and those whose policy says who goes through when.

The rules are the ledger's (core/ledger/gates.py, gate_requests.py, freezes.py). What is added here: a queued
admission is asked for again while somebody waits for it, so that its place is kept; verification is a linearizable
read and fails closed in every doubt; a freeze of many gates is proposed to every shard group and acknowledged only
when all have it, because a freeze that holds in some groups is one that people rely on in vain.
"""

import asyncio
from typing import Any

from msgspec.structs import replace

from raftspine.core.ledger.commands import Command
from raftspine.core.ledger.gate_commands import AdmitRequest, LiftFreeze, PutFreeze, RequestGate
from raftspine.core.ledger.gate_requests import REQUESTS
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.tables import pack
from raftspine.core.ledger.task_commands import DeleteGate, PassGate, PutGate
from raftspine.errors import Conflict, NotFound, SpineError, Unknown
from raftspine.model import GroupId
from raftspine.services.coordination.door import Caller, Door
from raftspine.services.coordination.gate_queries import QUERIES
from raftspine.services.coordination.refusals import refusal
from raftspine.services.coordination.waits import Waits
from raftspine.services.deadlines import LEAST_SECONDS


class Gates:
    """`counted`: called with `admitted` or the reason's kind at each admission."""

    def __init__(self, door: Door, waits: Waits, *, counted: Any) -> None:
        self._door = door
        self._waits = waits
        self._counted = counted
        for name, query in QUERIES.items():
            door.answers(name, query)

    # ── the gate itself ─────────────────────────────────────────────────────────────────────────────────────

    async def put(self, caller: Caller, name: str, gate: PutGate) -> tuple[dict[str, Any], bool]:
        """Set a gate; what it is now, and whether it is new."""
        outcome = await self._door.execute(self._door.group(name), gate, caller, repeatable=True)
        told = outcome.result
        return {"name": name, **told, "uses_left": told["uses"]}, outcome.created

    async def delete(self, caller: Caller, name: str) -> None:
        """From then on it is closed. NotFound."""
        await self._door.execute(self._door.group(name), DeleteGate(name), caller)

    async def pass_(self, caller: Caller, name: str) -> dict[str, Any]:
        """One use is gone. Conflict(`gate_closed`)."""
        try:
            outcome = await self._door.execute(self._door.group(name), PassGate(name, self._door.id()), caller)
        except Conflict:
            self._counted("refused")
            raise
        self._counted("admitted")
        told = outcome.result
        return {
            "name": name,
            "pass_id": told["pass_id"],
            "fencing_token": told["token"],
            "uses_left": told["uses_left"],
        }

    async def show(self, name: str) -> dict[str, Any]:
        """NotFound."""
        found: dict[str, Any] | None = await self._door.read(self._door.group(name), "gate.show", name)
        if found is None:
            raise NotFound("there is no such gate", details={"name": name, "confirmed": True})
        return found

    async def page(self, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Gates by name, from all groups."""
        pages = await asyncio.gather(
            *(self._door.read(group, "gate.page", prefix, after, limit + 1) for group in self._door.groups())
        )
        items = sorted((item for page in pages for item in page), key=lambda item: str(item["name"]))
        return {"items": items[:limit], "next_cursor": items[limit - 1]["name"] if len(items) > limit else None}

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    async def request(
        self, caller: Caller, name: str, id: str | None, digest: str, subject: str, metadata: Any
    ) -> dict[str, Any]:
        """Ask to take an artifact through."""
        command = RequestGate(name, id or self._door.id(), digest, subject, metadata)
        return await self.act(caller, name, command)

    async def act(self, caller: Caller, name: str, command: Command) -> dict[str, Any]:
        """One act on a request; the request as it is then. Raises what a refusal means."""
        outcome = await self._door.execute(self._door.group(name), command, caller)
        return _told(outcome)

    async def admit(self, caller: Caller, command: AdmitRequest, wait_ms: int) -> dict[str, Any]:
        """The request, OPEN. Conflict(`gate_closed`) with what is unmet, or its place when it still waits."""
        door, clock = self._door, self._door.clock
        group = door.group(command.gate)
        ends = clock.monotonic() + wait_ms / 1000
        while True:
            outcome, index = await door.decide(group, command, caller, repeatable=True)
            left = ends - clock.monotonic()
            if outcome.status is Status.GRANTED:
                self._counted("admitted")
                return _told(outcome)
            if outcome.status is not Status.QUEUED:
                self._counted("refused")
                raise refusal(outcome) or queued(outcome)
            if left <= LEAST_SECONDS or self._waits.draining:
                self._counted("refused")
                raise queued(outcome)
            caller = replace_keys(caller)  # asked again: the first answer is not this one's
            patience = await door.read(group, "gate.show", command.gate)
            pause = (patience["queue_seconds"] if patience else 1) / 2
            key = pack(command.gate, command.id)
            await self._waits.until(
                group,
                REQUESTS.name,
                key,
                "gate.left",
                command.gate,
                command.id,
                seconds=min(left, pause),
                index=index,
            )

    async def verify(self, name: str, id: str, token: int, digest: str | None) -> dict[str, Any]:
        """May the next irreversible step be taken? Conflict(`gate_closed`) when not, with the reasons."""
        verdict = await self._door.read(self._door.group(name), "gate.verify", name, id, token, digest)
        if not verdict["valid"]:
            self._counted("refused")
            raise Conflict(
                verdict["reasons"][0], code="gate_closed", details={"gate": name, "request": id, **verdict}
            )
        return {"gate": name, "request": id, **verdict}

    async def shown(self, name: str, id: str) -> dict[str, Any]:
        """A request. NotFound."""
        found: dict[str, Any] | None = await self._door.read(self._door.group(name), "gate.request", name, id)
        if found is None:
            raise NotFound("there is no such request", details={"gate": name, "request": id, "confirmed": True})
        return found

    async def requests(self, name: str, before: int, limit: int) -> dict[str, Any]:
        """Requests of a gate, newest first."""
        found: dict[str, Any] = await self._door.read(self._door.group(name), "gate.requests", name, before, limit)
        return found

    # ── freezes ─────────────────────────────────────────────────────────────────────────────────────────────

    async def freeze(self, caller: Caller, freeze: PutFreeze) -> dict[str, Any]:
        """Close all gates of a scope in every shard group. Unknown, saying where it holds, when some could not be
        told: asking again with the same id is safe."""
        freeze = replace(freeze, id=freeze.id or self._door.id())
        told = await self._everywhere(caller, freeze, freeze.id)
        return {**next(iter(told.values())).result, "groups": list(told)}

    async def unfreeze(self, caller: Caller, id: str, reason: str) -> dict[str, Any]:
        """Lift a freeze everywhere. NotFound when no group knows it."""
        told = await self._everywhere(caller, LiftFreeze(id, reason), id)
        known = [outcome for outcome in told.values() if outcome.status is Status.DONE]
        if not known:
            raise NotFound("there is no such freeze", details={"freeze": id, "confirmed": True})
        return {**known[0].result, "groups": list(told)}

    async def _everywhere(self, caller: Caller, command: PutFreeze | LiftFreeze, id: str) -> dict[GroupId, Outcome]:
        groups = self._door.groups()
        decided = await asyncio.gather(
            *(self._door.decide(group, command, caller, repeatable=True) for group in groups), return_exceptions=True
        )
        done: dict[GroupId, Outcome] = {}
        failed: dict[GroupId, str] = {}
        for group, result in zip(groups, decided, strict=True):
            if isinstance(result, SpineError):
                failed[group] = result.code
            elif isinstance(result, BaseException):
                raise result
            else:
                outcome, _ = result
                refused = None if outcome.status is Status.ABSENT else refusal(outcome)
                if refused is not None:
                    raise refused
                done[group] = outcome
        if failed and not done:
            raise next(error for error in decided if isinstance(error, SpineError))
        if failed:
            raise Unknown(
                "not every shard group has it; ask again with the same freeze id",
                details={"freeze": id, "done": list(done), "failed": {str(g): code for g, code in failed.items()}},
            )
        return done

    async def freezes(self) -> list[dict[str, Any]]:
        """Freezes in force, and in which groups each is."""
        groups = self._door.groups()
        pages = await asyncio.gather(*(self._door.read(group, "gate.freezes") for group in groups))
        found: dict[str, dict[str, Any]] = {}
        for group, page in zip(groups, pages, strict=True):
            for freeze in page:
                found.setdefault(freeze["freeze"], {**freeze, "groups": []})["groups"].append(group)
        return list(found.values())

    # ── audit ───────────────────────────────────────────────────────────────────────────────────────────────

    async def audit(self, kind: str, name: str, after: int, limit: int, group: int | None = None) -> dict[str, Any]:
        """A page of a thing's audit chain, as the hashes were made over it."""
        at = self._door.group(name) if group is None else GroupId(group)
        found: dict[str, Any] = await self._door.read(at, "audit.entries", kind, name, after, limit)
        return found

    def group_count(self) -> int:
        return len(self._door.groups())

    async def chains(self, kind: str | None) -> list[dict[str, Any]]:
        """The heads of all chains of a kind (None: of every kind): what to note down elsewhere."""
        groups = self._door.groups()
        pages = await asyncio.gather(*(self._door.read(group, "audit.chains", kind) for group in groups))
        return [{"group": group, **head} for group, page in zip(groups, pages, strict=True) for head in page]


def replace_keys(caller: Caller) -> Caller:
    return caller._replace(request=b"", fingerprint=b"")


def queued(outcome: Outcome) -> Conflict:
    told = outcome.result
    return Conflict(
        "as many are through as may be; the request waits",
        code="gate_closed",
        details={
            "request": told["request"],
            "state": told["state"],
            "position": told.get("position"),
            "unmet": [{"type": "busy", "reason": "as many are through as may be"}],
        },
        retry_after_ms=1000,
    )


def _told(outcome: Outcome) -> dict[str, Any]:
    return {"id": outcome.result["request"], **outcome.result}
