"""Whole clusters on seeds: both paths under load, crashes, power loss, cuts and resets."""

import pytest

from raftspine.sim.run import play

SEEDS = range(1, 41)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_promised_is_broken(seed: int) -> None:
    report = play(seed, seconds=8.0)
    assert report.done["ring writes"] and report.done["increments"], report


def test_a_seed_is_a_run() -> None:
    assert str(play(7, seconds=4.0)) == str(play(7, seconds=4.0))


def test_five_nodes() -> None:
    assert play(11, seconds=8.0, nodes=5).done["ring writes"]
