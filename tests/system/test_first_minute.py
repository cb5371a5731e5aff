"""What a new user does first, done: a clean checkout, `scripts/up`, the README's commands as they stand, a node
knocked over, `scripts/down`.

It runs on a host of its own (a network namespace), because the ports are those of the README and may be taken here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Hosts
from tests.support.tools import need, need_namespaces

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LEFT_OUT = (".git", ".venv", ".vagrant", ".raftspine", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")


class Newcomer:
    """A user with a fresh checkout, on a machine where nothing else listens."""

    def __init__(self, checkout: Path, hosts: Hosts) -> None:
        self.checkout = checkout
        self._hosts = hosts

    def does(self, script: str) -> str:
        """What a shell in the checkout prints; the script must succeed."""
        done = subprocess.run(
            self._hosts.inside("spine-1", ["bash", "-e", "-o", "pipefail", "-c", script]),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.checkout,
            env={**os.environ, "PATH": f"{self.checkout}/.venv/bin:{os.environ['PATH']}", "COLUMNS": "200"},
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def running(self) -> list[int]:
        """What goes on in the background."""
        return self._hosts.processes("spine-1")

    def readme(self, after: str) -> str:
        """The first block of code in the README after this text."""
        text = (self.checkout / "README.md").read_text(encoding="utf-8")
        found = re.search(r"```[a-z]*\n(.*?)```", text[text.index(after) :], re.DOTALL)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def newcomer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    need("curl")
    ip = need_namespaces()
    checkout = tmp_path_factory.mktemp("clone") / "raftspine"
    shutil.copytree(repository, checkout, ignore=shutil.ignore_patterns(*LEFT_OUT))
    # Packages come from outside, so this one step runs on the machine itself; the rest of `up` finds it done.
    subprocess.run([checkout / "scripts/install"], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    with Hosts(ip, {"spine-1": "10.0.1.10"}) as hosts:
        newcomer = Newcomer(checkout, hosts)
        try:
            assert "three nodes are ready" in newcomer.does("scripts/up")
            yield newcomer
        finally:
            newcomer.does("scripts/down")


def test_the_readme_with_curl(newcomer: Newcomer) -> None:
    said = newcomer.does(newcomer.readme("After `scripts/up`, with curl"))
    assert said.count('"content":"no deploys until Monday"') == 3, said
    assert '"path":"strong"' in said


def test_the_readme_with_python(newcomer: Newcomer) -> None:
    (newcomer.checkout / "first.py").write_text(newcomer.readme("With Python"), encoding="utf-8")
    assert newcomer.does("python first.py") == "the staging database is slow\nsomebody was first\n"


def test_the_readme_with_the_command_line(newcomer: Newcomer) -> None:
    said = newcomer.does(newcomer.readme("With the command line"))
    assert "remember the milk" in said
    assert "all is well" in said


def test_the_readme_with_a_lock_and_a_gate(newcomer: Newcomer) -> None:
    said = newcomer.does(newcomer.readme("A lock that only one can hold"))
    assert "nobody else deploys now" in said
    assert said.count('"pass_id"') == 1 and said.count('"gate_closed"') == 1, said
    (newcomer.checkout / "lock.py").write_text(newcomer.readme("that only the holder can make"), encoding="utf-8")
    assert newcomer.does("python lock.py") == "written under the lock\n"


def test_what_up_suggests_works(newcomer: Newcomer) -> None:
    said = newcomer.does("scripts/up")
    assert said.startswith("already running")
    assert newcomer.does("scripts/cluster status").count("ready") >= 6


def test_a_node_is_knocked_over_and_comes_back(newcomer: Newcomer) -> None:
    newcomer.does("scripts/cluster kill 2")
    assert re.search(r"spine-2 .* down", newcomer.does("scripts/cluster status || true"))
    newcomer.does("raftspine put while-away 'one was missing' --tags critical")
    newcomer.does("raftspine put while-away-too 'one was missing'")
    assert "spine-2 is back" in newcomer.does("scripts/cluster restart 2")
    for id in ("while-away", "while-away-too"):
        assert "one was missing" in newcomer.does(f"raftspine get {id} --url http://127.0.0.1:8888")


def test_down_leaves_nothing_running_and_up_finds_the_data(newcomer: Newcomer) -> None:
    newcomer.does("raftspine put kept 'still here' --tags critical")
    newcomer.does("raftspine put kept-too 'still here'")
    assert newcomer.does("scripts/down") == "stopped\n"
    assert newcomer.does("scripts/down").startswith("not running")
    assert newcomer.running() == []
    newcomer.does("scripts/up")
    for id in ("kept", "kept-too"):
        assert "still here" in newcomer.does(f"raftspine get {id}")
