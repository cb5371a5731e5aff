"""The examples run as they stand, against a cluster of three."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import LocalCluster
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
SAYS = {
    "deployment_pipeline": "the request is PASSED",
    "elected_cron": "the last run was by cron-",
    "fenced_writer": "the file says: written by the second",
    "worker_pool": "12 pages rendered, each once",
}


@pytest.fixture(scope="module")
def cluster(module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    found = LocalCluster(module_processes, tmp_path_factory.mktemp("examples"))
    found.start()
    yield found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_it_promises(example: Path, cluster: LocalCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        env={"RAFTSPINE_URL": ",".join(cluster.urls), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[example.stem] in done.stdout
    assert done.stderr == ""
