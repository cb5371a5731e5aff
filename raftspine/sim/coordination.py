"""Load"a ttl is a lower bound", s on locks, tasks, gates and watchers, made to be judged as those of load.py are.

What is held against the cluster, whatever crashes, is cut off or loses power meanwhile:

* `Locks`: a lock's tokens rise with every grant; no token is called valid once a higher one was given; a lease that
  was granted or renewed is nobody else's before its time is over; a counter that is raised only under the lock's
  guard never loses an increment.
* `Tasks`: each task is completed once, and everybody is told that one result, which its `then` has written.
* `Gates`: a gate of n uses lets n through; a request is admitted only with its approval, and not while a freeze that
  was acknowledged holds; verification says no from the moment that a freeze was acknowledged.
* `Watchers`: the events of each shard group come without a gap and once, at whichever node one goes on.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raftspine.core.ledger.gate_commands import AdmitRequest, ApproveRequest, CompleteRequest, PutFreeze
from raftspine.core.ledger.gate_policy import Approval, Policy
from raftspine.core.ledger.memory_commands import Guard, PutMemory
from raftspine.core.ledger.task_commands import PutGate
from raftspine.errors import Conflict, Gone, NotFound, Rejected, SpineError, Unavailable
from raftspine.model import Memory
from raftspine.node import Node
from raftspine.services.coordination.door import Caller
from raftspine.services.coordination.locks import Want
from raftspine.services.coordination.service import Coordination
from raftspine.services.coordination.tasks import Job
from raftspine.services.coordination.watch import Filter
from raftspine.services.values import ANYTHING, Answer, Ask, Draft, Expect
from raftspine.sim.cluster import Lost, SimHost
from raftspine.sim.load import Stage

CLOCKS_AGREE = 0.99
"""Of a span of time measured by one node, what has certainly passed by another's clock."""


@dataclass
class _Held:
    """What is known of one lock. granted: the highest token given; until: the holder's time ends here, unless
    `letting_go` says that it may have given the lock back."""

    id: str
    granted: int = 0
    until: float = 0.0
    letting_go: bool = True
    done: int = 0
    unknown: int = 0

    @property
    def lock(self) -> str:
        return f"{{{self.id}}}/lock"


def _node(host: SimHost) -> Node:
    """A host's node, which lived a moment ago."""
    if host.node is None:
        raise Lost
    return host.node


def _on(host: SimHost) -> Coordination:
    return _node(host).coordination


async def _memory(id: str, node: Node) -> Answer:
    return await node.memories.get(Ask(), id)


async def _task(id: str, node: Node) -> dict[str, Any]:
    return await node.coordination.tasks.show(Tasks.QUEUE, id)


class Locks:
    """Agents that raise counters under locks, and now and then stall beyond their lease."""

    def __init__(self, stage: Stage, locks: int = 2, agents: int = 5) -> None:
        self.stage = stage
        self._held = [_Held(f"guarded-{n}") for n in range(locks)]
        self._agents = agents

    async def start(self) -> None:
        host = self.stage.cluster.live()[0]
        for held in self._held:
            draft = Draft(0, tags=("critical",))
            await self.stage.call(host, _node(host).memories.put(Ask(), held.id, draft, Expect(absent=True)))

    def workers(self) -> list[Any]:
        return [self._agent(n) for n in range(self._agents)]

    def _host(self) -> SimHost | None:
        host = self.stage.somewhere()
        return None if host is None or host.node is None else host

    async def _agent(self, n: int) -> None:
        stage, dice = self.stage, self.stage.dice
        while not stage.over():
            await stage.pause(0.01, 0.3)
            host = self._host()
            if host is None:
                continue
            held = dice.choice(self._held)
            try:
                await self._hold(host, held, n)
            except (SpineError, Lost):
                stage.report.did("lock refusals")

    async def _hold(self, host: SimHost, held: _Held, n: int) -> None:
        stage, dice = self.stage, self.stage.dice
        ttl_ms = dice.choice((2000, 3000, 6000))
        want = Want(f"agent-{n}", ttl_ms, wait_ms=dice.choice((0, 500, 3000)))
        before, caller = held.granted, Caller(f"agent-{n}")
        lease = await stage.call(host, _on(host).locks.acquire(caller, held.lock, want))
        token = self._granted(host, held, lease, before)
        for _ in range(dice.below(4)):
            await stage.pause(0.0, 0.4)
            host = self._host() or host
            if dice.chance(0.4):
                await self._renew(host, held, lease["lease_id"], token)
            elif dice.chance(0.3):
                await self._check(host, held)
            elif stage.cluster.config.partitioning.strategy == "id":
                await self._raise(host, held, token)
        if held.granted == token:
            held.letting_go = True
        await stage.call(host, _on(host).locks.release(caller, held.lock, lease["lease_id"], token))
        stage.report.did("releases")

    def _granted(self, host: SimHost, held: _Held, lease: dict[str, Any], before: int) -> int:
        token, now = int(lease["fencing_token"]), self.stage.cluster.loop.time()
        if token <= before:
            raise self.stage.broken("tokens rise", f"{held.lock}: token {token} was given after {before}")
        if token > held.granted:
            if not held.letting_go and now < held.until:
                raise self.stage.broken(
                    "a ttl is a lower bound",
                    f"{held.lock}: {token} was granted {held.until - now:.3f} s before its time",
                )
            held.granted, held.letting_go = token, False
            held.until = self._until(host, lease)
        self.stage.report.did("grants")
        return token

    def _until(self, host: SimHost, lease: dict[str, Any]) -> float:
        """A lease's end on the loop's clock, at least."""
        return self.stage.cluster.loop.time() + float(lease["ttl_remaining_ms"]) / 1000 * CLOCKS_AGREE - 0.005

    async def _renew(self, host: SimHost, held: _Held, lease: str, token: int) -> None:
        renewed = await self.stage.call(host, _on(host).locks.renew(held.lock, lease, token))
        if held.granted == token:
            held.until = max(held.until, self._until(host, renewed))
        self.stage.report.did("renewals")

    async def _check(self, host: SimHost, held: _Held) -> None:
        token, highest = self.stage.dice.choice((held.granted, held.granted - 1)), held.granted
        if token < 1:
            return
        found = await self.stage.call(host, _on(host).locks.check(held.lock, token))
        if found["valid"] and token < highest:
            raise self.stage.broken("one holder", f"{held.lock}: {token} is called valid after {highest} was given")
        self.stage.report.did("checks")

    async def _raise(self, host: SimHost, held: _Held, token: int) -> None:
        """Read, then write one more, with nothing but the guard to protect it."""
        stage = self.stage
        stored = (await stage.call(host, _node(host).memories.get(Ask(), held.id))).stored
        assert stored is not None, "a found memory is stored"
        await stage.pause(0.0, 0.3 if stage.dice.chance(0.7) else 5.0)
        ask = Ask(guards=(Guard(held.lock, token),))
        draft = Draft(stored.memory.content + 1, tags=("critical",))
        try:
            await stage.call(host, _node(host).memories.put(ask, held.id, draft, ANYTHING))
            held.done += 1
            stage.report.did("guarded writes")
        except (Conflict, Unavailable):
            raise
        except (SpineError, Lost):
            held.unknown += 1
            raise

    async def judge(self, host: SimHost) -> None:
        for held in self._held:
            stored = (await self.stage.insist(host, partial(_memory, held.id))).stored
            found = stored.memory.content if stored else -1
            if not held.done <= found <= held.done + held.unknown:
                raise self.stage.broken(
                    "guarded writes",
                    f"{held.id} on {host.id} ended as {found} with {held.done} written and {held.unknown} unknown",
                )


class Tasks:
    """Producers with requests that may be repeated, and workers that are slow, stall or fail."""

    QUEUE = "{work}/queue"

    def __init__(self, stage: Stage, workers: int = 3) -> None:
        self.stage = stage
        self._workers = workers
        self._made: list[str] = []
        self._results: dict[str, Any] = {}
        self._first: dict[str, int] = {}
        self._number = 0

    async def start(self) -> None:
        pass

    def workers(self) -> list[Any]:
        return [self._producer(), *(self._worker(n) for n in range(self._workers))]

    async def _producer(self) -> None:
        stage = self.stage
        while not stage.over():
            await stage.pause(0.05, 0.5)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            id = f"task-{len(self._made)}-{self._number}"
            self._number += 1
            try:
                await stage.call(host, _on(host).tasks.enqueue(Caller(), self.QUEUE, Job(id, id)))
                self._made.append(id)
                stage.report.did("tasks")
            except (SpineError, Lost):
                stage.report.did("task refusals")

    async def _worker(self, n: int) -> None:
        stage, dice = self.stage, self.stage.dice
        while not stage.over():
            await stage.pause(0.0, 0.2)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            try:
                claimed = await stage.call(
                    host, _on(host).tasks.claim(
                        Caller(f"w{n}"), self.QUEUE, count=1 + dice.below(2), owner="", lease_ms=2000,
                        wait_ms=dice.choice((0, 1000)), session="",
                    )
                )  # fmt: skip
                for task in claimed:
                    await self._work(n, task)
            except (SpineError, Lost):
                stage.report.did("task refusals")

    async def _work(self, n: int, task: dict[str, Any]) -> None:
        stage, dice = self.stage, self.stage.dice
        await stage.pause(0.0, 0.3 if dice.chance(0.8) else 4.0)
        host = stage.somewhere()
        if host is None or host.node is None:
            return
        tasks, id, token = _on(host).tasks, task["id"], task["claim_token"]
        if dice.chance(0.2):
            await stage.call(host, tasks.extend(Caller(), self.QUEUE, id, token, None))
        if dice.chance(0.1):
            await stage.call(host, tasks.fail(Caller(), self.QUEUE, id, token, error="no", retry=True, delay_ms=None))
            return
        result = f"{n}:{token}"
        written = PutMemory(f"{{work}}-{id}", Memory(result, tags=("critical",)))
        then = (written,) if self._same_group(host, written.id) else ()
        done = await stage.call(host, tasks.complete(Caller(), self.QUEUE, id, token, result, then))
        self._told(id, done["result"])
        if done["first"]:
            self._first[id] = self._first.get(id, 0) + 1
            if self._first[id] > 1:
                raise stage.broken("once", f"{id} was completed twice")
        stage.report.did("completions")

    def _same_group(self, host: SimHost, id: str) -> bool:
        node = _node(host)
        if node.topology.strategy != "id":
            return False
        return node.topology.group_of(id) == node.coordination.door.group(self.QUEUE)

    def _told(self, id: str, result: Any) -> None:
        if self._results.setdefault(id, result) != result:
            raise self.stage.broken("once", f"{id} ended as {result} and as {self._results[id]}")

    async def judge(self, host: SimHost) -> None:
        for id in self._made:
            shown = await self.stage.insist(host, partial(_task, id))
            if shown["state"] == "done":
                self._told(id, shown["result"])
            elif id in self._results:
                raise self.stage.broken("once", f"{id} was completed, and is {shown['state']} on {host.id}")
        for id, result in self._results.items():
            memory = f"{{work}}-{id}"
            if not self._same_group(host, memory):
                continue
            try:
                stored = (await self.stage.insist(host, partial(_memory, memory))).stored
            except NotFound:
                stored = None
            if stored is None or stored.memory.content != result:
                raise self.stage.broken("then", f"{id} ended as {result}, and its memory says otherwise on {host.id}")


@dataclass
class _Frozen:
    """acknowledged: nothing may pass from here on, until `lifting`."""

    id: str = ""
    acknowledged: bool = False
    number: int = 0


@dataclass
class _Uses:
    """A simple gate's life: passages known of, and those nobody knows of."""

    name: str
    uses: int
    passed: set[int] = field(default_factory=set)


class Gates:
    """Deployments through a gate with approvals, freezes across them, and a simple gate with uses."""

    GATE = "deploy"
    USES = 25

    def __init__(self, stage: Stage, deployers: int = 3) -> None:
        self.stage = stage
        self._deployers = deployers
        self._frozen = _Frozen()
        self._uses = _Uses("narrow", self.USES)
        self._number = 0
        self._through: dict[int, str] = {}

    async def start(self) -> None:
        host = self.stage.cluster.live()[0]
        gates, caller = _on(host).gates, Caller("ops")
        policy = Policy(conditions=(Approval(),), concurrent=2, open_seconds=2, queue_seconds=1, supersede=False)
        await self.stage.call(host, gates.put(caller, self.GATE, PutGate(self.GATE, "open", policy=policy)))
        await self.stage.call(host, gates.put(caller, self._uses.name, PutGate(self._uses.name, "open", self.USES)))

    def workers(self) -> list[Any]:
        return [*(self._deployer(n) for n in range(self._deployers)), self._freezer(), self._passer(), self._passer()]

    async def _deployer(self, n: int) -> None:
        stage = self.stage
        while not stage.over():
            await stage.pause(0.0, 0.2)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            try:
                await self._deploy(host, n)
            except (SpineError, Lost):
                stage.report.did("gate refusals")

    async def _deploy(self, host: SimHost, n: int) -> None:
        stage, dice, gates = self.stage, self.stage.dice, _on(host).gates
        self._number += 1
        id, digest, caller = f"r{self._number}", f"sha256:{self._number}", Caller(f"dev-{n}")
        await stage.call(host, gates.request(caller, self.GATE, id, digest, "", None))
        approving = dice.chance(0.9)
        if approving:
            command = ApproveRequest(self.GATE, id, digest)
            await stage.call(host, gates.act(Caller("boss"), self.GATE, command))
        frozen = self._freeze_in_force()
        admit = AdmitRequest(self.GATE, id, digest, True)
        admitted = await stage.call(host, gates.admit(caller, admit, dice.choice((0, 2000))))
        token = int(admitted["fencing_token"])
        if not approving:
            raise stage.broken("approvals", f"{id} went through without an approval")
        if frozen and frozen == self._freeze_in_force():
            raise stage.broken("freezes", f"{id} went through a freeze")
        if token in self._through:
            raise stage.broken("tokens rise", f"{id} and {self._through[token]} have one token")
        self._through[token] = id
        stage.report.did("admissions")
        await stage.pause(0.0, 0.5)
        frozen = self._freeze_in_force()
        try:
            await stage.call(host, gates.verify(self.GATE, id, token, digest))
            if frozen and frozen == self._freeze_in_force():
                raise stage.broken("freezes", f"{id} was verified in a freeze")
        except Conflict:
            stage.report.did("verifications refused")
        await stage.call(host, gates.act(caller, self.GATE, CompleteRequest(self.GATE, id, token, True)))

    def _freeze_in_force(self) -> int:
        """The number of the freeze that everybody has acknowledged and nobody lifts; 0: none."""
        return self._frozen.number if self._frozen.acknowledged else 0

    async def _freezer(self) -> None:
        stage, frozen = self.stage, self._frozen
        while not stage.over():
            await stage.pause(1.0, 4.0)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            gates, caller = _on(host).gates, Caller("ops")
            frozen.number += 1
            frozen.id = f"f{frozen.number}"
            try:
                await stage.call(host, gates.freeze(caller, PutFreeze(frozen.id, reason="a drill")))
                frozen.acknowledged = True
                stage.report.did("freezes")
                await stage.pause(0.2, 2.0)
            except (SpineError, Lost):
                stage.report.did("freeze refusals")
            frozen.acknowledged = False
            await self._lift(frozen.id)

    async def _lift(self, id: str) -> None:
        while not self.stage.over():
            host = self.stage.somewhere()
            if host is not None and host.node is not None:
                try:
                    await self.stage.call(host, _on(host).gates.unfreeze(Caller("ops"), id, ""))
                    return
                except NotFound:
                    return
                except (SpineError, Lost):
                    pass
            await self.stage.pause(0.1, 0.5)

    async def _passer(self) -> None:
        stage = self.stage
        while not stage.over():
            await stage.pause(0.1, 0.8)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            try:
                passed = await stage.call(host, _on(host).gates.pass_(Caller("x"), self._uses.name))
            except (SpineError, Lost):
                continue
            token = int(passed["fencing_token"])
            if token in self._uses.passed:
                raise stage.broken("tokens rise", "two passages have one token")
            self._uses.passed.add(token)
            if len(self._uses.passed) > self.USES:
                raise stage.broken("uses", f"a gate of {self.USES} uses let {len(self._uses.passed)} through")
            stage.report.did("passages")

    async def judge(self, host: SimHost) -> None:
        shown = await self.stage.insist(host, lambda node: node.coordination.gates.show(self._uses.name))
        if shown["passes"] < len(self._uses.passed) or shown["passes"] + shown["uses_left"] != self.USES:
            raise self.stage.broken(
                "uses", f"{host.id} tells of {shown['passes']} passages, {shown['uses_left']} uses left"
            )


class Watchers:
    """Watchers that go from node to node with their token."""

    def __init__(self, stage: Stage, watchers: int = 2) -> None:
        self.stage = stage
        self._watchers = watchers
        self._token: str | None = None

    async def start(self) -> None:
        host = self.stage.cluster.live()[0]
        self._token = (await self.stage.call(host, _on(host).watch.join(Filter(), None))).token()

    def workers(self) -> list[Any]:
        return [self._watch() for _ in range(self._watchers)]

    async def _watch(self) -> None:
        stage, token = self.stage, self._token
        last: dict[int, int] = {}
        while not stage.over():
            await stage.pause(0.0, 0.3)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            try:
                token = await stage.call(host, self._page(_node(host), token, last))
            except Gone as error:
                raise stage.broken("watch", f"{host.id}: {error.message}") from error
            except Rejected as error:
                raise stage.broken("watch", f"{host.id} refused a token: {error.message}") from error
            except (SpineError, Lost):
                stage.report.did("watch refusals")

    async def _page(self, node: Node, token: str | None, last: dict[int, int]) -> str:
        watcher = await node.coordination.watch.join(Filter(), token)
        try:
            found = await watcher.next(1 + self.stage.dice.below(20), 1.0)
        finally:
            watcher.close()
        for seen, _ in found:
            before = last.get(seen.group)
            if before is not None and seen.number != before + 1:
                raise self.stage.broken(
                    "watch", f"{node.id}: event {seen.number} of group {seen.group} after {before}"
                )
            last[seen.group] = seen.number
            self.stage.report.did("events")
        return watcher.token()

    async def judge(self, host: SimHost) -> None:
        """What was to be found out was found out on the way."""


LOADS = (Locks, Tasks, Gates, Watchers)
