"""A development cluster of our own for a benchmark: fresh, on free ports, ended with the block."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from raftspine.bench import processes
from raftspine.bench.peers import free_ports
from raftspine.bench.processes import Usage
from raftspine.errors import SpineError

NODES = 3
STOP_S = 30.0
HIGHEST_PORT = 60_000


class LocalCluster:
    """`raftspine dev` with its data under `folder`."""

    def __init__(self, folder: Path, durability: str) -> None:
        self._folder = folder
        self._durability = durability
        self._process: subprocess.Popen[str] | None = None
        self.urls: list[str] = []

    def __enter__(self) -> "LocalCluster":
        port = _free_base()
        self.urls = [f"http://127.0.0.1:{port + 100 * n}" for n in range(NODES)]
        command = [sys.executable, "-m", "raftspine", "dev", "--fresh", "--data-dir", str(self._folder)]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--durability", self._durability],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not any(line.startswith("ctrl-C") for line in self._process.stdout):  # its last word when all are ready
            self.stop()
            raise SpineError(f"the nodes did not start; see {self._folder}/logs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def usage(self) -> list[Usage]:
        """What each node has used so far, its checkpoint process included."""
        assert self._process is not None
        return [processes.usage(pid) for pid in processes.children(self._process.pid)]

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its nodes follow: their pipe closes
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _free_base() -> int:
    """A port p such that p, p+10, p+100, p+110, … are all free."""
    for base in free_ports(50):
        wanted = {base + 100 * n + extra for n in range(NODES) for extra in (0, 10)}
        if base < HIGHEST_PORT and all(_free(port) for port in wanted):
            return base
    raise SpineError("there are not enough free ports on this machine")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
