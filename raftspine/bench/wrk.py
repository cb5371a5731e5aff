"""The same ring requests sent by wrk, where it is installed.

Our generator is Python and takes CPU from the nodes it shares the machine with; wrk takes less. The two figures
side by side show how much of a result is the generator's. wrk is closed-loop and cannot follow a session token
from reply to reply, so each of its threads keeps the one it is given.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raftspine.bench.wire import Address, Connection
from raftspine.bench.workloads import Shape, Workload
from raftspine.errors import Misuse, SpineError
from raftspine.ports import Clock

REQUESTS = 2048
"""Distinct requests prepared per thread; enough that no node sees one key all the time."""

SUPPORTED = ("write", "read", "strong-write", "strong-read")

SCRIPT = """\
local addresses = {%(addresses)s}
local threads = 0
function setup(thread)
  local address = addresses[threads %% #addresses + 1]
  thread.addr = wrk.lookup(address[1], address[2])[1]
  thread:set("offset", threads * 677)
  threads = threads + 1
end
local requests = {%(requests)s}
local at = 0
function request()
  at = at + 1
  return requests[(at + offset) %% #requests + 1]
end
"""

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def available() -> bool:
    try:
        subprocess.run(["wrk", "--version"], capture_output=True, check=False, timeout=10)
    except OSError:
        return False
    return True


def run(
    name: str, addresses: Sequence[Address], shape: Shape, *, clients: int, seconds: float, clock: Clock
) -> dict[str, Any]:
    """Run one workload; the same document as `Outcome.document`, as far as wrk tells. Raises Misuse for one
    that wrk cannot do, SpineError when it fails."""
    if name not in SUPPORTED:
        raise Misuse(f"wrk cannot run {name!r}; it can run {', '.join(SUPPORTED)}")
    script = _script(Workload(name, shape), addresses, clock)
    with tempfile.TemporaryDirectory(prefix="raftspine-wrk-") as folder:
        path = Path(folder) / "load.lua"
        path.write_bytes(script)
        threads = len(addresses)
        command = [
            "wrk",
            f"-t{threads}",
            f"-c{max(clients, threads)}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
        ]
        url = f"http://{addresses[0].host}:{addresses[0].port}/"
        done = subprocess.run(
            [*command, "-s", str(path), url],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
    if done.returncode != 0:
        raise SpineError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return parse(done.stdout)


def parse(output: str) -> dict[str, Any]:
    """wrk's report as a document. Raises SpineError when it is not one."""
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", output)
    if rate is None or total is None:
        raise SpineError(f"wrk's report cannot be read: {output[:200]}")
    errors = {}
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if refused:
        errors["status"] = int(refused.group(1))
    for kind, count in re.findall(r"(connect|read|write|timeout) (\d+)", output):
        if int(count):
            errors[kind] = int(count)
    points = re.findall(r"^\s+([\d.]+)%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    latency = {f"p{float(p):g}": round(float(value) * _UNITS[unit], 3) for p, value, unit in points}
    return {
        "operations": int(total.group(1)) - errors.get("status", 0),
        "seconds": round(float(total.group(2)) * _UNITS[total.group(3)] / 1000, 3),
        "per_second": float(rate.group(1)),
        "errors": errors,
        "unknown": 0,
        "latency_ms": latency,
        "generator": "wrk",
    }


def _script(workload: Workload, addresses: Sequence[Address], clock: Clock) -> bytes:
    """Prepared requests as Lua strings; those of a session workload carry a token fetched beforehand."""
    connection = Connection(0, addresses[0], keeps_token=workload.mix.session)
    try:
        if workload.mix.session:
            deadline = clock.monotonic() + 5.0
            connection.send(workload.first(connection))
            while not connection.receive():
                if clock.monotonic() > deadline:
                    raise SpineError("the node does not answer the write that fetches a session token")
        requests = ",".join(_lua(workload.next(connection)) for _ in range(REQUESTS))
    finally:
        connection.close()
    hosts = ",".join(f'{{"{a.host}","{a.port}"}}' for a in addresses)
    return (SCRIPT % {"addresses": hosts, "requests": requests}).encode("latin-1")


def _lua(text: bytes) -> str:
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03d}" for byte in text)
    return f'"{escaped}"'
