"""The way from a failing seed to something a person can read."""

import re

import msgspec
import pytest

from raftspine.errors import Misuse
from raftspine.sim import faults
from raftspine.sim.__main__ import main
from raftspine.sim.mutants import mutated
from raftspine.sim.plan import Plan, decode, draw
from raftspine.sim.run import Violation, play_plan
from raftspine.sim.shrink import shrink


def test_leaving_a_fault_out_leaves_the_others_as_they_were() -> None:
    plan = draw(5, 20.0, faults.kinds())
    fewer = msgspec.structs.replace(plan, strikes=plan.strikes[1:])
    assert [plan.dice(strike).bits() for strike in plan.strikes[1:]] == [
        fewer.dice(strike).bits() for strike in fewer.strikes
    ]


def test_a_plan_survives_its_text() -> None:
    plan = draw(5, 20.0, faults.kinds())
    assert decode(plan.encode()) == plan
    with pytest.raises(Misuse, match="not a plan"):
        decode('{"seed": 1}')
    with pytest.raises(Misuse, match="unknown faults: nonsense"):
        faults.kinds("crash,nonsense")


def test_shrinking_keeps_what_breaks_the_rule_and_little_else() -> None:
    plan = draw(5, 60.0, faults.kinds())
    guilty = {plan.strikes[3].number, plan.strikes[9].number}

    def attempt(tried: Plan) -> Violation | None:
        left = {strike.number for strike in tried.strikes}
        return Violation("loss", "both struck", plan.strikes[9].at) if guilty <= left else None

    small = shrink(plan, Violation("loss", "", 50.0), runs=60, attempt=attempt)
    assert {strike.number for strike in small.plan.strikes} == guilty
    assert small.runs <= 60


def test_another_broken_rule_does_not_count() -> None:
    plan = draw(5, 20.0, faults.kinds())
    small = shrink(plan, Violation("loss", "", 20.0), attempt=lambda tried: Violation("other", "", 1.0))
    assert small.plan == plan


def test_a_failing_run_is_told_made_small_and_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--seconds", "2", "--mutant", "drop-fsync"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("seed 1 …")
    assert "VIOLATION\nseed 1: broken at" in told
    assert "leads group" in told or "starts" in told
    replay = re.search(r"--plan '(.*)'", told)
    assert replay is not None
    with mutated("drop-fsync"), pytest.raises(Violation) as caught:
        play_plan(decode(replay[1]))
    assert caught.value.rule == "on disk"
    assert play_plan(decode(replay[1])).virtual_seconds > 0, "without the mutant nothing is broken"


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--faults", "nonsense"]) == 2
    assert main(["--soak", "--until", "soon"]) == 2
    assert main(["--mutant", "nonsense"]) == 2
    assert "unknown mutant 'nonsense'" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert "power-loss" in capsys.readouterr().out


def test_a_soak_plays_seeds_in_processes_and_writes_down_what_it_finds(tmp_path, capsys) -> None:
    found = tmp_path / "found.txt"
    arguments = ["--soak", "--seeds", "3", "--jobs", "2", "--seconds", "1", "--found", str(found)]
    assert main(arguments) == 0
    assert not found.exists()
    assert main([*arguments, "--mutant", "drop-fsync"]) == 1
    assert found.read_text().count("broken at") == 3
    assert "seed 2: on disk" in capsys.readouterr().out
