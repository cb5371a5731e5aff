"""`lock run`: exit codes, the environment, signals, and a command that is stopped when the lease is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftspine.cli import main
from tests.support.fake_locks import FakeLocks
from tests.support.fake_server import FakeServer
from tests.support.tools import free_port


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks(ttl_ms=900)


@pytest.fixture
def server(locks: FakeLocks) -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.also = locks
        yield running


def run(server: FakeServer, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(server.url, *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def start(server: FakeServer, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(server.url, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "raftspine", "lock", "run", "--url", url, *arguments]


def test_the_command_has_the_token_and_gives_its_exit_code(server: FakeServer, locks: FakeLocks) -> None:
    done = run(server, "deploy", "--", "sh", "-c", "echo $RAFTSPINE_LOCK_NAME $RAFTSPINE_LOCK_TOKEN --ttl; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "deploy 1 --ttl\n", "")
    assert locks.held == {}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--", "/no/such/command"), 127, "no such command"),
        (("--", "/"), 126, "Permission denied"),
        ((), 2, "no command"),
    ],
)
def test_what_cannot_be_run_has_the_codes_of_the_shell(
    server: FakeServer, locks: FakeLocks, words: tuple[str, ...], code: int, says: str
) -> None:
    done = run(server, "deploy", *words)
    assert done.returncode == code and says in done.stderr
    assert locks.held == {}


def test_a_lock_that_is_held_is_124_and_says_by_whom(server: FakeServer, locks: FakeLocks) -> None:
    locks.held["deploy"] = ("x", 1)
    done = run(server, "deploy", "--wait", "0", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (124, "") and "held by another" in done.stderr
    done = run(server, "deploy", "--wait", "0.2", "--output", "json", "--", "echo", "ran")
    assert done.returncode == 124 and json.loads(done.stderr)["code"] == "lock_held"


def test_a_store_that_cannot_be_asked_is_125() -> None:
    done = subprocess.run(
        command(f"http://127.0.0.1:{free_port()}", "a", "--timeout", "1", "--", "true"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 125 and "unreachable" in done.stderr


def test_a_command_is_stopped_when_the_lease_is_lost(server: FakeServer, locks: FakeLocks) -> None:
    running = start(
        server, "deploy", "--", "sh", "-c", "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    )
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    locks.lose("deploy")
    out, err = running.communicate(timeout=30)
    assert running.returncode == 123 and out == "told\n" and "was lost" in err


def test_a_command_that_does_not_listen_is_killed_with_what_it_started(
    server: FakeServer, locks: FakeLocks, tmp_path: Path
) -> None:
    beats = tmp_path / "beats"
    script = f"trap '' TERM; (trap '' TERM; while :; do echo x >>{beats}; sleep 0.05; done) & echo up; wait; sleep 60"
    running = start(server, "deploy", "--grace", "0.2", "--", "sh", "-c", script)
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    locks.lose("deploy")
    running.communicate(timeout=30)
    assert running.returncode == 123
    size = beats.stat().st_size
    time.sleep(0.3)  # long enough for several beats: that there is none cannot be awaited
    assert beats.stat().st_size == size


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 9), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_signals_are_passed_on(server: FakeServer, locks: FakeLocks, number: signal.Signals, code: int) -> None:
    running = start(server, "deploy", "--", "sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done")
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == code
    assert locks.held == {}


def test_a_signal_while_waiting_gives_the_place_back(server: FakeServer, locks: FakeLocks) -> None:
    locks.held["deploy"] = ("x", 1)
    running = start(server, "deploy", "--", "echo", "ran")
    while not locks.tickets:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (128 + signal.SIGINT, "")
    assert locks.withdrawn == locks.tickets[:1]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_the_command_dies_with_the_one_who_watches_it(server: FakeServer) -> None:
    running = start(server, "deploy", "--", "sh", "-c", "echo $$; exec sleep 60")
    assert running.stdout is not None
    child = int(running.stdout.readline())
    watched = os.pidfd_open(child)
    try:
        running.kill()
        running.wait()
        import select

        assert select.select([watched], [], [], 20)[0], "the command lives on without anybody who holds its lock"
    finally:
        os.close(watched)
        running.communicate()


def test_the_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lock", "run", "--help"], {})
    text = capsys.readouterr().out
    assert all(code in text for code in ("123", "124", "125", "126", "127", "RAFTSPINE_LOCK_TOKEN"))
