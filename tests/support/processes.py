"""Processes that cannot outlive the tests that started them.

A test run may end by an assertion, by a time-out, by ctrl-C or by kill -9, and a node left behind holds
its ports, its data directory and a core: the next run then fails for no reason of its own. So each process
is started in a group of its own, the group is ended when the test is over, and the kernel is asked to kill
the process when its parent dies (PR_SET_PDEATHSIG), which also covers a killed test run. Only what was
started here is ever signalled.

The kernel's notion of the parent is the thread that forked. A node started from a helper thread would be killed, with
nothing in its log, when that thread ends; so all are started by one thread, which lives as long as they do.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> None:
    """Runs in the child between fork and exec. On Linux only; a killed run leaves nodes behind elsewhere."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request was in force
            os._exit(1)


def _group(leader: int) -> list[int]:
    """The members of a process group, the leader's own id left out."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else []):
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            group = int(stat.rpartition(")")[2].split()[2])
            if group == leader != int(entry):
                found.append(int(entry))
    return found


def _await_end(pids: list[int], timeout: float = 10.0) -> None:
    """Until none of them runs: a killed process holds its ports until the kernel is done with it."""
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                select.select([handle], [], [], timeout)
            finally:
                os.close(handle)


class Process:
    """A running command, its group and where its output goes."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path, name: str) -> None:
        self.popen = popen
        self.log = log
        self.name = name

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """Standard output and error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, sig: signal.Signals) -> None:
        """Signal this process alone (SIGKILL for a crash, SIGSTOP for a pause). Nothing when it has ended."""
        if self.alive():
            self.popen.send_signal(sig)

    def kill(self) -> None:
        """kill -9 of the process alone, and wait for its end."""
        self.send(signal.SIGKILL)
        self.popen.wait()

    def wait(self, timeout: float) -> int:
        """Its exit status. subprocess.TimeoutExpired after `timeout` seconds."""
        return self.popen.wait(timeout)

    def end(self, grace: float = 10.0) -> None:
        """Ask the whole group to stop, wait up to `grace` seconds, then kill what is left of it."""
        if self.alive():
            self._signal_group(signal.SIGCONT)  # a stopped process does not hear SIGTERM
            self._signal_group(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # killed below
                self.popen.wait(grace)
        left = _group(self.popen.pid)
        self._signal_group(signal.SIGKILL)
        self.popen.wait()
        _await_end(left)

    def _signal_group(self, sig: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # it has ended (macOS: EPERM for a group of zombies)
            os.killpg(self.popen.pid, sig)


class Processes:
    """Starts processes and ends all of them, last first, when left. `folder` takes their logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []
        self._starter = ThreadPoolExecutor(1, "starts processes")

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str | None = None,
    ) -> Process:
        """Run `command` in its own group. `env` is added to the environment. A second process of the same
        `name` appends to the same log."""
        return self._starter.submit(self._start, command, env, cwd, name).result()

    def _start(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None, cwd: Path | None, name: str | None
    ) -> Process:
        label = name or Path(command[0]).name
        log = self._folder / f"{label}.log"
        parent = os.getpid()
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [os.fspath(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        process = Process(popen, log, label)
        self._started.append(process)
        return process

    def end_all(self) -> None:
        while self._started:
            self._started.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_all()
        self._starter.shutdown()
