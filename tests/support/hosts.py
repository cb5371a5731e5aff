"""Hosts of our own: network namespaces with the addresses that the product's cluster file names.

A cluster on loopback cannot tell its addresses apart: a node that binds or dials the wrong one still works.
Here each node has its own network stack and its own address, two of them on one network and the third on
another, with a router between, all inside namespaces made for the test: nothing of it is connected to the
machine's own network, and nothing outlives the test.
"""

import itertools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_numbers = itertools.count()
"""Keeps the networks of one process apart."""


class Hosts:
    """One namespace per host (name -> IPv4 address) and one that routes between their /24 networks, at .1 of
    each. Use in a `with`; needs root."""

    def __init__(self, ip: str, addresses: Mapping[str, str]) -> None:
        self._ip = ip
        self.addresses = dict(addresses)
        self._prefix = f"spine{os.getpid()}-{next(_numbers)}"
        self._made: list[str] = []

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on that host."""
        return [self._ip, "netns", "exec", self.namespace(host), *command]

    def processes(self, host: str) -> list[int]:
        """The ids of all processes on that host."""
        listed = subprocess.run(
            [self._ip, "netns", "pids", self.namespace(host)], capture_output=True, text=True, check=True
        )
        return [int(line) for line in listed.stdout.split()]

    def cut(self, host: str) -> None:
        """Pull the host's cable."""
        self._run("-n", self.namespace("router"), "link", "set", self._cable(host), "down")

    def mend(self, host: str) -> None:
        """Put the cable back."""
        self._run("-n", self.namespace("router"), "link", "set", self._cable(host), "up")

    def __enter__(self) -> Self:
        self._remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def _build(self) -> None:
        router = self.namespace("router")
        self._add(router)
        networks = sorted({address.rpartition(".")[0] for address in self.addresses.values()})
        for number, network in enumerate(networks):
            bridge = f"net{number}"
            self._run("-n", router, "link", "add", bridge, "type", "bridge")
            self._run("-n", router, "addr", "add", f"{network}.1/24", "dev", bridge)
            self._run("-n", router, "link", "set", bridge, "up")
        for host, address in self.addresses.items():
            name, network = self.namespace(host), address.rpartition(".")[0]
            self._add(name)
            cable = self._cable(host)
            self._run("-n", router, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._run("-n", router, "link", "set", cable, "master", f"net{networks.index(network)}", "up")
            self._run("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            self._run("-n", name, "link", "set", "eth0", "up")
            self._run("-n", name, "route", "add", "default", "via", f"{network}.1")
        self._run("netns", "exec", router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def _add(self, name: str) -> None:
        self._run("netns", "add", name)
        self._made.append(name)
        self._run("-n", name, "link", "set", "lo", "up")

    def _tear_down(self) -> None:
        while self._made:
            self._run("netns", "del", self._made.pop())

    def _remove_leftovers(self) -> None:
        """What a killed test run left behind: the names hold the process id of the run that made them."""
        listed = subprocess.run([self._ip, "netns", "list"], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            found = re.match(r"spine([0-9]+)-", line)
            if found and not os.path.exists(f"/proc/{found[1]}"):
                self._run("netns", "del", line.split()[0])

    def namespace(self, host: str) -> str:
        """The name of the host's network namespace, as `ip netns` knows it."""
        return f"{self._prefix}-{host}"

    def _cable(self, host: str) -> str:
        return f"to-{host}"[:15]

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([self._ip, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
