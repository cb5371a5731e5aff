"""Pictures of a run as inline SVG: operations over time, latency bands, and the window of a violation.

Two rules: no outcome is told by colour alone (each has a pattern and a word of its own), and no picture needs
anything from outside the page: fills and strokes are classes of its style sheet, so that light and dark come with it.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from raftspine.checkers.history import Operation
from raftspine.checkers.verdict import short
from raftspine.verify.run import Outcome, Sighting
from raftspine.verify.summary import Gap, worked

WIDTH = 760
LEFT = 76
"""Room for the names of nodes and for the figures of an axis."""
RIGHT = 14
ROW = 76
SHOWN_GAP_S = 0.5
"""A shorter pause is the rhythm of the load, not a gap."""

LABEL = 84
"""Room for a word about leaders."""

OUTCOMES = ("ok", "fail", "unknown")
PATTERNS = """<defs>
<pattern id="refused" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" class="refused-back"/><rect width="2.5" height="6" class="refused-line"/></pattern>
<pattern id="unknown" width="6" height="6" patternUnits="userSpaceOnUse">
<rect width="6" height="6" class="unknown-back"/><circle cx="3" cy="3" r="1.5" class="unknown-dot"/></pattern>
<pattern id="down" width="9" height="9" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
<rect width="1.5" height="9" class="down-line"/></pattern></defs>"""


class Scale(NamedTuple):
    """Seconds of the run to pixels."""

    start_ns: int
    end_ns: int

    def x(self, at_ns: float) -> float:
        share = (at_ns - self.start_ns) / max(1, self.end_ns - self.start_ns)
        return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)

    def buckets(self) -> int:
        """Half a second each, between 24 and 120 of them."""
        return max(24, min(120, int((self.end_ns - self.start_ns) / 5e8)))

    def bucket(self, at_ns: float) -> int:
        share = (at_ns - self.start_ns) / max(1, self.end_ns - self.start_ns)
        return min(self.buckets() - 1, max(0, int(share * self.buckets())))

    def edge(self, bucket: int) -> float:
        return LEFT + bucket / self.buckets() * (WIDTH - LEFT - RIGHT)


def of(outcome: Outcome) -> Scale:
    return Scale(outcome.started_ns, outcome.ended_ns)


# ── operations over time ───────────────────────────────────────────────────────────────────────────────────────


def timeline(outcome: Outcome, path: str, gaps: Sequence[Gap]) -> str:
    """A row per node: bars of operations by outcome, times when it was down, the longest gap, new leaders."""
    scale = of(outcome)
    rows = {node: _bars(worked(outcome, path, node), scale) for node in outcome.nodes}
    most = max((sum(counts) for bars in rows.values() for counts in bars), default=0) or 1
    height = 14 + ROW * len(rows) + 26
    parts = [_open(height, f"{path} operations over time, one row per node"), PATTERNS]
    for number, (node, bars) in enumerate(rows.items()):
        base = 14 + ROW * (number + 1) - 14
        parts.append(_text(LEFT - 10, base - 12, "name", "end", short(node, 12)))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" class="axis"/>')
        parts += _down(outcome, node, scale, base)
        parts += _columns(bars, scale, base, most)
        parts += [_gap(gap, scale, base) for gap in gaps if gap.node == node and gap.seconds >= SHOWN_GAP_S]
        if path == "strong":
            parts += _leaders(outcome, node, scale, base)
    parts += _time_axis(scale, height - 22)
    return "".join([*parts, "</svg>"])


def _bars(operations: Sequence[Operation], scale: Scale) -> list[list[int]]:
    bars = [[0, 0, 0] for _ in range(scale.buckets())]
    for op in operations:
        bars[scale.bucket(op.completed_at or op.invoked_at)][OUTCOMES.index(op.outcome)] += 1
    return bars


def _columns(bars: list[list[int]], scale: Scale, base: float, most: int) -> Iterator[str]:
    for bucket, counts in enumerate(bars):
        x, wide, y = scale.edge(bucket), scale.edge(bucket + 1) - scale.edge(bucket), base
        words = ", ".join(f"{n} {word}" for n, word in zip(counts, ("ok", "refused", "unknown"), strict=True) if n)
        for count, style in zip(counts, ("ok", "refused", "unknown"), strict=True):
            if count:
                tall = max(2.0, count / most * (ROW - 44))
                y -= tall
                yield (
                    f'<rect x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(1.0, wide - 1):.1f}" height="{tall:.1f}" '
                    f'class="{style}"><title>{words}</title></rect>'
                )


def _down(outcome: Outcome, node: str, scale: Scale, base: float) -> Iterator[str]:
    """Each stretch in which the watcher found the node other than ready."""
    seen = [s for s in outcome.sightings if s.node == node and s.what != "leader"]
    ends = [*(s.at_ns for s in seen[1:]), outcome.ended_ns]
    for sighting, end in zip(seen, ends, strict=False):
        x, wide = scale.x(sighting.at_ns), scale.x(end) - scale.x(sighting.at_ns)
        if sighting.what == "ready" or wide <= 0:
            continue
        yield f'<rect x="{x:.1f}" y="{base - ROW + 32}" width="{wide:.1f}" height="{ROW - 32}" class="down"/>'
        if wide > 60:
            yield _text(x + wide / 2, base - ROW / 2 + 20, "note", "middle", sighting.what)


def _gap(gap: Gap, scale: Scale, base: float) -> str:
    start, end, y = scale.x(gap.from_ns), scale.x(gap.to_ns), base - ROW + 29
    middle = min(max((start + end) / 2, LEFT + 70), WIDTH - RIGHT - 70)
    return (f'<path d="M{start:.1f} {y - 4}v8M{start:.1f} {y}H{end:.1f}M{end:.1f} {y - 4}v8" class="gap"/>') + _text(
        middle, y - 6, "note", "middle", f"{gap.seconds:.1f} s without a write"
    )


def _leaders(outcome: Outcome, node: str, scale: Scale, base: float) -> Iterator[str]:
    """New leaders of this node, after the first that were seen of each group; those close together as one."""
    together: list[list[Sighting]] = []
    for change in (change for change in leader_changes(outcome) if change.node == node):
        if together and scale.x(change.at_ns) - scale.x(together[-1][0].at_ns) < LABEL:
            together[-1].append(change)
        else:
            together.append([change])
    for changes in together:
        x = scale.x(changes[0].at_ns)
        names = escape(", ".join(dict.fromkeys(change.group for change in changes)))
        yield f'<path d="M{x:.1f} {base + 2}l-4 8h8z" class="leader"><title>now leads {names}</title></path>'
        late = x > WIDTH - RIGHT - LABEL
        yield _text(
            x - 6 if late else x + 6, base + 11, "small", "end" if late else "start", f"leads {len(changes)} more"
        )


def leader_changes(outcome: Outcome) -> list[Sighting]:
    """Sightings of a leader other than the one seen before."""
    last: dict[str, str] = {}
    changes = []
    for sighting in outcome.sightings:
        if sighting.what != "leader":
            continue
        if last.get(sighting.group, sighting.node) != sighting.node:
            changes.append(sighting)
        last[sighting.group] = sighting.node
    return changes


# ── latency ────────────────────────────────────────────────────────────────────────────────────────────────────


def latency(outcome: Outcome, path: str) -> str:
    """The band from median to 99th percentile of what was answered, over time, on a logarithmic axis."""
    scale, height, top = of(outcome), 170, 14
    took: list[list[float]] = [[] for _ in range(scale.buckets())]
    for op in worked(outcome, path):
        if op.ok and op.completed_at is not None:
            took[scale.bucket(op.completed_at)].append((op.completed_at - op.invoked_at) / 1e6)
    highest = max((value for some in took for value in some), default=10.0)
    decades = max(2, math.ceil(math.log10(max(highest, 10.0))))
    bottom = height - 30

    def y(ms: float) -> float:
        return bottom - math.log10(max(ms, 1.0)) / decades * (bottom - top)

    parts = [_open(height, f"latency of {path} operations over time, median to 99th percentile")]
    for decade in range(decades + 1):
        at = y(10**decade)
        label = f"{10**decade:,} ms" if decade < 3 else f"{10 ** (decade - 3):,} s"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(_text(LEFT - 10, at + 4, "small", "end", label))
    for run in _runs(took):
        points = [(scale.edge(b) / 2 + scale.edge(b + 1) / 2, sorted(took[b])) for b in run]
        low = [(x, y(_at(some, 0.5))) for x, some in points]
        high = [(x, y(_at(some, 0.99))) for x, some in points]
        parts.append(f'<polygon points="{_points([*low, *high[::-1]])}" class="band"/>')
        parts.append(f'<polyline points="{_points(low)}" class="median"/>')
        parts.append(f'<polyline points="{_points(high)}" class="p99"/>')
    parts += _time_axis(scale, bottom + 8)
    return "".join([*parts, "</svg>"])


def _runs(took: list[list[float]]) -> Iterator[list[int]]:
    """Stretches of buckets with answers; where there are none, there is no band either."""
    run: list[int] = []
    for bucket, some in enumerate([*took, []]):
        if some:
            run.append(bucket)
        elif run:
            yield run
            run = []


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


# ── a violation ────────────────────────────────────────────────────────────────────────────────────────────────


def window(operations: Sequence[Operation], origin_ns: int, most: int = 24) -> str:
    """The offending operations, one a row, as long as they took; open at the right where nobody knows the end."""
    shown = sorted(operations, key=lambda op: op.invoked_at)[-most:]
    left, right, row = 168, 20, 26
    x = _squeezed(shown, left + 14, WIDTH - right - 60)
    last = max((op for op in shown if op.ok), key=lambda op: op.completed_at or 0, default=None)
    height = 18 + row * len(shown) + 12
    parts = [_open(height, "the operations that no correct store could have answered so"), PATTERNS]
    for number, op in enumerate(shown):
        y = 18 + row * number
        who = f"{short(op.session or op.process, 16)}{' · ' + short(op.node, 8) if op.node else ''}"
        begin, end = x[op.invoked_at], float(WIDTH - right)
        if op.completed_at is not None and op.outcome != "unknown":
            end = max(x[op.completed_at], begin + 4)
        style = "culprit" if op is last else {"ok": "ok", "fail": "refused", "unknown": "unknown"}[op.outcome]
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y + 10}" y2="{y + 10}" class="grid"/>')
        parts.append(_text(left - 10, y + 14, "small", "end", who))
        parts.append(f'<rect x="{begin:.1f}" y="{y + 4}" width="{end - begin:.1f}" height="12" class="{style}"/>')
        before = begin - left > WIDTH - right - end or op.outcome == "unknown"
        if op.outcome == "unknown" and begin - left < 150:
            anchor, at = "start", begin + 6
        else:
            anchor, at = ("end", begin - 6) if before else ("start", end + 6)
        mark = " ◀ cannot be explained" if op is last else ""
        when = f"{(op.invoked_at - origin_ns) / 1e9:.3f} s: "
        parts.append(_text(at, y + 14, "small halo", anchor, when + _words(op) + mark))
    return "".join([*parts, "</svg>"])


def _squeezed(operations: Sequence[Operation], left: float, right: float) -> dict[int, float]:
    """Each moment at which something began or ended -> its place. Long pauses are drawn shorter than they were,
    by a power, so that a read of a millisecond after a pause of minutes can still be seen."""
    moments = sorted({t for op in operations for t in (op.invoked_at, op.completed_at) if t is not None})
    widths = [0.0, *((b - a) ** 0.3 for a, b in pairwise(moments))]
    total, at, found = sum(widths) or 1.0, 0.0, {}
    for moment, width in zip(moments, widths, strict=True):
        at += width
        found[moment] = left + at / total * (right - left)
    return found


def _words(op: Operation) -> str:
    asked = "" if op.input is None else f" {short(op.input, 34)}"
    if op.outcome != "ok":
        return f"{op.kind}{asked} ({'failed' if op.outcome == 'fail' else 'outcome unknown'})"
    if op.kind in ("read", "final"):
        kind = "read" if op.kind == "read" else "read at the end"
        return f"{kind} → {'nothing' if op.output is None else short(op.output, 34)}"
    return f"{op.kind}{asked}" + ("" if op.output is None else f" → {short(op.output, 34)}")


# ── shared ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
    )


def _text(x: float, y: float, style: str, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _time_axis(scale: Scale, y: float) -> Iterator[str]:
    seconds = (scale.end_ns - scale.start_ns) / 1e9
    step = next((s for s in (1, 2, 5, 10, 30, 60, 120, 300, 600) if seconds / s <= 12), 3600)
    for tick in range(0, int(seconds) + 1, step):
        at = scale.x(scale.start_ns + tick * 1e9)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y}" y2="{y + 4}" class="axis"/>'
        yield _text(at, y + 16, "small", "middle", f"{tick} s")
