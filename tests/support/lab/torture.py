"""Every fault in rotation, for as long as asked, under load, judged window by window (scripts/torture).

The seed is printed first. It repeats the faults and what clients attempt; not the run, whose processes and network
are real. A violation ends the run with exit code 1 and leaves its history and the nodes' logs behind.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raftspine.checkers.history import dump
from tests.support.lab.failover import measure, percentile
from tests.support.lab.faults import FAULTS, Fault
from tests.support.lab.judge import Logs
from tests.support.lab.load import PATHS
from tests.support.lab.nodes import Lab, Tools, on_clients_host
from tests.support.lab.window import Tell, Window, play
from tests.support.processes import Processes

FAULTS_PER_WINDOW = 2
FIVE = {"replication": {"factor": 5, "write_quorum": 3}}
"""Of five nodes each holds every group, so that a partition leaves every group the same majority."""


@dataclass
class Tally:
    """What is kept of windows that are over: figures only."""

    windows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {path: Counter() for path in PATHS})
    serve: dict[str, list[float]] = field(default_factory=lambda: {path: [] for path in PATHS})
    gaps: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, window: Window) -> None:
        self.windows += 1
        for op in window.operations:
            self.outcomes[op.info["path"]][op.outcome] += 1
        for verdict in window.verdicts:
            self.verdicts.setdefault(verdict.checker, Counter())[verdict.status] += 1
        for episode in window.episodes:
            self.faults[episode.fault] += 1
            worst = self.gaps.setdefault(episode.fault, dict.fromkeys(PATHS, 0.0))
            for path, seconds in episode.gap_seconds.items():
                worst[path] = max(worst[path], seconds)
            for path, seconds in episode.serve_seconds.items():
                self.serve[path].append(seconds)

    def document(self) -> dict[str, Any]:
        serve = {
            path: {"count": len(times)} | {f"p{p}": round(percentile(times, p / 100), 2) for p in (50, 90, 99, 100)}
            for path, times in self.serve.items()
            if times
        }
        return {
            "windows": self.windows,
            "faults": dict(self.faults),
            "operations": {path: dict(counts) for path, counts in self.outcomes.items()},
            "seconds_until_survivors_serve": serve,
            "longest_write_gap_seconds": {
                fault: {path: round(seconds, 2) for path, seconds in worst.items()}
                for fault, worst in self.gaps.items()
            },
            "verdicts": {checker: dict(counts) for checker, counts in self.verdicts.items()},
        }


def main() -> int:
    arguments = _arguments()
    console = Console()
    tools = Tools.find()
    if isinstance(tools, str):
        console.print(f"scripts/torture: {tools}")
        return 2
    if os.geteuid() != 0:
        console.print("scripts/torture: needs root, for network namespaces and mounts")
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    console.print(f"seed {seed}", highlight=False)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    chance = random.Random(seed)
    config = FIVE if arguments.nodes == 5 else {}
    try:
        with Processes(folder) as processes, Lab(tools, processes, folder, arguments.nodes, config) as lab:
            lab.start()
            if arguments.failover:
                return _failover(lab, arguments.failover, chance, folder, console)
            return _rotate(lab, arguments, chance, seed, folder, console)
    except KeyboardInterrupt:
        console.print("interrupted; all nodes, hosts and disks are gone")
        return 130


def _rotate(
    lab: Lab, arguments: argparse.Namespace, chance: random.Random, seed: int, folder: Path, console: Console
) -> int:
    faults = _chosen(arguments, chance)
    tally, logs, failure = Tally(), Logs(), ""
    began, seconds = time.monotonic(), arguments.minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=seconds)

        def tell(text: str) -> None:
            progress.update(
                bar, description=f"window {tally.windows + 1}: {text}", completed=time.monotonic() - began
            )
            with (folder / "faults.log").open("a") as log:
                log.write(f"{time.strftime('%H:%M:%S')} window {tally.windows + 1}: {text}\n")

        while not failure and time.monotonic() - began < seconds:
            round_ = [next(faults) for _ in range(FAULTS_PER_WINDOW)]
            window = _played(lab, f"w{tally.windows + 1}", round_, chance, logs, tell)
            if isinstance(window, str):
                failure = window
                continue
            tally.add(window)
            if window.failed:
                failure = window.explained()
                with (folder / "history.jsonl").open("wb") as file:
                    file.writelines(dump(window.operations, {"seed": seed, "faults": [f.name for f in round_]}))
    about = {"seed": seed, "nodes": arguments.nodes, "seconds": round(time.monotonic() - began), "failure": failure}
    _report(folder, about | tally.document(), console)
    if failure:
        console.print(f"FAILED (logs and history in {folder})\n{failure[:4000]}", style="bold red", markup=False)
    return 1 if failure else 0


def _played(lab: Lab, name: str, faults: list[Fault], chance: random.Random, logs: Logs, tell: Tell) -> Window | str:
    """The window, or why it came to no end."""
    failure = ""
    try:
        return on_clients_host(play(lab, name, faults, chance, logs, tell=tell))
    except* AssertionError as errors:
        failure = "; ".join(str(error) for error in errors.exceptions)
    return f"{name}: {'; '.join(fault.name for fault in faults)}: {failure}"


def _failover(lab: Lab, kills: int, chance: random.Random, folder: Path, console: Console) -> int:
    lab.wait_agreement()
    gaps = on_clients_host(
        measure(lab, kills, chance, lambda n, gap: console.print(f"kill {n}: {gap:.2f} s", highlight=False))
    )
    figures = {f"p{p}": round(percentile(gaps, p / 100), 2) for p in (50, 90, 99, 100)}
    console.print(
        f"write gap over {kills} kills: p50 {figures['p50']} s, p90 {figures['p90']} s, "
        f"p99 {figures['p99']} s, longest {figures['p100']} s"
    )
    (folder / "failover.json").write_text(json.dumps({"kills": kills, **figures, "gaps": gaps}, indent=1) + "\n")
    return 0


class _chosen:
    """The asked faults for ever: all of them in an order drawn anew for each round."""

    def __init__(self, arguments: argparse.Namespace, chance: random.Random) -> None:
        names = arguments.faults.split(",") if arguments.faults else list(FAULTS)
        self._faults = [FAULTS[name] for name in names if FAULTS[name].nodes <= arguments.nodes]
        self._chance = chance
        self._left: list[Fault] = []

    def __next__(self) -> Fault:
        if not self._left:
            self._left = self._chance.sample(self._faults, len(self._faults))
        return self._left.pop()


def _report(folder: Path, document: dict[str, Any], console: Console) -> None:
    """summary.json, summary.md, and the same on the terminal."""
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        f"# Faults on real processes: {document['seconds']} s, {document['nodes']} nodes, seed {document['seed']}"
    ]
    for title, header, rows in _tables(document):
        table = Table(*header, title=title)
        lines += ["", f"## {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for row in rows:
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
        console.print(table)
    if document["failure"]:
        lines += ["", "## Failure", "", "```", document["failure"], "```"]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")


def _tables(document: dict[str, Any]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    gaps = document["longest_write_gap_seconds"]
    faults = [
        [name, str(n), *(str(gaps[name][path]) for path in PATHS)] for name, n in sorted(document["faults"].items())
    ]
    outcomes = ("ok", "fail", "unknown")
    operations = [
        [path, *(str(counts.get(outcome, 0)) for outcome in outcomes)]
        for path, counts in document["operations"].items()
    ]
    serve = [
        [path, *map(str, figures.values())] for path, figures in document["seconds_until_survivors_serve"].items()
    ]
    verdicts = [
        [checker, *(str(counts.get(status, 0)) for status in ("ok", "violation", "unknown"))]
        for checker, counts in document["verdicts"].items()
    ]
    return [
        ("Faults", ("fault", "times", *(f"longest gap, {path} (s)" for path in PATHS)), faults),
        ("Operations", ("path", "ok", "refused", "unknown"), operations),
        ("Seconds until the survivors took writes", ("path", "times", "p50", "p90", "p99", "longest"), serve),
        ("Verdicts", ("checker", "ok", "violation", "undecided"), verdicts),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--seed", type=int, help="drawn when not given")
    parser.add_argument("--faults", default="", help=f"some of: {','.join(FAULTS)}")
    parser.add_argument("--failover", type=int, default=0, metavar="K", help="only measure the write gap of K kills")
    parser.add_argument("--output", default=f".raftspine/torture/{time.strftime('%Y%m%d-%H%M%S')}", metavar="DIR")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.faults.split(",") if name and name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    return arguments


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
