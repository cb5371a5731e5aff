"""What an operator asks of a node: is it ready, what does it hold, who leads, who is behind, and why.

Each answer is read from the part that owns the fact at the moment of the question; nothing here is remembered, so
nothing here can be stale, but for the counts of a large store (counts.py says how old they may be). `ready` is a
promise to a load balancer, and means that this node can serve both paths of every group it holds: it has the table,
its log is writable, and each of its groups has a leader from which this node has heard what is committed. A node that
has not is empty as far as it knows, and would be sent requests that it can only make wait.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from raftspine.core.hlc import Hlc
from raftspine.model import META_GROUP, GroupId, NodeId, Table
from raftspine.ports import Engine, LogStatus, ReplicatedLog, Rpc, SnapshotProgress
from raftspine.services.catchup import Catchup
from raftspine.services.counts import Counts
from raftspine.services.fanout import Fanout
from raftspine.services.identity import Identity
from raftspine.services.replica import RingReplica
from raftspine.services.telemetry import Telemetry
from raftspine.services.topology import Topology


class Coordinated(Protocol):
    """What coordination counts (coordination/service.py): text and value by name."""

    def gauges(self) -> dict[str, tuple[str, float]]: ...
    def counters(self) -> dict[str, tuple[str, float]]: ...


class SnapshotTraffic(Protocol):
    """What Raft snapshots have cost this node since it started."""

    sent_bytes: int
    received_bytes: int
    resumed_bytes: int
    installed: int
    failed: int


class Overview:
    """One node's view of itself and its peers."""

    def __init__(
        self,
        node: NodeId,
        version: str,
        *,
        topology: Topology,
        replica: RingReplica,
        catchup: Catchup,
        counts: Counts,
        fanout: Fanout,
        log: ReplicatedLog,
        rpc: Rpc,
        engine: Engine,
        hlc: Hlc,
        telemetry: Telemetry,
        coordination: Coordinated,
        link_counters: Callable[[], Mapping[str, int]],
        traffic: SnapshotTraffic,
        divergences: Callable[[], int],
        frames_ignored: Callable[[], int],
        identity: Identity,
    ) -> None:
        self.node = node
        self.node_id = str(node)
        self.version = version
        self._topology = topology
        self._replica = replica
        self._catchup = catchup
        self._counts = counts
        self._fanout = fanout
        self._log = log
        self._rpc = rpc
        self._engine = engine
        self._hlc = hlc
        self._telemetry = telemetry
        self._coordination = coordination
        self._link_counters = link_counters
        self._traffic = traffic
        self._divergences = divergences
        self._frames_ignored = frames_ignored
        self._identity = identity
        telemetry.watch(self)

    # ── for HTTP ──────────────────────────────────────────────────────────────────────────────────────────────

    def topology(self) -> Table:
        """The table. Raises Unavailable(`not_ready`) while there is none."""
        return self._topology.table

    def ready(self) -> tuple[bool, list[str]]:
        """Whether this node can serve all it holds, and what is missing."""
        waits_for = self._identity.waits_for
        if waits_for or self._topology.known is None:
            return False, [waits_for or "the cluster's table is not known yet"]
        reasons = self._rejoining()
        why = self._engine.read_only()
        if why is not None:
            reasons.append(f"writes are refused: {why}")
        for status in self.log_statuses():
            name = group_name(status.group)
            if status.reason is not None:
                reasons.append(f"{name}: {status.reason}")
            elif status.role == "learner":
                continue  # said above, for all groups together
            elif status.leader is None:
                reasons.append(f"{name} has no leader")
            elif status.commit == 0:
                reasons.append(f"{name} has nothing from its leader yet")
        held = self._topology.held()
        reasons += [f"{group_name(group)} is not loaded yet" for group in held if not self._replica.holds(group)]
        return not reasons, reasons

    def _rejoining(self) -> list[str]:
        """How far a node that lost its place in its groups has come."""
        held = [*self._topology.held(), *([META_GROUP] if self._topology.holds(META_GROUP) else ())]
        member, present = self._identity.member, {status.group: status for status in self.log_statuses()}
        back = sum(1 for group in held if group in present and member in present[group].voters)
        if back == len(held):
            return []
        return [f"rejoining as {member}: {back} of {len(held)} groups count on this node again"]

    def status(self) -> dict[str, Any]:
        """This node's state, for `cluster status`."""
        ok, reasons = self.ready()
        table = self._topology.known
        return {
            "node": self.node,
            "version": self.version,
            "ready": ok,
            "reasons": reasons,
            "raft_id": self._identity.member,
            "epoch": self._topology.epoch,
            "cluster_id": None if table is None else table.cluster_id,
            "read_only": self._engine.read_only(),
            "hlc_drift_ms": self._hlc.drift_ms,
            "store_used_ratio": round(self._engine.used_ratio(), 4),
            "peers": {
                peer: {
                    "connected": self._rpc.connected(peer),
                    "pending_dots": self.pending_dots(peer),
                    "lag_seconds": round(self.lag_seconds(peer), 3),
                }
                for peer in self.peer_ids()
            },
            "groups": [
                {
                    "group": group_name(status.group),
                    "role": status.role,
                    "leader": status.leader,
                    "term": status.term,
                    "commit": status.commit,
                    "applied": status.applied,
                    "last": status.last,
                    "voters": list(status.voters),
                    "learners": list(status.learners),
                    **({"reason": status.reason} if status.reason else {}),
                    **({"quarantined": True} if status.quarantined else {}),
                    **({"snapshots": [_snapshot(one) for one in status.snapshots]} if status.snapshots else {}),
                }
                for status in self.log_statuses()
            ],
        }

    def stats(self) -> dict[str, Any]:
        """Counts of what this node holds; see `group_counts` for how exact they are."""
        counts = self.group_counts()
        return {
            "node": self.node,
            "version": self.version,
            "memories": sum(counts.values()),
            "memories_by_group": {str(group): n for group, n in counts.items()},
            "conflicts_total": self._replica.conflicts_total,
            "store_used_ratio": round(self._engine.used_ratio(), 4),
            "partition_skew_ratio": self.partition_skew(),
            "coordination": {
                name.removeprefix("spine_"): value
                for name, (_, value) in {**self._coordination.gauges(), **self._coordination.counters()}.items()
            },
        }

    def metrics(self) -> bytes:
        return self._telemetry.page()

    # ── for metrics ───────────────────────────────────────────────────────────────────────────────────────────

    def peer_ids(self) -> Iterable[NodeId]:
        table = self._topology.known
        return [] if table is None else [m.id for m in table.members if m.id != self.node]

    def lag_seconds(self, peer: NodeId) -> float:
        return self._catchup.lag_seconds(peer)

    def pending_dots(self, peer: NodeId) -> int:
        return self._catchup.pending(peer)

    def log_statuses(self) -> Iterable[LogStatus]:
        return [self._log.status(group) for group in self._log.groups()]

    def group_counts(self) -> dict[GroupId, int]:
        """Ids per group, tombstones included: exact, but for a large store as of its last walk (counts.py)."""
        return self._counts.by_group()

    def partition_skew(self) -> dict[str, float]:
        """The largest group over the mean, from `group_counts`."""
        counts = list(self.group_counts().values())
        mean = sum(counts) / len(counts) if counts else 0.0
        return {"memories": round(max(counts) / mean, 3) if mean else 1.0}

    def gauges(self) -> dict[str, tuple[str, float]]:
        return {
            "spine_store_used_ratio": ("Share of the store's map in use.", self._engine.used_ratio()),
            "spine_store_read_only": ("1 while writes are refused.", float(self._engine.read_only() is not None)),
            "spine_hlc_drift_ms": ("How far the hybrid clock runs ahead of the wall clock.", self._hlc.drift_ms),
            "spine_ring_inflight": ("Ring writes waiting for their quorum.", self._fanout.inflight),
            "spine_topology_epoch": ("Epoch of the table in force.", self._topology.epoch),
            **self._coordination.gauges(),
        }

    def counters(self) -> dict[str, tuple[str, float]]:
        return {
            "spine_conflicts": ("Writes that lost against a concurrent one.", self._replica.conflicts_total),
            "spine_catchup_dots": ("Ring writes fetched from peers after being missed.", self._catchup.pulled_total),
            "spine_raft_snapshot_sent_bytes": ("Bytes of Raft snapshots sent.", self._traffic.sent_bytes),
            "spine_raft_snapshot_received_bytes": ("Bytes of Raft snapshots staged.", self._traffic.received_bytes),
            "spine_raft_snapshot_resumed_bytes": (
                "Bytes of Raft snapshots that a resumed transfer did not send again.",
                self._traffic.resumed_bytes,
            ),
            "spine_raft_snapshots_installed": ("Raft snapshots put in force here.", self._traffic.installed),
            "spine_raft_snapshots_failed": ("Raft snapshots given up or refused.", self._traffic.failed),
            "spine_raft_divergence": ("Replicas found to differ from others.", self._divergences()),
            "spine_raft_ignored_frames": ("Raft frames that nobody acted on.", self._frames_ignored()),
            "spine_full_syncs": ("Shard groups taken whole from a peer.", self._catchup.full_syncs_total),
            "spine_push_refused": ("Ring writes refused by this replica.", self._catchup.refused_total),
            **self._coordination.counters(),
            **{
                f"spine_link_{name}": (f"Links to peers: {name.replace('_', ' ')}.", value)
                for name, value in self._link_counters().items()
            },
        }


def _snapshot(progress: SnapshotProgress) -> dict[str, Any]:
    way = {"from_leader": True} if progress.peer is None else {"to": progress.peer}
    return {**way, "index": progress.index, "bytes": progress.size_bytes}


def group_name(group: GroupId) -> str:
    return "meta" if group == META_GROUP else f"group {group}"
