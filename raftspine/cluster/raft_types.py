"""What the parts of the Raft driver share: its timings and limits, and the little it asks of a journal.

The journal is declared here, not imported: storage and cluster are siblings, and a test can hand in its own.
"""

from asyncio import Future
from typing import NamedTuple, Protocol

from raftspine.model import GroupId, MemberId
from raftspine.ports import Expected, Members, Position

Row = tuple[bytes, int, int]
"""One log entry: command (its first byte says what kind), index, term."""


class RaftTiming(NamedTuple):
    """Milliseconds. An election starts after a silence drawn from `election_min_ms` to `election_max_ms`; a
    leader that has not heard a majority for `check_quorum_ms` steps down."""

    heartbeat_ms: int = 100
    election_min_ms: int = 1000
    election_max_ms: int = 2000
    check_quorum_ms: int = 1000


class RaftLimits(NamedTuple):
    """Bounds on what one group may hold or send. Sizes are in bytes."""

    command_bytes: int = 4 << 20
    """Largest single command; with its envelope it must fit a frame of the links."""
    entry_bytes: int = 256 << 10
    """A batch of proposals closes at this size …"""
    entry_commands: int = 1024
    """… or at this many commands."""
    outstanding: int = 4096
    """Proposals of a group waiting for their outcome; beyond that, overloaded."""
    append_bytes: int = 256 << 10
    """Entries in one append message (at least one entry)."""
    append_entries: int = 256
    window: int = 16
    """Append messages in flight to one follower."""
    apply_entries: int = 64
    """Entries applied per turn, so that a group catching up does not stall the others."""
    compact_entries: int = 4096
    """A log longer than this, or larger than `compact_bytes`, is compacted …"""
    compact_bytes: int = 8 << 20
    keep_entries: int = 256
    """… down to this many entries, kept so that a follower a little behind needs no snapshot."""


class GroupLog(Protocol):
    """One group's stored Raft state. ``rows[0]`` is the base: the place up to which entries have left the
    log.

    `durable` is the highest index on disk. Every method changes memory at once and the disk with the
    journal's next commit.
    """

    group: GroupId
    rows: list[Row]
    term: int
    vote: str | None
    members: Members
    """Who takes part at the base; no voters: blank, and nothing is held until a snapshot arrives."""
    removed_at: int
    """This node's membership ended with the entry at this index; 0: never."""
    expected: Expected | None
    time_ms: int
    durable: int
    size_bytes: int

    @property
    def base(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def last_term(self) -> int: ...

    def term_at(self, index: int) -> int: ...
    def append(self, command: bytes, index: int, term: int) -> None: ...
    def truncate(self, index: int) -> None: ...
    def set_term(self, term: int, vote: str | None) -> None: ...

    def rebase(self, index: int, term: int, time_ms: int, members: Members) -> None:
        """Forget entries up to `index`; keep those above."""
        ...

    def reset(self, index: int, term: int, time_ms: int, members: Members) -> None:
        """Forget all entries; the state machine stands at `index`."""
        ...

    def expect(self, at: Position, time_ms: int, members: Members) -> None:
        """A snapshot is about to replace the state; should it have done so at the next start, the log is reset to
        it then."""
        ...

    def remove(self, index: int) -> None:
        """This node's membership ends with the entry at `index`, which the log need not hold."""
        ...


class RaftJournal(Protocol):
    """The node's journal, shared by all groups."""

    identity: bytes

    @property
    def dirty(self) -> bool: ...
    def group(self, group: GroupId) -> GroupLog | None: ...

    def create(
        self, group: GroupId, voters: tuple[MemberId, ...], *, index: int = 0, term: int = 0, time_ms: int = 0
    ) -> GroupLog: ...

    def identify(self, identity: bytes) -> None: ...

    def commit(self) -> "Future[None]":
        """Resolves when everything recorded so far is on disk; OSError when it may not be, after which the
        next commit writes everything anew."""
        ...
