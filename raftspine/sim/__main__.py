"""`python -m raftspine.sim`: play seeds and say what happened; the seed comes first, so a run can be repeated."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from raftspine.errors import Misuse
from raftspine.ports import Clock
from raftspine.sim import faults, plan, shrink
from raftspine.sim.mutants import MUTANTS, mutated
from raftspine.sim.plan import Plan
from raftspine.sim.run import LOADS, Violation, play_plan
from raftspine.sim.soak import Job, soak
from raftspine.system import SystemClock

SOAK_SEEDS = 1000
SOAK_SECONDS = 8.0


def main(argv: list[str] | None = None, clock: Clock | None = None) -> int:
    """Exit status: 0 when every seed kept its promises, 1 when one broke one, 2 for a wrong argument."""
    args = _parser().parse_args(argv)
    try:
        if args.list:
            return _list()
        return _soak(args, clock or SystemClock()) if args.soak else _play(args)
    except Misuse as error:
        print(f"sim: {error.message}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sim", description="Play whole clusters on virtual time, network and disk. One seed is one run."
    )
    add = parser.add_argument
    add("--seed", type=int, default=1, help="the first seed (1)")
    add("--seeds", type=int, help="how many seeds, one after the other (1; with --soak 1000)")
    add("--seconds", type=float, help="virtual seconds of load per seed (20; with --soak 8)")
    add("--minutes", type=float, help="the same in minutes")
    add(
        "--nodes",
        type=int,
        choices=range(1, 10),
        metavar="N",
        help="nodes of the cluster; else 1, 3 or 5 by the seed",
    )
    add("--load", choices=sorted(LOADS), default="memories", help="what the clients do (memories)")
    add("--faults", metavar="NAME,…", help="only these faults (--list names them)")
    add("--plan", metavar="JSON|FILE", help="replay this plan, as a failing run printed it")
    add("--mutant", metavar="NAME", help="run with this bug put into the code (--list names them)")
    add("--narrate", action="store_true", help="tell the whole run, line by line")
    add("--log", metavar="FILE", help="write the whole story of each run to a file")
    add("--no-shrink", action="store_true", help="do not look for a smaller run that fails in the same way")
    add("--soak", action="store_true", help="many seeds over several processes")
    add("--until", metavar="20m", help="with --soak: how long (s, m or h), instead of --seeds")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="with --soak: processes (one per core)")
    add("--found", metavar="FILE", default="sim-found.txt", help="with --soak: where failing runs go (sim-found.txt)")
    add("--list", action="store_true", help="name all faults and mutants, and end")
    return parser


def _list() -> int:
    print("faults (name, weight, seconds it lasts, nodes it takes):")  # noqa: T201
    for kind in faults.kinds():
        print(f"  {kind.name:24} {kind.weight}  {kind.lasts[0]:g} to {kind.lasts[1]:g} s  {kind.nodes}")  # noqa: T201
    print("mutants:")  # noqa: T201
    for name, mutant in MUTANTS.items():
        print(f"  {name:24} {mutant.what}")  # noqa: T201
    return 0


def _seconds(args: argparse.Namespace, otherwise: float) -> float:
    if args.minutes is not None:
        return float(args.minutes) * 60
    return otherwise if args.seconds is None else float(args.seconds)


# ── one after the other ───────────────────────────────────────────────────────────────────────────────────────


def _play(args: argparse.Namespace) -> int:
    failed = 0
    for drawn in _plans(args):
        print(f"seed {drawn.seed} …", flush=True)  # noqa: T201 - first, so that a run that hangs can be repeated too
        try:
            with ExitStack() as stack:
                stack.enter_context(mutated(args.mutant))
                file = stack.enter_context(open(args.log, "a", encoding="utf-8")) if args.log else None

                def listen(line: str) -> None:
                    if args.narrate:
                        print(line)  # noqa: T201
                    if file is not None:  # noqa: B023 (closed with this run)
                        file.write(line + "\n")  # noqa: B023

                print(play_plan(drawn, listen))  # noqa: T201
        except Violation as violation:
            failed += 1
            _tell(args, drawn, violation)
    return 1 if failed else 0


def _plans(args: argparse.Namespace) -> Iterator[Plan]:
    if args.plan is not None:
        path = Path(args.plan)
        yield plan.decode(args.plan if args.plan.lstrip().startswith("{") else path.read_text(encoding="utf-8"))
        return
    kinds, seconds = faults.kinds(args.faults), _seconds(args, 20.0)
    for seed in range(args.seed, args.seed + (args.seeds or 1)):
        yield plan.draw(seed, seconds, kinds, nodes=args.nodes, load=args.load)


def _tell(args: argparse.Namespace, drawn: Plan, violation: Violation) -> None:
    print(f"VIOLATION\n{violation}")  # noqa: T201
    if args.no_shrink:
        return
    print(f"looking for a smaller run that breaks `{violation.rule}` …", flush=True)  # noqa: T201
    with mutated(args.mutant):
        small = shrink.shrink(drawn, violation)
    left = f"{len(small.plan.strikes)} of {len(drawn.strikes)} faults, {small.plan.seconds:g} s of load"
    print(f"after {small.runs} runs, with {left}:\n{small.violation}")  # noqa: T201
    mutant = f" --mutant {args.mutant}" if args.mutant else ""
    print(f"replay it: scripts/sim --narrate{mutant} --plan '{small.plan.encode()}'")  # noqa: T201


# ── by the thousand ───────────────────────────────────────────────────────────────────────────────────────────


def _soak(args: argparse.Namespace, clock: Clock) -> int:
    lasts = _duration(args.until) if args.until else None
    total = args.seeds or (None if lasts else SOAK_SEEDS)
    seeds = count(args.seed) if total is None else iter(range(args.seed, args.seed + total))
    faults.kinds(args.faults)  # a wrong name is to be told here, not by every worker
    job = Job(_seconds(args, SOAK_SECONDS), args.nodes, args.faults, args.mutant, args.load)
    print(f"seeds from {args.seed}, {job.seconds:g} virtual seconds each", flush=True)  # noqa: T201
    until = float("inf") if lasts is None else clock.monotonic() + lasts
    failed = soak(seeds, job, jobs=args.jobs, clock=clock, until=until, total=total, found=Path(args.found))
    for ended in failed:
        print(f"seed {ended.seed}: {ended.rule}")  # noqa: T201
    print(f"{len(failed)} seeds failed; see {args.found}" if failed else "no promise was broken")  # noqa: T201
    return 1 if failed else 0


def _duration(text: str) -> float:
    """Seconds of `90s`, `20m` or `1.5h`. Raises Misuse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None:
        raise Misuse(f"--until wants a number and s, m or h (20m), not {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


if __name__ == "__main__":
    sys.exit(main())
