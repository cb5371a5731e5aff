"""One run: clients work for a while, everything comes to rest, what is there is read, and what was written removed.

The operator may kill nodes meanwhile; so nothing here waits without a bound, and no store error ends the run. Load is
paced per client from a schedule: after a stall a client goes on at its rate and does not catch up in a burst, for
this is somebody's live cluster.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from raftspine.checkers.history import Operation, Recorder
from raftspine.client import Record
from raftspine.errors import NotFound, Rejected, SpineError
from raftspine.ports import Clock, Entropy
from raftspine.verify.nodes import PROBE_S, Node, Nodes, connect
from raftspine.verify.workloads import NAMESPACE, WORKLOADS, Actor, Run, Workload

REST_S = 30.0
"""How long the end may take to come to rest: an election, and a restarted node that catches up."""

AGAIN_S = 0.2
"""Between two looks at what has not come to rest yet."""

WATCH_S = 0.25
AT_ONCE = 8
"""Requests at a time at the end."""


class Options(NamedTuple):
    """`rate` in operations a second over all clients; `timeout_s` bounds one call with its retries."""

    urls: Sequence[str]
    seconds: float = 30.0
    rate: float = 100.0
    clients: int = 12
    api_key: str | None = None
    timeout_s: float = 2.0
    keep: bool = False


class Sighting(NamedTuple):
    """Something the watcher saw change: a node's `state` (ready, not ready, down), or a group's `leader`."""

    at_ns: int
    node: str
    what: str
    group: str = ""


class Outcome(NamedTuple):
    """What a run leaves to be judged. `left` are ids that could not be removed."""

    run_id: str
    nodes: tuple[str, ...]
    started_ns: int
    ended_ns: int
    history: list[Operation]
    kept: dict[str, list[object] | None]
    sightings: list[Sighting]
    left: list[str]


class Verification:
    """One run against one cluster. `told` is called with each finished operation, `phase` with what goes on."""

    def __init__(
        self,
        options: Options,
        clock: Clock,
        entropy: Entropy,
        *,
        told: Callable[[Operation], None] | None = None,
        phase: Callable[[str], None] = lambda _: None,
        workloads: Sequence[Workload] = WORKLOADS,
    ) -> None:
        self.options = options
        self.run_id = entropy.token_bytes(6).hex()
        self._clock = clock
        self._entropy = entropy
        self._phase = phase
        self._workloads = workloads
        self._recorder = Recorder(self.now_ns, told)
        self._over = asyncio.Event()
        self._sightings: list[Sighting] = []
        self._kept: dict[str, list[object] | None] = {}

    def now_ns(self) -> int:
        return int(self._clock.monotonic() * 1e9)

    def stop(self) -> None:
        """End the work early; what is known by then is judged."""
        self._over.set()

    async def run(self) -> Outcome:
        """Raises Unavailable when no node answers, and Unauthorized, Forbidden or InvalidRequest when the first
        write is refused for what it is."""
        options = self.options
        nodes = await connect(
            options.urls,
            api_key=options.api_key,
            agent_id=f"verify-{self.run_id}",
            timeout_s=options.timeout_s,
            entropy=self._entropy,
        )
        run = Run(self.run_id, nodes, self._recorder, self._entropy)
        left: list[str] = []
        try:
            await self._may_write(run)
            started = self.now_ns()
            await self._work(run)
            ended = self.now_ns()
            self._phase("waiting for rest")
            await self._look(run)
        finally:
            if not options.keep:
                self._phase("removing what was written")
                left = await self._clean(run)
            await nodes.close()
        names = tuple(node.name for node in nodes.all)
        history = self._recorder.operations()
        return Outcome(self.run_id, names, started, ended, history, self._kept, self._sightings, left)

    async def _may_write(self, run: Run) -> None:
        """A refusal for what the request is will not pass, and is better told now than as an empty history."""
        key = run.key("probe", 0)
        run.written.add(key)
        try:
            await run.nodes.any().client.put(key, "may I?", namespace=NAMESPACE)
        except Rejected:
            raise
        except SpineError as error:
            self._phase(f"the first write was not answered: {error.message}")

    # ── the work ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, run: Run) -> None:
        actors = [Actor(run, number) for number in range(self.options.clients)]
        watcher = asyncio.create_task(self._watch(run.nodes))
        clients = [asyncio.create_task(self._client(actor)) for actor in actors]
        self._phase("working")
        try:
            await self._wait(self.options.seconds)
            self._over.set()
            await asyncio.gather(*clients)
        finally:
            for task in (watcher, *clients):
                task.cancel()
            await asyncio.gather(watcher, *clients, return_exceptions=True)

    async def _wait(self, seconds: float) -> bool:
        """Whether the work is over before so many seconds have passed."""
        if self._over.is_set() or seconds <= 0:  # with no time to wait, wait_for would not even look
            return self._over.is_set()
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _client(self, actor: Actor) -> None:
        pause = self.options.clients / self.options.rate
        due = self._clock.monotonic() + self._entropy.random() * pause
        while not await self._wait(due - self._clock.monotonic()):
            await self._chosen().act(actor)
            due = max(due + pause, self._clock.monotonic())

    def _chosen(self) -> Workload:
        drawn = self._entropy.random() * sum(workload.weight for workload in self._workloads)
        for workload in self._workloads:
            drawn -= workload.weight
            if drawn < 0:
                return workload
        return self._workloads[-1]

    async def _watch(self, nodes: Nodes) -> None:
        states: dict[str, str] = {}
        leaders: dict[str, tuple[int, str]] = {}
        while True:
            found = await asyncio.gather(*(_status(node) for node in nodes.all))
            now = self.now_ns()
            nodes.down = {node.name for node, (state, _) in zip(nodes.all, found, strict=True) if state == "down"}
            for node, (state, groups) in zip(nodes.all, found, strict=True):
                if states.get(node.name) != state:
                    self._sightings.append(Sighting(now, node.name, state))
                    states[node.name] = state
                for group in groups:
                    if group.get("role") != "leader":
                        continue
                    name, term = str(group["group"]), int(group.get("term", 0))
                    known = leaders.get(name)
                    if known is None or term > known[0]:
                        leaders[name] = (term, node.name)
                        self._sightings.append(Sighting(now, node.name, "leader", name))
            await asyncio.sleep(WATCH_S)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, run: Run) -> None:
        """Read what is there at the end: strong memories once, ring memories on every node until all agree."""
        until = self._clock.monotonic() + REST_S
        for workload in self._workloads:
            keys = sorted(key for key in run.written if key.startswith(run.key(workload.name, "")))
            if workload.finals == "strong":
                await _each(keys, lambda key, of=workload: self._strong(run, of, key, until))  # type: ignore[misc]
            elif workload.finals == "ring":
                await _each(keys, lambda key, of=workload: self._ring(run, of, key, until))  # type: ignore[misc]

    async def _strong(self, run: Run, workload: Workload, key: str, until: float) -> None:
        """A last strong read of the key, which also counts as one in its history."""
        more = {"workload": workload.name, "path": "strong"}
        while True:
            node = run.nodes.any()
            pending = self._recorder.invoke("end", key, "read", node=node.name, **more)
            answered, value = await _value(node, key, None, workload.shows)
            if answered:
                pending.ok(value)
                self._recorder.invoke("end", key, "final", node=node.name, **more).ok(value)
                return
            pending.fail(error="unavailable")
            if self._clock.monotonic() > until:
                self._recorder.invoke("end", key, "final", node=node.name, **more).fail(error="unavailable")
                return
            await asyncio.sleep(AGAIN_S)

    async def _ring(self, run: Run, workload: Workload, key: str, until: float) -> None:
        more = {"workload": workload.name, "path": "ring"}
        while True:
            answers = await asyncio.gather(*(_value(node, key, "eventual", workload.shows) for node in run.nodes.all))
            agreed = all(answered for answered, _ in answers) and len({repr(value) for _, value in answers}) == 1
            if agreed or self._clock.monotonic() > until:
                break
            await asyncio.sleep(AGAIN_S)
        for node, (answered, value) in zip(run.nodes.all, answers, strict=True):
            pending = self._recorder.invoke(f"end {node.name}", key, "final", node=node.name, **more)
            if answered:
                pending.ok(value)
            else:
                pending.fail(error="unavailable")
        if workload.name == "shared":
            self._kept[key] = await self._losers(run, key, until)

    async def _losers(self, run: Run, key: str, until: float) -> list[object] | None:
        """What the conflict logs of all nodes hold of the key; None when one of them did not say."""
        found: list[object] = []
        for node in run.nodes.all:
            while True:
                try:
                    found += [item.get("content") for item in await node.client.conflicts(key)]
                except NotFound:
                    pass  # no memory of this id there: no losers either
                except SpineError:
                    if self._clock.monotonic() > until:
                        return None
                    await asyncio.sleep(AGAIN_S)
                    continue
                break
        return found

    async def _clean(self, run: Run) -> list[str]:
        """Remove every id of the run; those that could not be removed in time."""
        until = self._clock.monotonic() + REST_S
        left: list[str] = []

        async def remove(key: str) -> None:
            while True:
                try:
                    await run.nodes.any().client.delete(key)
                    return
                except NotFound:
                    return
                except SpineError:
                    if self._clock.monotonic() > until:
                        left.append(key)
                        return
                await asyncio.sleep(AGAIN_S)

        await _each(sorted(run.written), remove)
        return sorted(left)


async def _each(keys: Iterable[str], act: Callable[[str], Awaitable[None]]) -> None:
    """Act on all keys, AT_ONCE at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> None:
        async with gate:
            await act(key)

    await asyncio.gather(*(one(key) for key in keys))


async def _value(node: Node, key: str, consistency: str | None, shows: Callable[[Record], Any]) -> tuple[bool, Any]:
    """Whether the node answered, and what. Absent counts as an answer: at once of one replica's own state
    (``eventual``), else when a majority has confirmed it."""
    try:
        return True, shows(await node.client.get(key, consistency=consistency))
    except NotFound as error:
        return consistency == "eventual" or bool(error.details.get("confirmed", True)), None
    except SpineError:
        return False, None


async def _status(node: Node) -> tuple[str, Sequence[dict[str, Any]]]:
    try:
        code, document = await node.client.probe(node.url, "/v1/cluster/status", timeout=PROBE_S)
    except SpineError:
        return "down", ()
    if code != 200:
        return "not ready", ()
    return ("ready" if document.get("ready", True) else "not ready"), document.get("groups", ())
