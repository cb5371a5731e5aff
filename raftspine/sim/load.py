"""Loads made to be judged: each knows, of everything it did, what may be read afterwards and what may not.

A load that only keeps a cluster busy finds crashes. These find broken promises: every write carries a number of its
own, so whatever is read names the write it came from, and each load keeps the short list of answers that are right:

* `Sessions`: agents with keys of their own, written, deleted, read and listed through any node. Right is what was
  acknowledged last, or what an unanswered write may have left; nothing older, and no zombie.
* `Moving`: the same, with tags that send the memory to the log and back to the ring.
* `Shared`: writers that meet on a key. Every acknowledged write is shown, was seen by whoever replaced it, or is in
  the conflict log.
* `Counters`: compare-and-set from many clients; the value says how often an increment happened.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from msgspec import UNSET, UnsetType

from raftspine.errors import Conflict, NotFound, Rejected, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, StrongRecord, Version
from raftspine.node import Node
from raftspine.services.values import ANYTHING, Answer, Ask, Draft, Expect, ListQuery
from raftspine.sim.cluster import Lost, SimCluster, SimHost
from raftspine.sim.loop import Dice

T = TypeVar("T")

JUDGE_ATTEMPTS = 20


@dataclass
class Report:
    """What a run did, for the person who reads it. `checksum` is over its narration and all its messages."""

    seed: int
    seconds: float
    cluster: str = ""
    done: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    messages: int = 0
    entries: int = 0
    virtual_seconds: float = 0.0
    checksum: str = ""

    def did(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def __str__(self) -> str:
        done = ", ".join(f"{n} {what}" for what, n in sorted(self.done.items()))
        faults = ", ".join(f"{n} {what}" for what, n in sorted(self.faults.items())) or "no faults"
        return (
            f"seed {self.seed}: {self.cluster}; {self.seconds:g} virtual seconds of load; {self.messages} messages, "
            f"{self.entries} log entries; {done}; {faults}; checksum {self.checksum}"
        )


class Stage:
    """What the loads of one run share. `broken(rule, what)` makes the violation to be raised."""

    def __init__(
        self,
        cluster: SimCluster,
        dice: Dice,
        report: Report,
        broken: Callable[[str, str], Exception],
        pace: float = 1.0,
    ) -> None:
        self.cluster = cluster
        self.dice = dice
        self.report = report
        self.broken = broken
        self.ends = 0.0
        self._pace = pace

    @property
    def by_tag(self) -> bool:
        """Whether a memory's first tag decides its group. Then an id must keep its tags: written with one before the
        other is heard of, it may come to lie in two groups (services/locate.py says so)."""
        return self.cluster.config.partitioning.strategy == "tag"

    def over(self) -> bool:
        return self.cluster.loop.time() >= self.ends

    async def pause(self, low: float, high: float) -> None:
        await asyncio.sleep(self.dice.uniform(low, high) / self._pace)

    def somewhere(self) -> SimHost | None:
        live = self.cluster.live()
        return self.dice.choice(live) if live else None

    async def call(self, host: SimHost, work: Coroutine[Any, Any, T]) -> T:
        """A call to a node that may die under it. Raises Lost then."""
        return await host.call(work)

    async def insist(self, host: SimHost, ask: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
        """Ask a healed cluster until it answers: leadership may still be moving. Raises what the last attempt did."""
        for attempt in range(1, JUDGE_ATTEMPTS + 1):
            assert host.node is not None, "live hosts have a node"
            try:
                return await host.call(ask(host.node))
            except NotFound as error:
                if error.details["confirmed"] or attempt == JUDGE_ATTEMPTS:
                    raise
            except (Unavailable, Unknown):
                if attempt == JUDGE_ATTEMPTS:
                    raise
            await asyncio.sleep(0.25)
        raise AssertionError("the last attempt returns or raises")


class Load(Protocol):
    async def start(self) -> None:
        """What must be there before the faults begin."""
        ...

    def workers(self) -> list[Any]:
        """Coroutines that run until the stage is over."""
        ...

    async def judge(self, host: SimHost) -> None:
        """Everything is healed and at rest: ask this node. Raises Violation."""
        ...


Tags = tuple[str, ...] | UnsetType


@dataclass
class Story:
    """One key with one writer, who waits for each answer. `value`: the number that the last acknowledged write
    stored, None after a delete. `doubtful`: what unanswered writes stored; each may come to light at any time, and
    any may be what the others were built upon."""

    value: int | None = None
    tags: tuple[str, ...] = ()
    doubtful: set[int | None] = field(default_factory=set)

    def allows(self, found: int | None) -> bool:
        return found == self.value or found in self.doubtful

    def __str__(self) -> str:
        return f"last acknowledged {self.value}, doubtful {sorted(map(str, self.doubtful))}"


class Sessions:
    """Agents with keys of their own. `kinds`: the tags a write may have."""

    name = "ring"
    kinds: tuple[Tags, ...] = ((),)
    deletes = 0.1

    def __init__(self, stage: Stage, agents: int = 4, keys: int = 5) -> None:
        self.stage = stage
        self.stories: dict[str, Story] = {}
        self._agents = agents
        self._keys = keys
        self._number = 0

    async def start(self) -> None:
        pass

    def workers(self) -> list[Any]:
        return [self._agent(n) for n in range(self._agents)]

    async def _agent(self, n: int) -> None:
        stage, dice = self.stage, self.stage.dice
        ids = [f"{self.name}-{n}-{k}" for k in range(self._keys)]
        for id in ids:
            self.stories[id] = Story()
        token: str | None = None
        while not stage.over():
            await stage.pause(0.005, 0.1)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            id, ask = dice.choice(ids), Ask(agent_id=f"agent-{n}", token=token)
            try:
                if dice.chance(0.5):
                    token = await self._write(host, host.node, ask, id) or token
                    continue
                if dice.chance(0.3):
                    ask.token = None  # plain curl: the store must do without
                if dice.chance(0.25):
                    await self._list(host, host.node, ask, f"{self.name}-{n}-", ids)
                else:
                    await self._read(host, host.node, ask, id)
            except (SpineError, Lost):
                stage.report.did(f"{self.name} refusals")

    async def _write(self, host: SimHost, node: Node, ask: Ask, id: str) -> str | None:
        stage, story = self.stage, self.stories[id]
        self._number += 1
        number: int | None = self._number
        tags = stage.dice.choice(self.kinds)
        if stage.by_tag:
            tags = ("critical", "topic") if self.name == "moving" else ("topic",)
        gone = stage.dice.chance(self.deletes)
        if gone:
            number, call = None, node.memories.delete(ask, id, ANYTHING)
        else:
            call = node.memories.put(ask, id, Draft(number, tags=tags), ANYTHING)
        known = number in story.doubtful
        story.doubtful.add(number)
        try:
            answer = await stage.call(host, call)
        except Unavailable as error:
            if not error.details.get("indeterminate") and not known:
                story.doubtful.discard(number)  # it said that nothing was done: hold it to that
            raise
        if not known:
            story.doubtful.discard(number)
        story.value = number
        story.tags = () if gone else story.tags if tags is UNSET else tags
        stage.report.did(f"{self.name} deletes" if gone else f"{self.name} writes")
        return answer.token

    async def _read(self, host: SimHost, node: Node, ask: Ask, id: str) -> None:
        try:
            answer = await self.stage.call(host, node.memories.get(ask, id))
        except NotFound as error:
            if not error.details["confirmed"]:
                raise  # without a leader a strong memory may be missed, and the reply says so
            answer = None
        self._check(host, ask, id, answer, "read")
        self.stage.report.did(f"{self.name} reads")

    def _check(self, host: SimHost, ask: Ask, id: str, answer: Answer | None, how: str) -> None:
        story = self.stories[id]
        found = answer.stored.memory.content if answer and answer.stored else None
        if not story.allows(found):
            token = "with its token" if ask.token else "without a token"
            what = f"{ask.agent_id or 'a stranger'} {token} {how} {found} of {id} on {host.id}; {story}"
            raise self.stage.broken(f"{self.name} {how}", what)
        if answer and answer.stored and not story.doubtful and answer.stored.memory.tags != story.tags:
            what = f"{id} on {host.id} has tags {answer.stored.memory.tags}, not {story.tags}"
            raise self.stage.broken(f"{self.name} tags", what)

    async def _list(self, host: SimHost, node: Node, ask: Ask, prefix: str, ids: list[str]) -> None:
        page = await self.stage.call(host, node.memories.list(ask, ListQuery(prefix=prefix)))
        found = {item.id: item.memory.content for item in page.items}
        for id in ids:
            if not self.stories[id].allows(found.get(id)):
                token = "with its token" if ask.token else "without a token"
                raise self.stage.broken(
                    f"{self.name} list",
                    f"{ask.agent_id} {token} listed {found.get(id)} of {id} on {host.id}; {self.stories[id]}",
                )
        self.stage.report.did(f"{self.name} lists")

    async def judge(self, host: SimHost) -> None:
        assert host.node is not None, "live hosts have a node"
        for id in self.stories:
            ask = Ask(max_wait_ms=5000)
            try:
                answer = await self.stage.insist(host, lambda node, id=id, ask=ask: node.memories.get(ask, id))  # type: ignore[misc]
            except NotFound:
                answer = None
            self._check(host, ask, id, answer, "read in the end")


class Moving(Sessions):
    """Memories that become critical and cease to be. UNSET: written without tags, which keeps those stored."""

    name = "moving"
    kinds: tuple[Tags, ...] = (("critical",), (), (), ("analysis",), UNSET)
    deletes = 0.15

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, agents=3, keys=2)


class Shared:
    """Writers that meet on a key, now and then one with strong tags."""

    WRITES_PER_KEY = 10
    """Below the number of losers the store keeps of an id."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._key = 0
        self._left = self.WRITES_PER_KEY
        self._number = 0
        self._acknowledged: dict[str, dict[tuple[str, int], int]] = {}
        self._replaced: dict[str, dict[tuple[str, int], list[tuple[str, int]]]] = {}
        self._absorbed: dict[str, list[dict[str, int]]] = {}
        stage.cluster.on_start.append(self._watch)

    async def start(self) -> None:
        pass

    def workers(self) -> list[Any]:
        return [self._bursts()]

    def _watch(self, node: Node) -> None:
        """Note, on each node, what each write had seen: contexts alone cannot tell it, for an origin's later dot
        covers its earlier ones whether it saw them or not."""
        replica = node.replica
        write, shadow, adopt = replica.write, replica.shadow, replica.adopt

        def watched_write(group: GroupId, id: str, old: Any, *args: Any, **more: Any) -> Any:
            minted, rival = write(group, id, old, *args, **more)
            for seen in old.versions if old else ():
                self._replaced.setdefault(id, {}).setdefault(seen.dot, []).append(minted.dot)
            return minted, rival

        def watched_shadow(group: GroupId, strong: StrongRecord) -> None:
            self._absorbed.setdefault(strong.id, []).append(strong.shadow)
            shadow(group, strong)

        def watched_adopt(group: GroupId, version: Version) -> None:
            self._absorbed.setdefault(version.id, []).append(version.context)
            adopt(group, version)

        replica.write = watched_write  # type: ignore[method-assign]
        replica.shadow = watched_shadow  # type: ignore[method-assign]
        replica.adopt = watched_adopt  # type: ignore[method-assign]

    async def _bursts(self) -> None:
        stage = self.stage
        while not stage.over():
            await stage.pause(0.02, 0.4)
            await asyncio.gather(*(self._write() for _ in range(1 + stage.dice.below(3))))

    async def _write(self) -> None:
        stage, dice = self.stage, self.stage.dice
        if self._left == 0:
            self._key, self._left = self._key + 1, self.WRITES_PER_KEY
        self._left -= 1
        id = f"shared-{self._key}"
        if dice.chance(0.5):
            await stage.pause(0.0, 0.004)
        host = stage.somewhere()
        if host is None or host.node is None:
            return
        self._number += 1
        number = self._number
        critical = dice.chance(0.08) and not stage.by_tag
        draft = Draft(number, tags=("critical",) if critical else ())
        expect, memories = ANYTHING, host.node.memories
        ask = Ask(idempotency_key=f"shared-{number}" if dice.chance(0.3) else None)
        try:
            if dice.chance(0.2):
                now = (await stage.call(host, memories.get(Ask(), id))).stored
                expect = Expect(version=now.version if now else None)
            answer = await stage.call(host, memories.put(ask, id, draft, expect))
        except (SpineError, Lost):
            stage.report.did("shared refusals")
            return
        stage.report.did("shared writes")
        assert answer.stored is not None, "a write that succeeded has a record"
        kind, _, dot = answer.stored.version.partition("-")
        if kind == "r":
            origin, _, seq = dot.rpartition("-")
            self._acknowledged.setdefault(id, {})[origin, int(seq)] = number

    async def judge(self, host: SimHost) -> None:
        assert host.node is not None, "live hosts have a node"
        stage, node = self.stage, host.node
        for id, acknowledged in self._acknowledged.items():
            group = node.topology.group_of(id)
            shown, kept = None, set[int]()
            try:
                stored = (await stage.insist(host, lambda node, id=id: node.memories.get(Ask(), id))).stored  # type: ignore[misc]
                shown = stored.memory.content if stored else None
            except NotFound:
                pass
            for other in stage.cluster.live():
                assert other.node is not None, "live hosts have a node"
                losers = await stage.insist(other, lambda node, id=id: node.memories.conflicts(Ask(), id))  # type: ignore[misc]
                kept |= {lost.memory.content for lost in losers if lost.memory}
            for dot, number in acknowledged.items():
                if number != shown and number not in kept and not self._was_seen(group, id, dot):
                    raise stage.broken(
                        "lost write", f"{id}: {number} (r-{dot[0]}-{dot[1]}) was acknowledged, and is nowhere"
                    )

    def _was_seen(self, group: GroupId, id: str, dot: tuple[str, int]) -> bool:
        """Whether a write that the cluster has taken up, or the log, was made over this one."""
        nodes = [host.node for host in self.stage.cluster.live() if host.node is not None]
        vector = next(node.replica.vector(group) for node in nodes if node.replica.holds(group))
        if any(vector.covers(*by) for by in self._replaced.get(id, {}).get(dot, ())):
            return True
        return any(seen.get(dot[0], 0) >= dot[1] for seen in self._absorbed.get(id, ()))


class Counters:
    """Strong memories raised by compare-and-set."""

    def __init__(self, stage: Stage, counters: int = 2, clients: int = 4) -> None:
        self.stage = stage
        self._clients = clients
        self._tally = {f"counter-{n}": [0, 0] for n in range(counters)}  # acknowledged, unknown

    async def start(self) -> None:
        host = self.stage.cluster.live()[0]
        node = host.node
        assert node is not None, "live hosts have a node"
        for id in self._tally:
            draft = Draft(0, tags=("critical",))
            await self.stage.call(host, node.memories.put(Ask(), id, draft, Expect(absent=True)))

    def workers(self) -> list[Any]:
        return [self._client(n) for n in range(self._clients)]

    async def _client(self, n: int) -> None:
        """Read strongly, then compare-and-set, through any node."""
        stage, key = self.stage, 0
        while not stage.over():
            await stage.pause(0.01, 0.15)
            host = stage.somewhere()
            if host is None or host.node is None:
                continue
            id = stage.dice.choice(sorted(self._tally))
            tally, memories = self._tally[id], host.node.memories
            least = tally[0]
            try:
                now = (await stage.call(host, memories.get(Ask(), id))).stored
            except (SpineError, Lost):
                stage.report.did("strong refusals")
                continue
            assert now is not None, "a found memory is stored"
            if now.memory.content < least:
                raise stage.broken(
                    "stale strong read", f"a strong read of {id} on {host.id} gave {now.memory.content} after {least}"
                )
            key += 1
            ask = Ask(idempotency_key=f"inc-{n}-{key}")
            draft = Draft(now.memory.content + 1, tags=("critical",))
            try:
                await stage.call(host, memories.put(ask, id, draft, Expect(version=now.version)))
                tally[0] += 1
                stage.report.did("increments")
            except (Conflict, Unavailable):
                stage.report.did("strong refusals")
            except (Rejected, SpineError, Lost):
                tally[1] += 1
                stage.report.did("unknown increments")

    async def judge(self, host: SimHost) -> None:
        assert host.node is not None, "live hosts have a node"
        for id, (acknowledged, unknown) in self._tally.items():
            stored = (await self.stage.insist(host, lambda node, id=id: node.memories.get(Ask(), id))).stored  # type: ignore[misc]
            found = stored.memory.content if stored else -1
            if not acknowledged <= found <= acknowledged + unknown:
                raise self.stage.broken(
                    "counter",
                    f"{id} on {host.id} ended as {found} with {acknowledged} acknowledged and {unknown} unknown",
                )
