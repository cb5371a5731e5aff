"""Every seed that ever failed, played again: a bug that was found once is not found twice by a user."""

from pathlib import Path

import pytest

from raftspine.sim.run import play

FILE = Path(__file__).with_name("regressions.txt")
LINES = [line.split(maxsplit=3) for line in FILE.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("seed", "seconds", "nodes", "found"), LINES, ids=[line[0] for line in LINES])
def test_what_was_found_stays_fixed(seed: str, seconds: str, nodes: str, found: str) -> None:
    assert play(int(seed), float(seconds), nodes=int(nodes)).done, found
