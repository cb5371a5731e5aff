"""`dev`: a whole cluster on this machine, by one command, gone when the command ends.

It is the first thing a new user runs, so it must work from nothing, say what is in its way, and never touch
what it did not make: it writes a cluster file, a secret and a folder per node below its data directory, and
`--fresh` removes exactly these. A node that dies is reported and not restarted: seeing what the others do
then is what such a cluster is for.
"""

import asyncio
import shutil
import signal
import socket
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from raftspine.cli import output
from raftspine.cli.children import Child, NodeSpec, stop
from raftspine.cli.exits import Exit, complain
from raftspine.client import AsyncSpine
from raftspine.errors import Misuse, SpineError
from raftspine.system import load_or_create_secret

NODE_PORTS = 100
"""From one node's HTTP port to the next one's; peers are at +10."""

READY_S = 60.0
POLL_S = 0.1

HEADER = "# Written by `raftspine dev`. For a cluster of your own, start from conf/cluster.yaml instead.\n"


def dev(arguments: Namespace) -> int:
    """Run the cluster until SIGINT or SIGTERM. 0 after that; 1 when it does not get ready."""
    specs = [NodeSpec(f"spine-{n + 1}", arguments.port + n * NODE_PORTS) for n in range(arguments.nodes)]
    _check_ports(specs)
    folder = Path(arguments.data_dir).absolute()
    config = _prepare(folder, _document(folder, specs, arguments), fresh=arguments.fresh)
    return asyncio.run(_run(specs, config, folder))


# ── before anything is started ──────────────────────────────────────────────────────────────────────────────


def _check_ports(specs: Sequence[NodeSpec]) -> None:
    """Raises Misuse naming every port that is taken, so that one look is enough."""
    wanted = [port for spec in specs for port in (spec.port, spec.peer_port)]
    if max(wanted) > 65535:
        raise Misuse(f"{len(specs)} nodes from port {specs[0].port} on would need port {max(wanted)}")
    taken = [str(port) for port in wanted if _in_use(port)]
    if taken:
        raise Misuse(
            f"port {', '.join(taken)} in use on this machine; stop what listens there (an earlier "
            "`raftspine dev`?) or choose others with --port"
        )


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _document(folder: Path, specs: Sequence[NodeSpec], arguments: Namespace) -> dict[str, Any]:
    """The cluster file, as an operator would write it."""
    factor = min(3, len(specs))
    return {
        "cluster": {
            "name": "dev",
            "secret_file": str(folder / "secret"),
            "nodes": [
                {"id": s.id, "host": "127.0.0.1", "port": s.port, "peer_port": s.peer_port, "role": "primary"}
                for s in specs
            ],
        },
        "replication": {"factor": factor, "write_quorum": factor // 2 + 1, "read_quorum": 1},
        "consistency": {
            "default": "read-your-writes",
            "overrides": [
                {"tags": ["critical", "lock"], "model": "strong"},
                {"tags": ["analytics", "metric"], "model": "eventual"},
            ],
        },
        "partitioning": {"strategy": "id", "shard_groups": arguments.shard_groups},
        "storage": {"data_dir": str(folder / "data"), "durability": arguments.durability},
        "timing": {"preset": "local"},
    }


def _prepare(folder: Path, document: dict[str, Any], *, fresh: bool) -> Path:
    """Write the cluster file and the secret; returns the file. Raises Misuse when another cluster lives there."""
    config = folder / "cluster.yaml"
    made = config.exists() and config.read_text(encoding="utf-8").startswith(HEADER)
    if config.exists() and not made:
        raise Misuse(f"{config} was not written by `raftspine dev`; choose another --data-dir")
    if made and fresh:
        for name in ("data", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "secret").unlink(missing_ok=True)
    elif made:
        _check_same(config, yaml.safe_load(config.read_text(encoding="utf-8")), document)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    load_or_create_secret(folder / "secret")
    config.write_text(HEADER + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return config


def _check_same(config: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """What is fixed when a cluster is created must not differ."""
    if old["cluster"]["nodes"] != new["cluster"]["nodes"] or old["partitioning"] != new["partitioning"]:
        raise Misuse(
            f"{config.parent} holds a cluster with other nodes, ports or shard groups; start it with "
            "the same options, choose another --data-dir, or remove its data with --fresh"
        )


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────


async def _run(specs: Sequence[NodeSpec], config: Path, folder: Path) -> int:
    told, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if told.is_set() else told).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    children: list[Child] = []
    try:
        for spec in specs:
            child = await Child.start(spec, config, folder / "logs" / f"{spec.id}.log")
            children.append(child)
        return await _watch(children, told, folder)
    finally:
        told.set()
        await stop(children, hurry)


async def _watch(children: Sequence[Child], told: asyncio.Event, folder: Path) -> int:
    """Wait for readiness, then for the end."""
    over = asyncio.ensure_future(told.wait())
    ends = [asyncio.ensure_future(child.ended()) for child in children]
    ready = asyncio.ensure_future(_all_ready([child.spec for child in children]))
    try:
        await asyncio.wait([over, ready, *ends], timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            return Exit.OK
        if not ready.done() or any(end.done() for end in ends):
            return _not_ready(children)
        ready.result()
        _announce(children, folder)
        return await _until_over(children, over, ends)
    finally:
        for task in (over, ready, *ends):
            task.cancel()


async def _all_ready(specs: Sequence[NodeSpec]) -> None:
    """Return when every node says that it may take traffic."""
    async with AsyncSpine([spec.url for spec in specs]) as spine:
        waiting = list(specs)
        while waiting:
            try:
                status, _ = await spine.probe(waiting[0].url, "/readyz", timeout=1.0)
            except SpineError:
                status = 0  # not listening yet
            if status == 200:
                waiting.pop(0)
            else:
                await asyncio.sleep(POLL_S)


def _not_ready(children: Sequence[Child]) -> int:
    """Say which node did not make it, with the end of its log."""
    dead = [child for child in children if not child.alive]
    for child in dead:
        complain(f"{child.spec.id} ended while starting; the end of {child.log}:")
        output.console(stderr=True).print(Text(output.plain(child.tail())))
    if not dead:
        logs = ", ".join(str(child.log) for child in children)
        complain(f"the nodes are not ready after {READY_S:.0f} s; see {logs}")
    return Exit.FAILED


def _announce(children: Sequence[Child], folder: Path) -> None:
    rows = [
        (
            child.spec.id,
            child.spec.url,
            f"127.0.0.1:{child.spec.peer_port}",
            child.pid,
            Text("ready", style="green"),
        )
        for child in children
    ]
    output.table(("node", "http", "peers", "pid", "state"), rows)
    first = children[0].spec.url
    url = "" if first.endswith(":8788") else f" --url {first}"
    print(
        f"\ndata and logs in {folder}\n"
        f"try   raftspine put{url} hello 'the first memory' --tags critical\n"
        f"      raftspine get{url} hello\n"
        f"      raftspine cluster status{url}\n"
        "ctrl-C stops all of them",
        flush=True,
    )


async def _until_over(
    children: Sequence[Child], over: "asyncio.Future[Any]", ends: Sequence["asyncio.Future[int]"]
) -> int:
    """Wait to be told to stop, reporting each node that ends before. 1 when all of them have."""
    left = dict(zip(ends, children, strict=True))
    while left:
        done, _ = await asyncio.wait([over, *left], return_when=asyncio.FIRST_COMPLETED)
        if over in done:
            return Exit.OK
        for end in done:
            child = left.pop(end)
            status = end.result()
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            others = "the others go on" if left else "none is left"
            complain(f"{child.spec.id} ended {how}; {others} (its log: {child.log})")
    return Exit.FAILED
