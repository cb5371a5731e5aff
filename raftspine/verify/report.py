"""The report of a run: one HTML file that needs nothing else, to be read by whoever has to believe it.

It says the verdict in words first, then shows what the words rest on. It never says more than the checkers did: what
could not be decided is called that, and the last section says what a run like this cannot show at all.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from raftspine.checkers.verdict import Status
from raftspine.verify import chart
from raftspine.verify.judge import Judged, overall
from raftspine.verify.run import Outcome
from raftspine.verify.style import CSS
from raftspine.verify.summary import PATHS, counts, gaps, percentiles_ms, worked

MARKS: dict[Status, str] = {"ok": "✓", "violation": "✗", "unknown": "?"}
WORDS: dict[Status, str] = {"ok": "kept", "violation": "broken", "unknown": "undecided"}

HEADLINES: dict[Status, tuple[str, str]] = {
    "ok": (
        "Every promise that was checked was kept.",
        "No answer that any client got contradicts what the cluster promises, through everything that happened to it "
        "during this run.",
    ),
    "violation": (
        "At least one promise was broken.",
        "Some answers contradict what the cluster promises. The operations that prove it are shown below; "
        "history.jsonl holds everything that was asked and answered.",
    ),
    "unknown": (
        "No promise was seen broken, but not all could be decided.",
        "Some checks lack the evidence for a verdict. That is not a failure, and it is not a success either.",
    ),
}


def page(outcome: Outcome, judged: Sequence[Judged], about: dict[str, Any]) -> str:
    """The whole document. `about`: `version`, `finished_at` and `urls` of the run, for its head."""
    verdict = overall(judged)
    headline, text = HEADLINES[verdict]
    where = escape(", ".join(about.get("urls", outcome.nodes)))
    body = [
        f"<h1>raftspine verify</h1><p class=soft>Run <code>{escape(outcome.run_id)}</code> against {where}, "
        f"finished {escape(str(about.get('finished_at')))}, raftspine {escape(str(about.get('version')))}</p>",
        f'<section class="verdict v-{verdict}"><span class=mark aria-hidden=true>{MARKS[verdict]}</span>'
        f"<div><b>{headline}</b>{escape(text)} {_counted(judged)}</div></section>",
        _cards(outcome),
        *_broken(outcome, judged),
        "<h2>The promises</h2>",
        _promises(judged),
        *_paths(outcome),
        "<h2>Longest time without a successful write</h2>",
        _gaps(outcome),
        _epilogue(outcome),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>raftspine verify: {WORDS[verdict]} ({escape(outcome.run_id)})</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _counted(judged: Sequence[Judged]) -> str:
    parts = []
    for status in ("ok", "violation", "unknown"):
        count = sum(one.verdict.status == status for one in judged)
        if count:
            parts.append(f"{count} {WORDS[status]}")
    return f"Of {len(judged)} promises: {', '.join(parts)}."


def _cards(outcome: Outcome) -> str:
    operations = worked(outcome)
    found = counts(operations)
    total = max(1, len(operations))
    longest = max(
        (gap for gap in gaps(outcome) if gap.path == "strong" and not gap.node), key=lambda gap: gap.seconds
    )
    took = percentiles_ms(op for op in operations if op.kind != "read")
    cards = [
        (f"{len(operations):,}", f"operations in {(outcome.ended_ns - outcome.started_ns) / 1e9:.0f} s"),
        (f"{found['ok'] / total:.1%}", "answered"),
        (f"{found['refused']:,} · {found['unknown']:,}", "refused · unknown"),
        (f"{longest.seconds:.1f} s", "longest without a strong write, any node"),
        (f"{took.get('p99', 0):.0f} ms", "99 % of writes took at most"),
        (f"{len(chart.leader_changes(outcome))}", "changes of a group's leader seen"),
    ]
    return f"<div class=cards>{''.join(f'<div class=card><b>{a}</b><span>{b}</span></div>' for a, b in cards)}</div>"


def _promises(judged: Sequence[Judged]) -> str:
    rows = []
    for one in judged:
        verdict = one.verdict
        state = f'<td class="state s-{verdict.status}">{MARKS[verdict.status]} {WORDS[verdict.status]}</td>'
        reason = f"<small>{escape(verdict.reason)}</small>" if verdict.status == "unknown" else ""
        name = f"{escape(one.check.promise)}<small>{escape(one.check.name)}</small>{reason}"
        rows.append(f"<tr>{state}<td>{name}</td><td class=n>{verdict.judged:,}</td></tr>")
    head = "<tr><th>Verdict</th><th>Promise</th><th class=n>Operations</th></tr>"
    return f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _broken(outcome: Outcome, judged: Sequence[Judged]) -> Iterator[str]:
    for one in judged:
        verdict = one.verdict
        if verdict.status != "violation":
            continue
        more = f" It was broken {verdict.found} times; this is the first." if verdict.found > 1 else ""
        yield f"<h2>Broken: {escape(one.check.name)}</h2><div class=broken><p>{escape(one.check.promise)}</p>"
        yield f"<p><b>What was seen:</b> {escape(verdict.reason)}.{more}</p></div>"
        if verdict.window:
            yield f"<figure><div class=scroll>{chart.window(verdict.window, outcome.started_ns)}</div>"
            yield (
                "<figcaption>The operations that prove it, one a row, from when each was asked to when it was "
                "answered; seconds since the start of the run. Time in which nothing happened is shortened."
                "</figcaption></figure>"
            )


TITLES = {"strong": "Strong memories (through Raft)", "ring": "Ring memories"}


def _paths(outcome: Outcome) -> Iterator[str]:
    found = gaps(outcome)
    for path in PATHS:
        yield f"<h2>{TITLES[path]}</h2>"
        yield _key(path)
        yield f"<figure><div class=scroll>{chart.timeline(outcome, path, [g for g in found if g.path == path])}</div>"
        yield "<figcaption>Operations over time by the node that was asked; higher is more.</figcaption></figure>"
        yield f"<figure><div class=scroll>{chart.latency(outcome, path)}</div>"
        yield (
            "<figcaption>How long answers took: median (line) to 99th percentile (dashed), logarithmic. "
            "A break in the band: nothing was answered.</figcaption></figure>"
        )


def _key(path: str) -> str:
    swatch = '<svg viewBox="0 0 16 12" aria-hidden=true><rect width="16" height="12" class="{0}"/></svg>{1}'
    items = [
        swatch.format("ok", "answered (solid)"),
        swatch.format("refused", "refused, nothing happened (stripes)"),
        swatch.format("unknown", "outcome unknown (dots)"),
        swatch.format("down", "node not ready (fine lines)"),
        '<svg viewBox="0 0 16 12" aria-hidden=true><path d="M1 2v8M1 6H15M15 2v8" class="gap"/></svg>longest gap',
    ]
    if path == "strong":
        items.append(
            '<svg viewBox="0 0 16 12" aria-hidden=true><path d="M8 1l-5 10h10z" class="leader"/></svg>became leader'
        )
    return f"<div class=key>{''.join(f'<span>{item}</span>' for item in items)}</div>"


def _gaps(outcome: Outcome) -> str:
    rows = []
    for gap in gaps(outcome):
        start = (gap.from_ns - outcome.started_ns) / 1e9
        node = escape(gap.node) if gap.node else "<b>any node</b>"
        rows.append(
            f"<tr><td>{gap.path}</td><td>{node}</td><td class=n>{gap.seconds:.2f} s</td>"
            f"<td class=n>{start:.1f} s – {start + gap.seconds:.1f} s</td></tr>"
        )
    head = "<tr><th>Path</th><th>Asked</th><th class=n>Gap</th><th class=n>When</th></tr>"
    return (
        f"<div class=scroll><table>{head}{''.join(rows)}</table></div><p class=soft>“Any node” is what a client "
        "feels that knows all addresses. A gap is never shorter than the load's own rhythm.</p>"
    )


def _epilogue(outcome: Outcome) -> str:
    left = (
        f"<p><b>{len(outcome.left)} memories could not be removed</b>; their ids begin with "
        f"<code>verify/{escape(outcome.run_id)}/</code>.</p>"
        if outcome.left
        else ""
    )
    return (
        "<h2>What this shows, and what it does not</h2>"
        "<p>A broken promise is proven by the operations shown. A kept one means that nothing contradicted it in "
        "this run, with this load and these faults; it is evidence, not proof. Only what clients saw is judged: a "
        "fault nobody read during the run is not in it. Faults come from you: a run during which nothing failed says "
        f"little about failures.</p>{left}<p class=soft>Beside this page: <code>history.jsonl</code>, every "
        "operation; <code>summary.json</code>, these figures for programs.</p>"
    )
