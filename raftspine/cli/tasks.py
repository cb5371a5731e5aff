"""Queues of work from the shell: put in, take out, finish, and look at what is stuck."""

import sys
from argparse import Namespace
from typing import Any

import msgspec

from raftspine.cli.acting import act, listed
from raftspine.client import AsyncSpine
from raftspine.client.coordination.tasks import Claim
from raftspine.errors import Misuse

STATES = ("ready", "delayed", "claimed", "done", "dead")


def enqueue(arguments: Namespace) -> int:
    """Put a task in."""
    payload = _payload(arguments)

    async def work(spine: AsyncSpine) -> dict[str, Any]:
        made = await spine.tasks(arguments.queue).enqueue(
            payload,
            id=arguments.id,
            priority=arguments.priority,
            not_before=arguments.not_before,
            max_attempts=arguments.max_attempts,
            backoff=arguments.backoff,
            dedupe_key=arguments.dedupe_key,
        )
        return made._asdict()

    return act(arguments, work, lambda made: f"{made['id']} is {made['state']}")


def claim(arguments: Namespace) -> int:
    """Take tasks. They are not extended by this command: complete them within the lease."""

    async def work(spine: AsyncSpine) -> list[dict[str, Any]]:
        claims = await spine.tasks(arguments.queue).claim(
            arguments.owner, n=arguments.n, lease=arguments.lease, wait=arguments.wait
        )
        return [_told(one) for one in claims]

    def sentence(found: list[dict[str, Any]]) -> str:
        return "; ".join(f"{one['id']} {one['claim_token']} {one['payload']}" for one in found) or "no task is ready"

    return act(arguments, work, sentence)


def complete(arguments: Namespace) -> int:
    """A task is done."""

    async def work(spine: AsyncSpine) -> dict[str, Any]:
        tasks = spine.tasks(arguments.queue)
        return (await tasks.complete(arguments.id, arguments.token, arguments.result))._asdict()

    return act(arguments, work, lambda done: "completed" if done["first"] else f"it was already: {done['result']}")


def fail(arguments: Namespace) -> int:
    """Give a task back."""

    async def work(spine: AsyncSpine) -> dict[str, Any]:
        tasks = spine.tasks(arguments.queue)
        retry = not arguments.no_retry
        state = await tasks.fail(arguments.id, arguments.token, arguments.error, retry=retry, delay=arguments.delay)
        return {"id": arguments.id, "state": state}

    return act(arguments, work, lambda failed: f"{failed['id']} is {failed['state']}")


def listing(arguments: Namespace) -> int:
    """Print the tasks of a queue, or the queues."""
    if arguments.queue is None:
        return listed(
            arguments, lambda spine: spine.queues(), {"queue": "queue", **{state: state for state in STATES}}
        )
    return _listed(arguments, arguments.state)


def dead(arguments: Namespace) -> int:
    """Print the dead letters of a queue."""
    return _listed(arguments, "dead")


def show(arguments: Namespace) -> int:
    """Print a task."""
    return act(arguments, lambda spine: spine.tasks(arguments.queue).show(arguments.id))


def requeue(arguments: Namespace) -> int:
    """Give a dead task its attempts back."""

    async def work(spine: AsyncSpine) -> dict[str, Any]:
        return {"id": arguments.id, "state": await spine.tasks(arguments.queue).requeue(arguments.id)}

    return act(arguments, work, lambda done: f"{done['id']} is {done['state']}")


def remove(arguments: Namespace) -> int:
    """Forget a task."""

    async def work(spine: AsyncSpine) -> dict[str, Any]:
        await spine.tasks(arguments.queue).remove(arguments.id)
        return {"removed": arguments.id}

    return act(arguments, work, lambda done: f"removed {done['removed']}")


def _listed(arguments: Namespace, state: str | None) -> int:
    columns = {"id": "id", "state": "state", "attempts": "attempts", "owner": "owner", "changed": "changed_at",
               "error": "error"}  # fmt: skip
    return listed(arguments, lambda spine: spine.tasks(arguments.queue).list(state=state), columns)


def _told(one: Claim) -> dict[str, Any]:
    return {"id": one.id, "claim_token": one.token, "payload": one.payload, "attempt": one.attempt,
            "remaining_seconds": one.remaining()}  # fmt: skip


def _payload(arguments: Namespace) -> Any:
    text = arguments.payload
    if text is None or text == "-":
        if text is None and sys.stdin.isatty():
            raise Misuse("no payload: give it as an argument, or - to type it and end with ctrl-D")
        text = sys.stdin.read()
    if not arguments.json:
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Misuse(f"the payload is not JSON: {error}") from error
