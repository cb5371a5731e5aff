"""Clients of both paths, through all nodes, whose every call becomes part of a history.

What they do is chosen for what can go wrong with it: registers and compare-and-set on the strong path (stale reads,
lost and forked writes), additions that are repeated under one Idempotency-Key until their outcome is known (a second
effect), and sessions on the ring that read on another node than they wrote (a missing write, a memory come back from
the dead). Each call goes to one node drawn for it, a node in trouble as likely as any other: clients that avoid
trouble find none.

The keys carry the name of the window, so that each window is judged by itself and then forgotten.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from raftspine import AsyncSpine
from raftspine.checkers.history import Operation, Pending, Recorder
from raftspine.errors import Conflict, NotFound, PreconditionFailed, SpineError, Unavailable, Unknown
from tests.support.lab.nodes import Lab

STRONG, RING = "strong", "ring"
PATHS = {STRONG: ["critical"], RING: ["note"]}
"""Path -> the tags that lead there."""

CALL_SECONDS = 4.0
"""How long a call may take: beyond an election, so that a call may outlive a fault, and short enough to get on."""

PACE_SECONDS = 0.03
REGISTERS, COUNTERS, SESSIONS = 3, 2, 4
DOUBTS = 8
"""Calls of unknown outcome after which a client turns to a fresh key: the more of them one key has, the more orders
its judge has to try."""


class Load:
    """One window of load. `run` goes on until `stop`; then `recorder` holds the history."""

    def __init__(self, lab: Lab, window: str, chance: Random, recorder: Recorder) -> None:
        self._lab = lab
        self._window = window
        self._chance = chance
        self.recorder = recorder
        self._stopping = asyncio.Event()
        self._clients: dict[str, AsyncSpine] = {}

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Raises what a client raised that is no outcome: a store that answers nonsense ends the run."""
        self._clients = {node: self._lab.client(node, timeout=CALL_SECONDS) for node in self._lab.ids}
        w = self._window
        jobs = [
            *(self._register(f"register-{n}", f"{w}-r{n % REGISTERS}") for n in range(REGISTERS * 3)),
            *(self._counter(f"counter-{n}", f"{w}-c{n % COUNTERS}") for n in range(COUNTERS * 2)),
            *(self._session(f"session-{n}", f"{w}-s{n}") for n in range(SESSIONS)),
            *(self._additions(f"adder-{path}", path) for path in PATHS),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        finally:
            for client in self._clients.values():
                await client.close()

    # ── the strong path ─────────────────────────────────────────────────────────────────────────────────────

    async def _register(self, name: str, key: str) -> None:
        """Writes, reads and now and then deletes one of a few registers that others use, too."""
        number, doubts, base = 0, 0, key
        while await self._go_on():
            node, client = self._draw()
            kind = self._chance.choices(("write", "read", "delete"), (45, 50, 5))[0]
            if kind == "read":
                await self._read(name, key, node)
                continue
            number += 1
            value = f"{name}.{number}"
            if kind == "write":
                pending = self.recorder.invoke(name, key, kind, value, node=node, path=STRONG)
                done = await self._written(pending, client.put(key, value, tags=PATHS[STRONG]))
            else:
                pending = self.recorder.invoke(name, key, kind, node=node, path=STRONG)
                done = await self._written(pending, client.delete(key))
            doubts += done.outcome == "unknown"
            if doubts >= DOUBTS:
                key, doubts = f"{base}.{number}{name[-1]}", 0

    async def _counter(self, name: str, key: str) -> None:
        """Adds one by compare-and-set, against others who do the same."""
        while await self._go_on():
            node, client = self._draw()
            found = await self._read(name, key, node, versioned=True)
            if not found.ok:
                continue
            expected = None if found.output is None else found.output["version"]
            value = 1 if found.output is None else found.output["value"] + 1
            node, client = self._draw()
            wanted = {"expected": expected, "value": value}
            pending = self.recorder.invoke(name, key, "cas", wanted, node=node, path=STRONG)
            if expected is None:
                call = client.put(key, value, tags=PATHS[STRONG], if_absent=True)
            else:
                call = client.put(key, value, tags=PATHS[STRONG], expected_version=expected)
            await self._written(pending, call)

    async def _read(self, name: str, key: str, node: str, *, versioned: bool = False) -> Operation:
        pending = self.recorder.invoke(name, key, "read", node=node, path=STRONG)
        wish = self._chance.choice((None, STRONG))
        return await strong_read(pending, self._clients[node], key, versioned=versioned, consistency=wish)

    # ── both paths ──────────────────────────────────────────────────────────────────────────────────────────

    async def _additions(self, name: str, path: str) -> None:
        """Adds memories under ids that the store draws, and repeats each in doubt on other nodes, under the same
        Idempotency-Key, until it is told the outcome: an effect too many shows as a second memory."""
        key, number = f"{self._window}-a-{path}", 0
        while await self._go_on():
            number += 1
            content, idempotency_key = f"{key}.{number}", f"{key}.{number}.{self._chance.getrandbits(64):x}"
            node, client = self._draw()
            pending = self.recorder.invoke(name, key, "add", content, node=node, path=path)
            tries = 0
            while True:
                tries += 1
                try:
                    await client.add(content, tags=PATHS[path], namespace=key, idempotency_key=idempotency_key)
                except (Unknown, Unavailable) as error:
                    doubtful = tries > 1 or in_doubt(error)
                    if not doubtful:
                        pending.fail(code=error.code)
                        break
                    if self._stopping.is_set():
                        pending.unknown(code=error.code, tries=tries)
                        break
                    await asyncio.sleep(0.1)
                    node, client = self._draw()
                else:
                    pending.ok(node=node, tries=tries)
                    break

    # ── the ring ────────────────────────────────────────────────────────────────────────────────────────────

    async def _session(self, name: str, base: str) -> None:
        """Writes, deletes and reads memories of its own, each call on another node, the token with it."""
        token: str | None = None
        number = 0
        while await self._go_on():
            node, client = self._draw()
            number += 1
            key = f"{base}.{self._chance.randrange(3)}"
            kind = self._chance.choices(("write", "read", "delete"), (40, 50, 10))[0]
            session = client.session(agent_id=name, token=token)
            value = number if kind == "write" else None
            pending = self.recorder.invoke(name, key, kind, value, node=node, session=name, path=RING)
            if kind == "write":
                await self._written(pending, session.put(key, number, tags=PATHS[RING]))
            elif kind == "delete":
                await self._written(pending, session.delete(key))
            else:
                await ring_read(pending, session, key)
            token = session.token

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _written(self, pending: Pending, call: Awaitable[Any]) -> Operation:
        """What became of a write. A refused condition is a decision of the store, and so an answer."""
        try:
            record = await call
        except (Conflict, PreconditionFailed) as error:
            return pending.ok({"refused": True}, code=error.code)
        except (Unknown, Unavailable) as error:
            return pending.unknown(code=error.code) if in_doubt(error) else pending.fail(code=error.code)
        version = getattr(record, "version", None)
        return pending.ok({"version": version} if pending.operation.kind == "cas" else None, version=version)

    def _draw(self) -> tuple[str, AsyncSpine]:
        node = self._chance.choice(self._lab.ids)
        return node, self._clients[node]

    async def _go_on(self) -> bool:
        await asyncio.sleep(PACE_SECONDS * self._chance.uniform(0.5, 1.5))
        return not self._stopping.is_set()


def in_doubt(error: SpineError) -> bool:
    """Whether a write that ended so may have happened, or may still."""
    return isinstance(error, Unknown) or bool(error.details.get("indeterminate"))


async def strong_read(
    pending: Pending, client: Any, key: str, *, versioned: bool = False, consistency: str | None = None
) -> Operation:
    """A linearizable read; `versioned` with the version beside the value. Fails where the store could not answer."""
    try:
        record = await client.get(key, consistency=consistency)
    except NotFound as error:
        return pending.ok(None) if error.details.get("confirmed", True) else pending.fail(code="unconfirmed")
    except (Unknown, Unavailable) as error:
        return pending.fail(code=error.code)
    return pending.ok({"value": record.content, "version": record.version} if versioned else record.content)


async def ring_read(pending: Pending, session: Any, key: str) -> Operation:
    try:
        record = await session.get(key)
    except NotFound as error:
        return pending.ok(None) if error.details.get("confirmed", True) else pending.fail(code="unconfirmed")
    except (Unknown, Unavailable) as error:
        return pending.fail(code=error.code)
    return pending.ok(record.content, version=record.version)


Probe = Callable[[], Awaitable[None]]


async def serve_times(lab: Lab, nodes: tuple[str, ...], window: str, limit_seconds: float) -> dict[str, float]:
    """Seconds until these nodes' clients had written on each path: several memories, so that several shard groups
    with different leaders are asked for. AssertionError when one is not through after `limit_seconds`."""
    began = time.monotonic()
    times = dict.fromkeys(PATHS, 0.0)

    async def write(client: AsyncSpine, node: str, path: str, number: int) -> None:
        key, last = f"{window}-probe-{path}-{node}-{number}", "nothing"
        while time.monotonic() - began < limit_seconds:
            try:
                await client.put(key, number, tags=PATHS[path])
            except (Unknown, Unavailable) as error:
                last = f"{error.code}: {error.message}"
                await asyncio.sleep(0.05)
            else:
                times[path] = max(times[path], time.monotonic() - began)
                return
        raise AssertionError(
            f"{node} took no {path} write {key} within {limit_seconds:.0f} s; the last answer was {last}"
        )

    clients = {node: lab.client(node, timeout=CALL_SECONDS) for node in nodes}
    try:
        async with asyncio.TaskGroup() as group:
            for node, client in clients.items():
                for path in PATHS:
                    for number in range(6):
                        group.create_task(write(client, node, path, number))
    except* AssertionError as failures:
        raise AssertionError("; ".join(str(error) for error in failures.exceptions)) from None
    finally:
        for client in clients.values():
            await client.close()
    return times
