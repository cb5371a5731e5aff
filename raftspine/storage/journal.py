"""The Raft journal: what every group of this node has promised, on one write-ahead log.

A vote or an acknowledgement that a crash can undo lets two leaders share a term, or lets a committed entry
vanish. So the state a promise rests on (entries, term, vote, base) is first a record here, and `commit`
resolves when all records made so far are on disk: one sync for all groups. Rules:

* The log keeps records in order and cuts only its tail, so what is read back is a state this node was in.
* `durable` of a group is the highest index known to be on disk; it never covers an entry that was cut since.
  What is read back at start is not known to be: a process that was killed may have left it in the page cache, where
  it looks as good as written even when its sync has failed. So a journal begins dirty, and its first commit restates
  all it has read.
* Entries above a base are kept when the base moves up; only `reset`, called for a snapshot that contradicts
  the log, drops them.
* The log stays bounded: when it has grown enough, `commit` opens a new segment, restates every group there
  and removes the older segments once the new one is synced. A restatement replaces a group only when it is
  complete, so a crash in the middle of one changes nothing.
* After a failed write the disk and memory disagree in an unknown way. The next `commit` first asks the
  disk for a sync of an empty segment, so as not to fill one after the other while it refuses, and then restates
  everything.

A record is an array: ``[kind, group, …]``; several of them, behind the codec's format marker, are one
payload.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from raftspine import codec
from raftspine.errors import Corrupt
from raftspine.model import GroupId, MemberId
from raftspine.ports import CrashPoint, Members, nowhere
from raftspine.storage.journal_group import (
    BASE,
    CUT,
    ENTRY,
    EXPECT,
    IDENTITY,
    REMOVED,
    STATE,
    TERM,
    GroupJournal,
    expected_of,
    members_of,
)

_PAYLOAD_BYTES = 1 << 20
"""Records are split into payloads of about this size, so that no record of the log grows without bound."""


class Log(Protocol):
    """What the journal needs of the write-ahead log beneath it (storage/wal.py)."""

    def replay(self, after: int = 0) -> Iterator[tuple[int, bytes]]: ...
    def append(self, payload: bytes) -> int: ...
    def sync(self) -> "Future[None]": ...
    def restate(self, payloads: Iterable[bytes], beyond: int = 0) -> int: ...
    def drop_before(self, position: int) -> None: ...


class _Mark(NamedTuple):
    """What a commit in flight will have made durable."""

    log: GroupJournal
    last: int
    cuts: int


class Journal:
    """All groups' journals on one log. Open with `Journal.open`."""

    def __init__(self, log: Log, *, rotate_bytes: int, passed: CrashPoint) -> None:
        self._log = log
        self._passed = passed
        self._rotate_bytes = rotate_bytes
        self._groups: dict[GroupId, GroupJournal] = {}
        self.identity = b""
        """Who this node is to its peers: it must never outlive, or be outlived by, the promises beside it."""
        self._records: list[list[Any]] = []
        self._touched: dict[GroupId, GroupJournal] = {}
        self._written = 0
        self._broken = False
        self._keep_from = 0
        self._restating: list[_Mark] = []

    @classmethod
    def open(cls, log: Log, *, rotate_bytes: int = 64 << 20, passed: CrashPoint = nowhere) -> "Journal":
        """Read the log back. Raises Corrupt, naming the place, when its records make no sense: what this node
        promised can then not be proven any more."""
        journal = cls(log, rotate_bytes=rotate_bytes, passed=passed)
        replay = _Replay(journal)
        replay.run(log)
        journal._broken = bool(journal._groups or journal.identity or replay.unfinished)
        return journal

    def groups(self) -> tuple[GroupId, ...]:
        return tuple(self._groups)

    def group(self, group: GroupId) -> GroupJournal | None:
        return self._groups.get(group)

    def create(
        self, group: GroupId, voters: tuple[MemberId, ...], *, index: int = 0, term: int = 0, time_ms: int = 0
    ) -> GroupJournal:
        """Begin a group whose state machine stands at `index`, blank when it has no voters yet. ValueError when it
        exists already."""
        if group in self._groups:
            raise ValueError(f"group {group} exists")
        made = self._groups[group] = GroupJournal(self.record, group, index, term, time_ms, Members(voters))
        self.record(made, made.state())
        return made

    def record(self, group: GroupJournal, record: list[Any]) -> None:
        self._records.append(record)
        self._touched[group.group] = group

    def identify(self, identity: bytes) -> None:
        """Replace the identity, with the next commit."""
        self.identity = identity
        self._records.append([IDENTITY, 0, identity])

    @property
    def dirty(self) -> bool:
        """Whether anything was recorded that no commit covers yet."""
        return bool(self._records) or self._broken

    def commit(self) -> "Future[None]":
        """Resolves when everything recorded before the call survives power loss.

        Fails with OSError when it may not (full disk, I/O error). What was recorded stays in memory, and
        the next commit writes everything anew. Not to be called again before the last one resolved.
        """
        done: Future[None] = asyncio.get_running_loop().create_future()
        if self._broken:
            self._then(done, self._log.sync, lambda: self._then(done, self._restate, self._restated(done)))
        elif self._written >= self._rotate_bytes and self._written >= 2 * self._live_bytes():
            self._then(done, self._restate, self._restated(done))
        else:
            marks = self._marks(self._touched)
            self._then(done, self._write, lambda: self._settle(done, marks))
        return done

    def _then(self, done: "Future[None]", start: Callable[[], "Future[None]"], go_on: Callable[[], None]) -> None:
        """Run one step that ends in a sync; go on when it succeeded, fail `done` and remember it when not."""

        def finished(synced: "Future[None]") -> None:
            error = OSError("the log was closed") if synced.cancelled() else synced.exception()
            if error is None:
                go_on()
            else:
                self._fail(done, error)

        try:
            start().add_done_callback(finished)
        except OSError as error:
            self._fail(done, error)

    def _fail(self, done: "Future[None]", error: BaseException) -> None:
        self._broken = True
        if not done.done():
            done.set_exception(error)

    def _settle(self, done: "Future[None]", marks: list[_Mark]) -> None:
        for mark in marks:
            if mark.log.cuts == mark.cuts:
                mark.log.durable = mark.last
        if not done.done():
            done.set_result(None)

    def _marks(self, groups: dict[GroupId, GroupJournal]) -> list[_Mark]:
        return [_Mark(group, group.last, group.cuts) for group in groups.values()]

    def _write(self) -> "Future[None]":
        records, self._records, self._touched = self._records, [], {}
        for payload in self._payloads(records):
            self._log.append(payload)
        return self._log.sync()

    def _restate(self) -> "Future[None]":
        """Write all groups into a new segment, which then needs no other."""
        self._broken = True  # until the segments before it are gone
        self._records, self._touched, self._written = [], {}, 0
        self._restating = self._marks(self._groups)
        self._keep_from = self._log.restate(self._restatement())
        return self._log.sync()

    def _restatement(self) -> Iterator[bytes]:
        self._passed("journal:sealed")
        if self.identity:
            yield from self._payloads([[IDENTITY, 0, self.identity]])
        for group in self._groups.values():
            yield from self._payloads([group.state(), *group.entry_records()])

    def _restated(self, done: "Future[None]") -> Callable[[], None]:
        def finish() -> None:
            self._passed("journal:restated")
            try:
                self._log.drop_before(self._keep_from)
            except OSError as error:
                self._fail(done, error)
                return
            self._passed("journal:dropped")
            self._broken = False
            self._settle(done, self._restating)

        return finish

    def _payloads(self, records: Sequence[list[Any]]) -> Iterator[bytes]:
        start, size = 0, 0
        for at, record in enumerate(records):
            size += len(record[4]) if record[0] == ENTRY else 0
            if size >= _PAYLOAD_BYTES or at == len(records) - 1:
                payload = codec.encode(records[start : at + 1])
                self._written += len(payload)
                yield payload
                start, size = at + 1, 0

    def _live_bytes(self) -> int:
        return sum(group.size_bytes + 32 * len(group.rows) for group in self._groups.values())


class _Replay:
    """Rebuilds the groups from their records, refusing whatever does not follow from the record before."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.unfinished: dict[GroupId, tuple[GroupJournal, int]] = {}

    def run(self, log: Log) -> None:
        position = 0
        try:
            for at, payload in log.replay():
                position = at
                for record in codec.decode_any(payload):
                    self._one(record)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise Corrupt(
                f"Raft journal, record at position {position}: {error or type(error).__name__}",
                details={"file": "raft", "offset": position},
            ) from error
        except Corrupt as error:
            details = {"file": "raft", "offset": position, **error.details}
            raise Corrupt(f"Raft journal: {error.message}", details=details) from error

    def _one(self, record: list[Any]) -> None:
        kind, group = record[0], GroupId(record[1])
        if kind == STATE:
            self._begin(group, record)
        elif kind == ENTRY:
            self._entry(group, record)
        elif kind == CUT:
            self._journal._groups[group].cut(record[2])
        elif kind == TERM:
            held = self._journal._groups[group]
            held.term, held.vote = record[2], record[3]
        elif kind == BASE:
            index, term, time_ms, members = record[2:6]
            self._journal._groups[group].move_base(index, term, time_ms, members_of(members))
        elif kind == EXPECT:
            self._journal._groups[group].expected = expected_of(record[2:6])
        elif kind == REMOVED:
            self._journal._groups[group].removed_at = record[2]
        elif kind == IDENTITY:
            self._journal.identity = record[2]
        else:
            raise ValueError(f"unknown kind of record: {kind}; was it written by a newer version?")

    def _begin(self, group: GroupId, record: list[Any]) -> None:
        index, term, time_ms, members, now_term, vote, count = record[2:9]
        made = GroupJournal(self._journal.record, group, index, term, time_ms, members_of(members))
        made.term, made.vote = now_term, vote
        if len(record) > 9:  # not in records from before membership could change
            expected, made.removed_at = record[9:11]
            made.expected = None if expected is None else expected_of(expected)
        self.unfinished[group] = (made, count)
        self._finish(group)

    def _entry(self, group: GroupId, record: list[Any]) -> None:
        index, term, command = record[2:5]
        if group not in self.unfinished:
            self._journal._groups[group].add(command, index, term)
            return
        made, count = self.unfinished[group]
        made.add(command, index, term)
        self.unfinished[group] = (made, count - 1)
        self._finish(group)

    def _finish(self, group: GroupId) -> None:
        made, missing = self.unfinished[group]
        if missing == 0:
            del self.unfinished[group]
            self._journal._groups[group] = made
