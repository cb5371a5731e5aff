"""The values everything else speaks of: frozen, compared by content, free of any way to reach the world.

A memory exists in two stored shapes, because its tags decide which path keeps it:

* on the **ring** as a `RingRecord`: the concurrent `Version`s that replicas have not yet superseded (nearly
  always one), each named by its dot, plus the context that says what they replaced;
* on the **strong** path as a `StrongRecord`: one value and the log index that wrote it.

Both are encoded as arrays (see codec.py for the version marker), so the order of fields is part of the format:
append only. Times are integer milliseconds since the Unix epoch, UTC.
"""

from enum import StrEnum
from typing import Any, NamedTuple, NewType

from msgspec import Struct

NodeId = NewType("NodeId", str)
GroupId = NewType("GroupId", int)

MemberId = NodeId
"""Who speaks in a Raft group: a node's id while its first Raft journal lasts, and `node~hex8` for each later one
(docs/decisions/0008-raft-identity.md). A node's id never contains the tilde."""


META_GROUP = GroupId(0xFFFF)
"""The Raft group that owns the truth about the cluster; shard groups count from 0 to at most 63."""

MAX_GROUPS = 64


def node_of(member: MemberId) -> NodeId:
    """The node on which a Raft member lives."""
    return NodeId(member.partition("~")[0])


class Model(StrEnum):
    """A consistency model, by the name users write in the cluster file."""

    STRONG = "strong"
    CAUSAL = "causal"
    READ_YOUR_WRITES = "read-your-writes"
    EVENTUAL = "eventual"


class Path(StrEnum):
    """Which machinery keeps a memory: the Raft log of its shard group, or the ring."""

    STRONG = "strong"
    RING = "ring"


class Role(StrEnum):
    """What a node does: primaries may vote in the meta group, gateways hold no data."""

    PRIMARY = "primary"
    REPLICA = "replica"
    GATEWAY = "gateway"


class Dot(NamedTuple):
    """The name of one ring write: the boot of the node that coordinated it, and its number within the group."""

    origin: str
    seq: int


class Memory(Struct, frozen=True, array_like=True, omit_defaults=False):
    """What a memory says and who said it. Its id and version belong to the record around it."""

    content: Any
    agent_id: str = ""
    namespace: str = ""
    tags: tuple[str, ...] = ()
    importance: str | float = "medium"
    metadata: dict[str, Any] = {}
    ttl_seconds: int | None = None
    expires_at_ms: int | None = None
    pinned: bool = False
    content_sha256: bytes = b""
    created_at_ms: int = 0
    updated_at_ms: int = 0
    updated_by: str = ""
    merged_from: tuple[str, ...] = ()


class Version(Struct, frozen=True, array_like=True):
    """One ring write as it travels and as it is kept.

    `context` maps an origin to the highest sequence number *of this id* that the coordinator had seen: the
    versions this one supersedes. `memory` is None for a delete (a tombstone). `request` is the 16-byte digest of
    the Idempotency-Key that caused it followed by the 16-byte fingerprint of that request, or empty. `deps` are
    the (group, origin, seq) a causal write depends on: who reads this version must read those too.
    """

    id: str
    origin: str
    seq: int
    stamp: int
    context: dict[str, int]
    memory: Memory | None
    request: bytes = b""
    deps: tuple[tuple[int, str, int], ...] = ()

    @property
    def dot(self) -> Dot:
        return Dot(self.origin, self.seq)


class RingRecord(Struct, frozen=True, array_like=True):
    """All a replica holds of one id: live versions, winner first (highest stamp, then origin), and their joint
    context, which includes their own dots."""

    versions: tuple[Version, ...]
    context: dict[str, int]


class StrongRecord(Struct, frozen=True, array_like=True):
    """One id on the strong path. `index` is the Raft log index of the last change and `sub` its place in that
    entry's batch. `memory` is None after a delete. `shadow` is the ring context this record was promoted over,
    and `stamp` the highest ring stamp in it, which a demotion must exceed."""

    id: str
    index: int
    sub: int
    memory: Memory | None
    shadow: dict[str, int] = {}
    stamp: int = 0


class Member(Struct, frozen=True):
    """One node as the cluster knows it. `host` and ports are where peers and clients reach it."""

    id: NodeId
    host: str
    port: int
    peer_port: int
    zone: str = ""
    role: Role = Role.PRIMARY
    weight: float = 1.0
    raft_id: str = ""
    """The member as which this node speaks in Raft groups; empty for its id, the one it was founded with."""

    @property
    def speaks_as(self) -> MemberId:
        return MemberId(self.raft_id or self.id)


class Table(Struct, frozen=True):
    """Who keeps what: for each shard group its replicas, first the preferred one. The table is logged in the
    meta group; its epoch grows by one with each change."""

    epoch: int
    cluster_id: str
    strategy: str
    members: tuple[Member, ...]
    groups: tuple[tuple[NodeId, ...], ...]
    meta: tuple[NodeId, ...]

    def replicas(self, group: GroupId) -> tuple[NodeId, ...]:
        """Replica set of a group, the meta group included."""
        return self.meta if group == META_GROUP else self.groups[group]

    def member(self, node: NodeId) -> Member | None:
        return next((m for m in self.members if m.id == node), None)
