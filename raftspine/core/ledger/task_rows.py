"""The rows of a task queue, and what moving a task from one state to another changes in them.

The rule: a task is in one state, and is found in that state's index and in no other:

    state      found by                          leaves it by
    ready      `ready`, in order of rank         a claim
    delayed    `due`, at `not_before_ms`         a Wake
    claimed    its session's index               complete, fail, the session's end
    done       `due`, when it may be forgotten   a Wake
    dead       `dead`, in order of dying         requeue, remove

All of that is kept in one function (`move`), for a task in two indexes would be done twice, and one in none never.
Ranks are those of locks (lock_queue.py): first come, first served within a priority, and age against priority. What
is large (payload, result) lies in a row of its own, so that moving a task does not rewrite it.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raftspine.core.ledger import due, limits, sessions
from raftspine.core.ledger.memory_commands import PutMemory
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack, unpack
from raftspine.core.ledger.work import Work

KIND = "task"
READY, DELAYED, CLAIMED, DONE, DEAD = "ready", "delayed", "claimed", "done", "dead"
DONE_KEPT_MS = 24 * 3600 * 1000
"""How long a result is kept for those who come late."""


class Queue(Struct, frozen=True, array_like=True):
    """How many tasks are in each state. head: no place in `ready` sorts below it."""

    ready: int = 0
    delayed: int = 0
    claimed: int = 0
    done: int = 0
    dead: int = 0
    head: bytes = b""


class Task(Struct, frozen=True, array_like=True):
    """number: its place in the order of enqueuing. attempts: claims so far. token: of the claim that has it, or
    that finished it. changed_at_ms: when it came into its state. dedupe: digest of its key, or empty."""

    state: str
    number: int
    rank: int
    enqueued_at_ms: int
    changed_at_ms: int
    priority: int = 0
    not_before_ms: int = 0
    max_attempts: int = 0
    attempts: int = 0
    backoff_ms: int = 0
    dedupe: bytes = b""
    token: int = 0
    session: str = ""
    owner: str = ""
    error: str = ""
    revision: int = 0


class Body(Struct, frozen=True, array_like=True):
    """What a task is to do; once it is done, what came of it instead."""

    payload: Any = None
    then: tuple[PutMemory, ...] = ()
    result: Any = None


class Ref(Struct, frozen=True, array_like=True):
    """A row that leads to a task."""

    id: str


QUEUES = Table("queue", Queue)
TASKS = Table("task", Task)
BODIES = Table("body", Body)
READIES = Table("ready", Ref)
DEADS = Table("dead", Ref)
DEDUPES = Table("dedupe", Ref)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def known(queue: str, id: str) -> bool:
    """Whether these can name a task."""
    return limits.name(queue) is None and limits.id(id) is None


def read(view: LedgerView, queue: str, id: str) -> Task | None:
    return TASKS.get(view, queue, id) if known(queue, id) else None


def body(view: LedgerView, queue: str, id: str) -> Body:
    found = BODIES.get(view, queue, id) if known(queue, id) else None
    return Body() if found is None else found


def counts(view: LedgerView, queue: str) -> Queue:
    """All zero for a queue without tasks."""
    return (None if limits.name(queue) else QUEUES.get(view, queue)) or Queue()


def page(view: LedgerView, queue: str, after: str, limit: int) -> list[tuple[str, Task]]:
    """Tasks of a queue by id, behind `after`, in every state."""
    if limits.name(queue):
        return []
    start = pack(queue) + after.encode() + b"\1" if after else b""
    return [(unpack(key, str, str)[1], row) for key, row in TASKS.page(view, pack(queue), start=start, limit=limit)]


def dead_letters(view: LedgerView, queue: str, after: int, limit: int) -> list[tuple[int, str, Task]]:
    """(number, id, task) of dead tasks in order of dying, behind a number."""
    if limits.name(queue):
        return []
    rows = DEADS.page(view, pack(queue), start=pack(queue, after + 1), limit=limit)
    found = [(int(unpack(key, str, int)[1]), ref.id) for key, ref in rows]
    return [(number, id, task) for number, id in found if (task := TASKS.get(view, queue, id)) is not None]


def queues(view: LedgerView, prefix: str, after: str, limit: int) -> list[tuple[str, Queue]]:
    """Queues that have tasks, by name."""
    start = after.encode() + b"\1" if after else b""
    return [(unpack(key, str)[0], row) for key, row in QUEUES.page(view, prefix.encode(), start=start, limit=limit)]


def next_ready(view: LedgerView, queue: str) -> tuple[str, Task] | None:
    """The task that a claim would get now."""
    row = counts(view, queue)
    if not row.ready:
        return None
    prefix = pack(queue)
    ((_, ref),) = READIES.page(view, prefix, start=prefix + row.head, limit=1)
    task = TASKS.get(view, queue, ref.id)
    assert task is not None, "a place among the ready leads to a task"
    return ref.id, task


# ── changing ────────────────────────────────────────────────────────────────────────────────────────────────


def move(work: Work, queue: str, id: str, old: Task | None, new: Task | None, change: str) -> Task | None:
    """Put a task into its state (None: it is new, or forgotten) and tell of it. Gives its time and revision."""
    row = QUEUES.get(work, queue) or Queue()
    if old is not None:
        row = _leave(work, queue, id, old, row)
        if change == "claimed":
            row = replace(row, head=pack(old.rank, old.number))  # it was the first
    number = work.number()
    if new is not None:
        new = replace(new, changed_at_ms=work.time_ms, revision=number)
        row = _enter(work, queue, id, new, row)
        work.put(TASKS, queue, id, value=new)
    else:
        work.remove(TASKS, queue, id)
        work.remove(BODIES, queue, id)
    if row.ready or row.delayed or row.claimed or row.done or row.dead:
        work.put(QUEUES, queue, value=row)
    else:
        work.remove(QUEUES, queue)
    told = new or old
    attempts = 0 if told is None else told.attempts
    owner = told.owner if told is not None and change == "claimed" else None
    work.tell(KIND, f"{queue}/{id}", change, number, queue=queue, id=id, attempts=attempts, owner=owner)
    return new


def _leave(work: Work, queue: str, id: str, task: Task, row: Queue) -> Queue:
    if task.state == READY:
        work.remove(READIES, queue, task.rank, task.number)
    elif task.state == DELAYED:
        due.cancel(work, task.not_before_ms, KIND, queue, id)
    elif task.state == CLAIMED:
        sessions.let_go(work, task.session, KIND, queue, id)
    elif task.state == DONE:
        due.cancel(work, task.changed_at_ms + DONE_KEPT_MS, KIND, queue, id)
    else:
        work.remove(DEADS, queue, task.revision)
    return _counted(row, task.state, -1)


def _enter(work: Work, queue: str, id: str, task: Task, row: Queue) -> Queue:
    if task.state == READY:
        place = pack(task.rank, task.number)
        work.put(READIES, queue, place, value=Ref(id))
        row = replace(row, head=min(place, row.head) if row.ready else place)
    elif task.state == DELAYED:
        due.note(work, task.not_before_ms, KIND, queue, id, task.revision)
    elif task.state == CLAIMED:
        sessions.hold(work, task.session, KIND, queue, id, str(task.token))
    elif task.state == DONE:
        due.note(work, task.changed_at_ms + DONE_KEPT_MS, KIND, queue, id, task.revision)
    else:
        work.put(DEADS, queue, task.revision, value=Ref(id))
    return _counted(row, task.state, 1)


def _counted(row: Queue, state: str, by: int) -> Queue:
    counted: Queue = replace(row, **{state: getattr(row, state) + by})
    return counted
