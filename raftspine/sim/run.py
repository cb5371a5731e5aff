"""One seed, one run: a cluster under load and faults, and what must hold of it.

The load is small and made to be judged. Each ring session owns its keys and writes rising numbers to them, so
every read of it has one smallest right answer; strong counters are raised by compare-and-set from many
clients, so their value says how often an increment happened. Faults come from the seed: crashes with and
without power loss, cuts in one or both directions, resets. At the end all is healed, and then:

* nothing acknowledged is lost, on either path;
* a session never read less than it had written;
* a counter shows every acknowledged increment, and at most the unknown ones beside them;
* all replicas of a group hold the same ring records, vectors and strong state.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raftspine import codec
from raftspine.errors import Conflict, NotFound, SpineError, Unavailable
from raftspine.model import GroupId
from raftspine.node import Node
from raftspine.services.values import ANYTHING, Answer, Ask, Draft, Expect
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster, SimHost
from raftspine.sim.loop import VirtualLoop
from raftspine.sim.net import Weather
from raftspine.storage import keys

T = TypeVar("T")

CALL_SECONDS = 8.0


class Violation(AssertionError):
    """A promise was broken. The message says which, by whom and when."""


class Lost(Exception):
    """The node died or did not answer: nobody knows what became of the call."""


@dataclass
class Report:
    """What a run did, for the person who reads it."""

    seed: int
    seconds: float
    done: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    messages: int = 0

    def count(self, where: dict[str, int], what: str) -> None:
        where[what] = where.get(what, 0) + 1

    def __str__(self) -> str:
        done = ", ".join(f"{n} {what}" for what, n in sorted(self.done.items()))
        faults = ", ".join(f"{n} {what}" for what, n in sorted(self.faults.items())) or "no faults"
        return f"seed {self.seed}: {self.seconds:.0f} virtual seconds, {self.messages} messages; {done}; {faults}"


def play(seed: int, seconds: float = 20.0, *, nodes: int = 3) -> Report:
    """Run one seed. Raises Violation, or whatever a node raised where nobody caught it."""

    async def main(loop: VirtualLoop) -> Report:
        return await _Run(SimCluster(loop, nodes=nodes, weather=_weather(loop)), seed, seconds).go()

    return virtual.run(main, seed=seed)


def _weather(loop: VirtualLoop) -> Weather:
    """Links like TCP; some runs have slow ones."""
    slow = loop.dice.chance(0.3)
    return Weather(delay=(0.0003, 0.03 if slow else 0.003), stragglers=0.01 if slow else 0.001, give_up=2.0)


class _Run:
    def __init__(self, cluster: SimCluster, seed: int, seconds: float) -> None:
        self.cluster = cluster
        self.dice = cluster.dice.fork()
        self.report = Report(seed, seconds)
        self.ends = 0.0
        self.written: dict[str, int] = {}  # ring key -> last acknowledged number
        self.open: dict[str, set[int]] = {}  # ring key -> numbers whose writes failed and may surface any time
        self.raised: dict[str, list[int]] = {}  # counter -> [acknowledged, unknown]

    async def go(self) -> Report:
        cluster = self.cluster
        await cluster.start()
        self.ends = cluster.loop.time() + self.report.seconds
        for n in range(2):
            await self._create_counter(f"counter-{n}")
        work = [self._session(n) for n in range(4)] + [self._increments(n) for n in range(4)]
        await asyncio.gather(self._faults(), *work)
        await self._judge()
        self.report.messages = cluster.network.delivered
        cluster.shut()
        return self.report

    def _over(self) -> bool:
        return self.cluster.loop.time() >= self.ends

    # ── load ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _call(self, host: SimHost, call: Awaitable[T]) -> T:
        """A call to a node that may die under it."""
        try:
            return await asyncio.wait_for(asyncio.ensure_future(call), CALL_SECONDS)
        except TimeoutError:
            raise Lost from None

    def _somewhere(self) -> SimHost | None:
        live = self.cluster.live()
        return self.dice.choice(live) if live else None

    async def _session(self, n: int) -> None:
        """One agent: writes rising numbers to its own keys, reads them anywhere with its token."""
        token: str | None = None
        number = 0
        ids = [f"ring-{n}-{k}" for k in range(5)]
        while not self._over():
            await asyncio.sleep(self.dice.uniform(0.005, 0.1))
            host = self._somewhere()
            if host is None or host.node is None:
                continue
            id = self.dice.choice(ids)
            ask = Ask(agent_id=f"agent-{n}", token=token)
            failed = self.open.setdefault(id, set())
            try:
                if self.dice.chance(0.5):
                    number += 1
                    failed.add(number)
                    answer = await self._call(host, host.node.memories.put(ask, id, Draft(number), ANYTHING))
                    failed.discard(number)
                    self.written[id], token = number, answer.token or token
                    self.report.count(self.report.done, "ring writes")
                else:
                    if self.dice.chance(0.2):
                        ask.token = None  # plain curl: the store must do without
                    await self._read(host, ask, id)
            except (SpineError, Lost):
                self.report.count(self.report.done, "ring refusals")

    async def _read(self, host: SimHost, ask: Ask, id: str) -> None:
        least = self.written.get(id, 0)
        assert host.node is not None, "checked by the caller"
        try:
            answer: Answer = await self._call(host, host.node.memories.get(ask, id))
            found = answer.stored.memory.content if answer.stored else 0
        except NotFound:
            found = 0
        if found < least and found not in self.open[id]:
            how = "with its token" if ask.token else "without a token"
            raise Violation(
                f"seed {self.report.seed} t={self.cluster.loop.time():.3f}: {ask.agent_id} {how} read {found} of {id} "
                f"on {host.id}, after {least} was acknowledged\n{self.cluster.describe()}"
            )
        self.report.count(self.report.done, "ring reads")

    async def _create_counter(self, id: str) -> None:
        host = self.cluster.live()[0]
        assert host.node is not None, "live hosts have a node"
        await self._call(host, host.node.memories.put(Ask(), id, Draft(0, tags=("critical",)), Expect(absent=True)))
        self.raised[id] = [0, 0]

    async def _increments(self, n: int) -> None:
        """One client of the counters: read strongly, then compare-and-set, through any node."""
        key = 0
        while not self._over():
            await asyncio.sleep(self.dice.uniform(0.01, 0.15))
            host = self._somewhere()
            if host is None or host.node is None:
                continue
            id = self.dice.choice(sorted(self.raised))
            tally = self.raised[id]
            memories = host.node.memories
            least = tally[0]
            try:
                now = (await self._call(host, memories.get(Ask(), id))).stored
            except (SpineError, Lost):
                self.report.count(self.report.done, "strong refusals")
                continue
            assert now is not None, "a found memory is stored"
            if now.memory.content < least:
                raise Violation(
                    f"seed {self.report.seed}: a strong read of {id} on {host.id} gave {now.memory.content} after "
                    f"{least} increments were acknowledged\n{self.cluster.describe()}"
                )
            key += 1
            ask = Ask(idempotency_key=f"inc-{n}-{key}")
            draft = Draft(now.memory.content + 1, tags=("critical",))
            try:
                await self._call(host, memories.put(ask, id, draft, Expect(version=now.version)))
                tally[0] += 1
                self.report.count(self.report.done, "increments")
            except (Conflict, Unavailable):
                self.report.count(self.report.done, "strong refusals")
            except (SpineError, Lost):
                tally[1] += 1
                self.report.count(self.report.done, "unknown increments")

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _faults(self) -> None:
        """One fault after the other, each healed before long; never more machines down than a majority bears,
        but now and then all at once."""
        while not self._over():
            await asyncio.sleep(self.dice.uniform(0.5, 3.0))
            await self.dice.choice(
                (self._crash, self._crash, self._crash_all, self._part, self._one_way, self._reset)
            )()

    async def _crash(self) -> None:
        host = self.dice.choice(list(self.cluster.hosts.values()))
        power = self.dice.chance(0.6)
        self.report.count(self.report.faults, "power losses" if power else "crashes")
        host.crash(power=power)
        await asyncio.sleep(self.dice.uniform(0.05, 3.0))
        host.start()

    async def _crash_all(self) -> None:
        if self.dice.chance(0.6):
            return
        self.report.count(self.report.faults, "losses of all nodes")
        for host in self.cluster.hosts.values():
            host.crash(power=True)
        await asyncio.sleep(self.dice.uniform(0.05, 1.0))
        for host in self.cluster.hosts.values():
            host.start()

    async def _part(self) -> None:
        ids = self.cluster.ids
        self.dice.shuffle(ids)
        split = 1 + self.dice.below(len(ids) - 1)
        self.report.count(self.report.faults, "partitions")
        heal = self.cluster.network.partition(ids[:split], ids[split:])
        await asyncio.sleep(self.dice.uniform(0.2, 4.0))
        heal()

    async def _one_way(self) -> None:
        a, b = self.dice.choice(self.cluster.ids), self.dice.choice(self.cluster.ids)
        if a != b:
            self.report.count(self.report.faults, "one-way cuts")
            self.cluster.network.cut(a, b)
            await asyncio.sleep(self.dice.uniform(0.2, 4.0))
            self.cluster.network.heal(a, b)

    async def _reset(self) -> None:
        a, b = self.dice.choice(self.cluster.ids), self.dice.choice(self.cluster.ids)
        if a != b:
            self.report.count(self.report.faults, "resets")
            self.cluster.network.reset(a, b)

    # ── judgement ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        """Everything is healed; the cluster has to come to rest, in agreement, with all that was
        acknowledged."""
        cluster = self.cluster
        for host in cluster.hosts.values():
            if not host.up:
                host.start()
        await cluster.until(lambda: all(cluster.ready(host) for host in cluster.hosts.values()), "all are ready")
        await cluster.until(self._agree, "all replicas agree")
        for host in cluster.live():
            await self._judge_ring(host)
            await self._judge_counters(host)

    def _agree(self) -> bool:
        nodes = [host.node for host in self.cluster.live() if host.node is not None]
        for group in nodes[0].topology.group_ids():
            holders = [node for node in nodes if node.replica.holds(group)]
            if any(node.replica.vector(group) != holders[0].replica.vector(group) for node in holders):
                return False
            if any(_state(node, group) != _state(holders[0], group) for node in holders):
                return False
        return True

    async def _judge_ring(self, host: SimHost) -> None:
        assert host.node is not None, "live hosts have a node"
        for id, acknowledged in self.written.items():
            try:
                stored = (await self._call(host, host.node.memories.get(Ask(), id))).stored
                found = stored.memory.content if stored else 0
            except NotFound:
                found = 0
            if found != acknowledged and found not in self.open[id]:
                raise Violation(
                    f"seed {self.report.seed}: {id} on {host.id} ended as {found}; acknowledged {acknowledged}, "
                    f"failed {sorted(self.open[id])}"
                )

    async def _judge_counters(self, host: SimHost) -> None:
        assert host.node is not None, "live hosts have a node"
        for id, (acknowledged, unknown) in self.raised.items():
            stored = (await self._call(host, host.node.memories.get(Ask(), id))).stored
            found = stored.memory.content if stored else -1
            if not acknowledged <= found <= acknowledged + unknown:
                raise Violation(
                    f"seed {self.report.seed}: {id} on {host.id} ended as {found} with {acknowledged} acknowledged "
                    f"and {unknown} unknown increments"
                )


def _state(node: Node, group: GroupId) -> dict[bytes, Any]:
    """A replica's ring and strong records of a group. Decoded, because equal contexts may be stored in any
    order."""
    rows: dict[bytes, Any] = {}
    for kind in (keys.RING, keys.STRONG):
        for key, data in node.engine.scan(*keys.span(kind, group), limit=100_000):
            rows[key] = codec.decode_any(data)
    return rows
