"""The comparison that docs/benchmarks.md shows: raftspine and its peers, on one machine, in one run.

The rule: what is compared runs minutes apart under the same generator, values, clients and durability, and
never at the same time. Absolute figures belong to the machine; the ratios are what carries over.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raftspine.bench import etcd, growth, handover, processes, watchers, wrk, zookeeper
from raftspine.bench.coordination import Coordinated
from raftspine.bench.etcd import EtcdCluster, EtcdLocks, EtcdWorkload
from raftspine.bench.lanes import drive
from raftspine.bench.load import Asked, Generator, Plan
from raftspine.bench.local import LocalCluster
from raftspine.bench.preload import preload
from raftspine.bench.processes import Usage
from raftspine.bench.texts import text_of
from raftspine.bench.wire import addresses
from raftspine.bench.workloads import MIXES, Shape, Workload
from raftspine.errors import Misuse
from raftspine.ports import Clock

IDLE_S = 5.0
SETTLE_S = 2.0
FILLERS = 32

PARTS = ("memories", "locks", "handover", "watch", "growth")
"""What can be left out: memories against etcd; locks, gates and tasks against etcd and ZooKeeper; how soon a waiter
has a lock; a thousand watchers; a hundred thousand held locks."""


class Step(NamedTuple):
    """One measurement. `bar` is what it should reach: operations a second, or milliseconds of p99 when there
    is a rate; `peers` the workloads it is compared with.
    `distribution` of keys: on the ring, writers of one hot key through three nodes conflict, and every conflict is
    found and settled; so plain writes are measured on uniform keys, and once more on skewed ones to show the cost."""

    workload: str
    durability: str
    rate: float | None = None
    bar: float | None = None
    peers: tuple[str, ...] = ()
    distribution: str = "zipfian"
    clients: int | None = None


STEPS: Sequence[Step] = (
    Step("write", "interval", bar=15_000, distribution="uniform"),
    Step("write", "interval"),
    Step("read", "interval", bar=40_000),
    Step("mixed", "interval", rate=15_000, bar=12.0),
    Step("batch", "interval", distribution="uniform", clients=8),
    Step("write", "always", bar=10_000, distribution="uniform"),
    Step("read", "always"),
    Step("mixed", "always", rate=15_000),
    Step("strong-write", "always", peers=("etcd-put",)),
    Step("strong-read", "always", peers=("etcd-range",)),
)


READ_STEP = Step("strong-read", "always")
"""What a gate's verification is compared with when the memories are left out."""

LOCK_STEPS: Sequence[Step] = (
    Step("lock", "always", peers=("etcd-lock", "zookeeper-lock")),
    Step("lock-one", "always", peers=("etcd-lock-one", "zookeeper-lock-one")),
    Step("renew", "always"),
    Step("gate-verify", "always", peers=("strong-read",)),
    Step("gate-pass", "always"),
    Step("task", "always"),
)


class Row(NamedTuple):
    """A result: `document` as from `Outcome.document`; `cpu_us` is what the store's processes took per
    operation, in microseconds; `cpu` their share of one core together; `skipped`: why there is no result."""

    store: str
    step: Step
    generator: str
    document: dict[str, Any]
    cpu_us: float | None = None
    cpu: float | None = None
    skipped: str = ""


class Suite:
    """One run. `say` is told what is being done; `step` the same, once for each measurement of `total()`; `pause`
    waits so many seconds. `facts`: what the parts beside the table came to. Raises Misuse for a part that is none."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        say: Callable[[str], None],
        step: Callable[[str], None],
        pause: Callable[[float], object],
        clients: int = 64,
        seconds: float = 6.0,
        shape: Shape | None = None,
        parts: Sequence[str] = PARTS,
    ) -> None:
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise Misuse(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        self._folder = folder
        self._clock = clock
        self._say = say
        self._begin = step
        self._parts = frozenset(parts)
        self._pause = pause
        self._clients = clients
        self._seconds = seconds
        self._shape = shape or Shape()
        self.rows: list[Row] = []
        self.idle: list[dict[str, float]] = []
        self.facts: dict[str, dict[str, Any]] = {}

    def total(self) -> int:
        """How many measurements there will be, those that are skipped included."""
        steps = [step for durability in ("interval", "always") for step in self._steps(durability)]
        by_wrk = sum(self._by_wrk(step) for step in steps)
        peers = 2 * ("memories" in self._parts) + 4 * ("locks" in self._parts)
        return len(steps) + by_wrk + peers + len(self._parts & {"handover", "watch", "growth"})

    def run(self) -> None:
        """Everything; what has been measured so far is in `rows` and `facts`, also when it raises."""
        beside = self._parts & {"handover", "watch"}
        for durability in ("interval", "always"):
            steps = self._steps(durability)
            if steps or (beside and durability == "always"):
                self._say(f"starting three nodes, durability {durability}")
                with LocalCluster(self._folder / durability, durability) as cluster:
                    self._measure(cluster, steps)
                    if durability == "always":
                        self._beside(cluster)
        if "growth" in self._parts:
            self._growth()
        if self._parts & {"memories", "locks"}:
            self._etcd()
        if "locks" in self._parts:
            self._zookeeper()

    def _steps(self, durability: str) -> list[Step]:
        chosen = [*STEPS] if "memories" in self._parts else []
        if "locks" in self._parts:
            chosen += LOCK_STEPS if chosen else (READ_STEP, *LOCK_STEPS)
        return [step for step in chosen if step.durability == durability]

    def _by_wrk(self, step: Step) -> bool:
        plain = step.workload in MIXES and step.rate is None
        return plain and bool(step.bar or step.workload == "read") and wrk.available()

    def _measure(self, cluster: LocalCluster, steps: Sequence[Step]) -> None:
        self._pause(SETTLE_S)
        if "memories" in self._parts:
            self._idle(cluster)
        stored = [step.workload for step in steps if step.workload in MIXES]
        if stored:
            self._say(f"storing {self._shape.keys} memories per path")
            preload(cluster.urls, stored, self._shape)
        for step in steps:
            if step.workload in MIXES:
                workload = Workload(step.workload, self._shape._replace(distribution=step.distribution))
                self._step(cluster, step, workload, session=workload.mix.session)
            else:
                self._step(cluster, step, Coordinated(step.workload), session=True)
            if self._by_wrk(step):
                self._wrk(cluster, step)

    def _beside(self, cluster: LocalCluster) -> None:
        """What is no throughput, on the cluster that is there."""
        if "handover" in self._parts:
            self._begin("raftspine: handing a lock over to who waits")
            self.facts["handover"] = handover.measure(cluster.urls, self._clock, pause=self._pause)
        if "watch" in self._parts:
            self._begin(f"raftspine: {watchers.WATCHERS:,} watchers of one prefix")
            self.facts["watch"] = watchers.measure(cluster.urls, self._clock, lambda: _total(cluster.usage()))

    def _growth(self) -> None:
        self._begin(f"raftspine: {growth.HELD:,} held locks and {growth.WAITING:,} waiters")
        with LocalCluster(self._folder / "growth", "always") as cluster:
            self._pause(SETTLE_S)
            self.facts["growth"] = growth.measure(
                cluster.urls,
                self._clock,
                cluster.usage,
                say=self._say,
                pause=self._pause,
                seconds=self._seconds,
            )

    def _idle(self, cluster: LocalCluster) -> None:
        before = cluster.usage()
        self._pause(IDLE_S)
        after = cluster.usage()
        self.idle = [
            {"cpu": round(b.since(a) / IDLE_S, 4), "rss_mb": round(b.rss_bytes / 1e6, 1)}
            for a, b in zip(before, after, strict=True)
        ]

    def _step(self, cluster: LocalCluster, step: Step, workload: Asked, *, session: bool) -> None:
        self._begin(f"raftspine {step.durability}: {text_of(step.workload)}")
        before = _total(cluster.usage())
        document = self._generate(workload, cluster.urls, step.rate, session=session, clients=step.clients)
        self._keep("raftspine", step, "own", document, _total(cluster.usage()).since(before))

    def _wrk(self, cluster: LocalCluster, step: Step) -> None:
        self._begin(f"raftspine {step.durability}: the same by wrk")
        before = _total(cluster.usage())
        document = wrk.run(
            step.workload,
            addresses(cluster.urls),
            self._shape._replace(distribution=step.distribution),
            clients=self._clients,
            seconds=self._seconds,
            clock=self._clock,
        )
        self._keep("raftspine", step, "wrk", document, _total(cluster.usage()).since(before))

    def _etcd(self) -> None:
        """Puts and reads beside the memories, its locks beside ours."""
        workloads: list[tuple[Asked, bool]] = []
        if "memories" in self._parts:
            workloads += [(EtcdWorkload(self._shape, reads=reads), False) for reads in (False, True)]
        if "locks" in self._parts:
            workloads += [(EtcdLocks(one_name=one), True) for one in (False, True)]
        if not etcd.installed():
            for workload, _ in workloads:
                self._skip("etcd", workload.name, "not installed")
            return
        self._say("starting three etcd members")
        with EtcdCluster(self._folder / "etcd", self._pause) as members:
            if "memories" in self._parts:
                filling = EtcdWorkload(self._shape, reads=True).everything()
                drive(addresses(members.urls), filling, FILLERS, self._clock)
            for workload, session in workloads:
                self._begin(f"etcd: {text_of(workload.name)}")
                before = _used(members.pids)
                document = self._generate(workload, members.urls, None, session=session)
                self._keep("etcd", Step(workload.name, "always"), "own", document, _used(members.pids) - before)

    def _zookeeper(self) -> None:
        names = {"zookeeper-lock": False, "zookeeper-lock-one": True}
        if missing := zookeeper.missing():
            for name in names:
                self._skip("zookeeper", name, missing)
            return
        self._say("starting three ZooKeeper servers")
        with zookeeper.ZooKeeperCluster(self._folder / "zookeeper", self._pause) as servers:
            for name, one_name in names.items():
                self._begin(f"ZooKeeper: {text_of(name)}")
                before = _used(servers.pids)
                outcome = zookeeper.run(
                    servers.hosts,
                    one_name=one_name,
                    clients=self._clients,
                    seconds=self._seconds,
                    clock=self._clock,
                )
                used = _used(servers.pids) - before
                self._keep("zookeeper", Step(name, "always"), "kazoo", outcome.document(), used)

    def _skip(self, store: str, workload: str, why: str) -> None:
        self._begin(f"{store}: {text_of(workload)}: skipped, {why}")
        self.rows.append(Row(store, Step(workload, "always"), "-", {}, skipped=why))

    def _generate(
        self,
        workload: Asked,
        urls: Sequence[str],
        rate: float | None,
        *,
        session: bool,
        clients: int | None = None,
    ) -> dict[str, Any]:
        plan = Plan(addresses(urls), clients or self._clients, self._seconds, 1.0, rate, session)
        return Generator(workload, plan, self._clock).run().document()

    def _keep(self, store: str, step: Step, generator: str, document: dict[str, Any], cpu_s: float) -> None:
        """The processes' time covers warm-up and late answers too, so it is spread over all of these."""
        operations = document.get("total_operations", document["operations"])
        seconds = document.get("total_seconds", document["seconds"])
        each = round(cpu_s * 1e6 / operations, 1) if operations else None
        self.rows.append(Row(store, step, generator, document, each, round(cpu_s / seconds, 2)))


def _total(usages: Sequence[Usage]) -> Usage:
    return Usage(sum(u.cpu_s for u in usages), sum(u.rss_bytes for u in usages))


def _used(pids: Sequence[int]) -> float:
    """Seconds of CPU that these processes have used so far."""
    return _total([processes.usage(pid) for pid in pids]).cpu_s
