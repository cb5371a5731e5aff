"""Each family of faults on three real nodes under load, each history judged: a minute of what scripts/torture does
for as long as it is asked."""

from random import Random

import pytest

from tests.support.lab.faults import FAULTS
from tests.support.lab.judge import Logs
from tests.support.lab.nodes import Lab, on_clients_host
from tests.support.lab.window import play

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WINDOWS = {
    "processes": ("kill-leader", "pause-leader", "kill-one", "pause-one"),
    "all at once": ("kill-all", "restart-storm"),
    "partitions": ("isolate-leader", "one-way", "bridge", "isolate-one"),
    "bad lines": ("resets", "lossy", "slow"),
    "machines": ("clock-jump", "disk-full", "disk-errors"),
}
FIVE = "minority"


@pytest.mark.parametrize("family", WINDOWS)
def test_nothing_is_lost_forked_or_doubled(lab: Lab, family: str) -> None:
    faults = [FAULTS[name] for name in WINDOWS[family]]
    name = family.replace(" ", "-")
    window = on_clients_host(play(lab, name, faults, Random(name), Logs(), hold_seconds=(0.5, 1.5)))
    assert not window.failed, window.explained()
    for path in ("strong", "ring"):
        assert sum(op.ok for op in window.operations if op.info["path"] == path) > 50, (
            "a history that shows something"
        )


def test_every_fault_has_its_turn() -> None:
    assert {name for names in WINDOWS.values() for name in names} | {FIVE} == set(FAULTS)
