"""The three nodes of this machine: started in the background, looked at, knocked over, stopped.

What scripts/up, scripts/down and scripts/cluster do. The rule: only processes that `up` started are ever
signalled. A process id alone does not name a process, because ids are reused, so the record holds the id,
the moment the kernel says it started, and the boot; where they do not match, nothing of ours is left to
stop. Without that, `down` in the morning could end a stranger.

Runs inside .venv and needs nothing but Linux's /proc.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".raftspine"
RECORD = STATE / "up.json"
LOG = STATE / "up.log"
RAFTSPINE = ROOT / ".venv" / "bin" / "raftspine"
READY_SECONDS = 75.0
STOP_SECONDS = 30.0


class Node(NamedTuple):
    """One of the nodes that `raftspine dev` starts."""

    id: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


NODES = (Node("spine-1", 8788), Node("spine-2", 8888), Node("spine-3", 8988))


def fail(message: str) -> NoReturn:
    print(f"scripts: {message}", file=sys.stderr)
    raise SystemExit(1)


# ── processes ──────────────────────────────────────────────────────────────────────────────────


class Running(NamedTuple):
    """A line of /proc/PID/stat, as far as it matters here. `started` is in clock ticks since boot."""

    pid: int
    state: str
    session: int
    started: int


def look_up(pid: int) -> Running | None:
    """The process, or None when there is none or only its remains (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    found = Running(pid, fields[0], int(fields[3]), int(fields[19]))
    return None if found.state in "ZX" else found


def identity(process: Running) -> dict[str, int | str]:
    """What no other process will ever share."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {"pid": process.pid, "started": process.started, "boot": boot}


def recorded(path: Path = RECORD) -> list[Running]:
    """What was started from here and still runs: `raftspine dev` first, then nodes that were restarted."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found = [(look_up(int(entry["pid"])), entry) for entry in known]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    return [process for process, entry in found if process is not None and identity(process) == entry]


def record(started: list[Running], path: Path = RECORD) -> None:
    path.write_text(json.dumps([identity(process) for process in started]), encoding="utf-8")


def members(leaders: list[Running]) -> list[Running]:
    """All live processes of what was started: each has a session of its own, which its children share."""
    sessions = {leader.pid for leader in leaders}
    found = (look_up(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None and process.session in sessions]


def node_process(started: list[Running], node: Node) -> Running | None:
    """The process of one node: `raftspine serve … --node ID`."""
    for process in members(started):
        with suppress(FileNotFoundError, ProcessLookupError):
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if b"serve" in arguments and node.id.encode() in arguments:
                return process
    return None


def start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Run raftspine in a session of its own: it outlives this terminal, and can be told from others. Recorded
    at once, so that `down` finds it whatever happens next."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            [str(RAFTSPINE), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = look_up(started.pid)
    if process is not None:
        record([*recorded(), process])
    return started


# ── ports ──────────────────────────────────────────────────────────────────────────────────────


def port_in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def port_owner(port: int) -> str:
    """Who listens there, as far as this user may know: "pid 42 (name)" or "another process"."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for columns in (line.split() for line in lines):
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if inodes & open_files(int(entry)):
            return f"pid {entry} ({Path(f'/proc/{entry}/comm').read_text(encoding='utf-8').strip()})"
    return "another process"


def open_files(pid: int) -> set[str]:
    """What the process has open, by the kernel's names; nothing where it ended or is somebody else's."""
    found = set()
    with suppress(OSError):
        for link in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed since it was listed
                found.add(os.readlink(f"/proc/{pid}/fd/{link}"))
    return found


# ── what the nodes say ─────────────────────────────────────────────────────────────────────────


def ask(url: str, timeout: float = 2.0) -> tuple[int | None, str]:
    """Status and body of a GET, or None and the reason."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            return reply.status, reply.read(4000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(4000).decode(errors="replace")
    except OSError as error:
        return None, str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)


def state_of(node: Node) -> str:
    status, body = ask(node.url + "/readyz")
    if status == 200:
        return "ready"
    if status is None:
        return "down"
    try:
        return f"not ready: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"not ready ({status})"


def tail(path: Path, lines: int = 25) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


# ── the verbs ──────────────────────────────────────────────────────────────────────────────────


def up(foreground: bool) -> None:
    """Start the nodes and return when all are ready, or say why not."""
    if recorded():
        print("already running; scripts/down stops it\n")
        show_table()
        return
    taken = [port for node in NODES for port in (node.port, node.port + 10) if port_in_use(port)]
    if taken:
        fail("; ".join(f"port {port} is in use by {port_owner(port)}" for port in taken))
    if foreground:
        os.chdir(ROOT)
        os.execv(RAFTSPINE, [str(RAFTSPINE), "dev"])
    STATE.mkdir(mode=0o700, exist_ok=True)
    LOG.unlink(missing_ok=True)
    dev = start(["dev"], LOG)
    try:
        wait_until_ready(dev)
    except KeyboardInterrupt:
        down()
        raise
    print("three nodes are ready\n")
    show_table()
    print(
        f"""
try     curl -X PUT {NODES[0].url}/v1/memories/hello -H 'Content-Type: application/json' \\
             -d '{{"content": "the first memory", "tags": ["critical"]}}'
        curl {NODES[2].url}/v1/memories/hello
        .venv/bin/raftspine cluster status
logs    {(STATE / "logs").relative_to(ROOT)}
stop    scripts/down        break something: scripts/cluster kill 2"""
    )


def wait_until_ready(dev: "subprocess.Popen[bytes]") -> None:
    """`raftspine dev` gives up by itself after a minute and says why; the limit here is above that."""
    deadline = time.monotonic() + READY_SECONDS
    while not all(state_of(node) == "ready" for node in NODES):
        if dev.poll() is not None:
            fail(f"the nodes did not start:\n\n{tail(LOG)}")
        if time.monotonic() > deadline:
            words = ", ".join(f"{node.id} {state_of(node)}" for node in NODES)
            down()
            fail(f"not ready after {READY_SECONDS:.0f} s ({words}); stopped again. Its log:\n\n{tail(LOG)}")
        time.sleep(0.1)


def down() -> None:
    """Stop what was started from here, all of it, and nothing else."""
    started = recorded()
    if not started:
        print("not running (nothing that scripts/up started)")
        return
    for leader in started:
        os.kill(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while left := members(started):
        if time.monotonic() > deadline:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            print(f"stopped, {len(left)} of its processes only by force after {STOP_SECONDS:.0f} s")
            break
        time.sleep(0.05)
    else:
        print("stopped")
    RECORD.unlink(missing_ok=True)


def show_table() -> None:
    started = recorded()
    print(f"{'node':<9} {'pid':>8}  {'address':<24} state")
    for node in NODES:
        process = node_process(started, node)
        pid = "-" if process is None else str(process.pid)
        print(f"{node.id:<9} {pid:>8}  {node.url:<24} {state_of(node)}")


def status() -> None:
    """The processes, then the cluster's own view of itself."""
    show_table()
    alive = [node.url for node in NODES if state_of(node) != "down"]
    if alive:
        print(flush=True)
        os.execv(RAFTSPINE, [str(RAFTSPINE), "cluster", "status", "--url", ",".join(alive)])


def kill(node: Node) -> None:
    """kill -9: what a crash of that node looks like to the other two."""
    process = node_process(recorded(), node)
    if process is None:
        fail(f"{node.id} is not running")
    os.kill(process.pid, signal.SIGKILL)
    print(f"killed {node.id} (pid {process.pid}); scripts/cluster restart {node.id[-1]} brings it back")


def restart(node: Node) -> None:
    """Start a node that has ended, on the data it has, and wait until it takes part again."""
    started = recorded()
    if not started:
        fail("not running; scripts/up starts it")
    running = node_process(started, node)
    if running is not None:
        fail(f"{node.id} is running (pid {running.pid})")
    config = STATE / "cluster.yaml"
    log = STATE / "logs" / f"{node.id}.log"
    process = start(["serve", "--dev", "--config", str(config), "--node", node.id], log)
    deadline = time.monotonic() + READY_SECONDS
    while (state := state_of(node)) != "ready":
        if process.poll() is not None:
            fail(f"{node.id} did not start:\n\n{tail(log)}")
        if time.monotonic() > deadline:
            fail(f"{node.id} runs (pid {process.pid}) but is {state}; its log: {log}")
        time.sleep(0.1)
    print(f"{node.id} is back (pid {process.pid})")


def node_named(text: str) -> Node:
    for node in NODES:
        if text in (node.id, node.id.rpartition("-")[2]):
            return node
    raise argparse.ArgumentTypeError(f"no node {text}; there are 1, 2 and 3")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description="the three nodes of this machine")
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("up", help="start them")
    starting.add_argument("--foreground", action="store_true", help="stay in this terminal; ctrl-C stops")
    verbs.add_parser("down", help="stop them")
    verbs.add_parser("status", help="who runs, who is ready")
    for verb, text in (("kill", "kill -9 one of them"), ("restart", "start it again")):
        verbs.add_parser(verb, help=text).add_argument("node", type=node_named, help="1, 2, 3 or its id")
    given = parser.parse_args()
    match given.verb:
        case "up":
            up(given.foreground)
        case "down":
            down()
        case "status":
            status()
        case "kill":
            kill(given.node)
        case "restart":
            restart(given.node)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the reader has had enough (`| head`); nor can the rest be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
