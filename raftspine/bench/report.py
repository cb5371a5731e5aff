"""Results as a document and as a page people read.

The page shows errors, unknown outcomes and the generator's own CPU beside every figure, because a throughput
without them can be made to look like anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raftspine.bench.suite import Row
from raftspine.bench.workloads import MIXES, Shape

COLUMNS = (
    "workload", "store", "durability", "by", "ops/s", "p50 ms", "p99 ms", "errors", "unknown", "CPU µs/op",
    "store CPU", "generator CPU", "measure",
)  # fmt: skip

INTRODUCTION = """\
# Benchmarks

Written by `scripts/bench`. The figures belong to the machine below, the ratios carry further. Three node
processes and the load generator share it; the etcd members run afterwards, never at the same time.

Replication 3, {clients} keep-alive connections over all nodes, one operation per HTTP request unless the row
says otherwise, {value_bytes}-byte values, {keys} keys, {distribution}
(0.99) unless the row says otherwise. Closed loop, except where a rate is
given: there latency counts from the moment a request was due. With `interval` a ring write is answered before
its fsync, with `always` after it; the strong path and etcd always sync first. CPU is in shares of one core,
all members together.
"""

NAMES = {"etcd-put": "put through the JSON gateway", "etcd-range": "linearizable range of one key"}


def document(
    rows: Sequence[Row],
    idle: Sequence[Mapping[str, float]],
    machine: Mapping[str, str],
    shape: Shape,
    clients: int,
) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "machine": dict(machine),
        "clients": clients,
        "value_bytes": shape.value_bytes,
        "keys": shape.keys,
        "distribution": shape.distribution,
        "idle_nodes": [dict(node) for node in idle],
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
    text = MIXES[row.step.workload].text if row.step.workload in MIXES else NAMES[row.step.workload]
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
    if step.peer is not None:
        peers = [r for r in rows if r.step.workload == step.peer]
        if not peers:
            return "etcd not measured"
        ratio = row.document["per_second"] / peers[0].document["per_second"]
        return f"{ratio:.2f} × etcd"
    if step.bar is None:
        return ""
    if step.rate is not None:
        p99 = row.document["latency_ms"]["p99"]
        return f"p99 {'under' if p99 < step.bar else 'not under'} {step.bar:g} ms"
    return f"{row.document['per_second'] / step.bar:.2f} × {step.bar:,.0f}"


def markdown(
    rows: Sequence[Row],
    idle: Sequence[Mapping[str, float]],
    machine: Mapping[str, str],
    shape: Shape,
    clients: int,
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
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    return "\n".join(lines)
