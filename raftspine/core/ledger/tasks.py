"""Tasks: work that is given to one at a time, and finished once.

The rules:

* A claim is a lease: it belongs to a session (its own, when none is named), and the task goes back to its place
  in the queue in the entry that ends the session. Its token tells this claim from the ones before and after.
* A task is completed at most once, in the entry that writes what its completion says (`then`). Whoever comes late
  is told the result there is, not that it failed; whoever lost the claim to another is told so.
* An attempt is counted when it begins, because one that takes its worker down never reports back. Without an
  attempt left the task is dead, kept for people to look at, and may be given its attempts back.
* While an unfinished task carries a dedupe key, enqueuing another with it answers with that task.
"""

from typing import Any

from msgspec.structs import replace

from raftspine.core.ledger import due, limits, sessions, txn
from raftspine.core.ledger.lock_queue import rank_of
from raftspine.core.ledger.memory_commands import PutMemory
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.tables import digest
from raftspine.core.ledger.task_commands import (
    ClaimTasks,
    CompleteTask,
    EnqueueTask,
    ExtendTask,
    FailTask,
    RemoveTask,
    RequeueTask,
)
from raftspine.core.ledger.task_rows import (
    BODIES,
    CLAIMED,
    DEAD,
    DEDUPES,
    DELAYED,
    DONE,
    DONE_KEPT_MS,
    READY,
    TASKS,
    Body,
    Ref,
    Task,
    body,
    counts,
    move,
    next_ready,
    read,
)
from raftspine.core.ledger.work import Work, invalid

# ── in ──────────────────────────────────────────────────────────────────────────────────────────────────────


def enqueue(work: Work, command: EnqueueTask) -> Outcome:
    """`result`: id, state, deduplicated. exists: another task of this id is remembered."""
    queue, id = command.queue, command.id
    if wrong := _wrong_task(work, command):
        return invalid(id, wrong)
    key = digest(command.dedupe) if command.dedupe else b""
    twin = DEDUPES.get(work, queue, key) if key else None
    if twin is not None and (task := TASKS.get(work, queue, twin.id)) is not None:
        return Outcome(Status.DONE, twin.id, result={"id": twin.id, "state": task.state, "deduplicated": True})
    if (old := TASKS.get(work, queue, id)) is not None:
        return Outcome(Status.EXISTS, id, reason="a task of this id is remembered", result={"state": old.state})
    row = counts(work, queue)
    if row.ready + row.delayed + row.claimed >= limits.TASKS_PER_QUEUE:
        return Outcome(Status.TOO_MANY, id, reason="the queue is full")
    start_ms = max(work.time_ms, command.not_before_ms)
    task = Task(
        DELAYED if start_ms > work.time_ms else READY,
        work.number(),
        rank_of(start_ms, command.priority),
        work.time_ms,
        work.time_ms,
        priority=command.priority,
        not_before_ms=start_ms,
        max_attempts=command.max_attempts,
        backoff_ms=command.backoff_ms,
        dedupe=key,
    )
    if key:
        work.put(DEDUPES, queue, key, value=Ref(id))
    work.put(BODIES, queue, id, value=Body(command.payload, command.then))
    move(work, queue, id, None, task, task.state)
    return Outcome(Status.DONE, id, created=True, result={"id": id, "state": task.state, "deduplicated": False})


def _wrong_task(work: Work, command: EnqueueTask) -> str | None:
    return limits.first(
        limits.name(command.queue, "queue"),
        limits.id(command.id),
        limits.data(command.payload, "payload"),
        limits.between(command.priority, *limits.PRIORITIES, "priority"),
        limits.between(command.not_before_ms, 0, work.time_ms + limits.NOT_BEFORE_MS, "not_before_ms"),
        limits.between(command.max_attempts, 0, limits.ATTEMPTS, "max_attempts"),
        limits.between(command.backoff_ms, 0, limits.DELAY_MS, "backoff_ms"),
        limits.name(command.dedupe, "dedupe") if command.dedupe else None,
        txn.wrong_ids([op.id for op in command.then]),
        _wrong_then(command.then),
    )


def _wrong_then(then: tuple[PutMemory, ...]) -> str | None:
    """All of it counts, the depth where anything may stand."""
    anything = [(op.memory.content, op.memory.metadata) for op in then]
    if wrong := limits.data(anything, "then", limits.THEN_BYTES):
        return wrong
    if any(op.ring is not None for op in then):
        return "then: what the ring held is said when the task is completed"
    too_long = limits.size(then) > limits.THEN_BYTES
    return f"then is longer than {limits.THEN_BYTES} bytes" if too_long else None


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────────────


def claim(work: Work, command: ClaimTasks) -> Outcome:
    """`result`: tasks, each with id, payload, token, attempt, priority, enqueued_at_ms, session, ttl_ms."""
    queue = command.queue
    wrong = limits.first(
        limits.name(queue, "queue"),
        limits.id(command.claim, "claim"),
        limits.id(_lease(command, limits.CLAIMS_AT_ONCE), "claim"),
        limits.between(command.count, 1, limits.CLAIMS_AT_ONCE, "count"),
        limits.name(command.owner, "owner") if command.owner else None,
    )
    if wrong:
        return invalid(queue, wrong)
    tasks: list[dict[str, Any]] = []
    size = 0
    while len(tasks) < command.count and size < limits.CLAIMED_BYTES and (found := next_ready(work, queue)):
        lease = _lease(command, len(tasks))
        owner = command.owner or work.agent
        refused = sessions.enter(work, command.session, lease, command.ttl_ms, owner)
        if refused is not None:
            return refused
        session = sessions.named(command.session, lease)
        if sessions.full(work, session):
            if not tasks:
                return Outcome(Status.TOO_MANY, queue, reason="the session holds too much")
            break
        told = _claimed(work, queue, *found, session, owner)
        tasks.append(told)
        size += limits.size(told["payload"])
    return Outcome(Status.DONE, queue, result={"tasks": tasks})


def _lease(command: ClaimTasks, number: int) -> str:
    return f"{command.claim}/{number}"


def _claimed(work: Work, queue: str, id: str, task: Task, session: str, owner: str) -> dict[str, Any]:
    token = work.number()
    claimed = replace(task, state=CLAIMED, attempts=task.attempts + 1, token=token, session=session, owner=owner)
    move(work, queue, id, task, claimed, "claimed")
    row = sessions.read(work, session)
    return {
        "id": id,
        "payload": body(work, queue, id).payload,
        "token": token,
        "attempt": claimed.attempts,
        "priority": task.priority,
        "enqueued_at_ms": task.enqueued_at_ms,
        "session": session,
        "ttl_ms": 0 if row is None else row.ttl_ms,
    }


def extend(work: Work, command: ExtendTask) -> Outcome:
    """`result`: session, ttl_ms. Renews the claim's session; with a TTL of its own only where that is the claim's
    own session."""
    task = read(work, command.queue, command.id)
    if task is None or task.state != CLAIMED or task.token != command.token:
        return _not_current(task, command.id)
    own = task.session.startswith(sessions.OWN)
    if command.ttl_ms and (wrong := limits.ttl(command.ttl_ms) or (None if own else "the session has its own TTL")):
        return invalid(command.id, wrong)
    row = sessions.touch(work, task.session, command.ttl_ms)
    assert row is not None, "a claim ends with its session"
    return Outcome(Status.DONE, command.id, result={"session": task.session, "ttl_ms": row.ttl_ms})


# ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────


def complete(work: Work, command: CompleteTask) -> Outcome:
    """`result`: first (whether this completed it), result, written (id and version of what `then` wrote)."""
    queue, id = command.queue, command.id
    task = read(work, queue, id)
    if task is not None and task.state == DONE:
        return Outcome(
            Status.DONE, id, result={"first": False, "result": body(work, queue, id).result, "written": []}
        )
    if task is None or task.state != CLAIMED or task.token != command.token:
        return _not_current(task, id)
    ops = (*body(work, queue, id).then, *command.then)
    wrong = limits.first(limits.data(command.result, "result"), txn.wrong_ids([op.id for op in ops]))
    if wrong:
        return invalid(id, wrong)
    pictures = {picture.id: picture for picture in command.pictures}
    written: list[dict[str, Any]] = []
    for op in ops:
        if (picture := pictures.get(op.id)) is not None:
            op = replace(op, ring=picture.ring, log_seen=picture.log_seen)
        outcome = txn.write(work, op)
        if outcome.status not in txn.APPLIED:
            return outcome
        written.append({"id": op.id, "version": outcome.version})
    _forget_dedupe(work, queue, task)
    work.put(BODIES, queue, id, value=Body(result=command.result))
    move(work, queue, id, task, replace(task, state=DONE, session=""), "completed")
    return Outcome(Status.DONE, id, result={"first": True, "result": command.result, "written": written})


def fail(work: Work, command: FailTask) -> Outcome:
    """`result`: state (ready, delayed or dead), not_before_ms."""
    queue, id, delay_ms = command.queue, command.id, command.delay_ms
    task = read(work, queue, id)
    if task is None or task.state != CLAIMED or task.token != command.token:
        return _not_current(task, id)
    wrong = None if delay_ms is None else limits.between(delay_ms, 0, limits.DELAY_MS, "delay_ms")
    if wrong := wrong or limits.reason(command.error):
        return invalid(id, wrong)
    if delay_ms is None:
        delay_ms = _backoff(task)
    task_now = _give_back(work, queue, id, task, command.error, delay_ms, retry=command.retry)
    return Outcome(Status.DONE, id, result={"state": task_now.state, "not_before_ms": task_now.not_before_ms})


def release_held(work: Work, names: tuple[str, str], held: sessions.Held, lost: bool) -> None:
    """A session ends: the task goes back to its place, or to the dead."""
    queue, id = names
    task = TASKS.get(work, queue, id)
    assert task is not None and task.state == CLAIMED, "the index by session leads to a claimed task"
    _give_back(work, queue, id, task, "the claim expired" if lost else "the claim was given up", 0, retry=True)


def _give_back(work: Work, queue: str, id: str, task: Task, error: str, delay_ms: int, *, retry: bool) -> Task:
    if not retry or 0 < task.max_attempts <= task.attempts:
        state = DEAD
        _forget_dedupe(work, queue, task)
    else:
        state = DELAYED if delay_ms else READY
    start_ms = work.time_ms + delay_ms if state == DELAYED else task.not_before_ms
    now = replace(task, state=state, error=error, session="", not_before_ms=start_ms)
    moved = move(work, queue, id, task, now, state)
    assert moved is not None
    return moved


def _backoff(task: Task) -> int:
    return min(task.backoff_ms << min(task.attempts - 1, 30), limits.DELAY_MS)


# ── people, and time ────────────────────────────────────────────────────────────────────────────────────────


def requeue(work: Work, command: RequeueTask) -> Outcome:
    """`result`: state."""
    task = read(work, command.queue, command.id)
    if task is None:
        return _not_current(task, command.id)
    if task.state != DEAD:
        return Outcome(
            Status.WRONG_STATE, command.id, reason=f"the task is {task.state}", result={"state": task.state}
        )
    if task.dedupe and DEDUPES.get(work, command.queue, task.dedupe) is None:
        work.put(DEDUPES, command.queue, task.dedupe, value=Ref(command.id))
    again = replace(task, state=READY, attempts=0, rank=rank_of(work.time_ms, task.priority), number=work.number())
    move(work, command.queue, command.id, task, again, READY)
    return Outcome(Status.DONE, command.id, result={"state": READY})


def remove(work: Work, command: RemoveTask) -> Outcome:
    task = read(work, command.queue, command.id)
    if task is None:
        return _not_current(task, command.id)
    if task.state == CLAIMED:
        return Outcome(Status.WRONG_STATE, command.id, reason="the task is claimed", result={"state": task.state})
    _forget_dedupe(work, command.queue, task)
    move(work, command.queue, command.id, task, None, "removed")
    return Outcome(Status.DELETED, command.id)


def wake(work: Work, at_ms: int, place: str, name: str, row: due.Due) -> None:
    """A delayed task may begin, or a finished one be forgotten."""
    task = TASKS.get(work, place, name)
    if task is None or task.revision != row.number:
        return
    if task.state == DELAYED:
        move(work, place, name, task, replace(task, state=READY), READY)
    elif task.state == DONE and task.changed_at_ms + DONE_KEPT_MS <= work.time_ms:
        move(work, place, name, task, None, "forgotten")


def _forget_dedupe(work: Work, queue: str, task: Task) -> None:
    """The key is free for another task, unless another has it already."""
    ref = DEDUPES.get(work, queue, task.dedupe) if task.dedupe else None
    holder = None if ref is None else TASKS.get(work, queue, ref.id)
    if holder is not None and holder.number == task.number:
        work.remove(DEDUPES, queue, task.dedupe)


def _not_current(task: Task | None, id: str) -> Outcome:
    if task is None:
        return Outcome(Status.ABSENT, id, reason="there is no such task")
    return Outcome(Status.NOT_CURRENT, id, reason="this claim is not current", result={"state": task.state})
