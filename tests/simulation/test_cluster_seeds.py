"""Whole clusters on seeds: what the plan draws of sizes, weather, durability and faults, watched at every step.

Short runs, many of them: what a seed finds it mostly finds early, and another seed is worth more than another second.
"""

import os
import subprocess
import sys

import pytest

from raftspine.sim import faults
from raftspine.sim.faults import FAULTS
from raftspine.sim.plan import Plan, Strike, draw
from raftspine.sim.run import play, play_plan

SECONDS = 3.0
BATCHES = [range(first, first + 10) for first in range(1, 201, 10)]


def plan_of(seed: int, **options: int) -> Plan:
    return draw(seed, SECONDS, faults.kinds(), **options)


@pytest.mark.parametrize("seeds", BATCHES, ids=[f"{batch[0]}-{batch[-1]}" for batch in BATCHES])
def test_nothing_promised_is_broken(seeds: range) -> None:
    done: dict[str, int] = {}
    for seed in seeds:
        print(f"seed {seed}")
        for what, times in play(seed, SECONDS).done.items():
            done[what] = done.get(what, 0) + times
    assert done["ring writes"] and done["increments"] and done["moving writes"] and done["shared writes"], done


def test_the_seeds_above_see_every_fault_and_every_kind_of_cluster() -> None:
    plans = [plan_of(seed) for batch in BATCHES for seed in batch]
    struck = {strike.fault for plan in plans for strike in plan.strikes}
    assert struck == set(FAULTS)
    assert {plan.nodes for plan in plans} == {1, 3, 5}
    assert {plan.strategy for plan in plans} == {"id", "agent", "tag"}
    assert {plan.durability for plan in plans} == {"always", "interval"}
    assert any(plan.gateways for plan in plans)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_fault_alone(fault: str) -> None:
    """Nothing else in its way, on a cluster where all else is well."""
    lasts = FAULTS[fault].kind.lasts[1] / 2
    strikes = tuple(Strike(n, fault, 0.4 + 0.8 * n, lasts) for n in range(4))
    plan = Plan(7, 3.5, 3, 3, 0, "always", "id", slow=False, short_logs=False, stragglers=0.0, strikes=strikes)
    assert play_plan(plan).faults == {fault: 4}


def test_the_pace_of_a_plan_is_that_of_its_clients() -> None:
    idle, calm, drawn = (
        play_plan(Plan(7, 3.0, 3, 2, 0, "always", "id", False, False, 0.0, (), pace=pace)) for pace in (0.0, 0.1, 1.0)
    )
    assert not idle.done and idle.virtual_seconds > 3.0
    assert 0 < 3 * sum(calm.done.values()) < sum(drawn.done.values())


def test_a_seed_is_a_run_in_every_process() -> None:
    """To the last line and the last byte on the wire, whatever the process hashes with."""
    program = "import sys; from raftspine.sim.run import play; print(play(int(sys.argv[1]), 3.0))"
    runs = []
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program, "17"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        runs.append(ended.stdout)
    assert "checksum" in runs[0]
    assert runs[0] == runs[1] == runs[2]
