"""Who keeps what, as this node knows it: the newest table, and the questions everyone asks of it.

The table is decided by the meta group's log and only copied here, so the rule is: a table is replaced by a
newer one of the *same* cluster and by nothing else. Taking an older one would send writes to replicas that
have given a shard group up; taking another cluster's would mix two clusters' memories under the same ids,
which nothing can undo.

The copy is stored under its own key, apart from the meta ledger's state, because the ledger's state must be
what the log made of it and nothing a peer said.
"""

from collections.abc import Callable, Sequence

from raftspine import codec
from raftspine.core.partition import group_of, partition_key
from raftspine.errors import Misuse, Unavailable
from raftspine.model import META_GROUP, GroupId, Member, NodeId, Table
from raftspine.ports import Engine
from raftspine.services.deadlines import Bell
from raftspine.storage import keys

TABLE_ROW = "table"

OnChange = Callable[[Table], None]


class Topology:
    """The current table on this node. Until there is one, every question raises Unavailable(`not_ready`)."""

    def __init__(self, node: NodeId, engine: Engine) -> None:
        self.node = node
        self._engine = engine
        self._table: Table | None = None
        self._listeners: list[OnChange] = []
        self._peers: dict[GroupId, tuple[NodeId, ...]] = {}
        self._held: frozenset[GroupId] = frozenset()
        self._members: dict[NodeId, Member] = {}
        self.withheld: Callable[[GroupId], bool] = lambda group: False
        """Whether this node's replica of a group is in doubt; set once there is a log."""
        self.arrived = Bell()

    # ── the table ───────────────────────────────────────────────────────────────────────────────────────────

    def load(self) -> Table | None:
        """Take up the table this node stored last. Raises Corrupt."""
        data = self._engine.get(keys.meta(TABLE_ROW))
        if data is not None:
            self._take(codec.decode_table(data))
        return self._table

    def adopt(self, table: Table) -> bool:
        """Replace the table by a newer one, wherever it was heard of, and store it; False when it is not
        newer. Raises Misuse for another cluster's."""
        mine = self._table
        if mine is not None:
            if table.cluster_id != mine.cluster_id:
                raise Misuse(
                    f"this node's data belongs to cluster {mine.cluster_id}, but a peer is in cluster "
                    f"{table.cluster_id}; give this node an empty data directory to join that cluster, or "
                    "correct `cluster.nodes` so that it lists only nodes of its own cluster"
                )
            if table.epoch <= mine.epoch:
                return False
        self._engine.stage([(keys.meta(TABLE_ROW), codec.encode(table))])
        self._take(table)
        return True

    def on_change(self, changed: OnChange) -> None:
        """Call `changed(table)` with each newer table, and at once when there is one already."""
        self._listeners.append(changed)
        if self._table is not None:
            changed(self._table)

    @property
    def known(self) -> Table | None:
        """The table, or None while this node has none."""
        return self._table

    @property
    def table(self) -> Table:
        """The table. Raises Unavailable(`not_ready`) while this node has none."""
        if self._table is None:
            raise Unavailable("this node does not know the cluster's table yet", code="not_ready", retry_after_ms=500)
        return self._table

    @property
    def epoch(self) -> int:
        """The table's epoch; 0 before the first."""
        return 0 if self._table is None else self._table.epoch

    @property
    def strategy(self) -> str:
        """What is hashed to find a memory's group: id, agent or tag."""
        return self.table.strategy

    def _take(self, table: Table) -> None:
        self._table = table
        groups = [GroupId(g) for g in range(len(table.groups))] + [META_GROUP]
        self._peers = {g: tuple(n for n in table.replicas(g) if n != self.node) for g in groups}
        self._held = frozenset(g for g in groups if self.node in table.replicas(g))
        self._members = {member.id: member for member in table.members}
        for changed in self._listeners:
            changed(table)
        self.arrived.ring()

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────

    def group_of(self, id: str, agent: str = "", tags: Sequence[str] = ()) -> GroupId:
        """The shard group a memory belongs to, by the cluster's partitioning strategy."""
        table = self.table
        return group_of(partition_key(table.strategy, id, agent, tags), len(table.groups))

    def group_ids(self) -> tuple[GroupId, ...]:
        """All shard groups, the meta group not among them."""
        return tuple(GroupId(g) for g in range(len(self.table.groups)))

    def replicas(self, group: GroupId) -> tuple[NodeId, ...]:
        """The nodes that keep a group, preferred first."""
        return self.table.replicas(group)

    def peers(self, group: GroupId) -> tuple[NodeId, ...]:
        """The replicas of a group other than this node."""
        if self._table is None:
            return self.table.replicas(group)  # raises, saying why
        return self._peers[group]

    def holds(self, group: GroupId) -> bool:
        """Whether this node keeps a replica of the group."""
        return group in self._held

    def serves(self, group: GroupId) -> bool:
        """Whether strong requests for the group may be answered from this node's replica."""
        return group in self._held and not self.withheld(group)

    def held(self) -> tuple[GroupId, ...]:
        """The shard groups this node keeps, the meta group not among them."""
        return tuple(sorted(g for g in self._held if g != META_GROUP))

    def member(self, node: NodeId) -> Member | None:
        """A member's addresses, zone and role; None for a stranger."""
        return self._members.get(node)

    def members(self) -> tuple[Member, ...]:
        return self.table.members
