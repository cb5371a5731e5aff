"""A running node, wired in one place that reads from top to bottom.

`World` is everything a node takes from outside: clock, chance, files, the tree, the links. `Node.open` builds the
node on any world, so that the simulator runs exactly what production runs; `serve` makes a real world and keeps the
node up until it is told to stop. Shutting down is the same list backwards: stop taking requests, hand leadership
over, let what is under way finish, close the links, then the files.
"""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import structlog
import uvloop

from raftspine._version import __version__
from raftspine.cluster import raft_history
from raftspine.cluster.peers import Peers, Tls
from raftspine.cluster.raft_host import RaftHost, RaftLimits, RaftTiming
from raftspine.cluster.rpc import Rpcs
from raftspine.cluster.tls import tls_from_files
from raftspine.config import Config, Security, guard_bind, load_api_keys
from raftspine.config.apikeys import ApiKey
from raftspine.core.hlc import Hlc
from raftspine.core.placement import build_table
from raftspine.core.routing import Router
from raftspine.errors import Unavailable
from raftspine.http.app import HttpServer, build
from raftspine.http.auth import Auth
from raftspine.model import META_GROUP, MemberId, NodeId, Table
from raftspine.ports import Clock, CrashPoint, Directory, Entropy, Transport, Tree, nowhere
from raftspine.services.bootstrap import ClusterBootstrap, serve_table, spread_table
from raftspine.services.catchup import Catchup
from raftspine.services.coordination.service import Coordination
from raftspine.services.counts import Counts
from raftspine.services.deadlines import Bell
from raftspine.services.fanout import Fanout
from raftspine.services.forward import Forwarder
from raftspine.services.identity import Identity, open_journal, read_life
from raftspine.services.ledger_host import LedgerHost
from raftspine.services.listing import Listing
from raftspine.services.locate import Locator
from raftspine.services.memories import Memories
from raftspine.services.overview import Overview
from raftspine.services.pictures import Pictures
from raftspine.services.replacement import Replacement
from raftspine.services.replica import RingReplica
from raftspine.services.requests import Requests
from raftspine.services.ring import RingPath
from raftspine.services.ring_requests import QuorumRequests
from raftspine.services.sessions import Sessions
from raftspine.services.step_aside import StepAside
from raftspine.services.strong import StrongPath, StrongTiming
from raftspine.services.telemetry import Telemetry
from raftspine.services.topology import Topology
from raftspine.storage.engine import Engine
from raftspine.storage.files import FileDirectory
from raftspine.storage.journal import Journal
from raftspine.storage.tree import LmdbTree
from raftspine.storage.wal import Wal
from raftspine.system import (
    SystemClock,
    SystemEntropy,
    configure_logging,
    load_or_create_secret,
    raise_nofile_limit,
)

log = structlog.get_logger()

SWEEP_SECONDS = 10.0
RAFT_SEGMENT_BYTES = 128 << 20
"""Above the journal's own rotation, which restates the groups: the log never rotates without it."""


class Sizes(NamedTuple):
    """Where logs are cut. The simulator's are smaller, so that a short run gets there."""

    raft: RaftLimits = RaftLimits()
    rotate_bytes: int = 64 << 20


SIZES = Sizes()


@dataclass(frozen=True)
class World:
    """What a node stands on. Whoever makes a world closes it, after the node."""

    clock: Clock
    entropy: Entropy
    secret: bytes
    transport: Transport
    data_log: Directory
    raft_log: Directory
    tree: Tree
    staging: Directory
    """Where received snapshots wait until they are whole."""
    open_links: Callable[[], Awaitable[None]]
    link_counters: Callable[[], Mapping[str, int]] = dict
    folder: str = ""
    """Where the files are, for messages to the operator."""
    passed: CrashPoint = nowhere
    sizes: Sizes = SIZES


class Node:
    """One node: opened on a world, started, stopped. `memories` and `overview` are its face."""

    def __init__(self, config: Config, node: NodeId, world: World, *, void: str | None = None) -> None:
        """`void`: why the Raft journal on this world is void, if its last owner in this process found it to be."""
        clock, timing = world.clock, config.timing
        self.config = config
        self.id = node
        self.world = world
        self._plan = plan(config)
        self._news = Bell()
        self._tasks: list[asyncio.Task[None]] = []
        router = Router(config.consistency.default, config.consistency.overrides)
        self.telemetry = Telemetry()
        self.engine = engine = Engine.open(
            world.data_log,
            world.tree,
            clock=clock,
            durability=config.storage.durability,
            sync_interval_ms=timing.sync_interval_ms,
            checkpoint_interval_ms=timing.checkpoint_interval_ms,
            on_cut=_tell_cut,
            on_sync=self.telemetry.commit_seconds.labels("data").observe,
        )
        self.rpc = rpc = Rpcs(world.transport, clock, world.entropy)
        self.topology = topology = Topology(node, engine)
        self._bootstrap = ClusterBootstrap(
            node, config.name, self._plan, topology=topology, engine=engine, data_dir=world.folder
        )
        for difference in self._bootstrap.open():
            log.warning("the cluster file and the cluster differ", difference=difference)
        serve_table(rpc, topology, config.name)
        spread_table(rpc, topology, config.name)

        # the ring
        hlc = Hlc()
        self.replica = replica = RingReplica(node, engine, clock=clock, entropy=world.entropy, hlc=hlc)
        self._counts = Counts(engine, replica)
        self._fanout = Fanout(engine, rpc, timeout_ms=timing.ring_timeout_ms)
        self._catchup = Catchup(
            replica,
            engine,
            rpc,
            clock,
            topology.peers,
            wait_applied=lambda group, index: self.raft.wait_applied(group, index),
            write_quorum=config.replication.write_quorum,
            interval_ms=timing.digest_interval_ms,
            timeout_ms=timing.ring_timeout_ms,
        )
        ring = RingPath(
            node,
            replica,
            self._fanout,
            rpc,
            topology,
            write_quorum=config.replication.write_quorum,
            timeout_ms=timing.ring_timeout_ms,
        )

        # the log
        self._ledger = LedgerHost(engine, replica, on_table=topology.adopt, passed=world.passed)
        self.void: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves, with the reason, when this node must be started anew: it has ceased to take part by then."""
        alone = self._plan.meta == (node,)
        journal, void = open_journal(world.raft_log, self._open_journal, engine, self._fault, void, alone=alone)
        self._identity = identity = Identity(
            node,
            config.name,
            self._plan,
            journal=journal,
            engine=engine,
            topology=topology,
            entropy=world.entropy,
            position=self._ledger.position,
            void=void,
            on_void=self._cease,
        )
        self.raft = raft = RaftHost(
            node,
            clock=clock,
            entropy=world.entropy,
            rpc=rpc,
            journal=journal,
            machine=self._ledger,
            staging=world.staging,
            snapshot_bytes_per_second=config.storage.snapshot_bytes_per_second,
            passed=world.passed,
            limits=world.sizes.raft,
            timing=RaftTiming(
                timing.heartbeat_ms, timing.election_min_ms, timing.election_max_ms, timing.check_quorum_ms
            ),
            on_commit=self.telemetry.commit_seconds.labels("raft").observe,
            on_void=identity.void,
        )
        topology.withheld = replica.withheld = raft.in_doubt
        self._replacement = Replacement(node, raft, topology)
        strong = StrongPath(
            node,
            raft,
            rpc,
            topology,
            engine,
            clock,
            StrongTiming(timeout_ms=timing.strong_timeout_ms, election_ms=timing.election_max_ms),
        )
        self._step_aside = StepAside(node, engine, raft, rpc)
        raft.on_leader_change(strong.leader_changed)
        raft.on_leader_change(self._news.ring)
        pictures = Pictures(replica, ring, raft, clock)
        self.coordination = coordination = Coordination(
            node,
            strong=strong,
            log=raft,
            host=self._ledger,
            topology=topology,
            rpc=rpc,
            engine=engine,
            clock=clock,
            entropy=world.entropy,
            pictures=pictures,
            waited=self.telemetry.lock_wait_seconds.observe,
        )
        raft.on_leader_change(coordination.leader_changed)
        rpc.on_link(self._news.ring)

        # both
        self._fanout.on_failure = partial(self.telemetry.quorum_failure, "write")
        forwarder = Forwarder(rpc, topology, timeout_ms=timing.strong_timeout_ms)
        self.memories = Memories(
            router=router,
            topology=topology,
            replica=replica,
            ring=ring,
            strong=strong,
            log=raft,
            sessions=Sessions(world.secret, replica.stable),
            requests=Requests(
                strong,
                topology,
                rpc,
                engine,
                ring=QuorumRequests(ring, topology, engine, rpc, timeout_ms=timing.ring_timeout_ms),
            ),
            listing=Listing(
                router,
                replica,
                ring,
                strong,
                raft,
                topology,
                forwarder,
                rpc,
                clock,
                barrier_ms=timing.strong_timeout_ms,
            ),
            locator=Locator(
                replica,
                topology,
                rpc,
                write_quorum=config.replication.write_quorum,
                timeout_ms=timing.ring_timeout_ms,
            ),
            forwarder=forwarder,
            pictures=pictures,
            clock=clock,
            entropy=world.entropy,
            strong_timeout_ms=timing.strong_timeout_ms,
        )
        self.overview = Overview(
            node,
            __version__,
            topology=topology,
            replica=replica,
            catchup=self._catchup,
            counts=self._counts,
            fanout=self._fanout,
            log=raft,
            rpc=rpc,
            engine=engine,
            hlc=hlc,
            telemetry=self.telemetry,
            coordination=coordination,
            link_counters=world.link_counters,
            traffic=raft.traffic,
            divergences=raft.divergences,
            frames_ignored=raft.frames_ignored,
            identity=identity,
        )
        identity.serve(rpc, raft)
        topology.on_change(self._take_up)

    def start(self) -> None:
        """Begin to work: vote, replicate, find the table. Returns at once; `overview.ready` tells when it is up."""
        self.raft.start()
        self.coordination.start()
        if self._identity.member is None:
            self._spawn(self._find_identity())
        else:
            self._take_part(self._identity.member)
        self._spawn(self._catchup.run())
        self._spawn(self._find_table())
        self._spawn(self._sweep())
        self._spawn(self._counts.run())
        self._spawn(self._step_aside.run())
        self._spawn(self._replacement.run())

    async def stop(self) -> None:
        """The start backwards: hand leadership over, end the workers, then close what they used."""
        self.coordination.stop()
        await self.raft.step_down_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._catchup.stop()
        await self.raft.stop()
        await self.rpc.close()
        await self.engine.close()

    def kill(self) -> None:
        """End at once, as a killed process does: nothing is handed over, flushed or closed. For the simulator."""
        self.raft.kill()
        self.coordination.stop()
        for task in self._tasks:
            task.cancel()

    # ── who it is ─────────────────────────────────────────────────────────────────────────────────────────────

    def _open_journal(self) -> Journal:
        return Journal.open(
            Wal.open(self.world.raft_log, segment_bytes=RAFT_SEGMENT_BYTES, on_cut=_tell_cut),
            rotate_bytes=self.world.sizes.rotate_bytes,
            passed=self.world.passed,
        )

    def _fault(self, journal: Journal) -> str | None:
        """What in a journal contradicts the store, if anything."""
        life, groups = read_life(journal), set(journal.groups())
        if groups and (life is None or life.member == self.id):  # a founder holds the log of all it has state of
            groups |= {META_GROUP, *self.topology.held()}
        faults = (raft_history.contradiction(g, journal.group(g), self._ledger.position(g)) for g in sorted(groups))
        return next((fault for fault in faults if fault is not None), None)

    async def _find_identity(self) -> None:
        await self._identity.settle(self.raft, self.rpc, news=self._news)
        if self._identity.member is not None:
            self._take_part(self._identity.member)

    def _take_part(self, member: MemberId) -> None:
        """From here on this node speaks in its groups."""
        self.raft.member = member
        if self.id in self._identity.meta_founders and self._identity.founding:
            self.raft.add_group(META_GROUP, self._identity.meta_founders)
        if self.topology.known is not None:
            self._take_up(self.topology.known)

    def _cease(self, reason: str) -> None:
        """This node's Raft journal is void. Once that is on disk, or cannot be, whoever runs it starts it anew."""
        log.error("this node's place in the Raft groups is void; it starts anew as another member", reason=reason)

        def written(flushed: "asyncio.Future[None]") -> None:
            if not flushed.cancelled() and (error := flushed.exception()) is not None:
                log.error("that the Raft journal is void could not be written", error=error)
            if not self.void.done():
                self.void.set_result(reason)

        self.raft.flushed().add_done_callback(written)

    def _take_up(self, table: Table) -> None:
        """A table has come into force: hold what it says this node holds."""
        held = self.topology.held()
        self.replica.hold(held)
        if self._identity.member is None:
            return  # its groups follow once it knows as whom it speaks
        for group in (*held, *([META_GROUP] if self.topology.holds(META_GROUP) else ())):
            if group not in self.raft.groups():
                self.raft.add_group(group, table.replicas(group) if self._identity.founding else ())
        log.info("table in force", epoch=table.epoch, cluster=table.cluster_id, groups=len(held))

    async def _find_table(self) -> None:
        await self._bootstrap.run(self.raft, self.rpc, self.world.entropy, news=self._news)

    async def _sweep(self) -> None:
        """Forget, a page at a time, what Idempotency-Keys caused more than a day ago."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with suppress(Unavailable):  # the store takes nothing now: this can wait
                for group in self.replica.groups():
                    self._ledger.sweep(group)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_tell_failure)
        self._tasks.append(task)


def plan(config: Config) -> Table:
    """The first table this configuration leads to; the same on every node with the same file."""
    return build_table(
        "",
        config.members,
        groups=config.partitioning.shard_groups,
        factor=config.replication.factor,
        strategy=config.partitioning.strategy,
    )


def _tell_cut(file: str, offset: int, lost: int) -> None:
    log.warning("cut a torn record off a log after a crash", file=file, offset=offset, bytes=lost)


def _tell_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background worker ended", worker=task.get_name(), exc_info=error)


# ── production ────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def real_world(config: Config, node: NodeId) -> AsyncIterator[World]:
    """Clock, chance, files, tree and links of this machine. Raises Misuse for a directory or port in use."""
    member = config.member(node)
    folder = config.data_dir(node)
    loop = asyncio.get_running_loop()
    clock, entropy = SystemClock(), SystemEntropy()
    # Only where all is on loopback may there be none yet (guard_bind); then this machine's nodes share one of
    # their own.
    secret = config.secret or load_or_create_secret(config.storage.data_dir / "secret")
    with ExitStack() as held:
        data_log = FileDirectory(folder / "data" / "log", loop)
        held.callback(data_log.close)
        raft_log = FileDirectory(folder / "raft", loop)
        held.callback(raft_log.close)
        staging = FileDirectory(folder / "snapshots", loop)
        held.callback(staging.close)
        tree = LmdbTree.open(folder / "data" / "tree", config.storage.map_size_bytes, loop)
        peers = Peers(
            node,
            config.name,
            secret,
            listen=(member.host, member.peer_port),
            peers={m.id: (m.host, m.peer_port) for m in config.members if m.id != node},
            clock=clock,
            entropy=entropy,
            tls=_tls(config.security),
            peer_dead_ms=config.timing.peer_dead_ms,
        )
        try:
            yield World(
                clock,
                entropy,
                secret,
                peers,
                data_log,
                raft_log,
                tree,
                staging,
                peers.start,
                link_counters=lambda: peers.counters,
                folder=str(folder),
            )
        finally:
            await peers.close()


MakeWorld = Callable[[Config, NodeId], AbstractAsyncContextManager[World]]


def run(config: Config, node: NodeId) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises Misuse, Corrupt and ConfigFaults at start."""
    guard_bind(config, node)
    configure_logging(os.environ.get("RAFTSPINE_LOG_LEVEL", "info"))
    for warning in config.warnings:
        log.warning("configuration", warning=warning)
    raise_nofile_limit()
    uvloop.run(serve(config, node))
    return 0


async def serve(config: Config, node: NodeId, make_world: MakeWorld = real_world) -> None:
    """A node on this machine, with its HTTP front door, until it is told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    void = None
    while not stop.is_set():
        void = await _live(config, node, stop, make_world, void)


async def _live(
    config: Config, node: NodeId, stop: asyncio.Event, make_world: MakeWorld, void: str | None
) -> str | None:
    """One life of a node: until it is told to stop, or finds that it must begin anew. Returns why it must: the next
    one is told so, because a full disk may not have taken the word."""
    member = config.member(node)
    async with make_world(config, node) as world:
        running = Node(config, node, world, void=void)
        http = HttpServer(
            build(
                running.memories,
                running.overview,
                node_id=node,
                limits=config.limits,
                auth=Auth(_keys(config)),
                clock=world.clock,
                entropy=world.entropy,
                telemetry=running.telemetry,
                coordination=running.coordination,
            )
        )
        await http.start(member.host, member.port)
        await world.open_links()
        running.start()
        settle_collector()
        log.info("serving", node=node, http=f"{member.host}:{member.port}", peers=member.peer_port)
        stopping = asyncio.create_task(stop.wait())
        running.void.add_done_callback(lambda _: stopping.cancel())
        await asyncio.wait([stopping])
        log.info("stopping", node=node)
        running.coordination.drain()
        await http.stop()
        await running.stop()
        return running.void.result() if running.void.done() else None


def _tls(security: Security) -> Tls | None:
    if security.tls_cert is None or security.tls_key is None or security.tls_ca is None:
        return None
    return tls_from_files(security.tls_cert, security.tls_key, security.tls_ca)


def settle_collector() -> None:
    """What was built at start stays for good, so the cyclic collector need not walk it; and requests leave few cycles
    behind, so it may come less often (8 % of a write's time with the defaults)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _keys(config: Config) -> dict[str, ApiKey]:
    """API keys by digest, as the front door wants them."""
    if config.security.api_keys_file is None:
        return {}
    return {digest.hex(): key for digest, key in load_api_keys(config.security.api_keys_file).items()}
