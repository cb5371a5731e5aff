"""`bench`: measure a running cluster, or, with --suite, fresh ones of its own beside etcd."""

import shutil
import signal
import sys
import threading
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raftspine.bench import machine, report, wrk, zookeeper
from raftspine.bench.coordination import ACTS, Coordinated
from raftspine.bench.etcd import installed
from raftspine.bench.load import Asked, Generator, Plan
from raftspine.bench.preload import preload
from raftspine.bench.suite import PARTS, Suite
from raftspine.bench.texts import text_of
from raftspine.bench.wire import addresses
from raftspine.bench.workloads import MIXES, Shape, Workload
from raftspine.cli import output
from raftspine.cli.exits import Exit
from raftspine.errors import Misuse
from raftspine.system import SystemClock

SUITE_FOLDER = Path(".raftspine") / "bench"
"""On the disk of the working directory: a temporary folder is often memory, where an fsync costs nothing."""


def bench(arguments: Namespace) -> int:
    """Run the workloads, print the table. 1 when operations failed or their outcome is unknown."""
    shape = Shape(arguments.value_bytes, arguments.keys, arguments.distribution, arguments.api_key)
    if arguments.suite:
        return _suite(arguments, shape)
    if arguments.only:
        raise Misuse("--only chooses parts of --suite")
    unknown = [name for name in arguments.workload if name not in MIXES and name not in ACTS]
    if unknown:
        raise Misuse(f"no workload {unknown[0]!r}; there are {', '.join((*MIXES, *ACTS))}")
    if stored := [name for name in arguments.workload if name in MIXES]:
        _say(f"storing {shape.keys} memories")
        preload(arguments.url, stored, shape)
    results = {name: _one(arguments, name, shape) for name in arguments.workload}
    clock = SystemClock()
    if arguments.output == "json":
        config = {"clients": arguments.clients, "rate": arguments.rate, "generator": arguments.generator}
        config |= shape._replace(api_key=None)._asdict()
        output.as_json({"machine": machine.describe(clock.wall_ms()), "config": config, "results": results})
    else:
        output.table(
            (
                "workload",
                "ops/s",
                "p50 ms",
                "p99 ms",
                "p99.9 ms",
                "max ms",
                "errors",
                "unknown",
                "generator CPU",
            ),
            [_cells(name, found) for name, found in results.items()],
        )
    failed = any(found["errors"] or found["unknown"] for found in results.values())
    return Exit.FAILED if failed else Exit.OK


def _one(arguments: Namespace, name: str, shape: Shape) -> dict[str, Any]:
    _say(text_of(name))
    where = addresses(arguments.url)
    clock = SystemClock()
    if arguments.generator == "wrk":
        return wrk.run(name, where, shape, clients=arguments.clients, seconds=arguments.seconds, clock=clock)
    workload: Asked = Coordinated(name, shape.api_key) if name in ACTS else Workload(name, shape)
    session = name in ACTS or MIXES[name].session
    plan = Plan(where, arguments.clients, arguments.seconds, arguments.warmup, arguments.rate, session)
    return Generator(workload, plan, clock).run().document()


def _cells(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    latency = found["latency_ms"]
    points = (f"{latency[p]:.1f}" if p in latency else "-" for p in ("p50", "p99", "p99.9", "max"))
    errors = " ".join(f"{count}×{what}" for what, count in found["errors"].items()) or "0"
    cpu = f"{found['generator_cpu']:.0%}" if "generator_cpu" in found else "-"
    return (name, f"{found['per_second']:,.0f}", *points, errors, str(found["unknown"]), cpu)


def _suite(arguments: Namespace, shape: Shape) -> int:
    if arguments.only and arguments.write:
        raise Misuse("--write is for the whole suite; with --only the report would lose its other parts")
    clock = SystemClock()
    signal.signal(signal.SIGTERM, _interrupt)  # so that what the suite has started is stopped with it
    shutil.rmtree(SUITE_FOLDER, ignore_errors=True)
    seconds = min(arguments.seconds, 6.0)
    never = threading.Event()
    with _progress() as progress:
        task = progress.add_task("", total=None)

        def say(text: str) -> None:
            progress.update(task, description=text)
            if not progress.console.is_terminal:
                _say(text)

        def step(text: str) -> None:
            progress.advance(task, 1 if started else 0)
            started.append(text)
            say(text)

        started: list[str] = []
        suite = Suite(
            SUITE_FOLDER,
            clock,
            say=say,
            step=step,
            pause=never.wait,
            clients=arguments.clients,
            seconds=seconds,
            shape=shape,
            parts=arguments.only or PARTS,
        )
        progress.update(task, total=suite.total())
        suite.run()
    about = {
        **machine.describe(clock.wall_ms()),
        "etcd": installed() or "not installed",
        "zookeeper": zookeeper.version() or zookeeper.missing(),
    }
    found = report.document(suite.rows, suite.idle, about, shape, arguments.clients, suite.facts)
    if arguments.write:
        page = Path(arguments.write)
        text = report.markdown(suite.rows, suite.idle, about, shape, arguments.clients, suite.facts)
        page.write_text(text, encoding="utf-8")
        page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if arguments.output == "json":
        output.as_json(found)
    else:
        if suite.rows:
            output.table(report.COLUMNS, [report.cells(row, suite.rows) for row in suite.rows])
        for sentence in report.sentences(suite.facts):
            print(sentence)
    return Exit.OK


def _progress() -> Progress:
    """How many of the measurements are done, and for how long they have been going on."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=output.console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
