"""The meta group's state machine: which cluster this is, who its members are, who keeps which shard group.

The table is agreed once and then logged, not computed: two nodes with slightly different cluster files would
otherwise compute two tables, and a memory written by one would be a 404 at the other. Each node *can* compute
the first table from its file, so whoever leads the meta group proposes one; the first to be applied wins and
every later `InitTable` is answered with what is already there, which makes proposing it again after any
failure harmless.

A node that comes back without its Raft journal is another member of the Raft groups than it was (its votes and
acknowledgements are gone). The table says as whom each node speaks now, and each life of a node is recorded once: the
one that takes another's place names it, so that a request that was long under way cannot bring a past life back.

`apply` is total and pure: it takes the state (a Table, or None before the first) and a command, and returns
an outcome and the next state. The cluster id is minted by the proposer, because chance belongs before the
log.
"""

from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, structs

from raftspine.errors import Corrupt
from raftspine.model import Member, NodeId, Table

V1 = b"\x01"


class InitTable(Struct, frozen=True, array_like=True, tag="init-table"):
    """The first table, without the epoch, which the log gives. Order of fields is format: append only."""

    cluster_id: str
    strategy: str
    members: tuple[Member, ...]
    groups: tuple[tuple[NodeId, ...], ...]
    meta: tuple[NodeId, ...]


class SetRaftId(Struct, frozen=True, array_like=True, tag="set-raft-id"):
    """A node speaks as `raft_id` from now on, in place of `before` (as it stands in the table; empty for the node's
    own id)."""

    node: NodeId
    raft_id: str
    before: str


ClusterCommand: TypeAlias = InitTable | SetRaftId
"""Grows with the moves of issue 5; the tag is on the wire."""


class ClusterOutcome(NamedTuple):
    """What a meta command came to: whether it changed the table, and the table that holds after it, if any."""

    changed: bool
    table: Table | None


_encode = msgspec.msgpack.Encoder().encode
_decoder: "msgspec.msgpack.Decoder[ClusterCommand]" = msgspec.msgpack.Decoder(InitTable | SetRaftId)


def encode(command: ClusterCommand) -> bytes:
    """Marker plus msgpack, as it stands in the log."""
    return V1 + _encode(command)


def decode(data: bytes) -> ClusterCommand:
    """Raises Corrupt for what this version does not know: guessing would make replicas differ."""
    if data[:1] != V1:
        raise Corrupt(f"meta command: unknown format marker {data[:1]!r}; was it written by a newer version?")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise Corrupt(f"meta command: {error}") from error


def first_table(plan: Table, cluster_id: str) -> InitTable:
    """The command that makes a computed plan the cluster's first table."""
    return InitTable(cluster_id, plan.strategy, plan.members, plan.groups, plan.meta)


def apply(state: Table | None, command: ClusterCommand) -> tuple[ClusterOutcome, Table | None]:
    """The next state. An InitTable on a cluster that has a table changes nothing and answers with that table; so does
    a SetRaftId whose `before` is not what the table says."""
    if isinstance(command, SetRaftId):
        return _set_raft_id(state, command)
    if state is not None:
        return ClusterOutcome(False, state), state
    table = Table(
        epoch=1,
        cluster_id=command.cluster_id,
        strategy=command.strategy,
        members=command.members,
        groups=command.groups,
        meta=command.meta,
    )
    return ClusterOutcome(True, table), table


def _set_raft_id(state: Table | None, command: SetRaftId) -> tuple[ClusterOutcome, Table | None]:
    member = None if state is None else state.member(command.node)
    if state is None or member is None or member.raft_id != command.before:
        return ClusterOutcome(False, state), state
    now = structs.replace(member, raft_id=command.raft_id)
    members = tuple(now if each is member else each for each in state.members)
    table = structs.replace(state, epoch=state.epoch + 1, members=members)
    return ClusterOutcome(True, table), table
