"""Results as a document and as a page people read.

The page shows errors, unknown outcomes and the generator's own CPU beside every figure, because a throughput
without them can be made to look like anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raftspine.bench.suite import Row
from raftspine.bench.texts import text_of
from raftspine.bench.workloads import Shape

COLUMNS = (
    "workload", "store", "durability", "by", "ops/s", "p50 ms", "p99 ms", "errors", "unknown", "CPU µs/op",
    "store CPU", "generator CPU", "measure",
)  # fmt: skip

INTRODUCTION = """\
# Benchmarks

Written by `scripts/bench`. The figures belong to the machine below, the ratios carry further. Three node
processes and the load generator share it; the peers' members run afterwards, never at the same time.

Replication 3, {clients} keep-alive connections over all nodes, one operation per HTTP request unless the row
says otherwise, {value_bytes}-byte values, {keys} keys, {distribution}
(0.99) unless the row says otherwise. Closed loop, except where a rate is
given: there latency counts from the moment a request was due. With `interval` a ring write is answered before
its fsync, with `always` after it; the strong path and the peers always sync first. CPU is in shares of one core,
all members together. ZooKeeper speaks no HTTP: its clients are kazoo's, whose CPU is the generator's there.
"""


def document(
    rows: Sequence[Row],
    idle: Sequence[Mapping[str, float]],
    machine: Mapping[str, str],
    shape: Shape,
    clients: int,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "machine": dict(machine),
        "clients": clients,
        "value_bytes": shape.value_bytes,
        "keys": shape.keys,
        "distribution": shape.distribution,
        "idle_nodes": [dict(node) for node in idle],
        **{name: dict(fact) for name, fact in (facts or {}).items()},
        "results": [
            {
                "store": row.store,
                "workload": row.step.workload,
                "durability": row.step.durability,
                "rate": row.step.rate,
                "distribution": row.step.distribution,
                "generator": row.generator,
                "store_cpu_us_per_operation": row.cpu_us,
                "store_cpu_cores": row.cpu,
                "measure": measure(row, rows),
                **row.document,
            }
            for row in rows
        ],
    }


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """One line of the table."""
    found = row.document
    text = text_of(row.step.workload)
    if row.skipped:
        return (text, row.store, row.step.durability, *["-"] * (len(COLUMNS) - 4), f"skipped: {row.skipped}")
    if row.step.distribution != "zipfian":
        text += f", {row.step.distribution} keys"
    if row.step.clients is not None:
        text += f", {row.step.clients} connections"
    if row.step.rate is not None:
        text += f", open loop at {row.step.rate:,.0f}/s"
    return (
        text,
        row.store,
        row.step.durability,
        row.generator,
        f"{found['per_second']:,.0f}",
        f"{found['latency_ms'].get('p50', 0):.1f}",
        f"{found['latency_ms'].get('p99', 0):.1f}",
        str(sum(found["errors"].values())),
        str(found["unknown"]),
        "-" if row.cpu_us is None else f"{row.cpu_us:.0f}",
        "-" if row.cpu is None else f"{row.cpu:.0%}",
        f"{found['generator_cpu']:.0%}" if "generator_cpu" in found else "-",
        measure(row, rows),
    )


def measure(row: Row, rows: Sequence[Row]) -> str:
    """How the figure stands against its bar or its peer."""
    step = row.step
    if row.skipped:
        return f"skipped: {row.skipped}"
    if step.peers:
        return ", ".join(_against(row, peer, rows) for peer in step.peers)
    if step.bar is None:
        return ""
    if step.rate is not None:
        p99 = row.document["latency_ms"]["p99"]
        return f"p99 {'under' if p99 < step.bar else 'not under'} {step.bar:g} ms"
    return f"{row.document['per_second'] / step.bar:.2f} × {step.bar:,.0f}"


def _against(row: Row, peer: str, rows: Sequence[Row]) -> str:
    found = next((other for other in rows if other.step.workload == peer and not other.skipped), None)
    if found is None:
        return f"{peer} not measured"
    name = found.store if found.store != row.store else text_of(peer)
    return f"{row.document['per_second'] / found.document['per_second']:.2f} × {name}"


def markdown(
    rows: Sequence[Row],
    idle: Sequence[Mapping[str, float]],
    machine: Mapping[str, str],
    shape: Shape,
    clients: int,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page docs/benchmarks.md."""
    lines = [
        INTRODUCTION.format(
            clients=clients,
            value_bytes=shape.value_bytes,
            keys=f"{shape.keys:,}",
            distribution=shape.distribution,
        ),
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells(row, rows)) + " |" for row in rows),
        "",
    ]
    if idle:
        cpu = max(node["cpu"] for node in idle)
        rss = max(node["rss_mb"] for node in idle)
        lines += [f"An idle node takes at most {cpu:.1%} of a core and {rss:.0f} MB (own pages).", ""]
    for sentence in sentences(facts or {}):
        lines += [sentence, ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    return "\n".join(lines)


def sentences(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The parts that are no row of the table, a paragraph each."""
    makers = {"handover": _handover, "watch": _watch, "growth": _growth}
    return [make(facts[part]) for part, make in makers.items() if part in facts]


def _handover(found: Mapping[str, Any]) -> str:
    release, granted, lag = found["release"], found["granted"], found["lag"]
    return (
        f"Hand-over of a lock to a waiting client ({found['rounds']} times): the release is answered after "
        f"{release['p50']:.1f} ms (p99 {release['p99']:.1f}), the waiter has the lock {granted['p50']:.1f} ms after "
        f"the release was sent (p99 {granted['p99']:.1f}), which is {lag['p50']:.1f} ms after its answer "
        f"(p99 {lag['p99']:.1f}): {found['lag_round_trips']:.2f} round trips of a request that a node answers by "
        f"itself ({found['round_trip']['p50']:.1f} ms)."
    )


def _watch(found: Mapping[str, Any]) -> str:
    return (
        f"{found['watchers']:,} watchers of one prefix at one node: {found['encodings_per_event']:g} encodings per "
        f"event, {found['per_second']:,} deliveries a second, {found['cpu_us_per_delivery']:.1f} µs of the nodes' "
        f"CPU for each ({found['cpu_us_per_event']:,} µs per event, the change itself included)."
    )


def _growth(found: Mapping[str, Any]) -> str:
    few, many, ratio = found["few"], found["many"], found["ratio"]
    each = ", ".join(f"{key.removesuffix('_ms').removesuffix('_us')} {value:.2f} ×" for key, value in ratio.items())
    return (
        f"With {many['held']:,} held locks and {many['waiting']:,} waiters against {few['held']:,} held locks, an "
        f"acquire + release takes {many['p50_ms']:.1f} ms (p99 {many['p99_ms']:.1f}) against {few['p50_ms']:.1f} ms "
        f"(p99 {few['p99_ms']:.1f}) and {many['cpu_us']:.0f} µs of CPU against {few['cpu_us']:.0f}: {each}. The "
        f"largest node takes {many['rss_mb']:.0f} MB (own pages) against {few['rss_mb']:.0f} MB."
    )
