"""What passes between a front end (HTTP, MCP, the simulator) and the memory services: requests and answers as
values, already parsed and within limits, with no trace of the protocol they came by.

Without this seam each front end would know which path keeps a memory, and each path would know about headers.
"""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from raftspine.core.ledger.memory_commands import Guard
from raftspine.model import GroupId, Memory, Model, NodeId, Path


class Ask(Struct):
    """What a request brings besides its body.

    `token` is the session token as received (text). `consistency` is the model asked for, or None.
    `first_attempt` says the client has never sent this Idempotency-Key before, which spares a look-up at peers.
    `guards`: locks whose tokens must be current for a write to happen. `group` is set by a node that forwards: the
    shard group it found; whoever receives it serves it or refuses.
    """

    agent_id: str = ""
    token: str | None = None
    consistency: Model | None = None
    max_wait_ms: int = 250
    idempotency_key: str | None = None
    first_attempt: bool = False
    group: int | None = None
    guards: tuple[Guard, ...] = ()


class Draft(Struct):
    """The writable fields of a memory as a writer gave them. Tags left out keep the stored tags, because losing
    `critical` by omission would silently weaken a memory; every other field left out takes its default."""

    content: Any
    agent_id: str = ""
    namespace: str = ""
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: str | float = "medium"
    metadata: dict[str, Any] = {}
    ttl_seconds: int | None = None
    pinned: bool = False


class Patch(Struct):
    """Fields to change; what is UNSET stays."""

    content: Any = UNSET
    namespace: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: str | float | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    ttl_seconds: int | UnsetType | None = UNSET
    pinned: bool | UnsetType = UNSET


class Expect(Struct, frozen=True):
    """A condition on the stored version.

    `version`: the version must be this one (`*`: any, i.e. the memory must exist). `absent`: it must not exist.
    `header`: the condition came as a header, so its failure is PreconditionFailed (412) and not Conflict (409).
    """

    version: str | None = None
    absent: bool = False
    header: bool = False


ANYTHING = Expect()


class Stored(Struct, frozen=True):
    """A memory with its name, version (opaque text) and the model that keeps it."""

    id: str
    memory: Memory
    version: str
    model: Model


class Answer(Struct):
    """What an operation came to. `model` is the model that served it; `token` the caller's new session token.

    `created`: the memory did not exist before. `advisory`: a precondition on a ring memory was checked against
    a quorum's merge and is not a compare-and-set. `index`: Raft log index, on the strong path. `staleness_ms`: upper
    estimate of the age of what was read, where it may be stale. `stale`: the session's writes may be missing.
    """

    model: Model
    stored: Stored | None = None
    created: bool = False
    token: str | None = None
    index: int | None = None
    staleness_ms: int | None = None
    advisory: bool = False


class ListQuery(Struct, frozen=True):
    """Filters are conjunctive. Order is by id; with `updated_since_ms`, by (updated_at, id). `after` is the
    opaque cursor of the last page."""

    tag: str | None = None
    namespace: str | None = None
    agent_id: str | None = None
    prefix: str | None = None
    updated_since_ms: int | None = None
    limit: int = 100
    after: str | None = None


class Page(Struct):
    items: list[Stored]
    next: str | None
    token: str | None = None


class Loser(Struct, frozen=True):
    """A write that lost against a concurrent one: kept, shown, never silently dropped. `memory` None: a delete."""

    id: str
    version: str
    memory: Memory | None
    lost_at_ms: int
    winner: str


class Explained(Struct, frozen=True):
    """Why a memory goes where it goes."""

    model: Model
    path: Path
    group: GroupId
    leader: NodeId | None
    replicas: tuple[NodeId, ...]
    epoch: int
    matched: tuple[str, ...]
    reason: str


class RequestStatus(Struct, frozen=True):
    """What became of an Idempotency-Key: done | void | unknown, and on which path."""

    key: str
    state: str
    path: Path | None = None
    id: str | None = None
    version: str | None = None
    status: int | None = None


class BatchOp(Struct, frozen=True):
    """One line of a batch, already validated. `op`: put | get | delete."""

    op: str
    id: str
    draft: Draft | None = None
    expect: Expect = ANYTHING
    guards: tuple[Guard, ...] = ()
