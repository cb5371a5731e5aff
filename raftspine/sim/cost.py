"""What an operation costs in CPU, by path, whatever else the machine is doing.

Throughput on a busy machine measures the machine. Here three whole nodes and their clients run in one process on the
simulator's loop, network and disks, so nothing waits, and the processor time of the process divided by the operations
is what the code itself costs: HTTP in and out, both paths, all three replicas. Rounds are repeated and the cheapest
counts, because whatever else runs can only add. The order of events depends on the seed alone, so under `valgrind
--tool=callgrind` two versions can be compared to the instruction.

What it leaves out: sockets, the frames' tags, LMDB's writer, real syncs. `raftspine bench` measures these.

usage: python -m raftspine.sim.cost [--path write,read,…] [--operations N] [--rounds R] [--profile FILE]
"""

import argparse
import asyncio
import cProfile
import logging
import sys
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import structlog

from raftspine.bench.coordination import ACTS, Coordinated
from raftspine.bench.workloads import MIXES, Shape, Workload
from raftspine.core.limits import Limits
from raftspine.http.app import Connections, build
from raftspine.http.auth import Auth
from raftspine.node import Node, settle_collector
from raftspine.services.values import ANYTHING, Ask, Draft
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster
from raftspine.sim.loop import VirtualLoop
from raftspine.sim.net import Weather

PATHS = ("write", "read", "mixed", "batch", "strong-write", "strong-read", *ACTS)
DELAY_SECONDS = (0.0002, 0.0004)
"""One way between two nodes: loopback, and the turn of a loop that is busy."""


CLIENTS = 64
BATCH_CLIENTS = 8
"""More would have so many writes under way that they meet on the same keys, which is another measurement."""

SETTLE_SECONDS = 5.0
"""Virtual time after which every replica has compared itself with its peers and answers sessions alone."""


class Plan(NamedTuple):
    """One measurement: `operations` in each of `rounds`, by `clients` that each wait for their answer."""

    path: str
    operations: int = 3000
    rounds: int = 5
    clients: int = CLIENTS
    groups: int = 16
    durability: str = "always"
    distribution: str = "uniform"


class Cost(NamedTuple):
    """`cpu_us` per operation, the cheapest round's; `messages` between nodes and virtual milliseconds of an
    operation, on average over all rounds."""

    path: str
    cpu_us: float
    messages: float
    latency_ms: float


class _Wire(asyncio.Transport):
    """The server's end of a connection whose client is a callback."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        super().__init__()
        self._heard = heard

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._heard(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing is sent before the last answer."""

    def resume_reading(self) -> None:
        """As above."""

    def close(self) -> None:
        """The run ends with its process."""


class _Client:
    """One keep-alive connection to one node: an answer makes the next request."""

    def __init__(self, number: int, protocol: asyncio.Protocol, load: "_Load") -> None:
        self.number = number
        self.kind = 0
        self.follow: Callable[[Any], bytes] | None = None
        self.session = b""
        self.body = b""
        self._protocol = protocol
        self._load = load
        protocol.connection_made(_Wire(self._answered))

    def ask(self, request: bytes) -> None:
        self._protocol.data_received(request)

    def _answered(self, data: bytes) -> None:
        if data[9:11] != b"20":
            raise AssertionError(f"the cluster refused: {data[:600]!r}")
        if self.follow is not None:
            self.body = data[data.find(b"\r\n\r\n") + 4 :]
            self._load.follow(self)
            return
        at = data.find(b"X-Spine-Session: ")
        if at >= 0 and self._load.keeps_tokens:
            self.session = data[at : data.find(b"\r\n", at) + 2]
        self._load.answered(self)


class _Load:
    """Keeps all clients busy until so many operations were answered."""

    def __init__(self, loop: VirtualLoop, workload: Workload | Coordinated, *, keeps_tokens: bool) -> None:
        self._loop = loop
        self._workload = workload
        self._left = 0
        self._open = 0
        self._done: asyncio.Future[None] = loop.create_future()
        self.keeps_tokens = keeps_tokens
        self.clients: list[_Client] = []

    async def play(self, operations: int) -> None:
        """So many operations, as a batch counts as many as it holds."""
        await self._answers(max(operations // self._workload.weight, 1), self._next)

    async def begin(self) -> None:
        """Each client writes once, which gives it a session worth the name, or what else it needs."""
        await self._answers(len(self.clients), self._first)

    async def _answers(self, requests: int, start: Callable[[_Client], None]) -> None:
        self._left = requests
        self._done = self._loop.create_future()
        for client in self.clients:
            start(client)
        await self._done

    def answered(self, client: _Client) -> None:
        self._open -= 1
        if self._left:
            self._loop.call_soon(self._next, client)
        elif not self._open:
            self._done.set_result(None)

    def follow(self, client: _Client) -> None:
        """The next request of the same operation."""
        make, client.follow = client.follow, None
        assert make is not None, "the client has looked"
        self._loop.call_soon(client.ask, make(client))

    def _first(self, client: _Client) -> None:
        self._left -= 1
        self._open += 1
        client.ask(self._workload.first(client))

    def _next(self, client: _Client) -> None:
        if self._left:
            self._left -= 1
            self._open += 1
            client.ask(self._workload.next(client))


def measure(plan: Plan, *, profile: cProfile.Profile | None = None) -> Cost:
    """Run one path on a cluster of its own. `profile` sees the measured rounds only."""

    async def main(loop: VirtualLoop) -> Cost:
        weather = Weather(delay=DELAY_SECONDS)
        cluster = SimCluster(loop, groups=plan.groups, durability=plan.durability, weather=weather)
        await cluster.start()
        nodes = [host.node for host in cluster.hosts.values() if host.node is not None]
        shape = Shape(distribution=plan.distribution)
        mix = MIXES.get(plan.path)
        if mix is not None:
            await _fill(nodes[0], shape, strong=mix.strong)
        await asyncio.sleep(SETTLE_SECONDS)
        workload = Coordinated(plan.path) if mix is None else Workload(plan.path, shape)
        load = _Load(loop, workload, keeps_tokens=mix is None or mix.session)
        doors = [_door(node) for node in nodes]
        load.clients = [_Client(n, doors[n % len(doors)](), load) for n in range(plan.clients)]
        settle_collector()
        if load.keeps_tokens:
            await load.begin()
        await load.play(plan.operations)
        operations = max(plan.operations // workload.weight, 1) * workload.weight
        found: list[float] = []
        messages, began = cluster.network.delivered, loop.time()
        for _ in range(plan.rounds):
            before = _cpu_seconds()
            if profile is not None:
                profile.enable()
            await load.play(plan.operations)
            if profile is not None:
                profile.disable()
            found.append(_cpu_seconds() - before)
        spent, carried = loop.time() - began, cluster.network.delivered - messages
        cluster.shut()
        everything = operations * plan.rounds
        at_once = min(plan.clients, operations // workload.weight)
        return Cost(
            plan.path,
            round(min(found) / operations * 1e6, 1),
            round(carried / everything, 2),
            round(spent * at_once * workload.weight / everything * 1e3, 1),
        )

    return virtual.run(main, seed=7)


def _cpu_seconds() -> float:
    used = getrusage(RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _fill(node: Node, shape: Shape, *, strong: bool) -> None:
    """Every key once, some at a time."""
    prefix = "bench-strong-" if strong else "bench-"
    tags = ("critical",) if strong else ()
    text = "x" * shape.value_bytes
    for start in range(0, shape.keys, 100):
        names = [f"{prefix}{n:08d}" for n in range(start, min(start + 100, shape.keys))]
        draft = Draft(text, tags=tags)
        await asyncio.gather(*(node.memories.put(Ask(), name, draft, ANYTHING) for name in names))


def _door(node: Node) -> Callable[[], asyncio.Protocol]:
    world = node.world
    front = build(
        node.memories,
        node.overview,
        node_id=node.id,
        limits=Limits(),
        auth=Auth(),
        clock=world.clock,
        entropy=world.entropy,
        telemetry=node.telemetry,
        coordination=node.coordination,
    )
    return Connections(front)


def main() -> int:
    """Print a row per path."""
    parser = argparse.ArgumentParser(prog="cost", description="CPU per operation, on three nodes in one process")
    parser.add_argument("--path", default=",".join(PATHS), help=f"one or more of {', '.join(PATHS)}")
    parser.add_argument("--operations", type=int, default=3000, help="operations a round (3000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the cheapest counts (5)")
    parser.add_argument("--groups", type=int, default=16, help="shard groups (16)")
    parser.add_argument("--clients", type=int, help=f"connections ({CLIENTS}; of batches {BATCH_CLIENTS})")
    parser.add_argument("--durability", choices=("always", "interval"), default="always")
    parser.add_argument("--profile", metavar="FILE", help="also write what cProfile saw of the rounds")
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(f"{'path':14}{'CPU us/op':>11}{'messages/op':>13}{'virtual ms':>12}")  # noqa: T201 - a command's output
    profile = cProfile.Profile() if args.profile else None
    for path in args.path.split(","):
        clients = args.clients or (BATCH_CLIENTS if path == "batch" else CLIENTS)
        plan = Plan(path, args.operations, args.rounds, clients, args.groups, args.durability)
        cost = measure(plan, profile=profile)
        print(f"{path:14}{cost.cpu_us:>11.1f}{cost.messages:>13.2f}{cost.latency_ms:>12.1f}", flush=True)  # noqa: T201
    if profile is not None:
        profile.dump_stats(args.profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
