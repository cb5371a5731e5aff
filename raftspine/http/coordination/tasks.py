"""Handlers of tasks and transactions, and their routes."""

from typing import Any

from raftspine.core.ledger.task_commands import Compare
from raftspine.core.limits import Limits, check_agent, check_id
from raftspine.errors import InvalidRequest
from raftspine.http import parse
from raftspine.http.auth import Access
from raftspine.http.call import Call
from raftspine.http.coordination import task_bodies as bodies
from raftspine.http.coordination.common import caller, ms, name, shown, telling
from raftspine.http.coordination.lock_bodies import PrefixQuery
from raftspine.http.coordination.making import CHANGE, get, post
from raftspine.http.coordination.operations import operations, puts
from raftspine.http.reply import Reply
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination
from raftspine.services.coordination.tasks import Job


class TaskHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._tasks = on.tasks
        self._limits = limits

    async def enqueue(self, call: Call) -> Reply:
        """201 for a new task, 200 for one whose dedupe key is there already."""
        body: bodies.EnqueueBody = call.body
        asked = caller(call, self._limits, "task.enqueue")
        start = body.not_before
        job = Job(
            None if body.id is None else _id(body.id, "$.id"),
            body.payload,
            body.priority,
            0 if start is None else parse.moment_ms(str(start), "$.not_before"),
            body.max_attempts,
            body.backoff_ms,
            body.dedupe_key or "",
            puts(body.then, asked.agent, self._limits),
        )
        made, new = await self._tasks.enqueue(asked, name(call, field="queue"), job)
        return call.reply(201 if new else 200, shown(made))

    async def claim(self, call: Call) -> Reply:
        body: bodies.ClaimBody = call.body
        check_agent(body.owner, self._limits, "$.owner")
        tasks = await self._tasks.claim(
            caller(call, self._limits, "task.claim"),
            name(call, field="queue"),
            count=body.n,
            owner=body.owner,
            lease_ms=ms(body.lease_seconds),
            wait_ms=ms(body.wait_seconds),
            session=body.session_id or "",
        )
        return call.reply(200, {"tasks": shown(tasks)})

    async def extend(self, call: Call) -> Reply:
        body: bodies.ExtendBody = call.body
        lease_ms = None if body.lease_seconds is None else ms(body.lease_seconds)
        asked = caller(call, self._limits, "task.extend")
        return call.reply(200, shown(await self._tasks.extend(asked, *_task(call), body.claim_token, lease_ms)))

    async def complete(self, call: Call) -> Reply:
        body: bodies.CompleteBody = call.body
        asked = caller(call, self._limits, "task.complete")
        then = puts(body.then, asked.agent, self._limits)
        done = await self._tasks.complete(asked, *_task(call), body.claim_token, body.result, then)
        return call.reply(200, shown(done))

    async def fail(self, call: Call) -> Reply:
        body: bodies.FailBody = call.body
        failed = await self._tasks.fail(
            caller(call, self._limits, "task.fail"),
            *_task(call),
            body.claim_token,
            error=body.error,
            retry=body.retry,
            delay_ms=None if body.delay_seconds is None else ms(body.delay_seconds),
        )
        return call.reply(200, shown(failed))

    async def requeue(self, call: Call) -> Reply:
        asked = caller(call, self._limits, "task.requeue")
        return call.reply(200, shown(await self._tasks.requeue(asked, *_task(call))))

    async def remove(self, call: Call) -> Reply:
        await self._tasks.remove(caller(call, self._limits, "task.remove"), *_task(call))
        return call.empty(204)

    async def show(self, call: Call) -> Reply:
        return call.reply(200, shown(await self._tasks.show(*_task(call))))

    async def page(self, call: Call) -> Reply:
        query: bodies.TasksQuery = call.query
        page = await self._tasks.page(name(call, field="queue"), query.state, query.cursor, query.limit)
        return call.reply(200, shown(page))

    async def queues(self, call: Call) -> Reply:
        query: PrefixQuery = call.query
        return call.reply(200, shown(await self._tasks.queues(query.prefix, query.cursor, query.limit)))


class TxnHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._txns = on.txns
        self._limits = limits

    async def run(self, call: Call) -> Reply:
        body: bodies.TxnBody = call.body
        asked = caller(call, self._limits, "txn")
        compare = tuple(self._comparison(one, f"$.compare[{at}]") for at, one in enumerate(body.compare))
        then = operations(body.then, asked.agent, self._limits, "$.then")
        otherwise = operations(body.otherwise, asked.agent, self._limits, "$.else")
        done = await self._txns.run(
            asked, compare, tuple(then), tuple(otherwise), parse.guards(call.headers, body.guard)
        )
        return call.reply(200, {**done, "results": [_told_op(one) for one in done["results"]]})

    def _comparison(self, one: bodies.Comparison, field: str) -> Compare:
        if (one.id is None) == (one.lock is None):
            raise InvalidRequest(f"{field}: names either a memory (id) or a lock", field=field)
        if one.id is not None:
            check_id(one.id, self._limits, f"{field}.id")
            if one.version is None and one.exists is None:
                raise InvalidRequest(f"{field}: say which version, or whether it exists", field=field)
        return Compare(one.id or "", one.version, one.exists, one.lock or "", one.token or 0)


def _told_op(told: dict[str, Any]) -> dict[str, Any]:
    """One operation's result; a memory that was read, with times and digest as text."""
    memory = told.get("memory")
    if memory is None:
        return told
    digest = memory["content_sha256"]
    plain = {**memory, "content_sha256": bytes(digest).hex()}
    return {**told, "memory": {"id": told["id"], "version": told["version"], **shown(plain)}}


def _task(call: Call) -> tuple[str, str]:
    return name(call, field="queue"), _id(call.params[1], "id")


def _id(text: str, field: str) -> str:
    check_id(text, Limits(id_bytes=100), field)
    return text


def task_routes(on: Coordination, limits: Limits) -> tuple[Route, ...]:
    tasks, txns = TaskHandlers(on, limits), TxnHandlers(on, limits)
    queue = "/v1/tasks/{queue}"
    one = f"{queue}/{{id}}"
    return (
        post(queue, tasks.enqueue, "Put a task into a queue", bodies.EnqueueBody, {200: dict, 201: dict}),
        post(f"{queue}/claim", tasks.claim, "Take tasks to work on, or wait", bodies.ClaimBody, bodies.Claimed),
        post(f"{one}/extend", tasks.extend, "Keep a claim for longer", bodies.ExtendBody, dict),
        post(f"{one}/complete", tasks.complete, "Finish a task, once", bodies.CompleteBody, dict),
        post(f"{one}/fail", tasks.fail, "Give a task back", bodies.FailBody, dict),
        post(f"{one}/requeue", tasks.requeue, "Give a dead task its attempts back", None, dict),
        Route(
            method="DELETE",
            path=one,
            handler=telling(tasks.remove),
            access=Access.WRITE,
            summary="Forget a task that nobody has claimed",
            replies={204: None},
            errors=CHANGE,
        ),
        get(one, tasks.show, "A task with payload and result", dict),
        get(queue, tasks.page, "Tasks of a queue; `state=dead`: its dead letters", dict, bodies.TasksQuery),
        get("/v1/tasks", tasks.queues, "Queues and how many tasks are in which state", dict, PrefixQuery),
        post("/v1/txn", txns.run, "Compare, then write or else write, in one step", bodies.TxnBody, bodies.TxnResult),
    )
