"""The seams: what the services need of the world, as small as it can be said.

Each Protocol has a real adapter (system, storage, cluster) and a simulated one (sim); adapters fit by shape and
do not inherit. Nothing here has behaviour. What goes wrong without it: a service that reads the clock, opens a
socket or touches LMDB itself cannot be run twice from one seed, and its faults cannot be placed.
"""

from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from raftspine.model import GroupId, MemberId, NodeId

Row = tuple[bytes, bytes | None]
"""A change to one key: the new value, or None to remove it."""


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch, as the machine believes; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""
        ...


CrashPoint = Callable[[str], None]
"""Told the name of each step whose interruption a restart must survive, as it is passed. Production tells nobody; the
simulator lets the machine die there."""


def nowhere(point: str) -> None:
    """The CrashPoint of a node that dies by itself."""


class Entropy(Protocol):
    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def token_bytes(self, n: int) -> bytes: ...


# ── storage ────────────────────────────────────────────────────────────────────────────────────────────────────


class AppendFile(Protocol):
    """An open file that only grows. `append` puts bytes where a killed process leaves them (the page cache);
    `sync` makes all appended so far survive power loss. Both raise OSError (ENOSPC, EIO)."""

    def append(self, data: bytes) -> None: ...
    def sync(self) -> Future[None]: ...
    def size(self) -> int: ...
    def close(self) -> None: ...


class Directory(Protocol):
    """One folder of append-only files; creating and removing survive power loss when the call returns."""

    @property
    def path(self) -> str:
        """Where it is, for messages to the operator."""
        ...

    def names(self) -> list[str]: ...
    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """`length` bytes from `offset`, fewer where the file ends; all that follows when `length` is -1."""
        ...

    def open(self, name: str, *, truncate_at: int | None = None) -> AppendFile: ...
    def remove(self, name: str) -> None: ...

    def set_aside(self) -> str:
        """Move all files out of the way, to where an operator finds them; returns that place."""
        ...


class View(Protocol):
    """A consistent, read-only picture of an ordered map."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows with lo <= key < hi, in key order (from the upper end when `reverse`)."""
        ...


class Tree(View, Protocol):
    """The durable ordered map under the engine (LMDB): changed in large batches, each atomic and durable."""

    def apply(self, rows: dict[bytes, bytes | None]) -> Future[None]:
        """Resolves when the batch is durable and visible to get and scan. NoSpace when the map is full."""
        ...

    def freeze(self) -> "FrozenView": ...
    def used_ratio(self) -> float: ...
    def close(self) -> None: ...


class FrozenView(View, Protocol):
    """A view pinned to one moment until it is closed; for streaming snapshots."""

    def close(self) -> None: ...


class Engine(View, Protocol):
    """The node's data: log first, tree later. What is staged is visible to get and scan at once."""

    def stage(self, rows: Iterable[Row]) -> None:
        """Add changes to this loop turn's batch. NoSpace when the store is read-only."""
        ...

    def commit(self, *, durable: bool | None = None) -> Future[None]:
        """One shared future per turn: everything staged so far is in the log; synced to disk first when
        `durable` (None: as the durability policy says)."""
        ...

    def freeze(self) -> Awaitable[FrozenView]:
        """A view of everything staged before the call."""
        ...

    def used_ratio(self) -> float: ...
    def read_only(self) -> str | None:
        """Why writes are refused, or None."""
        ...


# ── cluster ────────────────────────────────────────────────────────────────────────────────────────────────────


class Transport(Protocol):
    """Authenticated, ordered links to the other nodes. A message is a tuple that msgpack can carry; what is sent
    in one loop turn leaves in one write. Two lanes per peer, so that bulk never delays the rest."""

    def send(self, peer: NodeId, message: Sequence[Any], *, bulk: bool = False) -> bool:
        """Queue a message; False when the link is down or its queue is full (the message is dropped)."""
        ...

    def connected(self, peer: NodeId) -> bool: ...
    def on_message(self, receive: Callable[[NodeId, tuple[Any, ...]], None]) -> None: ...
    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None: ...


Handler = Callable[[NodeId, Any], Any]
"""Called with the sender and the body; returns the reply, or an awaitable of it."""


class Rpc(Protocol):
    """Calls between nodes over a Transport. A SpineError raised by the handler is raised again at the caller."""

    def serve(self, method: str, handler: Handler) -> None: ...

    def call(self, peer: NodeId, method: str, body: Any, *, timeout_ms: int, bulk: bool = False) -> Future[Any]:
        """The reply. Unavailable(`peer_down`) when nothing was sent; Unknown(`outcome_unknown`) when the link
        broke or the deadline passed after sending."""
        ...

    def cast(self, peer: NodeId, method: str, body: Any, *, bulk: bool = False) -> bool:
        """One way, no reply; False when it was not sent."""
        ...

    def connected(self, peer: NodeId) -> bool: ...
    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None: ...


class Position(NamedTuple):
    """A place in a group's log. Also what a state machine must remember in the same batch as its effects."""

    index: int  # type: ignore[assignment]  # Raft's word; nobody searches a Position for a value
    term: int


class Mark(NamedTuple):
    """What a replica's history came to: `digest` is over the effects of all entries with since <= index < below.
    Replicas whose marks have the same bounds have the same digest, or one of them applied something else."""

    below: int
    since: int
    digest: bytes


class Doubt(NamedTuple):
    """Why a replica's state must not be shown. `wrong`: a majority agrees on another digest for `mark`; otherwise
    replicas differ there and no majority says who is right."""

    wrong: bool
    mark: Mark
    text: str


class Members(NamedTuple):
    """Who takes part in a group. `voters` in order of preference: the first is the one to lead. `learners` get
    the log and count for nothing. `removed` are former members, the latest last, so that a member that comes back
    late can be told."""

    voters: tuple[MemberId, ...]
    learners: tuple[MemberId, ...] = ()
    removed: tuple[MemberId, ...] = ()


class Expected(NamedTuple):
    """What a group's log is to become when its state machine turns out to stand at this snapshot."""

    at: Position
    time_ms: int
    members: Members


class AddLearner(NamedTuple):
    """Let a member have the log."""

    member: MemberId


class Promote(NamedTuple):
    """Let a learner vote, at a place in the order of preference."""

    member: MemberId
    place: int


class Remove(NamedTuple):
    """Let a voter or learner take part no more."""

    member: MemberId


Change = AddLearner | Promote | Remove


class LogStatus(NamedTuple):
    """One group's Raft state on this node, for routing, metrics and `cluster status`. Members are Raft members
    (`node_of` leads to their nodes), the leader is a node."""

    group: GroupId
    role: str  # leader | follower | candidate | learner | removed | halted
    leader: NodeId | None
    term: int
    commit: int
    applied: int
    last: int
    voters: tuple[MemberId, ...]
    reason: str | None = None  # why a halted group is halted
    quarantined: bool = False  # its state differs from other replicas': it is not shown and does not lead
    snapshots: tuple["SnapshotProgress", ...] = ()
    learners: tuple[MemberId, ...] = ()
    changing: bool = False  # whether the newest change of members may still be undone


class SnapshotProgress(NamedTuple):
    """A snapshot on its way: to `peer` (sent), or from whoever leads (received, `peer` None). Bytes so far."""

    peer: NodeId | None
    index: int  # type: ignore[assignment]  # as in Position
    size_bytes: int


class ReplicatedLog(Protocol):
    """A Raft log per group; nothing above knows whose implementation it is.

    Outcomes never mix: Unavailable(`no_leader`) means nothing was proposed, Unknown means it may have been, a
    result means it is on disk on a majority and applied here.
    """

    def propose(self, group: GroupId, command: bytes) -> Future[Any]:
        """At the leader: append, replicate, apply; resolves with what the state machine returned for this
        command. Unavailable(`no_leader`, details.leader) elsewhere."""
        ...

    def read_index(self, group: GroupId) -> Future[int]:
        """At the leader: the index a linearizable read must wait for, proven by a majority asked after this
        call. Unavailable(`no_leader`) elsewhere or when leadership is lost meanwhile."""
        ...

    def wait_applied(self, group: GroupId, index: int) -> Future[None]:
        """Resolves when this replica has applied `index`."""
        ...

    def change(self, group: GroupId, change: Change) -> Future[Members]:
        """At the leader: change who takes part; resolves with the members once that is committed. Unavailable when
        nothing was proposed: `no_leader`, `change_in_progress`, `no_quorum` (the members after the change could not
        decide anything), `not_caught_up`. Rejected for a change that makes no sense of the present members."""
        ...

    def caught_up(self, group: GroupId, member: MemberId) -> bool:
        """At the leader: whether a member has about all of the log and answers."""
        ...

    def leader(self, group: GroupId) -> NodeId | None: ...
    def status(self, group: GroupId) -> LogStatus: ...
    def groups(self) -> tuple[GroupId, ...]: ...


class StateMachine(Protocol):
    """What a group's log drives. Calls come in log order; `apply` is total: a bad command is a result."""

    def position(self, group: GroupId) -> Position:
        """The last entry whose effects are stored; (0, 0) for a new group."""
        ...

    def apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]:
        """Apply one entry: a batch of commands stamped by the leader at `time_ms`. Stages the effects together
        with the position and returns one result per command."""
        ...

    def snapshot(self, group: GroupId) -> Awaitable[tuple[Position, AsyncIterator[bytes]]]:
        """The group's state at one position, in chunks of at most 256 KiB."""
        ...

    def install(self, group: GroupId, at: Position, chunks: Iterable[bytes]) -> Awaitable[None]:
        """Replace the group's state, atomically and durably, by a snapshot, and lift its doubt. What iterating over
        `chunks` raises ends it, and nothing has changed then."""
        ...

    def marks(self, group: GroupId) -> Sequence[Mark]:
        """What the last stretches of the group's history came to, oldest first."""
        ...

    def doubt(self, group: GroupId) -> Doubt | None:
        """The doubt stored last."""
        ...

    def set_doubt(self, group: GroupId, doubt: Doubt | None) -> Awaitable[None]:
        """Remember, over restarts, that this replica's state is not to be trusted; None: it is again."""
        ...

    def flush(self) -> Awaitable[None]:
        """Everything applied so far is on disk; entries up to `position` may leave the journal."""
        ...
