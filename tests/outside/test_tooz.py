"""The suite that OpenStack tooz brings for its drivers (tooz/tests/test_coordination.py), on ours, unchanged.

Once on a quiet cluster, where everything it tests passes; once while the nodes are killed in turn.
"""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import LocalCluster
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

SUITE = "tooz.tests.test_coordination"
TESTS = 83
SKIPPED = 1
"""test_watch_join_group_disappear, which names the drivers it is for by class."""
ABOUT_TIME = "test_timeout"
"""Expects a member to be gone six seconds after it was last heard of. A change of leader starts its timer in full, so
while nodes are killed that is not promised."""


@pytest.fixture
def cluster(processes: Processes, tmp_path: Path) -> Iterator[LocalCluster]:
    found = LocalCluster(processes, tmp_path)
    found.start()
    yield found


def play(cluster: LocalCluster, folder: Path, *names: str) -> tuple[int, int]:
    """How many tests ran, and how many of them were skipped; none failed."""
    url = "raftspine://" + ",".join(url.removeprefix("http://") for url in cluster.urls)
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", *(names or (SUITE,))],
        env={**os.environ, "TOOZ_TEST_URL": url},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    report = done.stderr
    found = re.search(r"^Ran (\d+) tests.*\n+OK(?: \(skipped=(\d+)\))?$", report, re.MULTILINE)
    assert done.returncode == 0 and found is not None, report[-8000:]
    return int(found[1]), int(found[2] or 0)


def test_the_suite_of_tooz_passes(cluster: LocalCluster, tmp_path: Path) -> None:
    assert play(cluster, tmp_path) == (TESTS, SKIPPED)


def test_the_suite_of_tooz_passes_while_nodes_are_killed_in_turn(cluster: LocalCluster, tmp_path: Path) -> None:
    over = threading.Event()
    killed: list[str] = []

    def kill_in_turn() -> None:
        while not over.is_set():
            node = cluster.ids[len(killed) % len(cluster.ids)]
            cluster.kill(node)
            killed.append(node)
            over.wait(2)
            cluster.start(node)
            over.wait(2)

    listing = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    names = listing.stdout.split()
    chosen = [name for name in names if not name.endswith(ABOUT_TIME)]
    assert len(chosen) == TESTS - 1
    killer = threading.Thread(target=kill_in_turn)
    killer.start()
    try:
        ran = play(cluster, tmp_path, *chosen)
    finally:
        over.set()
        killer.join()
    assert ran == (TESTS - 1, SKIPPED)
    assert len(killed) >= len(cluster.ids)


LIST = f"""
import unittest
def walk(suite):
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            walk(each)
        else:
            print(each.id())
walk(unittest.defaultTestLoader.loadTestsFromName("{SUITE}"))
"""
