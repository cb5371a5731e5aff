"""One group's Raft state in memory, and the records that say how it came about.

Every change is two things at once: memory moves now, because the engine reads it back in the same turn, and a
record is left for the journal's next commit. Were a change possible without its record, a node would start
with another past than the one it promised from. So fields are for reading; the methods change both, and the
three at the end, which change memory alone, are for those methods and for replay.
"""

from collections.abc import Callable
from typing import Any, Final

from raftspine.model import GroupId, MemberId
from raftspine.ports import Expected, Members, Position

Row = tuple[bytes, int, int]
"""One entry: command, index, term."""

Record = Callable[["GroupJournal", list[Any]], None]
"""Takes note of a change: the group, and ``[kind, group id, …]``."""

ENTRY: Final = 1  # index, term, command
CUT: Final = 2  # index: this entry and all above are gone
TERM: Final = 3  # term, vote
BASE: Final = 4  # index, term, time_ms, members: entries up to here are gone
STATE: Final = 5  # index, term, time_ms, members, current term, vote, count, expected, removed at: all anew;
#                   that many entries follow
EXPECT: Final = 6  # index, term, time_ms, members: a snapshot that is about to replace the state
REMOVED: Final = 7  # index: an entry of the group's log, not held here, ends this node's membership
IDENTITY: Final = 8  # (no group) who this node is to its peers, in the words of whoever asks


def members_of(data: Any) -> Members:
    """Members as they stand in a record; until membership could change that was the voters alone."""
    if all(isinstance(name, str) for name in data):
        return Members(tuple(MemberId(name) for name in data))
    voters, learners, removed = (tuple(MemberId(name) for name in part) for part in data)
    return Members(voters, learners, removed)


def expected_of(data: Any) -> Expected:
    index, term, time_ms, members = data
    return Expected(Position(index, term), time_ms, members_of(members))


class GroupJournal:
    """One group's part: the entries above its base, its term and vote, and who votes in it.

    ``rows[0]`` is the base: a place in the log (no command) whose effects the state machine holds, so entries
    start behind it. Fields are for reading; every change goes through a method, which also records it.
    """

    __slots__ = (
        "_record",
        "cuts",
        "durable",
        "expected",
        "group",
        "members",
        "removed_at",
        "rows",
        "size_bytes",
        "term",
        "time_ms",
        "vote",
    )

    def __init__(
        self,
        record: "Record",
        group: GroupId,
        index: int,
        term: int,
        time_ms: int,
        members: Members,
    ) -> None:
        self._record = record
        self.group = group
        self.rows: list[Row] = [(b"", index, term)]
        self.time_ms = time_ms
        self.members = members
        """Who takes part at the base; entries may change it. Without voters the group is blank: it is nobody's
        member and holds nothing until a snapshot arrives."""
        self.expected: Expected | None = None
        self.removed_at = 0
        self.term = term
        self.vote: str | None = None
        self.durable = 0
        self.size_bytes = 0
        self.cuts = 0

    @property
    def base(self) -> int:
        return self.rows[0][1]

    @property
    def last(self) -> int:
        return self.rows[-1][1]

    @property
    def last_term(self) -> int:
        return self.rows[-1][2]

    def term_at(self, index: int) -> int:
        """Term of an entry at or above the base. IndexError outside."""
        offset = index - self.rows[0][1]
        if offset < 0:
            raise IndexError(index)
        return self.rows[offset][2]

    def append(self, command: bytes, index: int, term: int) -> None:
        self.add(command, index, term)
        self._record(self, [ENTRY, self.group, index, term, command])

    def truncate(self, index: int) -> None:
        """Cut the entry at `index` and all above it."""
        self.cut(index)
        self._record(self, [CUT, self.group, index])

    def set_term(self, term: int, vote: str | None) -> None:
        if (term, vote) != (self.term, self.vote):
            self.term, self.vote = term, vote
            self._record(self, [TERM, self.group, term, vote])

    def rebase(self, index: int, term: int, time_ms: int, members: Members) -> None:
        """Forget entries at and below `index`, which this log must hold; keep those above."""
        self.move_base(index, term, time_ms, members)
        self._record(self, [BASE, self.group, index, term, time_ms, members])

    def reset(self, index: int, term: int, time_ms: int, members: Members) -> None:
        """Forget every entry: the state machine was replaced by a snapshot at `index`."""
        self.rows = [(b"", index, term)]
        self.time_ms, self.members, self.expected = time_ms, members, None
        self.durable, self.size_bytes, self.cuts = 0, 0, self.cuts + 1
        self._record(self, self.state())

    def expect(self, at: Position, time_ms: int, members: Members) -> None:
        """A snapshot is about to replace the state: should the node die in between, its next life finds the state
        at `at` and knows what log goes with it."""
        self.expected = Expected(at, time_ms, members)
        self._record(self, [EXPECT, self.group, at.index, at.term, time_ms, members])

    def remove(self, index: int) -> None:
        """This node's membership ends with the entry at `index`, which it need not hold."""
        if index > self.removed_at:
            self.removed_at = index
            self._record(self, [REMOVED, self.group, index])

    def state(self) -> list[Any]:
        """The record that stands for all of this but the entries, which must follow it."""
        _, index, term = self.rows[0]
        return [
            STATE,
            self.group,
            index,
            term,
            self.time_ms,
            self.members,
            self.term,
            self.vote,
            len(self.rows) - 1,
            None if self.expected is None else [*self.expected.at, self.expected.time_ms, self.expected.members],
            self.removed_at,
        ]

    def entry_records(self) -> list[list[Any]]:
        return [[ENTRY, self.group, index, term, command] for command, index, term in self.rows[1:]]

    # Changes without a record: shared by the methods above and by replay.

    def add(self, command: bytes, index: int, term: int) -> None:
        if index != self.rows[-1][1] + 1 or term < self.rows[-1][2]:
            raise ValueError(f"entry {index} of term {term} cannot follow entry {self.last} of term {self.last_term}")
        self.rows.append((command, index, term))
        self.size_bytes += len(command)

    def cut(self, index: int) -> None:
        if not self.base < index <= self.last:
            raise ValueError(f"cannot cut at {index}: the log holds {self.base + 1} to {self.last}")
        offset = index - self.base
        self.size_bytes -= sum(len(row[0]) for row in self.rows[offset:])
        del self.rows[offset:]
        self.durable = min(self.durable, index - 1)
        self.cuts += 1

    def move_base(self, index: int, term: int, time_ms: int, members: Members) -> None:
        if not self.base <= index <= self.last or self.term_at(index) != term:
            raise ValueError(f"base {index} of term {term} is not in the log ({self.base} to {self.last})")
        offset = index - self.base
        self.size_bytes -= sum(len(row[0]) for row in self.rows[1 : offset + 1])
        self.rows[: offset + 1] = [(b"", index, term)]
        self.time_ms, self.members = time_ms, members
        if self.expected is not None and self.expected.at.index <= index:
            self.expected = None
