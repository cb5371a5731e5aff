"""`python -m raftspine.sim`: play seeds and say what happened; the seed comes first, so a run can be repeated."""

import argparse
import logging
import sys

import structlog

from raftspine.sim.run import LOADS, Violation, play


def main() -> int:
    """Exit status 0 when every seed held, 1 when one broke a promise."""
    parser = argparse.ArgumentParser(prog="sim", description="play a simulated cluster on seeds")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other (1)")
    parser.add_argument("--seconds", type=float, default=20.0, help="virtual seconds of load per seed (20)")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the cluster (3)")
    parser.add_argument("--load", choices=sorted(LOADS), default="memories", help="what the clients do (memories)")
    parser.add_argument("--verbose", action="store_true", help="show what the nodes log")
    args = parser.parse_args()
    level = logging.DEBUG if args.verbose else logging.CRITICAL
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    failed = 0
    for seed in range(args.seed, args.seed + args.seeds):
        print(f"seed {seed} …", end=" ", flush=True)  # noqa: T201 - a command's output
        try:
            print(play(seed, args.seconds, nodes=args.nodes, load=args.load))  # noqa: T201
        except Violation as violation:
            failed += 1
            print(f"VIOLATION\n{violation}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
