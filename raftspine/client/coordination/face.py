"""What a client offers of coordination, said once; see the modules beside this one for the rules of each thing."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from raftspine.client.coordination import obtain, presence
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.elections import Election
from raftspine.client.coordination.gates import Freezes, Gate
from raftspine.client.coordination.leases import Holder, Told
from raftspine.client.coordination.obtain import Ways
from raftspine.client.coordination.paging import pages
from raftspine.client.coordination.presence import Presence
from raftspine.client.coordination.tasks import Tasks
from raftspine.client.coordination.watch import Event, watch
from raftspine.client.operations import Guarded, guards, quoted
from raftspine.errors import InvalidRequest

TTL_S = 30.0
"""Long enough to outlive an election and a pause for garbage, short enough that a dead holder's place is taken
soon."""


class Fence:
    """The highest token a resource outside has seen: show every token here before using it there."""

    def __init__(self, on: Channel, resource: str) -> None:
        self.resource = resource
        self._on = on
        self._path = f"/v1/fence/{quoted(resource)}"

    async def advance(self, token: int) -> int:
        """The highest token, which is now this one. Raises StaleToken when there was a higher one."""
        return int((await self._on.change(self._path, {"token": token}))["highest"])

    async def highest(self) -> int:
        """0 when no token was ever shown."""
        return int((await self._on.look(self._path))["highest"])


class Coordination:
    """Locks, elections, sessions, tasks, gates and changes. Times are seconds. `wait`: how long to wait, None for as
    long as it takes, 0 for now or not at all. `on_jeopardy(lease)` is called when a renewal is late, `on_lost(lease)`
    at the loss, both on the event loop."""

    channel: Channel
    """How they talk to the store; for what is built on them (see raftspine.integrations)."""

    # ── locks ───────────────────────────────────────────────────────────────────────────────────────────────

    def lock(
        self,
        name: str,
        *,
        ttl: float = TTL_S,
        wait: float | None = None,
        owner: str | None = None,
        priority: int = 0,
        lock_delay: float = 0.0,
        session: Presence | str | None = None,
        metadata: Any = None,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> Holder:
        """`async with spine.lock(name) as lease`: held by nobody else meanwhile. `lock_delay`: how long nobody may
        have it after this holder has lost it. Raises LockHeld, Deadlock on entering, LeaseLost on leaving."""
        body = self._wanted(ttl, owner, priority, session, metadata)
        body |= {"mode": "exclusive", "lock_delay_ms": round(lock_delay * 1000)}
        return self._holder(name, body, wait, on_jeopardy, on_lost)

    def shared(
        self,
        name: str,
        *,
        ttl: float = TTL_S,
        wait: float | None = None,
        owner: str | None = None,
        priority: int = 0,
        session: Presence | str | None = None,
        metadata: Any = None,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> Holder:
        """The lock, together with others that have it shared, and with nobody who has it exclusively."""
        body = {**self._wanted(ttl, owner, priority, session, metadata), "mode": "shared"}
        return self._holder(name, body, wait, on_jeopardy, on_lost)

    def semaphore(
        self,
        name: str,
        permits: int,
        *,
        weight: int = 1,
        ttl: float = TTL_S,
        wait: float | None = None,
        owner: str | None = None,
        priority: int = 0,
        session: Presence | str | None = None,
        metadata: Any = None,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> Holder:
        """`weight` of the `permits` there are; all who ask must name the same number of permits."""
        body = self._wanted(ttl, owner, priority, session, metadata)
        body |= {"mode": "semaphore", "permits": permits, "weight": weight}
        return self._holder(name, body, wait, on_jeopardy, on_lost)

    def acquire_all(
        self,
        names: Sequence[str],
        *,
        ttl: float = TTL_S,
        wait: float | None = None,
        owner: str | None = None,
        lock_delay: float = 0.0,
        session: Presence | str | None = None,
        metadata: Any = None,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> Holder:
        """All of these locks or none. They must lie in one shard group: put the same text in {braces} into each name,
        or it is InvalidRequest `cross_group`."""
        if not names:
            raise InvalidRequest("acquire_all needs the name of at least one lock", field="names")
        body = self._wanted(ttl, owner, 0, session, metadata)
        del body["priority"]
        body |= {"names": list(dict.fromkeys(names)), "lock_delay_ms": round(lock_delay * 1000)}
        ways = {name: obtain.lock_ways(name) for name in names}
        take = "/v1/locks:acquire_all"
        return Holder(self.channel, ways, body, wait, take=take, on_jeopardy=on_jeopardy, on_lost=on_lost)

    async def show_lock(self, name: str) -> dict[str, Any]:
        """A lock as it is: held, mode, holders, waiting, queue, revision. One that nobody has is shown as free."""
        return await self.channel.look(f"/v1/locks/{quoted(name)}")

    async def locks(self, prefix: str = "") -> AsyncIterator[dict[str, Any]]:
        """Locks that are held or waited for, by name."""
        async for found in pages(self.channel, "/v1/locks", {"prefix": prefix}):
            yield found

    async def break_lock(self, name: str, reason: str, *, token: int | None = None) -> dict[str, Any]:
        """Take a lock from its holders, or from the one with this token. An operator's act: `broken`, `holders`.
        Raises LeaseLost when nobody has it."""
        body = {"reason": reason, **({} if token is None else {"fencing_token": token})}
        return await self.channel.change(f"/v1/locks/{quoted(name)}/break", body)

    def fence(self, resource: str) -> Fence:
        """The fence of a resource that the store does not hold itself."""
        return Fence(self.channel, resource)

    # ── elections, sessions, tasks, gates, changes ──────────────────────────────────────────────────────────

    def election(self, name: str) -> Election:
        """An election to stand in, or to observe."""
        return Election(self.channel, name)

    def presence(
        self, *, ttl: float = TTL_S, owner: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Presence:
        """`async with spine.presence() as me`: a session that leases and claims can belong to, `session=me`."""
        return Presence(self.channel, ttl, owner, dict(metadata or {}))

    async def show_presence(self, id: str) -> dict[str, Any]:
        """Anybody's session and what it holds. Raises NotFound when it is not open."""
        return await presence.show(self.channel, id)

    async def close_presence(self, id: str) -> dict[str, Any]:
        """End anybody's session, and give back what it holds."""
        return await presence.close(self.channel, id)

    def tasks(self, queue: str) -> Tasks:
        """A queue of tasks."""
        return Tasks(self.channel, queue)

    async def queues(self, prefix: str = "") -> AsyncIterator[dict[str, Any]]:
        """Queues that have tasks, by name, with how many are in which state."""
        async for found in pages(self.channel, "/v1/tasks", {"prefix": prefix}):
            yield found

    def gate(self, name: str) -> Gate:
        """A gate."""
        return Gate(self.channel, name)

    async def gates(self, prefix: str = "") -> AsyncIterator[dict[str, Any]]:
        """All gates, by name."""
        async for found in pages(self.channel, "/v1/gates", {"prefix": prefix}):
            yield found

    @property
    def freezes(self) -> Freezes:
        """Freezes of gates."""
        return Freezes(self.channel)

    def watch(
        self,
        *,
        prefix: str | None = None,
        kinds: Sequence[str] = (),
        tag: str | None = None,
        since: str | None = None,
    ) -> AsyncIterator[Event]:
        """Changes as they happen, without end; see `watch.py`. `since`: the cursor of the last event that was
        seen."""
        return watch(self.channel, prefix=prefix, kinds=kinds, tag=tag, since=since)

    async def txn(
        self,
        *,
        compare: Sequence[Mapping[str, Any]] = (),
        then: Sequence[Mapping[str, Any]] = (),
        otherwise: Sequence[Mapping[str, Any]] = (),
        guard: Guarded = None,
    ) -> dict[str, Any]:
        """`then` when every comparison holds, else `otherwise`, on strong memories of one shard group, in one step:
        `{"succeeded": …, "results": […]}`. The shapes are those of POST /v1/txn. Raises Fenced."""
        body = {"compare": list(compare), "then": list(then), "else": list(otherwise), "guard": guards(guard)}
        return await self.channel.change("/v1/txn", body)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def _wanted(
        self, ttl: float, owner: str | None, priority: int, session: Presence | str | None, metadata: Any
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"owner": owner or obtain.default_owner(self.channel.agent_id), "ttl_seconds": ttl}
        body["priority"] = priority
        if session is not None:
            body["session_id"] = str(session)
        if metadata is not None:
            body["metadata"] = metadata
        return body

    def _holder(
        self,
        name: str,
        body: dict[str, Any],
        wait: float | None,
        on_jeopardy: Told | None,
        on_lost: Told | None,
    ) -> Holder:
        ways: dict[str, Ways] = {name: obtain.lock_ways(name)}
        return Holder(self.channel, ways, body, wait, on_jeopardy=on_jeopardy, on_lost=on_lost)
