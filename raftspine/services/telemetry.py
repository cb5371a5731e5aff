"""What the node tells about itself in numbers: Prometheus metrics with units in their names.

Counters and histograms are bound to their labels once; the figures that other parts already keep (vectors, raft
state, queue lengths) are read when the page is asked for, so that measuring costs the hot path nothing.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from raftspine.model import META_GROUP, NodeId
from raftspine.ports import LogStatus

LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)


class Figures(Protocol):
    """What the node can be asked for when metrics are collected."""

    node: NodeId

    def peer_ids(self) -> Iterable[NodeId]: ...
    def lag_seconds(self, peer: NodeId) -> float: ...
    def pending_dots(self, peer: NodeId) -> int: ...
    def log_statuses(self) -> Iterable[LogStatus]: ...
    def partition_skew(self) -> dict[str, float]: ...
    def gauges(self) -> dict[str, tuple[str, float]]: ...
    def counters(self) -> dict[str, tuple[str, float]]: ...


class Telemetry:
    """The node's metric registry. `observe` is the only call on the request path."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._quorum = Counter(
            "spine_quorum_failures_total",
            "Operations that could not reach their quorum, by operation and reason.",
            ("op", "reason"),
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "spine_commit_seconds",
            "Time that a sync of one of the node's logs took.",
            ("log",),
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.lock_wait_seconds = Histogram(
            "spine_lock_wait_seconds",
            "Time that an acquire waited for its lock, granted or not.",
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self._answered: dict[tuple[str, str, int], _Answered] = {}
        self.registry.register(_Requests(self._answered))

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        answered = self._answered.get((route, method, status))
        if answered is None:
            answered = self._answered[(route, method, status)] = _Answered()
        answered.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        answered.seconds += seconds

    def quorum_failure(self, op: str, reason: str) -> None:
        self._quorum.labels(op, reason).inc()

    def watch(self, figures: Figures) -> None:
        """Collect these figures with every page."""
        self.registry.register(_Collected(figures))

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Answered:
    """Requests that were answered alike: how many took up to each bound, and all their seconds."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.seconds = 0.0


class _Requests:
    """The requests as metrics. Counted in plain numbers, since the library's locks and label checks took a fifteenth
    of a read."""

    def __init__(self, answered: dict[tuple[str, str, int], _Answered]) -> None:
        self._answered = answered

    def collect(self) -> Iterable[Metric]:
        latency = HistogramMetricFamily(
            "spine_http_request_seconds",
            "Time from a request's last byte to its reply, by route.",
            labels=["route", "method"],
        )
        count = CounterMetricFamily(
            "spine_http_requests", "Requests answered, by route and status.", labels=["route", "method", "status"]
        )
        by_route: dict[tuple[str, str], list[_Answered]] = {}
        for (route, method, status), answered in self._answered.items():
            count.add_metric([route, method, str(status)], sum(answered.buckets))
            by_route.setdefault((route, method), []).append(answered)
        for labels, all_of_it in by_route.items():
            through = accumulate(sum(column) for column in zip(*(each.buckets for each in all_of_it), strict=True))
            bounds = [*(str(bound) for bound in LATENCY_BUCKETS), "+Inf"]
            total_seconds = sum(each.seconds for each in all_of_it)
            latency.add_metric(list(labels), list(zip(bounds, through, strict=True)), total_seconds)
        return latency, count


class _Collected:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        figures = self._figures
        lag = GaugeMetricFamily(
            "spine_replication_lag_seconds", "How long a peer has been missing ring writes.", labels=["peer"]
        )
        pending = GaugeMetricFamily(
            "spine_pending_dots", "Ring writes a peer has not confirmed on disk.", labels=["peer"]
        )
        for peer in figures.peer_ids():
            lag.add_metric([peer], figures.lag_seconds(peer))
            pending.add_metric([peer], figures.pending_dots(peer))
        yield lag
        yield pending
        yield from self._raft()
        skew = GaugeMetricFamily(
            "spine_partition_skew_ratio", "Largest shard group over the mean, in memories.", labels=["by"]
        )
        for by, value in figures.partition_skew().items():
            skew.add_metric([by], value)
        yield skew
        for name, (text, value) in figures.gauges().items():
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric([], value)
            yield gauge
        for name, (text, value) in figures.counters().items():
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], value)
            yield counter

    def _raft(self) -> Iterable[Metric]:
        names = {
            "leader": "1 where this node leads the group.",
            "term": "Raft term.",
            "commit": "Commit index.",
            "applied": "Applied index.",
            "lag": "Entries committed but not applied here.",
            "quarantined": "1 where this node's state differs from other replicas' and is not shown.",
        }
        families = {
            name: GaugeMetricFamily(f"spine_raft_{name}", text, labels=["group"]) for name, text in names.items()
        }
        for status in self._figures.log_statuses():
            group = "meta" if status.group == META_GROUP else str(status.group)
            families["leader"].add_metric([group], 1.0 if status.role == "leader" else 0.0)
            families["term"].add_metric([group], status.term)
            families["commit"].add_metric([group], status.commit)
            families["applied"].add_metric([group], status.applied)
            families["quarantined"].add_metric([group], 1.0 if status.quarantined else 0.0)
            families["lag"].add_metric([group], max(0, status.commit - status.applied))
        return families.values()
