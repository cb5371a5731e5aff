"""`verify`: run the checks of raftspine.verify against a live cluster; a bar while it works, files when it is done.

The verdict is the exit code, with numbers of its own (see EXITS): a script that runs this after an upgrade must be
able to tell "broken" from "could not tell" from "nobody there".
"""

import asyncio
import signal
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from raftspine._version import __version__
from raftspine.checkers.history import Operation, dump
from raftspine.checkers.verdict import Status
from raftspine.cli import output
from raftspine.cli.exits import Exit, complain, explain
from raftspine.errors import Rejected, Unavailable
from raftspine.system import SystemClock, SystemEntropy
from raftspine.verify import summary
from raftspine.verify.judge import Judged, judge, overall
from raftspine.verify.report import MARKS, WORDS, page
from raftspine.verify.run import Options, Outcome, Verification

EXITS: dict[Status, int] = {"ok": 0, "violation": 1, "unknown": 3}
UNREACHABLE = 4
"""2 is a fault of the command line, as everywhere."""

STYLES: dict[Status, str] = {"ok": "green", "violation": "bold red", "unknown": "yellow"}
TICK_S = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""The first one ends the work early, and what was written is still removed."""


def verify(arguments: Namespace) -> int:
    """Run it, write report.html, history.jsonl and summary.json, print the verdicts."""
    options = Options(
        arguments.url,
        seconds=arguments.seconds,
        rate=arguments.rate,
        clients=arguments.clients,
        api_key=arguments.api_key,
        timeout_s=arguments.timeout,
        keep=arguments.keep,
    )
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # before the run: a wrong path must not cost its result
    try:
        outcome = asyncio.run(_watched(options))
    except Unavailable as error:
        complain(explain(error))
        return UNREACHABLE
    except Rejected as error:  # the first write: the key, its rights, or a namespace it may not use
        complain(explain(error))
        return Exit.USAGE
    judged = judge(outcome.history, outcome.kept)
    about = {"version": __version__, "urls": list(options.urls), "finished_at": _utc(SystemClock().wall_ms())}
    found = summary.document(outcome, judged, about)
    _write(folder, outcome, judged, found, about)
    if arguments.output == "json":
        output.as_json(found)
    else:
        _print(outcome, judged, folder)
    return EXITS[overall(judged)]


async def _watched(options: Options) -> Outcome:
    """The run, with a bar on stderr where somebody is watching."""
    clock = SystemClock()
    counters = Counters()
    console = output.console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("connecting", total=options.seconds, counts="")
    phases: list[str] = []

    def phase(text: str) -> None:
        phases.append(text)
        bar.update(task, description=text)

    run = Verification(options, clock, SystemEntropy(), told=counters.add, phase=phase)
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        for number in STOPPING:
            loop.remove_signal_handler(number)
        run.stop()

    for number in STOPPING:
        loop.add_signal_handler(number, interrupted)

    async def tick() -> None:
        began = None
        while True:
            if began is None and "working" in phases:
                began = clock.monotonic()
            elapsed = 0.0 if began is None else clock.monotonic() - began
            bar.update(task, completed=min(elapsed, options.seconds), counts=counters.line())
            await asyncio.sleep(TICK_S)

    with bar:
        ticking = asyncio.create_task(tick())
        try:
            return await run.run()
        finally:
            ticking.cancel()
            for number in STOPPING:
                loop.remove_signal_handler(number)


class Counters:
    """How the operations of each node ended so far."""

    def __init__(self) -> None:
        self._nodes: dict[str, list[int]] = {}

    def add(self, op: Operation) -> None:
        counts = self._nodes.setdefault(op.node, [0, 0, 0])
        counts[("ok", "fail", "unknown").index(op.outcome)] += 1

    def line(self) -> str:
        """Per node: the share answered, and how many were refused or left unknown."""
        parts = []
        for node, (ok, refused, unknown) in sorted(self._nodes.items()):
            total = max(1, ok + refused + unknown)
            parts.append(
                f"{output.one_line(node)} {ok / total:.0%} of {total} (refused {refused}, unknown {unknown})"
            )
        return "  ".join(parts)


def _write(
    folder: Path, outcome: Outcome, judged: list[Judged], found: dict[str, Any], about: dict[str, Any]
) -> None:
    with (folder / "history.jsonl").open("wb") as file:
        file.writelines(dump(outcome.history, {"run": outcome.run_id, **about}))
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    (folder / "report.html").write_text(page(outcome, judged, about), encoding="utf-8")


def _print(outcome: Outcome, judged: list[Judged], folder: Path) -> None:
    rows = []
    for one in judged:
        status = one.verdict.status
        mark = Text(f"{MARKS[status]} {WORDS[status]}", style=STYLES[status])
        rows.append((mark, one.check.name, str(one.verdict.judged), one.check.promise))
    output.table(("verdict", "check", "operations", "promise"), rows)
    print()
    for one in judged:
        if one.verdict.reason:
            print(f"{MARKS[one.verdict.status]} {one.check.name}: {output.one_line(one.verdict.reason)}")
    for gap in summary.gaps(outcome):
        if not gap.node:
            print(f"longest time without a {gap.path} write, any node: {gap.seconds:.2f} s")
    if outcome.left:
        print(f"not removed: {len(outcome.left)} memories under verify/{outcome.run_id}/")
    print(f"report: {folder / 'report.html'}")


def _utc(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
