"""One seed, one run: a cluster under load and faults, and what must hold of it.

The plan (plan.py) says beforehand what the run will be; the faults (faults.py) strike when it says; the auditor
(audit.py) watches every step and ends the run at the first broken promise; the loads (load.py) judge every answer.
When the faults are over all is healed, and then:

* nothing acknowledged is lost, on either path, and nothing deleted comes back;
* a session never read or listed less than it had written;
* a counter shows every acknowledged increment, and at most the unknown ones beside them;
* of concurrent writes each is shown, was seen by what replaced it, or is in the conflict log;
* all replicas of a group hold the same ring records, vectors and strong state, came to it by the same effects of the
  same entries, their indexes say what their records say, and their vectors what their rows say.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from raftspine import codec
from raftspine.cluster.raft_types import RaftLimits
from raftspine.model import GroupId, RingRecord
from raftspine.node import Node, Sizes
from raftspine.sim import coordination, faults
from raftspine.sim import loop as virtual
from raftspine.sim.audit import Auditor
from raftspine.sim.cluster import SimCluster
from raftspine.sim.faults import FAULTS, Scene
from raftspine.sim.load import Counters, Load, Moving, Report, Sessions, Shared, Stage
from raftspine.sim.loop import VirtualLoop, owner_name
from raftspine.sim.narration import Narration
from raftspine.sim.plan import Plan, Strike, draw
from raftspine.storage import keys, memories

__all__ = ["Report", "Violation", "play", "play_plan"]

LOOK_SECONDS = 0.25

SHORT_LOGS = Sizes(RaftLimits(compact_entries=30, keep_entries=5), rotate_bytes=50_000)

CRASHES = frozenset(
    {
        "a background worker ended",
        "a Raft group broke",
        "a Raft worker failed",
        "an answer cannot be sent",
        "call failed",
        "cast failed",
        "cast to an unknown method",
        "catch-up failed",
        "rpc message failed",
        "rpc message of an unknown kind",
    }
)
"""What a node logs as an error only when one of its own workers or handlers raised what nobody expected."""


class Violation(AssertionError):
    """A promise was broken. `rule` names it; the message says what happened, and tells the run's last lines."""

    def __init__(self, rule: str, message: str, at: float) -> None:
        super().__init__(message)
        self.rule = rule
        self.at = at


LOADS: dict[str, tuple[Callable[[Stage], Load], ...]] = {
    "memories": (Sessions, Moving, Shared, Counters),
    "coordination": coordination.LOADS,
}


def play(
    seed: int,
    seconds: float = 20.0,
    *,
    nodes: int | None = None,
    only: str | None = None,
    load: str = "memories",
    listen: Callable[[str], None] | None = None,
) -> Report:
    """Draw a seed's plan and run it. `nodes`: the cluster's size, else drawn; `only`: names of the faults to choose
    from, comma-separated; `load`: what the clients do. Raises Violation, or whatever a node raised where nobody
    caught it."""
    return play_plan(draw(seed, seconds, faults.kinds(only), nodes=nodes, load=load), listen)


def play_plan(plan: Plan, listen: Callable[[str], None] | None = None) -> Report:
    """Run a plan; `listen` gets each line of its story at once."""

    async def main(loop: VirtualLoop) -> Report:
        return await _Run(loop, plan, Narration(loop.time, listen)).go()

    return virtual.run(main, seed=plan.seed)


class _Run:
    def __init__(self, loop: VirtualLoop, plan: Plan, narration: Narration) -> None:
        self.loop = loop
        self.plan = plan
        self.narration = narration
        self.cluster = SimCluster(
            loop,
            nodes=plan.nodes,
            groups=plan.groups,
            durability=plan.durability,
            strategy=plan.strategy,
            gateways=plan.gateways,
            weather=plan.weather(),
            sizes=SHORT_LOGS if plan.short_logs else None,
            narration=narration,
        )
        self.dice = self.cluster.dice.fork()
        size = f"{plan.nodes} node{'s' if plan.nodes > 1 else ''}" + (" (1 gateway)" if plan.gateways else "")
        words = f"{size}, {plan.groups} groups, durability {plan.durability}, by {plan.strategy}"
        self.report = Report(
            plan.seed,
            plan.seconds,
            words + (", slow links" if plan.slow else "") + (", short logs" if plan.short_logs else ""),
        )
        self.stage = Stage(self.cluster, self.dice, self.report, self.violation, plan.pace)
        self.scene = Scene(self.cluster, self.violation)
        self.auditor = Auditor(self.cluster, self.stop)
        kinds = LOADS[plan.load] if plan.pace else ()
        self.loads: list[Load] = [load(self.stage) for load in kinds]

    def violation(self, rule: str, what: str) -> Violation:
        at = self.loop.time()
        text = f"seed {self.plan.seed}: broken at {at:.4f} s: {rule}: {what}"
        return Violation(rule, f"{text}\n\n{self.narration.tail()}\n\n{self.cluster.describe()}", at)

    def stop(self, rule: str, what: str) -> None:
        """End the run here, whoever is called meanwhile."""
        self.loop.fail(self.violation(rule, what))

    async def go(self) -> Report:
        with self._hearing():
            cluster = self.cluster
            self.narration.tell("plan", self.plan.encode())
            await cluster.start()
            self.narration.tell("run", "all nodes are ready, the load begins")
            began = self.loop.time()
            self.stage.ends = began + self.report.seconds
            for load in self.loads:
                await load.start()
            watching = asyncio.ensure_future(self._look())
            workers = [work for load in self.loads for work in load.workers()]
            strikes = [self._strike(strike, began) for strike in self.plan.strikes]
            await asyncio.gather(*strikes, *workers, asyncio.sleep(self.report.seconds))
            self.narration.tell("run", "load and faults are over")
            await self._judge()
            watching.cancel()
            cluster.shut()
        self.report.messages = cluster.network.delivered
        self.report.entries = self.auditor.entries
        self.report.virtual_seconds = self.loop.time()
        self.report.checksum = f"{self.narration.checksum()}-{cluster.network.traffic:08x}"
        return self.report

    async def _strike(self, strike: Strike, began: float) -> None:
        await asyncio.sleep(max(0.0, began + strike.at - self.loop.time()))
        self.narration.tell("fault", f"#{strike.number} {strike.fault}")
        self.report.faults[strike.fault] = self.report.faults.get(strike.fault, 0) + 1
        await FAULTS[strike.fault].act(self.scene, self.plan.dice(strike), strike.lasts)

    async def _look(self) -> None:
        """The auditor's rounds, and a line a second on what was done."""
        before, rounds = dict[str, int](), 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.auditor.look()
            rounds += 1
            if rounds % 4 == 0:
                now = self.report.done
                news = {what: n - before.get(what, 0) for what, n in sorted(now.items()) if n != before.get(what, 0)}
                self.narration.tell("load", ", ".join(f"{n} {what}" for what, n in news.items()) or "nothing")
                before = dict(now)

    # ── what nodes say ────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """While this run lasts, what nodes log becomes part of its story; some of it ends it."""
        before = structlog.get_config()
        structlog.configure(processors=[self._hear], wrapper_class=structlog.make_filtering_bound_logger("warning"))
        try:
            yield
        finally:
            structlog.configure(**before)

    def _hear(self, logger: Any, method: str, event: Any) -> Any:
        what = event.pop("event")
        error = event.pop("exc_info", None)
        error = None if isinstance(error, bool) else error
        fields = " ".join(f"{name}={value}" for name, value in event.items())
        who = owner_name()
        self.narration.tell(who, f"logs: {what} {fields}".rstrip())
        if what in CRASHES:
            trace = "".join(traceback.format_exception(error)) if error else traceback.format_exc()
            self.stop("no crash", f"{who}: {what} {fields}\n{trace}")
        raise structlog.DropEvent

    # ── judgement ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        """Everything is healed; the cluster has to come to rest, in agreement, with all that was acknowledged."""
        cluster = self.cluster
        for host in cluster.hosts.values():
            host.resume()
            await self.scene.revive(host)
        await self._comes("all nodes are ready", lambda: all(cluster.ready(host) for host in cluster.hosts.values()))
        await self._comes("all links are up", self._linked)
        await self._comes("all replicas agree", lambda: self._differing() is None)
        self.narration.tell("run", "all replicas agree; judging what they hold")
        for host in cluster.live():
            assert host.node is not None, "live hosts have a node"
            self._check_rows(host.node)
            for load in self.loads:
                await load.judge(host)

    async def _comes(self, what: str, holds: Callable[[], bool]) -> None:
        try:
            await self.cluster.until(holds, what)
        except AssertionError:
            raise self.violation(
                "rest", f"not in a minute after all was healed: {what}; {self._differing()}"
            ) from None

    def _linked(self) -> bool:
        ids = self.cluster.ids
        return all(self.cluster.network.up(a, b) for a in ids for b in ids if a < b)

    def _differing(self) -> str | None:
        """Where two replicas of a group differ; None when they agree."""
        nodes = [host.node for host in self.cluster.live() if host.node is not None]
        if any(node.topology.known is None for node in nodes):
            return "a node has no table"
        for group in nodes[0].topology.group_ids():
            holders = [node for node in nodes if node.replica.holds(group)]
            first = _state(holders[0], group)
            for node in holders[1:]:
                if node.replica.vector(group) != holders[0].replica.vector(group):
                    return f"{node.id} and {holders[0].id} have seen different writes of group {group}"
                if memories.chain(node.engine, group) != memories.chain(holders[0].engine, group):
                    return f"{node.id} and {holders[0].id} have another history of group {group}"
                other = _state(node, group)
                for key in sorted(first.keys() | other.keys()):
                    if _content(first.get(key)) != _content(other.get(key)):
                        return f"{holders[0].id} and {node.id} differ at {key!r}:\n{first.get(key)}\n{other.get(key)}"
        return None

    def _check_rows(self, node: Node) -> None:
        """The index rows must follow from the records, and the vector from the rows it would be loaded from."""
        for group in node.replica.groups():
            wanted = set()
            for key, record in _state(node, group).items():
                id = keys.id_of_record(key)
                if key[:1] == keys.RING:
                    rows = memories.ring_rows(group, id, None, record)
                else:
                    rows = memories.strong_rows(group, id, None, record)
                wanted |= {index for index, _ in rows[1:]}
            found = {key for key, _ in node.engine.scan(*keys.span(keys.INDEX, group), limit=100_000)}
            if found != wanted:
                raise self.violation("index rows", f"{node.id} group {group}: {sorted(found ^ wanted)} are wrong")
            if memories.load_vector(node.engine, group) != node.replica.vector(group):
                raise self.violation("vector", f"{node.id} group {group}: not what its rows add up to")


def _state(node: Node, group: GroupId) -> dict[bytes, Any]:
    """A replica's ring and strong records of a group. Decoded, because equal contexts may be stored in any order."""
    rows: dict[bytes, Any] = {}
    for kind, decode in ((keys.RING, codec.decode_ring), (keys.STRONG, codec.decode_strong)):
        for key, data in node.engine.scan(*keys.span(kind, group), limit=100_000):
            rows[key] = decode(data)
    return rows


def _content(record: Any) -> Any:
    """What replicas must agree on. The joint context of a ring record may name a version that fell to a promotion on
    one replica and never entered the record on another; its dot is in both vectors."""
    return record.versions if isinstance(record, RingRecord) else record
