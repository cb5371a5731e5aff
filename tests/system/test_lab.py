"""The laboratory's faults really strike, and nothing of it outlives it: a fault that does not happen would let every
test of it pass."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import await_that
from tests.support.lab.disks import Disk, remove_stale_disks
from tests.support.lab.network import Network
from tests.support.lab.nodes import Tools
from tests.support.lab.shim import Shim
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PORT = 9000
LISTEN = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("listening", flush=True)
while True:
    server.accept()[0].sendall(b"x")
"""
CONNECT = """
import socket, sys, time
began = time.monotonic()
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.5) as link:
        link.recv(1)
    print(time.monotonic() - began)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def network(lab_tools: Tools, module_processes: Processes) -> Iterator[Network]:
    with Network(lab_tools.ip, lab_tools.nft, ("n1", "n2"), module_processes) as made:
        servers = [
            module_processes.start(made.inside(host, [sys.executable, "-c", LISTEN]), name=f"server-{host}")
            for host in made.nodes
        ]
        await_that(lambda: all("listening" in server.output() for server in servers), "servers listen")
        yield made


def connect(network: Network, source: str, target: str) -> str:
    """What came of it: seconds, or the exception's name."""
    command = network.inside(source, [sys.executable, "-c", CONNECT, network.address(target), str(PORT)])
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_cut_links_carry_nothing_and_resets_refuse(network: Network) -> None:
    assert float(connect(network, "n1", "n2")) < 0.5
    network.cut([("n1", "n2")])
    assert connect(network, "n1", "n2") == "TimeoutError"
    network.mend()
    network.cut([("n2", "n1")])  # the question arrives, the answer does not
    assert connect(network, "n1", "n2") == "TimeoutError"
    network.mend()
    network.refuse([("n1", "n2")])
    assert connect(network, "n1", "n2") == "ConnectionRefusedError"
    network.mend()
    assert float(connect(network, "n2", "n1")) < 0.5


def test_the_wire_delays_and_loses(network: Network) -> None:
    network.degrade(delay_ms=60)
    assert float(connect(network, "n1", "n2")) >= 0.24, "two round trips of 120 ms"
    network.restore()
    network.degrade(delay_ms=1, loss=1.0)
    assert connect(network, "n1", "n2") == "TimeoutError"
    network.restore()
    assert float(connect(network, "n1", "n2")) < 0.5


def test_a_full_disk_refuses_the_next_byte(lab_tools: Tools, tmp_path: Path) -> None:
    with Disk(tmp_path / "disk", 1) as disk:
        (disk.folder / "file").write_bytes(b"before")
        disk.fill()
        with pytest.raises(OSError) as refused:
            (disk.folder / "other").write_bytes(b"more")
        assert refused.value.errno == errno.ENOSPC
        disk.free()
        (disk.folder / "other").write_bytes(b"more")
    assert not (tmp_path / "disk" / "other").exists(), "it is unmounted"


STRUCK = """
import os, sys, time
handle = os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_WRONLY)
for call in (lambda: os.write(handle, b"x"), lambda: os.fdatasync(handle)):
    try:
        call()
        print("done", end=" ")
    except OSError as error:
        print(error.errno, end=" ")
time.sleep(0.01)
print(time.time(), time.monotonic())
"""


@pytest.mark.parametrize(
    ("orders", "ahead", "results"),
    [(None, 0, "done done"), ("w", -3600, "5 done"), ("s", 3600, "done 5"), ("ws", 30, "5 5")],
)
def test_the_shim_fails_the_disk_and_shifts_the_wall_clock_alone(
    lab_tools: Tools, tmp_path: Path, orders: str | None, ahead: int, results: str
) -> None:
    control, clock = tmp_path / "control", tmp_path / "clock"
    clock.write_text(f"{ahead:+d}\n")
    if orders is not None:
        control.write_text(orders)
    with Disk(tmp_path / "disk", 1) as disk:
        shim = Shim.build(lab_tools.gcc, tmp_path)
        environment = shim.environment(clock=clock, disk=disk.folder, io_control=control)
        done = subprocess.run(
            [sys.executable, "-c", STRUCK, str(disk.folder)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    write, sync, wall, monotonic = done.stdout.split()
    assert f"{write} {sync}" == results
    assert abs(float(wall) - time.time() - ahead) < 10
    assert abs(float(monotonic) - time.monotonic()) < 10


KILLED = """
import sys, time
from pathlib import Path
from tests.support.lab.nodes import Lab, Tools
from tests.support.processes import Processes
folder = Path(sys.argv[1])
with Processes(folder) as processes, Lab(Tools.find(), processes, folder) as lab:
    lab.launch("n1")
    print("node", lab.running["n1"].pid, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(
    lab_tools: Tools, processes: Processes, tmp_path: Path, repository: Path
) -> None:
    run = processes.start([sys.executable, "-c", KILLED, str(tmp_path)], cwd=repository, name="run")
    await_that(lambda: "node " in run.output(), "the run has a node", run.output)
    node = run.output().split()[-1]
    run.kill()
    await_that(lambda: not os.path.exists(f"/proc/{node}"), "its node dies with it")
    assert f"spine{run.pid}-" in namespaces(lab_tools) and f"spinelab{run.pid} " in mounts()
    remove_stale_disks()
    with Network(lab_tools.ip, lab_tools.nft, ("n1",), processes):
        assert f"spine{run.pid}-" not in namespaces(lab_tools)
    assert f"spinelab{run.pid} " not in mounts()


def namespaces(tools: Tools) -> str:
    return subprocess.run([tools.ip, "netns", "list"], capture_output=True, text=True, check=True).stdout


def mounts() -> str:
    return Path("/proc/mounts").read_text(encoding="utf-8")
