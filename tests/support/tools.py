"""What a test may need of the machine, asked for in one way.

A missing tool skips the test with the package that holds it, so that the suite runs anywhere. In CI, where
the packages have just been installed, the same absence fails: a skip there is a test that silently ceased to
exist.
"""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import NoReturn

import pytest

CI = "RAFTSPINE_CI"


def missing(what: str) -> NoReturn:
    """Skip the running test because the machine lacks `what`; in CI, fail it."""
    if os.environ.get(CI):
        pytest.fail(f"{what}: must not be missing in CI ({CI} is set)", pytrace=False)
    pytest.skip(what)


def need(tool: str, package: str | None = None) -> str:
    """The path of a program that must be installed for this test; `package` is Debian's name for it."""
    found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if found is None:
        missing(f"{tool} is not installed (Debian: apt-get install {package or tool})")
    return found


def optional(tool: str, why: str) -> str:
    """The path of a program that no package of the system holds, so that CI too may have to do without it; `why` says
    what is then not tested here. Skips, with that reason, also in CI."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed, and no Debian package has it: {why}")
    return found


def need_root() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("needs root on Linux")


def need_namespaces() -> str:
    """The path of `ip`, on a machine where network namespaces can really be made: having the tool is not
    enough inside most containers."""
    need_root()
    ip = need("ip", "iproute2")
    name = f"spine-probe-{os.getpid()}"
    made = subprocess.run([ip, "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        missing(f"network namespaces are not allowed here: {made.stderr.strip()}")
    subprocess.run([ip, "netns", "del", name], check=True)
    return ip


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Distinct TCP ports nobody listens on. All are held until the last is found, so none is given twice;
    another process may still take one before the caller binds it."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def free_port(host: str = "127.0.0.1") -> int:
    """One TCP port nobody listens on."""
    return free_ports(1, host=host)[0]
