"""The comparison that docs/benchmarks.md shows: raftspine and its peer, on one machine, in one run.

The rule: what is compared runs minutes apart under the same generator, values, clients and durability, and
never at the same time. Absolute figures belong to the machine; the ratios are what carries over.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raftspine.bench import processes, wrk
from raftspine.bench.etcd import EtcdCluster, EtcdWorkload, installed
from raftspine.bench.load import Asked, Generator, Plan
from raftspine.bench.local import LocalCluster
from raftspine.bench.preload import preload
from raftspine.bench.processes import Usage
from raftspine.bench.wire import Connection, addresses
from raftspine.bench.workloads import MIXES, Shape, Workload
from raftspine.errors import SpineError
from raftspine.ports import Clock

IDLE_S = 5.0
SETTLE_S = 2.0


class Step(NamedTuple):
    """One measurement. `bar` is what it should reach: operations a second, or milliseconds of p99 when there
    is a rate; `peer` the etcd workload it is compared with, and `times` how much faster it should be.
    `distribution` of keys: on the ring, writers of one hot key through three nodes conflict, and every conflict is
    found and settled; so plain writes are measured on uniform keys, and once more on skewed ones to show the cost."""

    workload: str
    durability: str
    rate: float | None = None
    bar: float | None = None
    peer: str | None = None
    times: float = 1.0
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
    Step("strong-write", "always", peer="etcd-put"),
    Step("strong-read", "always", peer="etcd-range"),
)


class Row(NamedTuple):
    """A result: `document` as from `Outcome.document`; `cpu_us` is what the store's processes took per
    operation, in microseconds; `cpu` their share of one core together."""

    store: str
    step: Step
    generator: str
    document: dict[str, Any]
    cpu_us: float | None = None
    cpu: float | None = None


class Suite:
    """One run. `say` is told what is being done; `pause` waits so many seconds."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        say: Callable[[str], None],
        pause: Callable[[float], object],
        clients: int = 64,
        seconds: float = 6.0,
        shape: Shape | None = None,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._say = say
        self._pause = pause
        self._clients = clients
        self._seconds = seconds
        self._shape = shape or Shape()
        self.rows: list[Row] = []
        self.idle: list[dict[str, float]] = []

    def run(self) -> None:
        """Everything; what has been measured so far is in `rows`, also when it raises."""
        for durability in ("interval", "always"):
            self._say(f"starting three nodes, durability {durability}")
            with LocalCluster(self._folder / durability, durability) as cluster:
                self._measure(cluster, [step for step in STEPS if step.durability == durability])
        if installed():
            self._say("starting three etcd members")
            with EtcdCluster(self._folder / "etcd", self._pause) as etcd:
                self._measure_etcd(etcd)

    def _measure(self, cluster: LocalCluster, steps: Sequence[Step]) -> None:
        self._pause(SETTLE_S)
        self._idle(cluster)
        self._say(f"storing {self._shape.keys} memories per path")
        preload(cluster.urls, [step.workload for step in steps], self._shape)
        for step in steps:
            shape = self._shape._replace(distribution=step.distribution)
            self._step(cluster, step, Workload(step.workload, shape))
            if step.rate is None and (step.bar or step.workload == "read") and wrk.available():
                self._wrk(cluster, step)

    def _idle(self, cluster: LocalCluster) -> None:
        before = cluster.usage()
        self._pause(IDLE_S)
        after = cluster.usage()
        self.idle = [
            {"cpu": round(b.since(a) / IDLE_S, 4), "rss_mb": round(b.rss_bytes / 1e6, 1)}
            for a, b in zip(before, after, strict=True)
        ]

    def _step(self, cluster: LocalCluster, step: Step, workload: Workload) -> None:
        self._say(f"raftspine {step.durability}: {MIXES[step.workload].text}")
        before = _total(cluster.usage())
        document = self._generate(
            workload, cluster.urls, step.rate, session=workload.mix.session, clients=step.clients
        )
        self._keep("raftspine", step, "own", document, _total(cluster.usage()).since(before))

    def _wrk(self, cluster: LocalCluster, step: Step) -> None:
        self._say(f"raftspine {step.durability}: the same by wrk")
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

    def _measure_etcd(self, etcd: EtcdCluster) -> None:
        self._fill(etcd)
        for reads in (False, True):
            workload = EtcdWorkload(self._shape, reads=reads)
            self._say(f"etcd: {'linearizable range of one key' if reads else 'put'}")
            before = _total([processes.usage(pid) for pid in etcd.pids])
            document = self._generate(workload, etcd.urls, None, session=False)
            used = _total([processes.usage(pid) for pid in etcd.pids]).since(before)
            self._keep("etcd", Step(workload.name, "always"), "own", document, used)

    def _fill(self, etcd: EtcdCluster) -> None:
        """Every key once, one after the other over several connections, before anything is measured."""
        requests = EtcdWorkload(self._shape, reads=True).everything()
        lanes = [Connection(n, addresses(etcd.urls)[n % 3], keeps_token=False) for n in range(32)]
        try:
            for at in range(0, len(requests), len(lanes)):
                sent = list(zip(lanes, requests[at : at + len(lanes)], strict=False))
                for connection, request in sent:
                    connection.send(request)
                for connection, _ in sent:
                    while not (status := connection.receive()):
                        self._pause(0.0002)
                    if status != 200:
                        raise SpineError(f"etcd answered {status} to a put")
        finally:
            for connection in lanes:
                connection.close()

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
