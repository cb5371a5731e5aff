"""The operational shell: strict scripts, a complete lock, an installer that knows when to rest."""

import importlib.util
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.support.processes import Process, Processes
from tests.support.tools import free_port, need

ROOT = Path(__file__).resolve().parents[2]
MARKER = "# --- development ---"


def shell_scripts() -> list[Path]:
    every = [path for path in (*(ROOT / "scripts").iterdir(), *(ROOT / ".ci").iterdir()) if path.is_file()]
    return sorted(path for path in every if path.read_bytes().startswith(b"#!/usr/bin/env bash"))


# ── the scripts as text ────────────────────────────────────────────────────────────────────────


def test_every_verb_exists() -> None:
    names = {path.name for path in shell_scripts()}
    assert {
        "install",
        "up",
        "down",
        "test",
        "check",
        "sim",
        "cluster",
        "lock",
        "provision.sh",
        "run",
    } <= names


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: path.name)
def test_scripts_are_strict_executable_and_explain_themselves(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert "\nset -euo pipefail\n" in text
    assert re.search(r"^# usage: ", text, re.MULTILINE), "no usage line"
    assert os.access(script, os.X_OK), "not executable"


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        [need("shellcheck"), *map(str, shell_scripts())],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


# ── the documents ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    for target in targets:
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


# ── the lock ───────────────────────────────────────────────────────────────────────────────────


def locked(text: str) -> dict[str, str]:
    """Package name -> version."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", text, re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_lock_pins_what_pyproject_asks_for(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = locked(lock.partition(MARKER)[0])
    everything = locked(lock)
    wanted = [Requirement(line) for line in project["project"]["dependencies"]]
    for requirement in wanted:
        assert requirement.specifier.contains(runtime[normal(requirement.name)]), requirement
    for lines in project["project"]["optional-dependencies"].values():
        for requirement in map(Requirement, lines):
            assert requirement.specifier.contains(everything[normal(requirement.name)]), requirement


def test_lock_holds_the_build_backend_for_nodes_too(lock: str) -> None:
    assert "setuptools" in locked(lock.partition(MARKER)[0])


def test_developers_tools_do_not_reach_nodes(lock: str) -> None:
    assert not {"pytest", "mypy", "ruff", "hypothesis"} & set(locked(lock.partition(MARKER)[0]))


def test_each_locked_version_has_hashes(lock: str) -> None:
    entries = re.findall(r"^[a-z0-9].*(?:\n[ \t].*)*", lock, re.MULTILINE)
    assert len(entries) == len(locked(lock))
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_lock_names_no_place_to_fetch_from(lock: str) -> None:
    for line in lock.splitlines():
        assert re.fullmatch(
            r"#.*|[a-z0-9][a-z0-9._-]*==\S+( ; [^/\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line
    assert "/" not in lock.replace(f"{MARKER}", "").replace("scripts/lock", "")


def test_lock_was_made_from_this_pyproject() -> None:
    command = [ROOT / "scripts" / "lock", "--check"]
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def test_lock_check_notices_a_new_dependency(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/lock", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace('"pyyaml', '"pyyaml-new', 1), encoding="utf-8")
    done = subprocess.run(
        [tmp_path / "scripts" / "lock", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 1
    assert "run scripts/lock" in done.stderr


# ── the installer ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what scripts/install reads, with an interpreter that writes down what it is asked to do."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/install", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    stub = tmp_path / "python-stub"
    stub.write_text(
        f"""#!/bin/sh
case "$*" in
    "-m pip"*) echo "$*" >>"{tmp_path}/calls" ;;
    "-m venv"*)
        echo "$*" >>"{tmp_path}/calls"
        mkdir -p .venv/bin && cp "{stub}" .venv/bin/python && cp "{stub}" .venv/bin/raftspine ;;
    *"import raftspine"*) ;;
    *) exec "{sys.executable}" "$@" ;;
esac
""",
        encoding="utf-8",
    )
    stub.chmod(0o755)
    return tmp_path


def install(checkout: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    (checkout / "calls").unlink(missing_ok=True)
    return subprocess.run(
        [checkout / "scripts" / "install"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHON": str(checkout / "python-stub"), **env},
    )


def calls(checkout: Path) -> str:
    path = checkout / "calls"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_install_checks_every_hash_and_fetches_no_build_tools(checkout: Path) -> None:
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    fetching = [line for line in calls(checkout).splitlines() if " install " in line and "--editable" not in line]
    assert len(fetching) == 2
    assert all("--require-hashes" in line for line in fetching)
    assert "--no-build-isolation" in fetching[1]
    assert [line for line in calls(checkout).splitlines() if "--editable" in line and "--no-deps" in line]


def test_install_rests_when_nothing_changed(checkout: Path) -> None:
    install(checkout)
    done = install(checkout)
    assert (done.returncode, done.stdout, calls(checkout)) == (0, "", "")


def test_install_works_again_when_the_lock_changed(checkout: Path) -> None:
    install(checkout)
    with (checkout / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    assert install(checkout).returncode == 0
    assert "--require-hashes" in calls(checkout)
    assert "-m venv" not in calls(checkout), "the environment itself was still good"


def test_install_renews_an_environment_that_was_moved(checkout: Path) -> None:
    install(checkout)
    stamp = checkout / ".venv" / "raftspine-stamp"
    stamp.write_text("/somewhere/else 3.11 1 2", encoding="utf-8")
    assert install(checkout).returncode == 0
    assert "-m venv" in calls(checkout)


def test_install_refuses_an_old_python_with_what_to_do(checkout: Path) -> None:
    old = checkout / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = install(checkout, PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert not (checkout / ".venv").exists()


# ── the cluster on this machine ────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def devcluster() -> ModuleType:
    spec = importlib.util.spec_from_file_location("devcluster", ROOT / "scripts" / "devcluster.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sleeper(processes: Processes) -> Process:
    return processes.start([sys.executable, "-c", "import signal; signal.pause()"])


def test_a_recorded_process_is_found_again(devcluster: ModuleType, processes: Processes, tmp_path: Path) -> None:
    process = sleeper(processes)
    record = tmp_path / "up.json"
    devcluster.record([devcluster.look_up(process.pid)], record)
    assert [found.pid for found in devcluster.recorded(record)] == [process.pid]
    process.kill()
    assert devcluster.recorded(record) == []


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_stranger_with_the_same_pid_is_not_ours(
    devcluster: ModuleType, processes: Processes, tmp_path: Path, change: dict[str, object]
) -> None:
    process = sleeper(processes)
    record = tmp_path / "up.json"
    known = devcluster.identity(devcluster.look_up(process.pid))
    record.write_text(json.dumps([{**known, **change}]), encoding="utf-8")
    assert devcluster.recorded(record) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}', '[{"pid": "x"}]', '[{"pid": 1}]'])
def test_a_damaged_record_is_no_record(devcluster: ModuleType, tmp_path: Path, text: str) -> None:
    record = tmp_path / "up.json"
    record.write_text(text, encoding="utf-8")
    assert devcluster.recorded(record) == []


def test_what_belongs_to_a_started_process(devcluster: ModuleType, processes: Processes) -> None:
    mine, other = sleeper(processes), sleeper(processes)
    found = devcluster.members([devcluster.look_up(mine.pid)])
    assert [process.pid for process in found] == [mine.pid]
    assert other.alive()


def test_the_holder_of_a_port_is_named(devcluster: ModuleType) -> None:
    port = free_port()
    assert not devcluster.port_in_use(port)
    with socket.create_server(("127.0.0.1", port)):
        assert devcluster.port_in_use(port)
        assert devcluster.port_owner(port).startswith(f"pid {os.getpid()} (")


def test_a_node_that_does_not_answer_is_down(devcluster: ModuleType) -> None:
    assert devcluster.state_of(devcluster.Node("spine-1", free_port())) == "down"


# ── what keeps tests from leaving processes behind ─────────────────────────────────────────────


def test_a_process_dies_with_the_test_run_that_started_it(processes: Processes, tmp_path: Path) -> None:
    """kill -9 of the run gives nobody a chance to clean up, so the kernel has to."""
    source = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.processes import Processes
with Processes(Path({str(tmp_path)!r})) as started:
    child = started.start([sys.executable, "-c", "import signal; signal.pause()"], name="child")
    print(child.pid, flush=True)
    child.popen.wait()
"""
    run = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    waiting = os.pidfd_open(pid)
    try:
        run.kill()
        run.wait()
        run.stdout.close()
        assert select.select([waiting], [], [], 30)[0], "the child outlived the run that started it"
    finally:
        os.close(waiting)


def test_ending_reaches_children_and_the_stopped(processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    child = f"import signal, socket; s = socket.create_server(('127.0.0.1', {port})); signal.pause()"
    source = f"import signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); signal.pause()"
    process = processes.start([sys.executable, "-c", source], name="parent")
    await_that(lambda: answers(port), process)
    process.send(signal.SIGSTOP)
    process.end()
    assert not process.alive()
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def await_that(condition: Callable[[], bool], process: Process) -> None:
    """Polls, as long as the process that is to bring it about lives; pytest's time limit is the bound."""
    while not condition():
        assert process.alive(), process.output()
        time.sleep(0.01)
