"""What a run looked like, in figures: how many operations ended how, how fast, and how long nothing could be written.

Pure: from the outcome of a run to plain data, which the terminal, `summary.json` and the report all show.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from raftspine.checkers.history import Operation
from raftspine.checkers.models import applied
from raftspine.verify.judge import Judged, overall
from raftspine.verify.run import Outcome

PATHS = ("strong", "ring")
WRITES = frozenset({"write", "delete", "cas", "add"})
POINTS = (50, 90, 99, 100)


class Gap(NamedTuple):
    """The longest time without a successful write: on `path`, through `node` ("" for any node)."""

    path: str
    node: str
    seconds: float
    from_ns: int
    to_ns: int


def worked(outcome: Outcome, path: str = "", node: str = "") -> list[Operation]:
    """The operations of the clients, without the looks at the end; of one path and node, where given."""
    return [
        op
        for op in outcome.history
        if op.kind not in ("final", "handover")
        and op.process != "end"
        and (not path or op.info.get("path") == path)
        and (not node or op.node == node)
    ]


def percentiles_ms(operations: Iterable[Operation]) -> dict[str, float]:
    """Latencies of what was answered, in milliseconds, by nearest rank; empty without answers."""
    took = sorted((op.completed_at or 0) - op.invoked_at for op in operations if op.ok)
    if not took:
        return {}
    return {
        "max" if point == 100 else f"p{point}": round(took[max(0, -(-len(took) * point // 100) - 1)] / 1e6, 2)
        for point in POINTS
    }


def gaps(outcome: Outcome) -> list[Gap]:
    """For each path: the longest gap through any node, which is what a client with all addresses feels, and through
    each node."""
    return [_gap(outcome, path, node) for path in PATHS for node in ("", *outcome.nodes)]


def _gap(outcome: Outcome, path: str, node: str) -> Gap:
    done = sorted(
        op.completed_at or 0 for op in worked(outcome, path, node) if op.kind in WRITES and op.ok and applied(op)
    )
    marks = [outcome.started_ns, *(min(at, outcome.ended_ns) for at in done), outcome.ended_ns]
    start, end = max(pairwise(marks), key=lambda pair: pair[1] - pair[0])
    return Gap(path, node, round((end - start) / 1e9, 3), start, end)


def counts(operations: Sequence[Operation]) -> dict[str, int]:
    """How many ended how."""
    found = {"ok": 0, "fail": 0, "unknown": 0}
    for op in operations:
        found[op.outcome] += 1
    return {"ok": found["ok"], "refused": found["fail"], "unknown": found["unknown"]}


def document(outcome: Outcome, judged: Sequence[Judged], about: dict[str, Any]) -> dict[str, Any]:
    """`summary.json`: times in seconds since the start of the run unless their name says otherwise."""

    def since(at_ns: int) -> float:
        return round((at_ns - outcome.started_ns) / 1e9, 3)

    return {
        "run": outcome.run_id,
        **about,
        "verdict": overall(judged),
        "seconds": since(outcome.ended_ns),
        "operations": counts(worked(outcome)),
        "checks": [one.document() for one in judged],
        "paths": {
            path: {
                "operations": counts(worked(outcome, path)),
                "write_latency_ms": percentiles_ms(op for op in worked(outcome, path) if op.kind in WRITES),
                "read_latency_ms": percentiles_ms(op for op in worked(outcome, path) if op.kind == "read"),
            }
            for path in PATHS
        },
        "nodes": {node: {path: counts(worked(outcome, path, node)) for path in PATHS} for node in outcome.nodes},
        "write_gaps": [
            {
                "path": gap.path,
                "node": gap.node or None,
                "seconds": gap.seconds,
                "from": since(gap.from_ns),
                "to": since(gap.to_ns),
            }
            for gap in gaps(outcome)
        ],
        "sightings": [
            {
                "at": since(seen.at_ns),
                "node": seen.node,
                "what": seen.what,
                **({"group": seen.group} if seen.group else {}),
            }
            for seen in outcome.sightings
        ],
        "not_removed": outcome.left,
    }
