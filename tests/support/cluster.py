"""A store of real node processes on loopback, for tests that kill, pause and restart them.

Every node is started through the command line, on free ports, with its own configuration file, so that the links of
one node may run through a proxy while the others' do not.
"""

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import Signals
from typing import Any

import msgspec
import yaml

from tests.support.processes import Process, Processes
from tests.support.tools import free_ports

READY_SECONDS = 60.0
SECRET = "a secret that only tests know"


class LocalCluster:
    """`nodes` node processes named n1, n2 …; `config` is merged into each node's file."""

    def __init__(
        self, processes: Processes, folder: Path, nodes: int = 3, config: Mapping[str, Any] | None = None
    ) -> None:
        self._processes = processes
        self._folder = folder
        self._config = dict(config or {})
        self.ids = [f"n{i + 1}" for i in range(nodes)]
        ports = free_ports(2 * nodes)
        self.http = dict(zip(self.ids, ports[:nodes], strict=True))
        self.peer = dict(zip(self.ids, ports[nodes:], strict=True))
        self.running: dict[str, Process] = {}
        self.reroute: dict[tuple[str, str], int] = {}
        """(from, to) -> the port of a proxy that the dialing node is told instead of the peer's own."""

    def url(self, node: str) -> str:
        return f"http://127.0.0.1:{self.http[node]}"

    @property
    def urls(self) -> list[str]:
        return [self.url(node) for node in self.ids]

    def start(self, *nodes: str) -> None:
        """Start these nodes (all by default) and wait until each is ready."""
        started = nodes or tuple(self.ids)
        for node in started:
            self.launch(node)
        self.wait_ready(*started)

    def launch(self, node: str) -> None:
        """Start one node without waiting."""
        command = [sys.executable, "-m", "raftspine", "serve", "--config", str(self.write_config(node))]
        self.running[node] = self._processes.start(
            [*command, "--node", node, "--dev"], env={"RAFTSPINE_CLUSTER_SECRET": SECRET}, name=node
        )

    def kill(self, *nodes: str) -> None:
        """kill -9, all of them before waiting for any."""
        for node in nodes:
            self.running[node].send(Signals.SIGKILL)
        for node in nodes:
            self.running[node].kill()

    def signal(self, node: str, sig: Signals) -> None:
        self.running[node].send(sig)

    def stop(self, node: str) -> int:
        """Ask one node to stop; its exit status."""
        self.running[node].send(Signals.SIGTERM)
        return self.running[node].wait(20)

    def wait_ready(self, *nodes: str) -> None:
        for node in nodes or tuple(self.ids):
            await_that(lambda node=node: self.ready(node), f"{node} is ready", lambda node=node: self.tail(node))

    def ready(self, node: str) -> bool:
        process = self.running[node]
        if not process.alive():
            raise AssertionError(f"{node} ended with {process.popen.returncode}:\n{self.tail(node)}")
        return self.get(node, "/readyz")[0] == 200

    def get(self, node: str, path: str) -> tuple[int, Any]:
        """Status and JSON body of a GET; (0, None) when the node does not answer."""
        try:
            with urllib.request.urlopen(self.url(node) + path, timeout=5) as reply:
                return reply.status, msgspec.json.decode(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, msgspec.json.decode(error.read())
        except (urllib.error.URLError, OSError):
            return 0, None

    def tail(self, node: str) -> str:
        return self.running[node].output()[-4000:]

    def write_config(self, node: str) -> Path:
        members = [
            {
                "id": id,
                "host": "127.0.0.1",
                "port": self.http[id],
                "peer_port": self.reroute.get((node, id), self.peer[id]),
            }
            for id in self.ids
        ]
        config: dict[str, Any] = {
            "cluster": {"name": "test", "nodes": members},
            "storage": {"data_dir": str(self._folder / node)},
            "timing": {"preset": "local"},
        }
        for key, value in self._config.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
        path = self._folder / f"{node}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


def await_that(
    holds: Callable[[], bool], what: str, why: Callable[[], str] = str, seconds: float = READY_SECONDS
) -> None:
    """Poll a condition of the outside world, which tells no one when it changes."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{why()}")
        time.sleep(0.02)
