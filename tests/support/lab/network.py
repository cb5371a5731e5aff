"""Hosts whose links can be cut, reset, delayed and thinned out, one direction at a time.

Each node has a network namespace of its own, all on one bridge, and so have the clients: the thread that enters a
`Network` moves into the clients' namespace until it leaves, and reaches the nodes from there as any client would.
Faults strike only the links between nodes. A node that lost its peers therefore still hears its clients, which is the
case in which a wrong answer can do harm.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.cluster import await_that
from tests.support.hosts import Hosts
from tests.support.processes import Process, Processes

CLIENTS = "clients"
Link = tuple[str, str]
"""(from, to): what the first sends to the second. A link both ways is two of them."""

_CLONE_NEWNET = 0x40000000
_RULES = """
table inet lab {
    set dropped { type ipv4_addr; }
    set refused { type ipv4_addr; }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @dropped drop
        ip saddr @refused meta l4proto tcp reject with tcp reset
    }
}
"""
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """Hosts named as given and one more for the clients. Use in a `with`; needs root, `ip` and `nft`."""

    def __init__(self, ip: str, nft: str, hosts: Sequence[str], processes: Processes) -> None:
        self.nodes = tuple(hosts)
        self._nft = nft
        self._processes = processes
        addresses = {host: f"10.77.0.{number}" for number, host in enumerate([*hosts, CLIENTS], 11)}
        self._hosts = Hosts(ip, addresses)
        self._wire: Process | None = None
        self._home = -1

    def address(self, host: str) -> str:
        return self._hosts.addresses[host]

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on that host."""
        return self._hosts.inside(host, command)

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────

    def cut(self, links: Iterable[Link]) -> None:
        """Packets on these links vanish; connections stay open and hear nothing."""
        self._add("dropped", links)

    def refuse(self, links: Iterable[Link]) -> None:
        """TCP segments on these links are answered with a reset."""
        self._add("refused", links)

    def mend(self) -> None:
        """All links carry again."""
        for host in self.nodes:
            self._rules(host, "flush set inet lab dropped; flush set inet lab refused")

    def degrade(self, *, delay_ms: float, jitter_ms: float = 0.0, loss: float = 0.0, seed: int = 0) -> None:
        """Carry all packets between nodes over the slow wire until `restore`. `jitter_ms` is added to the delay of
        each packet, evenly from 0, so packets overtake each other; `loss` is the share that never arrives."""
        assert self._wire is None, "the wire is in place already"
        hosts = [f"{self._hosts.namespace(host)}={self.address(host)}" for host in self.nodes]
        options = [f"--delay-ms={delay_ms}", f"--jitter-ms={jitter_ms}", f"--loss={loss}", f"--seed={seed}"]
        root = Path(__file__).resolve().parents[3]
        command = [sys.executable, "-m", "tests.support.lab.wire", *options, *hosts]
        self._wire = wire = self._processes.start(command, name="wire", cwd=root)
        await_that(lambda: "in place" in wire.output() or not wire.alive(), "the slow wire is in place", wire.output)
        if not wire.alive():
            raise RuntimeError(f"the slow wire failed:\n{wire.output()}")

    def restore(self) -> None:
        """The kernel's own links again: the wire's devices and routes end with its process."""
        if self._wire is not None:
            self._wire.end()
            self._wire.log.unlink()
            self._wire = None

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._hosts.__enter__()
        try:
            for host in self.nodes:
                self._rules(host, _RULES)
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            enter_namespace(self._hosts.namespace(CLIENTS))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.restore()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._home >= 0:
            _set_namespace(self._home)
            os.close(self._home)
            self._home = -1
        self._hosts.__exit__(None, None, None)

    def _add(self, name: str, links: Iterable[Link]) -> None:
        for source, target in links:
            self._rules(target, f"add element inet lab {name} {{ {self.address(source)} }}")

    def _rules(self, host: str, rules: str) -> None:
        command = self.inside(host, [self._nft, "-f", "-"])
        done = subprocess.run(command, input=rules, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nft on {host}: {done.stderr.strip()}")


def enter_namespace(name: str) -> None:
    """Move this thread, and the threads and processes it starts from now on, to that network namespace."""
    handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _set_namespace(handle)
    finally:
        os.close(handle)


def _set_namespace(handle: int) -> None:
    if _libc.setns(handle, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
