"""Tasks: work that one worker at a time has, and that is finished once.

    async for task in spine.tasks("mail").work("worker-7", lease=30):
        async with task:                       # cancelled when the claim is lost
            await task.complete(await send(task.payload))

The rules: a claim that `work` gave out is extended in the background until it is settled (completed or failed). A
worker that leaves it unsettled gives it back for the next attempt. Completing is safe to repeat: the first result
stays, and `Completed.first` says whether it was this one; a claim that was lost to another worker is LeaseLost.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.paging import pages
from raftspine.client.coordination.upkeep import Body, Grant, Upkeep, again, grant
from raftspine.client.operations import quoted
from raftspine.errors import LeaseLost, SpineError, Unavailable, Unknown

log = logging.getLogger("raftspine.client")

T = TypeVar("T")

LEASE_S = 60.0
ERROR_BYTES = 1024
UNSETTLED = "left unsettled by its worker"


class Completed(NamedTuple):
    """`first`: whether this call finished the task; else `result` is the one that stands."""

    first: bool
    result: Any
    written: list[dict[str, Any]]


class Enqueued(NamedTuple):
    """`deduplicated`: an unfinished task with the same key was there, and this is its id."""

    id: str
    state: str
    deduplicated: bool


class Claim:
    """A task that is this worker's, for now. `async with` stops the block when the claim is lost, and fails the task
    when the block raises."""

    def __init__(self, on: Channel, tasks: "Tasks", told: dict[str, Any], sent_at: float) -> None:
        self.queue = tasks.queue
        self.id: str = told["id"]
        self.payload: Any = told["payload"]
        self.token: int = told["claim_token"]
        """Tells this claim from those before and after."""
        self.attempt: int = told["attempt"]
        """1 for the first."""
        self.priority: int = told["priority"]
        self.settled = False
        self._on = on
        self._tasks = tasks
        self._path = f"/v1/tasks/{quoted(self.queue)}/{quoted(self.id)}"
        self._loop = asyncio.get_running_loop()
        self._sent_at = sent_at
        self._grant = grant(told)
        self._upkeep: Upkeep | None = None
        self._body: Body | None = None

    def __repr__(self) -> str:
        return f"<Claim {self.queue}/{self.id} attempt {self.attempt}, {self.remaining():.1f} s left>"

    def remaining(self) -> float:
        """Seconds for which the claim can be believed in."""
        if self._upkeep is not None:
            return self._upkeep.remaining()
        return 0.0 if self.settled else max(0.0, self._sent_at + self._grant.ttl_s - self._loop.time())

    @property
    def error(self) -> LeaseLost | None:
        """Why it was lost; None while it is not."""
        return None if self._upkeep is None else self._upkeep.error

    def ensure(self) -> None:
        """Raises LeaseLost unless the claim can be believed in now."""
        if self._upkeep is not None:
            self._upkeep.ensure()
        elif self.remaining() <= 0:
            raise LeaseLost(f"the claim of {self.queue}/{self.id} has run out")

    async def keep(self) -> None:
        """Extend it in the background from now on. Raises LeaseLost."""
        if self._upkeep is not None:
            return
        sent_at, given = self._sent_at, self._grant
        if obtain.now() - sent_at >= given.renew_after_s:
            sent_at = obtain.now()
            given = await self._renew(given.ttl_s)
        self._upkeep = Upkeep(f"task {self.queue}/{self.id}", self._renew, lost=self._lost)
        self._upkeep.begin(sent_at, given)

    async def extend(self, lease: float | None = None) -> None:
        """Another lease from now; of so many seconds, or as long as the last. Raises LeaseLost."""
        sent_at = obtain.now()
        body = {"claim_token": self.token, **({} if lease is None else {"lease_seconds": lease})}
        key = None if lease is None else self._on.new_key()
        given = grant(await self._on.ask(f"{self._path}/extend", body, key=key))
        self._sent_at, self._grant = sent_at, given
        if self._upkeep is not None:
            self._upkeep.believe(sent_at, given)

    async def complete(self, result: Any = None, *, then: Sequence[dict[str, Any]] = ()) -> Completed:
        """The task is done. `then`: memories to write in the same step, as `batch` takes them. Raises LeaseLost when
        another worker has it, or has finished it under a claim of its own."""
        return await self._settled(self._tasks.complete(self.id, self.token, result, then=then))

    async def fail(self, error: str, *, retry: bool = True, delay: float | None = None) -> str:
        """Give it back: for another attempt after `delay` seconds (None: the task's own backoff), or without `retry`
        to the dead letters. The state it is in now."""
        return await self._settled(self._tasks.fail(self.id, self.token, error, retry=retry, delay=delay))

    async def abandon(self) -> None:
        """Give it back unfinished, without a word about what becomes of that."""
        if self.settled or self.error is not None:
            return
        try:
            await self.fail(UNSETTLED, delay=0.0)
        except SpineError as error:
            log.info("could not give task %s/%s back, its lease will: %s", self.queue, self.id, error.message)

    async def _settled(self, work: Awaitable[T]) -> T:
        answer = await work
        self.settled = True
        if self._upkeep is not None:
            await self._upkeep.end()
        return answer

    async def _renew(self, within_s: float) -> Grant:
        body = {"claim_token": self.token}
        return grant(await self._on.ask(f"{self._path}/extend", body, within_s=within_s))

    def _lost(self, error: LeaseLost) -> None:
        if self._body is not None:
            self._body.stop()

    async def __aenter__(self) -> "Claim":
        await self.keep()
        self._body = Body()
        self.ensure()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        assert body is not None
        lost = None if self.settled else self.error
        if isinstance(raised, Exception) and lost is None and not self.settled:
            try:
                await self.fail(f"{type(raised).__name__}: {raised}")
            except SpineError as error:
                log.info("could not fail task %s/%s, its lease will: %s", self.queue, self.id, error.message)
        body.leave(lost, raised)


class Tasks:
    """One queue."""

    def __init__(self, on: Channel, queue: str) -> None:
        self.queue = queue
        self._on = on
        self._path = f"/v1/tasks/{quoted(queue)}"

    async def enqueue(
        self,
        payload: Any = None,
        *,
        id: str | None = None,
        priority: int = 0,
        not_before: str | None = None,
        max_attempts: int | None = None,
        backoff: float = 0.0,
        dedupe_key: str | None = None,
        then: Sequence[dict[str, Any]] = (),
    ) -> Enqueued:
        """Put a task in. `not_before`: RFC 3339. `max_attempts`: after so many it is dead (None: never). `backoff`:
        seconds before the second attempt, doubling. `then`: memories that its completion writes. Raises Conflict when
        another task of this id is remembered."""
        given: dict[str, Any] = {
            "id": id,
            "not_before": not_before,
            "max_attempts": max_attempts,
            "dedupe_key": dedupe_key,
            "then": list(then) or None,
            "backoff_ms": round(backoff * 1000) or None,
        }
        body = {"payload": payload, "priority": priority, **{k: v for k, v in given.items() if v is not None}}
        answer = await self._on.change(self._path, body)
        return Enqueued(answer["id"], answer["state"], answer["deduplicated"])

    async def claim(
        self,
        owner: str | None = None,
        *,
        n: int = 1,
        lease: float = LEASE_S,
        wait: float = 0.0,
        session: object = None,
    ) -> list[Claim]:
        """Up to `n` tasks, for `lease` seconds each, waiting up to `wait` for the first; none when there were none.
        They are not extended by themselves: see Claim.keep, or use `work`."""
        body: dict[str, Any] = {"owner": owner or obtain.default_owner(self._on.agent_id), "n": n}
        body |= {"lease_seconds": lease, "wait_seconds": wait}
        if session is not None:
            body["session_id"] = str(session)
        sent_at = obtain.now()
        answer = await self._on.ask(f"{self._path}/claim", body, key=self._on.new_key(), hold_s=wait)
        return [Claim(self._on, self, told, sent_at) for told in answer["tasks"]]

    async def work(
        self, owner: str | None = None, *, n: int = 1, lease: float = LEASE_S, session: object = None
    ) -> AsyncIterator[Claim]:
        """Tasks as they come, without end, each extended in the background until it is settled; up to `n` are claimed
        ahead. One that is not settled when the next is asked for is given back. Goes on over failures of nodes."""
        while True:
            try:
                claims = await self.claim(owner, n=n, lease=lease, wait=obtain.PIECE_S, session=session)
            except (Unavailable, Unknown) as error:
                log.info("no task from %s: %s", self.queue, error.message)
                await obtain.before_asking_again(error)
                continue
            try:
                async for claim in _kept(claims):
                    yield claim
                    await claim.abandon()
            finally:
                for claim in claims:
                    self._on.later(claim.abandon())

    async def run(
        self,
        handler: Callable[[Claim], Awaitable[Any]],
        owner: str | None = None,
        *,
        lease: float = LEASE_S,
        session: object = None,
    ) -> None:
        """Work until cancelled: what `handler` returns is the task's result, and what it raises fails the task for
        another attempt. A handler whose claim is lost is cancelled."""
        async for task in self.work(owner, lease=lease, session=session):
            try:
                async with task:
                    result = await handler(task)
                    if not task.settled:
                        await task.complete(result)
            except Exception:
                log.exception("task %s/%s, attempt %d", self.queue, task.id, task.attempt)

    async def complete(
        self, id: str, token: int, result: Any = None, *, then: Sequence[dict[str, Any]] = ()
    ) -> Completed:
        """See Claim.complete, for a claim of which only the token is at hand."""
        body = {"claim_token": token, "result": result, **({"then": list(then)} if then else {})}
        answer = await self._on.change(f"{self._path}/{quoted(id)}/complete", body)
        return Completed(answer["first"], answer["result"], answer["written"])

    async def fail(
        self, id: str, token: int, error: str = "", *, retry: bool = True, delay: float | None = None
    ) -> str:
        """See Claim.fail."""
        body: dict[str, Any] = {"claim_token": token, "error": _cut(error), "retry": retry}
        if delay is not None:
            body["delay_seconds"] = delay
        return str((await self._on.change(f"{self._path}/{quoted(id)}/fail", body))["state"])

    async def show(self, id: str) -> dict[str, Any]:
        """A task with its payload and result. Raises NotFound."""
        return await self._on.look(f"{self._path}/{quoted(id)}")

    async def page(self, *, state: str | None = None, limit: int = 100, cursor: str | None = None) -> dict[str, Any]:
        """`items`, `counts` by state, `next_cursor`. `state`: ready, delayed, claimed, done or dead."""
        return await self._on.look(self._path, {"state": state, "limit": str(limit), "cursor": cursor})

    async def list(self, *, state: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The tasks, by id; dead ones in order of dying when only they are asked for."""
        async for found in pages(self._on, self._path, {"state": state}):
            yield found

    async def requeue(self, id: str) -> str:
        """Give a dead task its attempts back. The state it is in now."""
        return str((await self._on.change(f"{self._path}/{quoted(id)}/requeue"))["state"])

    async def remove(self, id: str) -> None:
        """Forget a task that nobody has claimed."""
        await self._on.change(f"{self._path}/{quoted(id)}", method="DELETE")


def _cut(text: str) -> str:
    """As much of it as the store takes."""
    return text.encode()[:ERROR_BYTES].decode(errors="ignore")


async def _kept(claims: Sequence[Claim]) -> AsyncIterator[Claim]:
    """Claims that are extended from now on; those that have been lost by now are left out."""
    for claim in claims:
        try:
            await claim.keep()
        except LeaseLost as error:
            log.info("%s", again(error).message)
    for claim in claims:
        if claim.remaining() > 0:
            yield claim
