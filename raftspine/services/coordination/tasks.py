"""Tasks: queues of work that many take from and each finishes once.

The rules are the ledger's (core/ledger/tasks.py). What is added here: a claim that finds nothing waits for the
queue's row to change and then claims anew, so an enqueued task reaches a waiting worker in one round trip; and
extending a claim is a renewal of its session, known to the leader and not written to the log.
"""

from typing import Any, NamedTuple

from raftspine.core.ledger import task_rows as rows
from raftspine.core.ledger.memory_commands import PutMemory
from raftspine.core.ledger.outcomes import Status
from raftspine.core.ledger.tables import pack
from raftspine.core.ledger.task_commands import (
    ClaimTasks,
    CompleteTask,
    EnqueueTask,
    ExtendTask,
    FailTask,
    RemoveTask,
    RequeueTask,
)
from raftspine.core.ledger.task_rows import QUEUES
from raftspine.errors import Conflict, NotFound
from raftspine.model import GroupId
from raftspine.ports import Clock
from raftspine.services.coordination.composed import Composed
from raftspine.services.coordination.door import Caller, Door, Moment, cross_group
from raftspine.services.coordination.refusals import refusal
from raftspine.services.coordination.sessions import Sessions, lifetime
from raftspine.services.coordination.waits import Waits
from raftspine.services.deadlines import LEAST_SECONDS
from raftspine.services.topology import Topology


class Job(NamedTuple):
    """A task to be put into a queue."""

    id: str | None
    payload: Any
    priority: int = 0
    not_before_ms: int = 0
    max_attempts: int = 0
    backoff_ms: int = 0
    dedupe: str = ""
    then: tuple[PutMemory, ...] = ()


class Tasks:
    def __init__(self, door: Door, waits: Waits, sessions: Sessions, composed: Composed, topology: Topology) -> None:
        self._door = door
        self._topology = topology
        self._waits = waits
        self._sessions = sessions
        self._composed = composed
        door.answers("task.ready", _ready)
        door.answers("task.show", _show)
        door.answers("task.page", _page)
        door.answers("task.dead", _dead)
        door.answers("task.queues", _queues)
        door.answers("task.claimed", _claimed)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def enqueue(self, caller: Caller, queue: str, job: Job) -> tuple[dict[str, Any], bool]:
        """The task's id and state, and whether it is new. Conflict(`version_conflict`) for an id that is taken."""
        group = self._group(queue, job.then)
        id = job.id or self._door.id()
        command = EnqueueTask(
            queue,
            id,
            job.payload,
            job.priority,
            job.not_before_ms,
            job.max_attempts,
            job.backoff_ms,
            job.dedupe,
            job.then,
        )
        outcome = await self._door.execute(group, command, caller)
        return {"queue": queue, **outcome.result}, outcome.created

    # ── claims ──────────────────────────────────────────────────────────────────────────────────────────────

    async def claim(
        self, caller: Caller, queue: str, *, count: int, owner: str, lease_ms: int, wait_ms: int, session: str
    ) -> list[dict[str, Any]]:
        """Tasks that are the caller's for a lease each; none when there are none within the wait."""
        door, clock = self._door, self._door.clock
        group = door.group(queue)
        ends = clock.monotonic() + wait_ms / 1000
        while True:
            started = clock.monotonic()
            command = ClaimTasks(queue, door.id(), count, owner or caller.agent, lease_ms, session)
            outcome, index = await door.decide(group, command, caller)
            if outcome.status is Status.SESSION_GONE and session:
                await self._sessions.enter(caller, session, group)
                continue
            if (refused := refusal(outcome)) is not None:
                raise refused
            tasks = outcome.result["tasks"]
            left = ends - clock.monotonic()
            if tasks or left <= LEAST_SECONDS or self._waits.draining:
                return [_told_claim(clock, task, started) for task in tasks]
            caller = Caller(caller.agent)  # asked again: the first answer is not this one's
            await self._waits.until(group, QUEUES.name, pack(queue), "task.ready", queue, seconds=left, index=index)

    async def extend(self, caller: Caller, queue: str, id: str, token: int, lease_ms: int | None) -> dict[str, Any]:
        """Another lease from now, or one of another length, which the log decides."""
        door = self._door
        group = door.group(queue)
        started = door.clock.monotonic()
        if lease_ms is not None:
            outcome = await door.execute(group, ExtendTask(queue, id, token, lease_ms), caller, repeatable=True)
            ttl_ms = outcome.result["ttl_ms"]
        else:
            session = await door.read(group, "task.claimed", queue, id, token)
            if session is None:
                raise _not_current(queue, id)
            try:
                ttl_ms = await door.renew(group, session)
            except NotFound:
                raise _not_current(queue, id) from None
        return {"queue": queue, "id": id, "claim_token": token, **lifetime(door.clock, started, ttl_ms)}

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def complete(
        self, caller: Caller, queue: str, id: str, token: int, result: Any, then: tuple[PutMemory, ...]
    ) -> dict[str, Any]:
        """Finished, and what completion writes is written; late repetitions get the first result."""
        command = CompleteTask(queue, id, token, result, then)
        outcome = await self._composed.execute(self._group(queue, then), command, caller)
        return {"queue": queue, "id": id, "state": rows.DONE, **outcome.result}

    def _group(self, queue: str, then: tuple[PutMemory, ...]) -> GroupId:
        """The queue's group. Completion writes its memories in one step, so they must live there too: written into
        another group than their own they would be found by nobody."""
        group = self._door.group(queue)
        homes = {op.id: self._topology.group_of(op.id, op.memory.agent_id, op.memory.tags) for op in then}
        if any(home != group for home in homes.values()):
            places = {f"queue {queue}": group, **{f"memory {id}": home for id, home in homes.items()}}
            raise cross_group("$.then", places)
        return group

    async def fail(
        self, caller: Caller, queue: str, id: str, token: int, *, error: str, retry: bool, delay_ms: int | None
    ) -> dict[str, Any]:
        """Given back, for another attempt or to the dead letters."""
        command = FailTask(queue, id, token, error, retry, delay_ms)
        outcome = await self._door.execute(self._door.group(queue), command, caller)
        return {"queue": queue, "id": id, **outcome.result}

    async def requeue(self, caller: Caller, queue: str, id: str) -> dict[str, Any]:
        """A dead task has its attempts back."""
        outcome = await self._door.execute(self._door.group(queue), RequeueTask(queue, id), caller)
        return {"queue": queue, "id": id, **outcome.result}

    async def remove(self, caller: Caller, queue: str, id: str) -> None:
        """Forget a task that nobody has claimed."""
        await self._door.execute(self._door.group(queue), RemoveTask(queue, id), caller)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────

    async def show(self, queue: str, id: str) -> dict[str, Any]:
        """A task with payload and result. NotFound."""
        found: dict[str, Any] | None = await self._door.read(self._door.group(queue), "task.show", queue, id)
        if found is None:
            raise NotFound("there is no such task", details={"queue": queue, "id": id, "confirmed": True})
        return found

    async def page(self, queue: str, state: str | None, after: str, limit: int) -> dict[str, Any]:
        """Tasks by id; dead ones in order of dying when only they are asked for."""
        group = self._door.group(queue)
        if state == rows.DEAD:
            number = int(after) if after.isdigit() else 0
            found: dict[str, Any] = await self._door.read(group, "task.dead", queue, number, limit)
        else:
            found = await self._door.read(group, "task.page", queue, state, after, limit)
        return found

    async def queues(self, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Queues that have tasks, by name, with how many are in which state."""
        items = []
        for group in self._door.groups():
            items += await self._door.read(group, "task.queues", prefix, after, limit + 1)
        items.sort(key=lambda item: str(item["queue"]))
        return {"items": items[:limit], "next_cursor": items[limit - 1]["queue"] if len(items) > limit else None}


def _told_claim(clock: Clock, task: dict[str, Any], started: float) -> dict[str, Any]:
    return {
        "id": task["id"],
        "payload": task["payload"],
        "claim_token": task["token"],
        "attempt": task["attempt"],
        "priority": task["priority"],
        "enqueued_at_ms": task["enqueued_at_ms"],
        **lifetime(clock, started, task["ttl_ms"]),
    }


def _not_current(queue: str, id: str) -> Conflict:
    return Conflict("this claim is not current", code="lease_not_current", details={"queue": queue, "id": id})


# ── queries ─────────────────────────────────────────────────────────────────────────────────────────────────


def _ready(moment: Moment, queue: str) -> bool | None:
    return True if rows.counts(moment.view, queue).ready else None


def _claimed(moment: Moment, queue: str, id: str, token: int) -> str | None:
    task = rows.read(moment.view, queue, id)
    if task is None:
        raise NotFound("there is no such task", details={"queue": queue, "id": id, "confirmed": True})
    return task.session if task.state == rows.CLAIMED and task.token == token else None


def _told(moment: Moment, queue: str, id: str, task: rows.Task) -> dict[str, Any]:
    return {
        "queue": queue,
        "id": id,
        "state": task.state,
        "priority": task.priority,
        "attempts": task.attempts,
        "max_attempts": task.max_attempts or None,
        "owner": task.owner or None,
        "error": task.error or None,
        "enqueued_at_ms": task.enqueued_at_ms,
        "changed_at_ms": task.changed_at_ms,
        "not_before_ms": task.not_before_ms,
        "remaining_ms": moment.remaining(task.session) if task.state == rows.CLAIMED else None,
    }


def _show(moment: Moment, queue: str, id: str) -> dict[str, Any] | None:
    task = rows.read(moment.view, queue, id)
    if task is None:
        return None
    body = rows.body(moment.view, queue, id)
    return {**_told(moment, queue, id, task), "payload": body.payload, "result": body.result}


LOOKED_AT = 1000
"""Rows that one page with a state looks at."""


def _page(moment: Moment, queue: str, state: str | None, after: str, limit: int) -> dict[str, Any]:
    looked = limit + 1 if state is None else LOOKED_AT
    found = rows.page(moment.view, queue, after, looked)
    kept = [(id, task) for id, task in found if state in (None, task.state)]
    items = [_told(moment, queue, id, task) for id, task in kept[:limit]]
    more = len(kept) > limit or len(found) == looked
    last = items[-1]["id"] if len(kept) > limit else found[-1][0] if found else None
    return {"items": items, "counts": _counts(moment, queue), "next_cursor": last if more else None}


def _dead(moment: Moment, queue: str, after: int, limit: int) -> dict[str, Any]:
    found = rows.dead_letters(moment.view, queue, after, limit + 1)
    items = [_told(moment, queue, id, task) for _, id, task in found[:limit]]
    cursor = str(found[limit - 1][0]) if len(found) > limit else None
    return {"items": items, "counts": _counts(moment, queue), "next_cursor": cursor}


def _counts(moment: Moment, queue: str) -> dict[str, int]:
    row = rows.counts(moment.view, queue)
    return {state: getattr(row, state) for state in (rows.READY, rows.DELAYED, rows.CLAIMED, rows.DONE, rows.DEAD)}


def _queues(moment: Moment, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
    found = rows.queues(moment.view, prefix, after, limit)
    return [{"queue": name, **_counts(moment, name)} for name, _ in found]
