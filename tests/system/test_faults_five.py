"""Five nodes, each with every group: partitions that three nodes do not have."""

from pathlib import Path
from random import Random

import pytest

from tests.support.lab.faults import FAULTS
from tests.support.lab.judge import Logs
from tests.support.lab.nodes import Lab, Tools, on_clients_host
from tests.support.lab.torture import FIVE
from tests.support.lab.window import play
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_two_against_three_and_two_halves_with_a_bridge(
    lab_tools: Tools, processes: Processes, tmp_path: Path
) -> None:
    with Lab(lab_tools, processes, tmp_path, 5, FIVE) as lab:
        lab.start()
        faults = [FAULTS["minority"], FAULTS["bridge"]]
        window = on_clients_host(play(lab, "five", faults, Random(5), Logs(), hold_seconds=(0.5, 1.5)))
        assert not window.failed, window.explained()
