"""Seeds by the thousand: as many processes as wanted, a bar that says how far it is, a file of what was found.

A worker process plays one seed after another, each in a world of its own, and sends back a line for each; what a
seed does depends on neither worker nor order.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raftspine.ports import Clock
from raftspine.sim.mutants import mutated
from raftspine.sim.run import Violation, play


class Job(NamedTuple):
    """What every seed of a soak has in common."""

    seconds: float
    nodes: int | None
    only: str | None
    mutant: str | None
    load: str = "memories"


class Ended(NamedTuple):
    """One seed. `rule` None: all promises were kept."""

    seed: int
    rule: str | None
    text: str
    virtual_seconds: float
    faults: int


def one(seed: int, job: Job) -> Ended:
    """Play one seed, in whatever process. Never raises."""
    try:
        with mutated(job.mutant):
            report = play(seed, job.seconds, nodes=job.nodes, only=job.only, load=job.load)
    except Violation as violation:
        return Ended(seed, violation.rule, str(violation), 0.0, 0)
    except Exception as error:  # noqa: BLE001 (whatever the simulated nodes raise is a finding of this seed)
        return Ended(seed, type(error).__name__, f"seed {seed}: {type(error).__name__}: {error}", 0.0, 0)
    return Ended(seed, None, str(report), report.virtual_seconds, sum(report.faults.values()))


def soak(
    seeds: Iterator[int], job: Job, *, jobs: int, clock: Clock, until: float, total: int | None, found: Path
) -> list[Ended]:
    """Play seeds until there are none left or the clock's monotonic second `until`. Returns those that failed, whose
    stories are appended to `found` as they come."""
    console = Console(stderr=True)
    began = clock.monotonic()
    failed: list[Ended] = []
    done, virtual, faults = 0, 0.0, 0
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    context = multiprocessing.get_context("spawn")
    with bar, ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=200) as pool:
        task = bar.add_task("seeds", total=total)
        running: set[Future[Ended]] = set()
        more = True
        while more or running:
            while more and len(running) < 2 * jobs:
                seed = next(seeds, None)
                if seed is None or clock.monotonic() >= until:
                    more = False
                else:
                    running.add(pool.submit(one, seed, job))
            ended, running = wait(running, return_when=FIRST_COMPLETED) if running else (set(), running)
            for future in sorted(ended, key=lambda future: future.result().seed):
                result = future.result()
                done, virtual, faults = done + 1, virtual + result.virtual_seconds, faults + result.faults
                if result.rule is not None:
                    failed.append(result)
                    with found.open("a", encoding="utf-8") as file:
                        file.write(f"{result.text}\n\n{'─' * 100}\n\n")
                    console.print(f"seed {result.seed}: {result.rule}", style="red", markup=False)
            minutes = max(1e-9, (clock.monotonic() - began) / 60)
            words = f"{done / minutes:.0f} seeds a minute, {virtual / 60:.0f} virtual minutes, {faults} faults"
            bar.update(task, completed=done, description=f"{words}, {len(failed)} failed")
    return failed
