"""The processes of a peer that we start for a comparison: members on the loopback, ended with the block."""

import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from raftspine.errors import SpineError

MEMBERS = 3
READY_S = 60.0
STOP_S = 10.0


class PeerCluster(ABC):
    """Members with their data and logs under `folder`. `pause` waits so many seconds."""

    name = "peer"

    def __init__(self, folder: Path, pause: Callable[[float], object]) -> None:
        self.folder = folder
        self._pause = pause
        self._processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def commands(self) -> Sequence[Sequence[str]]:
        """How each member is started."""

    @abstractmethod
    def healthy(self) -> bool:
        """Whether every member serves."""

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for n, command in enumerate(self.commands()):
                with (self.folder / f"{n}.log").open("wb") as log:
                    self._processes.append(
                        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
                    )
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait(self) -> None:
        for _ in range(int(READY_S / 0.1)):
            if any(process.poll() is not None for process in self._processes):
                raise SpineError(f"{self.name} did not start; see {self.folder}/*.log")
            if self.healthy():
                return
            self._pause(0.1)
        raise SpineError(f"{self.name} is not ready after {READY_S:.0f} s; see {self.folder}/*.log")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports
