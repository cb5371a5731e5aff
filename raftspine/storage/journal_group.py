"""One group's Raft state in memory, and the records that say how it came about.

Every change is two things at once: memory moves now, because the engine reads it back in the same turn, and a
record is left for the journal's next commit. Were a change possible without its record, a node would start
with another past than the one it promised from. So fields are for reading; the methods change both, and the
three at the end, which change memory alone, are for those methods and for replay.
"""

from collections.abc import Callable
from typing import Any, Final

from raftspine.model import GroupId, NodeId

Row = tuple[bytes, int, int]
"""One entry: command, index, term."""

Record = Callable[["GroupJournal", list[Any]], None]
"""Takes note of a change: the group, and ``[kind, group id, …]``."""

ENTRY: Final = 1  # index, term, command
CUT: Final = 2  # index: this entry and all above are gone
TERM: Final = 3  # term, vote
BASE: Final = 4  # index, term, time_ms, voters: entries up to here are gone
STATE: Final = 5  # index, term, time_ms, voters, current term, vote, count: all anew; that many entries follow


class GroupJournal:
    """One group's part: the entries above its base, its term and vote, and who votes in it.

    ``rows[0]`` is the base: a place in the log (no command) whose effects the state machine holds, so entries
    start behind it. Fields are for reading; every change goes through a method, which also records it.
    """

    __slots__ = ("_record", "cuts", "durable", "group", "rows", "size_bytes", "term", "time_ms", "vote", "voters")

    def __init__(
        self,
        record: "Record",
        group: GroupId,
        index: int,
        term: int,
        time_ms: int,
        voters: tuple[NodeId, ...],
    ) -> None:
        self._record = record
        self.group = group
        self.rows: list[Row] = [(b"", index, term)]
        self.time_ms = time_ms
        self.voters = voters
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

    def rebase(self, index: int, term: int, time_ms: int, voters: tuple[NodeId, ...]) -> None:
        """Forget entries at and below `index`, which this log must hold; keep those above."""
        self.move_base(index, term, time_ms, voters)
        self._record(self, [BASE, self.group, index, term, time_ms, voters])

    def reset(self, index: int, term: int, time_ms: int, voters: tuple[NodeId, ...]) -> None:
        """Forget every entry: the state machine was replaced by a snapshot at `index`."""
        self.rows = [(b"", index, term)]
        self.time_ms, self.voters = time_ms, voters
        self.durable, self.size_bytes, self.cuts = 0, 0, self.cuts + 1
        self._record(self, self.state())

    def state(self) -> list[Any]:
        """The record that stands for all of this but the entries, which must follow it."""
        _, index, term = self.rows[0]
        return [
            STATE,
            self.group,
            index,
            term,
            self.time_ms,
            self.voters,
            self.term,
            self.vote,
            len(self.rows) - 1,
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

    def move_base(self, index: int, term: int, time_ms: int, voters: tuple[NodeId, ...]) -> None:
        if not self.base <= index <= self.last or self.term_at(index) != term:
            raise ValueError(f"base {index} of term {term} is not in the log ({self.base} to {self.last})")
        offset = index - self.base
        self.size_bytes -= sum(len(row[0]) for row in self.rows[1 : offset + 1])
        self.rows[: offset + 1] = [(b"", index, term)]
        self.time_ms, self.voters = time_ms, voters
