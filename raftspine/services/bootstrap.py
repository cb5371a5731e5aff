"""How a node comes to know which cluster it belongs to, once in its life, and how it notices that it does not.

The table must be agreed before anything can be routed, and nothing can be agreed before someone knows the voters;
this knot is cut by computing the same first plan from the same cluster file on every node. The plan's meta voters
elect a leader; the leader proposes the plan (with a cluster id it mints) as the first table; from then on the logged
table rules and the file is only compared with it. Nodes outside the meta group ask their peers.

Without the identity row a data directory copied or mounted at the wrong node would vote twice in one term, and one
from another cluster would answer with that cluster's memories. A node that has lost its Raft journal
no longer knows its votes either: it comes back as another member (identity.py).
"""

import asyncio
from typing import Any

import structlog

from raftspine import codec
from raftspine.core.ledger import cluster
from raftspine.core.repeats import Repeats
from raftspine.errors import Misuse, SpineError, Unavailable, Unknown
from raftspine.model import META_GROUP, NodeId, Table
from raftspine.ports import Engine, Entropy, ReplicatedLog, Rpc
from raftspine.services.deadlines import Bell
from raftspine.services.topology import Topology
from raftspine.storage import keys

GET_TABLE = "topology.get"
TABLE_NEWS = "topology.news"
FETCH_MS = 2_000
IDENTITY_ROW = "identity"

log = structlog.get_logger(__name__)


class ClusterBootstrap:
    """Brings `topology` its table. `plan` is the first table computed from the cluster file; its epoch and
    cluster id do not matter."""

    def __init__(
        self,
        node: NodeId,
        cluster_name: str,
        plan: Table,
        *,
        topology: Topology,
        engine: Engine,
        data_dir: str = "",
    ) -> None:
        self._node = node
        self._name = cluster_name
        self._plan = plan
        self._topology = topology
        self._engine = engine
        self._data_dir = data_dir
        self._repeats = Repeats()

    # ── at start, before any network ────────────────────────────────────────────────────────────────────────

    def open(self) -> list[str]:
        """Check that the data directory is this node's, write its identity when it is new, load the stored
        table.

        Returns warnings for the operator: where the cluster file and the stored table differ, the stored
        table rules. Raises Misuse when the directory is another cluster's or node's, Corrupt when it cannot
        be read. The identity is staged, and durable with the next durable commit.
        """
        self._check_identity()
        table = self._topology.load()
        if table is None:
            return []
        return differences(self._plan, table)

    def _check_identity(self) -> None:
        stored = self._engine.get(keys.meta(IDENTITY_ROW))
        if stored is None:
            row = codec.encode({"cluster": self._name, "node": self._node})
            self._engine.stage([(keys.meta(IDENTITY_ROW), row)])
            return
        was = codec.decode_any(stored)
        where = f"the data directory {self._data_dir}".rstrip()
        if was["cluster"] != self._name:
            raise Misuse(
                f"{where} belongs to cluster {was['cluster']!r}, but this node is configured for cluster "
                f"{self._name!r}; point `storage.data_dir` at this cluster's directory or at an empty one, "
                "or correct `cluster.name`"
            )
        if was["node"] != self._node:
            raise Misuse(
                f"{where} belongs to node {was['node']!r}, but this node is {self._node!r}; start it as "
                f"`--node {was['node']}`, or give {self._node!r} a directory of its own"
            )

    # ── over the network ────────────────────────────────────────────────────────────────────────────────────

    async def run(
        self, replicated_log: ReplicatedLog, rpc: Rpc, entropy: Entropy, *, news: Bell, retry_ms: int = 500
    ) -> Table:
        """Wait until this node has a table; returns it. Ends only with one, or with Misuse when the peers are
        of another cluster, so put a deadline around it where one is wanted.

        `news` rings when a link came up or a leader changed; `retry_ms` bounds how long a missed ring can
        delay.
        """
        loop = asyncio.get_running_loop()
        topology = self._topology
        topology.on_change(news.ring)
        while topology.known is None:
            waiting = news.next(loop)
            if replicated_log.leader(META_GROUP) == self._node:
                await self._propose(replicated_log, entropy)
            else:
                await self._ask(rpc, retry_ms)
            if topology.known is None:
                await news.heard(retry_ms / 1000, loop, waiting)
        return topology.known

    async def _propose(self, replicated_log: ReplicatedLog, entropy: Entropy) -> None:
        """Propose the plan. The ledger host hands the table to the topology as it is applied, here and on
        every other voter; a failure is met by asking again."""
        command = cluster.first_table(self._plan, entropy.token_bytes(16).hex())
        try:
            await replicated_log.propose(META_GROUP, cluster.encode(command))
        except (Unavailable, Unknown) as error:
            log.info("the first table is not agreed yet", reason=error.message)

    async def _ask(self, rpc: Rpc, timeout_ms: int) -> None:
        peers = [m.id for m in self._plan.members if m.id != self._node and rpc.connected(m.id)]
        calls = [rpc.call(peer, GET_TABLE, self._name, timeout_ms=timeout_ms) for peer in peers]
        for peer, answer in zip(peers, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, SpineError):
                if self._repeats.due(peer, answer.code, asyncio.get_running_loop().time()):
                    say = log.error if isinstance(answer, Misuse) else log.info
                    say("a peer did not give the table", peer=peer, reason=answer.message)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                self._adopt(codec.decode_table(answer))

    def _adopt(self, table: Table) -> None:
        """Take up a peer's table. A store that refuses it now is asked again in the next round: were it an end, the
        node would stay without a table for good once its disk is well."""
        try:
            self._topology.adopt(table)
        except Unavailable as error:
            log.info("the table cannot be stored yet", reason=error.message)


def serve_table(rpc: Rpc, topology: Topology, cluster_name: str) -> None:
    """Answer peers that have no table yet."""

    def answer(peer: NodeId, body: Any) -> bytes | None:
        if body != cluster_name:
            raise Misuse(f"node {peer} is configured for cluster {body!r}; this is cluster {cluster_name!r}")
        return None if topology.known is None else codec.encode(topology.known)

    rpc.serve(GET_TABLE, answer)


def spread_table(rpc: Rpc, topology: Topology, cluster_name: str) -> None:
    """Let the peers know which table is in force here, with each change and each new link, and take a newer one from
    whoever has it. Only the meta group's nodes see the table decided; all lead groups by it."""

    def tell(peer: NodeId, up: bool = True) -> None:
        if up and topology.known is not None:
            rpc.cast(peer, TABLE_NEWS, (cluster_name, topology.epoch))

    def changed(table: Table) -> None:
        for member in table.members:
            if member.id != topology.node and rpc.connected(member.id):
                tell(member.id)

    async def heard(peer: NodeId, body: Any) -> None:
        name, epoch = body
        if name != cluster_name or epoch <= topology.epoch:
            return
        try:
            answer = await rpc.call(peer, GET_TABLE, cluster_name, timeout_ms=FETCH_MS)
            if answer is not None:
                topology.adopt(codec.decode_table(answer))
        except SpineError as error:
            log.info("a newer table could not be taken", peer=peer, epoch=epoch, reason=error.message)

    rpc.serve(TABLE_NEWS, heard)
    rpc.on_link(tell)
    topology.on_change(changed)


def differences(plan: Table, table: Table) -> list[str]:
    """How the cluster file differs from the table in force, one sentence each, for the operator."""
    planned, actual = {m.id: m for m in plan.members}, {m.id: m for m in table.members}
    told = [
        f"{id} is in the cluster file but not a member; a new file does not add members"
        for id in sorted(planned.keys() - actual.keys())
    ]
    told += [
        f"{id} is a member but not in the cluster file; a new file does not remove members"
        for id in sorted(actual.keys() - planned.keys())
    ]
    for id in sorted(planned.keys() & actual.keys()):
        for field in ("host", "port", "peer_port", "zone", "role", "weight"):
            wish, fact = getattr(planned[id], field), getattr(actual[id], field)
            if wish != fact:
                told.append(f"{id}: the cluster file says {field} {wish}, the cluster has {fact}")
    if len(plan.groups) != len(table.groups):
        told.append(
            f"the cluster file says {len(plan.groups)} shard groups, the cluster was created with "
            f"{len(table.groups)}; this is fixed for its life"
        )
    if plan.strategy != table.strategy:
        told.append(
            f"the cluster file says partitioning strategy {plan.strategy}, the cluster was created with "
            f"{table.strategy}; this is fixed for its life"
        )
    return told
