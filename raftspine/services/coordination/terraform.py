"""Terraform states: what its HTTP backend asks for, decided by the log of the state's shard group.

Terraform never renews its lock and may work under it for hours, and a run that was killed never gives it back. So a
lock is a lease of LEASE_MS since its holder was last heard of (taking the lock, each state written under it): longer
than any run, and still not for ever. What should end sooner is ended by an operator. Nothing depends on the length:
the entry that writes a state decides whether the lock it was made under is still current.

Terraform sends no Idempotency-Key. Each request gets one here, so that what is proposed again after a change of
leader is decided once; a request that Terraform itself repeats finds its own lock, or its own state, and changes
nothing.
"""

from typing import Any

from raftspine.core.ledger import audit, sessions, terraform_rows
from raftspine.core.ledger.terraform import STATE_BYTES
from raftspine.core.ledger.terraform_commands import DeleteState, LockState, PutState, RestoreState, UnlockState
from raftspine.core.ledger.terraform_rows import KIND, Current, Kept
from raftspine.core.version_text import strong_version_text
from raftspine.errors import Conflict, InvalidRequest, NotFound, SpineError, TooLarge
from raftspine.model import GroupId, Memory
from raftspine.services import compose
from raftspine.services.coordination.door import Caller, Door, Moment
from raftspine.services.coordination.sessions import left as lives
from raftspine.services.coordination.sessions import lifetime
from raftspine.services.requests import digest_of
from raftspine.services.values import Draft

LEASE_MS = 86_400_000
NAMESPACE = "terraform"
TAGS = ("critical", "terraform")
AUDIT_PAGE = 1000
LOST = {"lost": True}


class Terraform:
    """States by name. What is refused because of a lock tells the holder's info as `details.lock`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        door.answers("terraform.state", _state)
        door.answers("terraform.version", _version)
        door.answers("terraform.versions", _versions)
        door.answers("terraform.holder", _holder)
        door.answers("terraform.audit", _audit)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, name: str) -> dict[str, Any]:
        """`content`, `version`, `number`. NotFound; Conflict(`state_lost`)."""
        found = await self._read(name, "terraform.state")
        if found is None:
            raise NotFound(f"there is no state {name!r}", details={"confirmed": True})
        return _unless_lost(found, name)

    async def version(self, name: str, number: int) -> dict[str, Any]:
        """As `read`, of a version that is kept."""
        found = await self._read(name, "terraform.version", number)
        if found is None:
            raise NotFound(f"version {number} of state {name!r} is not kept", details={"confirmed": True})
        return _unless_lost(found, name)

    async def versions(self, name: str) -> list[dict[str, Any]]:
        """Newest first, the current one included."""
        found: list[dict[str, Any]] = await self._read(name, "terraform.versions")
        return found

    async def holder(self, name: str) -> dict[str, Any]:
        """Who holds the lock. NotFound when nobody does."""
        found: dict[str, Any] | None = await self._read(name, "terraform.holder")
        if found is None:
            raise NotFound(f"state {name!r} is not locked", details={"confirmed": True})
        left = found.pop("remaining_ms")
        return {**found, **lives(self._door.clock, found.pop("ttl_ms"), left)}

    async def audit(self, name: str, after: int) -> list[dict[str, Any]]:
        """Entries of the state's chain behind number `after`, at most AUDIT_PAGE."""
        found: list[dict[str, Any]] = await self._read(name, "terraform.audit", after)
        return found

    async def _read(self, name: str, query: str, *arguments: Any) -> Any:
        return await self._door.read(self._group(name), query, name, *arguments)

    # ── changing ────────────────────────────────────────────────────────────────────────────────────────────

    async def lock(self, caller: Caller, name: str, info: dict[str, Any]) -> dict[str, Any]:
        """The lease. Conflict(`lock_held`)."""
        clock = self._door.clock
        asked = clock.monotonic()
        command = LockState(name, info, LEASE_MS)
        outcome = await self._door.execute(self._group(name), command, caller, repeatable=True)
        told = outcome.result
        return {"lock": info, "fencing_token": told["token"], **lifetime(clock, asked, told["ttl_ms"])}

    async def unlock(self, caller: Caller, name: str, info: dict[str, Any], *, may_break: bool) -> dict[str, Any]:
        """`forced`, and the `lock` that ended. Conflict(`lease_not_current`); Forbidden when this would end another's
        lock and the caller may not."""
        return await self._change(caller, name, UnlockState(name, info, may_break))

    async def write(
        self, caller: Caller, name: str, content: str, about: dict[str, Any], lock_id: str
    ) -> dict[str, Any]:
        """`number` of the version, whether it was `created`. Conflict(`lock_held`, `fenced`), TooLarge."""
        size = len(content.encode())
        if size > STATE_BYTES:
            raise too_large(size)
        draft = Draft(content, namespace=NAMESPACE, importance="high", metadata=about, pinned=True)
        memory = compose.fresh(draft, TAGS, None, caller.agent, 0)
        return await self._change(caller, name, PutState(name, memory, lock_id))

    async def delete(self, caller: Caller, name: str, lock_id: str) -> dict[str, Any]:
        """`deleted`: whether there was a state. Its history stays. Conflict as of write."""
        return await self._change(caller, name, DeleteState(name, lock_id))

    async def restore(self, caller: Caller, name: str, number: int, lock_id: str) -> dict[str, Any]:
        """Bring a version back, as a new one. As write; NotFound."""
        return await self._change(caller, name, RestoreState(name, number, lock_id))

    async def _change(
        self, caller: Caller, name: str, command: UnlockState | PutState | DeleteState | RestoreState
    ) -> dict[str, Any]:
        if not caller.request:
            caller = caller._replace(request=digest_of(self._door.id()))
        outcome = await self._door.execute(self._group(name), command, caller)
        return outcome.result | ({"created": outcome.created} if outcome.version is not None else {})

    def _group(self, name: str) -> GroupId:
        if wrong := terraform_rows.wrong_name(name):
            raise InvalidRequest(f"name: {wrong}", field="name")
        return self._door.group(terraform_rows.lock_name(name))


def too_large(size: int) -> SpineError:
    return TooLarge(
        f"the state has {size} bytes, more than the {STATE_BYTES} allowed; split it into several states",
        details={"field": "$", "size": size, "limit": STATE_BYTES},
    )


def _unless_lost(found: dict[str, Any], name: str) -> dict[str, Any]:
    if found.get("lost"):
        raise Conflict(
            f"the memory of state {name!r} was deleted or replaced past this interface; bring a version back",
            code="state_lost",
            details={"memory": terraform_rows.memory_id(name)},
        )
    return found


# ── queries ─────────────────────────────────────────────────────────────────────────────────────────────────


def _state(moment: Moment, name: str) -> dict[str, Any] | None:
    found = terraform_rows.current(moment.view, name)
    if terraform_rows.lost(found):
        return LOST
    if found.row.current is None or found.memory is None:
        return None
    return _told(found.memory, found.row.current.number, _text(moment, found))


def _version(moment: Moment, name: str, number: int) -> dict[str, Any] | None:
    found = terraform_rows.current(moment.view, name)
    if found.row.current is not None and found.row.current.number == number:
        return _state(moment, name)
    memory = terraform_rows.version(moment.view, name, number)
    return None if memory is None else _told(memory, number, "")


def _told(memory: Memory, number: int, version: str) -> dict[str, Any]:
    return {"content": memory.content, "number": number, "version": version}


def _text(moment: Moment, found: Current) -> str:
    return strong_version_text(moment.group, found.index, found.sub)


def _versions(moment: Moment, name: str) -> list[dict[str, Any]]:
    row = terraform_rows.current(moment.view, name).row
    shown = [_listed(kept, current=False) for kept in row.kept]
    if row.current is not None:
        shown.append(_listed(row.current, current=True))
    return shown[::-1]


def _listed(kept: Kept, *, current: bool) -> dict[str, Any]:
    return {
        "version": kept.number,
        "current": current,
        "size": kept.size,
        "content_sha256": kept.sha256.hex(),
        "written_at_ms": kept.at_ms,
        "written_by": kept.by,
        "lock_id": kept.lock_id,
        **{name: kept.metadata.get(name) for name in ("serial", "lineage", "terraform_version")},
    }


def _holder(moment: Moment, name: str) -> dict[str, Any] | None:
    found = terraform_rows.held_since(moment.view, name)
    if found is None:
        return None
    info, ask = found
    left, session = moment.remaining(ask.session), sessions.read(moment.view, ask.session)
    return {
        "lock": info,
        "owner": ask.owner,
        "fencing_token": ask.token,
        "since_ms": ask.since_ms,
        "ttl_ms": LEASE_MS if session is None else session.ttl_ms,
        "remaining_ms": left,
    }


def _audit(moment: Moment, name: str, after: int) -> list[dict[str, Any]]:
    entries = audit.read(moment.view, KIND, name, after, AUDIT_PAGE)
    return [{field: getattr(entry, field) for field in entry.__struct_fields__} for entry in entries]
