"""The nodes of the laboratory: real processes, one per host, and everything that can be done to one of them.

A node is started as an operator starts it, through the command line with a cluster file and keys; beneath it lie a
disk of its own (disks.py) and a library that can shift its wall clock and make its disk fail (shim.py).
"""

import asyncio
import hashlib
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
import yaml

from raftspine import AsyncSpine
from tests.support.cluster import await_that
from tests.support.lab.disks import Disk
from tests.support.lab.network import Network
from tests.support.lab.shim import Shim
from tests.support.processes import Process, Processes

T = TypeVar("T")

KEY = "the key of the laboratory"
SECRET = "a secret that only the laboratory knows"
PORT, PEER_PORT = 8788, 8798
DISK_MIB = 256
START_SECONDS = 90.0


class Tool(NamedTuple):
    program: str
    package: str
    """Debian's."""


TOOLS: dict[str, Tool] = {
    "ip": Tool("ip", "iproute2"),
    "nft": Tool("nft", "nftables"),
    "gcc": Tool("gcc", "gcc"),
}


@dataclass(frozen=True)
class Tools:
    """Where the programs are that the laboratory is built with."""

    ip: str
    nft: str
    gcc: str

    @classmethod
    def find(cls) -> "Tools | str":
        """The tools, or what is missing."""
        found: dict[str, str] = {}
        for name, tool in TOOLS.items():
            path = shutil.which(tool.program) or shutil.which(tool.program, path="/usr/sbin:/sbin")
            if path is None:
                return f"{tool.program} is not installed (Debian: apt-get install {tool.package})"
            found[name] = path
        if not os.path.exists("/dev/net/tun"):
            return "this kernel has no TUN devices (/dev/net/tun)"
        return cls(found["ip"], found["nft"], found["gcc"])


class Lab:
    """`nodes` nodes named n1, n2 …, on hosts of their own. Use in a `with`: starts nothing by itself. `config` is
    merged into the cluster file. The thread that enters it lives on the clients' host until it leaves."""

    def __init__(
        self,
        tools: Tools,
        processes: Processes,
        folder: Path,
        nodes: int = 3,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._tools = tools
        self._processes = processes
        self._folder = folder
        self._config = dict(config or {})
        self._stack = ExitStack()
        self.ids = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.network = Network(tools.ip, tools.nft, self.ids, processes)
        self.disks = {node: Disk(folder / "disks" / node, DISK_MIB) for node in self.ids}
        self.running: dict[str, Process] = {}
        self.paused: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for disk in self.disks.values():
                stack.enter_context(disk)
            self._shim = Shim.build(self._tools.gcc, self._folder)
            stack.enter_context(self.network)
            stack.callback(self._end_nodes)
            self._config_file = self._write_config()
            for node in self.ids:
                self.set_clock(node, 0)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, *nodes: str) -> None:
        """Start these nodes (all by default) and wait until each is ready."""
        for node in nodes or self.ids:
            self.launch(node)
        self.wait_ready(*nodes)

    def launch(self, node: str) -> None:
        """Start one node without waiting."""
        variables = {
            **self._shim.environment(
                clock=self._clock_file(node), disk=self.disks[node].folder, io_control=self._io_control(node)
            ),
            "RAFTSPINE_CLUSTER_SECRET": SECRET,
            "RAFTSPINE_STORAGE_DATA_DIR": str(self.disks[node].folder / "data"),
        }
        command = [sys.executable, "-m", "raftspine", "serve", "--config", str(self._config_file), "--node", node]
        given = [f"{name}={value}" for name, value in variables.items()]
        self.running[node] = self._processes.start(self.network.inside(node, ["env", *given, *command]), name=node)

    def kill(self, *nodes: str) -> None:
        """kill -9, all of them before waiting for any."""
        for node in nodes:
            self.running[node].send(Signals.SIGKILL)
        for node in nodes:
            self.running[node].kill()
            self.paused.discard(node)

    def pause(self, node: str) -> None:
        """SIGSTOP: the process stands still, its connections stay open."""
        self.running[node].send(Signals.SIGSTOP)
        self.paused.add(node)

    def resume(self, node: str) -> None:
        self.running[node].send(Signals.SIGCONT)
        self.paused.discard(node)

    def set_clock(self, node: str, ahead_seconds: int) -> None:
        """Set the node's wall clock that far ahead of (or behind) the machine's; in force within 100 ms."""
        file = self._clock_file(node)
        draft = file.with_suffix(".new")  # never half a number
        draft.write_text(f"{ahead_seconds:+d}\n")
        draft.replace(file)

    def break_disk(self, node: str, *, writes: bool, syncs: bool) -> None:
        """From now on the node's writes, or its syncs, fail with EIO."""
        self._io_control(node).write_text("w" * writes + "s" * syncs)

    def mend_disk(self, node: str) -> None:
        self._io_control(node).unlink(missing_ok=True)

    def heal(self) -> None:
        """Undo every fault that is in force, and start what is down."""
        self.network.restore()
        self.network.mend()
        for node in self.ids:
            self.mend_disk(node)
            self.disks[node].free()
            self.set_clock(node, 0)
            if node in self.paused:
                self.resume(node)
            if node not in self.running or not self.running[node].alive():
                self.launch(node)

    # ── looking at them ─────────────────────────────────────────────────────────────────────────────────────

    def url(self, node: str) -> str:
        return f"http://{self.network.address(node)}:{PORT}"

    def client(self, *nodes: str, **options: Any) -> AsyncSpine:
        """A client of these nodes; of all by default."""
        return AsyncSpine([self.url(node) for node in nodes or self.ids], api_key=KEY, **options)

    def get(self, node: str, path: str, timeout: float = 5.0) -> tuple[int, Any]:
        """Status and JSON body of a GET; (0, None) when the node does not answer."""
        request = urllib.request.Request(self.url(node) + path, headers={"Authorization": f"Bearer {KEY}"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, msgspec.json.decode(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, msgspec.json.decode(error.read())
        except OSError:
            return 0, None

    def leader(self, key: str, among: Iterable[str] = ()) -> str | None:
        """Who leads the shard group of this id, as the first of these nodes that knows."""
        for node in among or self.up():
            status, route = self.get(node, f"/v1/route?id={key}", timeout=2.0)
            if status == 200 and route["leader"] is not None:
                return str(route["leader"])
        return None

    def await_leader(self, key: str, among: Sequence[str] = ()) -> str:
        found: list[str] = []

        def known() -> bool:
            leader = self.leader(key, among)
            if leader is not None:
                found.append(leader)
            return leader is not None

        await_that(known, f"the group of {key} has a leader")
        return found[-1]

    def await_other_leader(self, key: str, old: str, among: Sequence[str]) -> str:
        """Wait until these nodes follow a leader that is not `old`."""
        await_that(lambda: self.leader(key, among) not in (None, old), f"the group of {key} has a leader after {old}")
        return self.await_leader(key, among)

    def up(self) -> list[str]:
        return [
            node
            for node in self.ids
            if node in self.running and self.running[node].alive() and node not in self.paused
        ]

    def wait_ready(self, *nodes: str) -> None:
        for node in nodes or self.ids:
            await_that(
                lambda node=node: self._ready(node),
                f"{node} is ready",
                lambda node=node: self._why(node),
                START_SECONDS,
            )

    def wait_agreement(self) -> None:
        """Until no node lacks anything that another one has, on either path."""
        await_that(self._agreed, "all nodes agree", lambda: "\n".join(map(self._why, self.ids)), START_SECONDS)

    def tail(self, node: str) -> str:
        return self.running[node].output()[-4000:]

    def log(self, node: str) -> Path:
        return self.running[node].log

    def _ready(self, node: str) -> bool:
        process = self.running[node]
        if not process.alive():
            raise AssertionError(f"{node} ended with {process.popen.returncode}:\n{self.tail(node)}")
        return self.get(node, "/readyz")[0] == 200

    def _agreed(self) -> bool:
        applied: dict[str, set[int]] = {}
        for node in self.ids:
            status = self.get(node, "/v1/cluster/status")[1]
            if status is None or not status["ready"]:
                return False
            if any(peer["pending_dots"] or not peer["connected"] for peer in status["peers"].values()):
                return False
            for group in status["groups"]:
                if group["applied"] != group["commit"]:
                    return False
                applied.setdefault(group["group"], set()).add(group["applied"])
        return all(len(indexes) == 1 for indexes in applied.values())

    def _why(self, node: str) -> str:
        status, document = self.get(node, "/v1/cluster/status")
        return f"{node}: {status} {json.dumps(document)}\n{self.tail(node)}"

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────

    def _end_nodes(self) -> None:
        for process in self.running.values():
            process.end(grace=3)

    def _clock_file(self, node: str) -> Path:
        return self._folder / f"{node}.clock"

    def _io_control(self, node: str) -> Path:
        return self._folder / f"{node}.io"

    def _write_config(self) -> Path:
        keys = self._folder / "api_keys.yaml"
        keys.write_text(
            yaml.safe_dump([{"name": "lab", "role": "operator", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}])
        )
        members = [
            {"id": node, "host": self.network.address(node), "port": PORT, "peer_port": PEER_PORT}
            for node in self.ids
        ]
        config: dict[str, Any] = {
            "cluster": {"name": "lab", "nodes": members},
            "storage": {"map_size_bytes": "1GiB"},
            "timing": {"preset": "lan"},
        }
        for key, value in self._config.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
        path = self._folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


def on_clients_host(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop of this thread's own. Its helper threads are made afresh, so they live on the
    host that this thread is on."""

    async def run() -> T:
        with ThreadPoolExecutor(8) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            return await work

    return asyncio.run(run())


def monotonic_ns() -> int:
    return time.monotonic_ns()
