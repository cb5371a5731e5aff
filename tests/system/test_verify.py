"""`raftspine verify` against three real processes while one of them is killed and comes back."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftspine.checkers.history import load
from tests.support.cluster import LocalCluster, await_that
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(processes: Processes, tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(processes, tmp_path)
    made.start()
    yield made


def test_a_node_is_killed_and_returns_and_every_promise_is_kept(
    cluster: LocalCluster, processes: Processes, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    command = [sys.executable, "-m", "raftspine", "verify", "--url", cluster.url("n1"), "--seconds", "12"]
    command += ["--rate", "80", "--output-dir", str(folder), "--output", "json"]
    verifying = processes.start(command, name="verify")

    def stored() -> int:
        status, page = cluster.get("n2", "/v1/memories?prefix=verify/&limit=1000")
        return len(page["items"]) if status == 200 else 0

    await_that(lambda: stored() >= 20, "verify has begun", verifying.output)
    cluster.kill("n3")
    before = stored()
    await_that(lambda: stored() > before, "the others take over", verifying.output)
    assert verifying.alive(), "the node came too late"
    cluster.start("n3")

    assert verifying.wait(120) == 0, verifying.output()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == "ok"
    assert set(summary["nodes"]) == {"n1", "n2", "n3"}, "one address leads to all members"
    assert {check["name"] for check in summary["checks"] if check["status"] != "ok"} == set()
    assert summary["nodes"]["n3"]["strong"]["refused"] + summary["nodes"]["n3"]["ring"]["refused"] > 0
    assert {"down", "ready"} <= {seen["what"] for seen in summary["sightings"] if seen["node"] == "n3"}
    assert summary["not_removed"] == []
    assert stored() == 0
    about, history = load((folder / "history.jsonl").read_bytes().splitlines())
    assert about["run"] == summary["run"]
    assert len(history) > sum(summary["operations"].values())
    assert (folder / "report.html").read_text().endswith("</html>\n")
