"""An append-only log in segments: the one place where "written" becomes "will still be there".

The node's data (engine.py) and the Raft journal both answer their callers as soon as such a log has the
record, so what it gives back after a crash decides what the cluster may forget. The rule: `replay` returns
every record up to the first that was never completed, in order and without a gap; anything else is refused
as Corrupt (segment.py has the bytes and the verdicts). A record never follows garbage: what a failed append
left is cut away before the next.

Positions rise by one per record, across segments and restarts.
"""

from asyncio import Future
from collections.abc import Callable, Iterator

from raftspine.errors import Corrupt, TooLarge
from raftspine.ports import AppendFile, Directory
from raftspine.storage.segment import (
    HEAD_BYTES,
    MAX_RECORD_BYTES,
    Segment,
    begins_well,
    corrupt,
    frame,
    head,
    judge,
    records,
    scan,
    segment_at,
    segments_of,
)

OnCut = Callable[[str, int, int], None]


class Wal:
    """See the module. One owner, one loop.

    `append` and `rotate` raise OSError (ENOSPC, EIO) and leave the log as it was before the call.
    """

    def __init__(self, directory: Directory, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._sizes: dict[str, int] = {}
        self._file: AppendFile | None = None
        self._next = 1
        self._synced = 0  # the highest position known to have survived a sync
        self._partial = False  # bytes of a failed append may follow the last whole record
        self._sealing: dict[str, Future[None]] = {}  # syncs of rotated segments; later syncs wait for them
        self._unsettled: list[str] = []  # rotated segments to sync again, or left so by a process that died

    @classmethod
    def open(cls, directory: Directory, *, segment_bytes: int, on_cut: OnCut | None = None) -> "Wal":
        """Check every segment, cut a torn tail and get ready to append after the last whole record.

        `on_cut` is told the file, the offset and the number of bytes cut. Raises Corrupt with ``file`` and
        ``offset`` for damage elsewhere, OSError when the disk refuses.
        """
        wal = cls(directory, segment_bytes)
        try:
            wal._admit_all(on_cut)
        except Corrupt as error:  # a node has two logs, whose segments have the same names
            raise Corrupt(f"{directory.path}/{error.message}", details=error.details) from None
        if wal._segments:
            wal._file = directory.open(wal._segments[-1].name)
        wal._unsettled = [segment.name for segment in wal._segments[-2:-1]]
        return wal

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────

    def replay(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """Each record whose position is above `after`, in order, as (position, payload)."""
        for place, segment in enumerate(self._segments):
            following = self._segments[place + 1].first if place + 1 < len(self._segments) else self._next
            if following <= after + 1:
                continue
            data = self._directory.read(segment.name)
            for position, payload, _ in records(segment, memoryview(data)[: self._sizes[segment.name]]):
                if position > after:
                    yield position, payload

    @property
    def next_position(self) -> int:
        """The position the next record will get."""
        return self._next

    @property
    def first_position(self) -> int:
        """The lowest position still kept; equal to `next_position` when the log is empty."""
        return self._segments[0].first if self._segments else self._next

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────

    def append(self, payload: bytes) -> int:
        """Write one record to the page cache and return its position. It survives the death of the process at
        once, and power loss after the next `sync`. Raises OSError, and TooLarge above MAX_RECORD_BYTES."""
        if len(payload) > MAX_RECORD_BYTES:
            raise TooLarge(f"a log record of {len(payload)} bytes is above the limit of {MAX_RECORD_BYTES}")
        file = self._writable()
        position = self._next
        record = frame(position, position - 1 - self._synced, payload)
        try:
            file.append(record)
        except OSError:
            self._partial = True
            raise
        self._sizes[self._segments[-1].name] += len(record)
        self._next = position + 1
        return position

    def sync(self) -> "Future[None]":
        """Resolves when everything appended before this call survives power loss; raises or fails with
        OSError. After a failure the kernel may have dropped the pages: write the data elsewhere and
        `restart` the log."""
        covered = self._next - 1
        while self._unsettled:
            name = self._unsettled.pop()
            self._seal(name, self._directory.open(name))
        future = self._tail().sync()
        if self._sealing:
            future = _all([*self._sealing.values(), future])
            # A failure is told to the sync that waits for it; the next one asks the disk again.
            self._unsettled = [name for name, seal in self._sealing.items() if seal.done()]
            for name in self._unsettled:
                del self._sealing[name]
        future.add_done_callback(lambda done: self._note_synced(done, covered))
        return future

    def rotate(self) -> int:
        """Begin a new segment and return its first position."""
        self._repair()
        if self._file is not None:
            if self._sizes[self._segments[-1].name] == HEAD_BYTES:
                return self._next  # the current one is still empty
            sealed, self._file = self._file, None
            self._seal(self._segments[-1].name, sealed)
        self._begin(self._next)
        return self._next

    def drop_before(self, position: int) -> None:
        """Remove the segments that hold only records below `position`. The current segment stays."""
        while len(self._segments) > 1 and self._segments[1].first <= position:
            self._remove_oldest()

    def restart(self, position: int) -> None:
        """Forget every record and go on at `position`, which must not be below `next_position`.

        For an owner who has everything stored elsewhere: after a failed sync, or when that store is ahead of
        a log that lost its unsynced tail.
        """
        if position < self._next:
            raise ValueError(f"restart at {position}, but positions up to {self._next - 1} are taken")
        if self._file is not None:
            self._file.close()
            self._file = None
        while self._segments:
            self._remove_oldest()
        self._partial = False
        self._next, self._synced = position, position - 1
        self._begin(position)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────

    def _admit_all(self, on_cut: OnCut | None) -> None:
        segments = segments_of(self._directory.names())
        for place, segment in enumerate(segments):
            if place and segment.first != self._next:
                raise corrupt(segment.name, 0, f"the records from {self._next} to {segment.first - 1} are missing")
            self._admit(segment, last=place == len(segments) - 1, on_cut=on_cut)

    def _admit(self, segment: Segment, *, last: bool, on_cut: OnCut | None) -> None:
        """Check one segment found on disk and count its records."""
        data = self._directory.read(segment.name)
        if not begins_well(segment, data):
            # A crash while it was created leaves less than a header, or zeros, and nothing behind it.
            if last and (len(data) < HEAD_BYTES or not any(data)):
                self._directory.remove(segment.name)
                if data and on_cut is not None:
                    on_cut(segment.name, 0, len(data))
                self._next = segment.first
                return
            raise corrupt(segment.name, 0, "the segment's header is damaged")
        found = scan(segment, data)
        if found.end < found.length:
            judge(segment, data, found, last=last)
            self._directory.open(segment.name, truncate_at=found.end).close()
            if on_cut is not None:
                on_cut(segment.name, found.end, found.length - found.end)
        self._segments.append(segment)
        self._sizes[segment.name] = found.end
        self._next = segment.first + found.records

    def _writable(self) -> AppendFile:
        """The file to append to, free of leftovers and below the segment size."""
        self._repair()
        file = self._file
        if file is None or self._sizes[self._segments[-1].name] >= self._segment_bytes:
            self.rotate()
            file = self._tail()
        return file

    def _tail(self) -> AppendFile:
        self._repair()
        if self._file is None:
            self._begin(self._next)
        assert self._file is not None
        return self._file

    def _repair(self) -> None:
        """Cut away what a failed append left. Until that succeeds nothing may be written: a record behind
        garbage would be lost at the next start, or make the log look corrupt."""
        if not self._partial:
            return
        name = self._segments[-1].name
        if self._file is not None:
            self._file.close()
            self._file = None
        self._file = self._directory.open(name, truncate_at=self._sizes[name])
        self._partial = False

    def _seal(self, name: str, file: AppendFile) -> None:
        """Hand a finished segment to the disk, then close it. Later syncs wait for it: their promise includes
        its records, and damage in a segment that is not the last counts as corruption."""

        def settled(done: "Future[None]") -> None:
            file.close()
            if not done.cancelled() and done.exception() is None and self._sealing.get(name) is done:
                del self._sealing[name]

        future = file.sync()
        self._sealing[name] = future
        future.add_done_callback(settled)

    def _begin(self, first: int) -> None:
        segment = segment_at(first)
        leftover = segment.name in self._directory.names()
        file = self._directory.open(segment.name, truncate_at=0 if leftover else None)
        try:
            file.append(head(segment))
        except OSError:
            file.close()
            self._directory.remove(segment.name)
            raise
        self._file = file
        self._segments.append(segment)
        self._sizes[segment.name] = HEAD_BYTES

    def _remove_oldest(self) -> None:
        name = self._segments[0].name
        self._directory.remove(name)
        del self._segments[0], self._sizes[name]
        self._sealing.pop(name, None)
        if name in self._unsettled:
            self._unsettled.remove(name)

    def _note_synced(self, done: "Future[None]", covered: int) -> None:
        if not done.cancelled() and done.exception() is None:
            self._synced = max(self._synced, covered)


def _all(futures: "list[Future[None]]") -> "Future[None]":
    """Resolves when all have; fails as soon as one fails."""
    outcome: Future[None] = futures[-1].get_loop().create_future()
    waiting = set(futures)

    def one(done: "Future[None]") -> None:
        waiting.discard(done)
        if outcome.done():
            return
        if done.cancelled():
            outcome.cancel()
        elif (error := done.exception()) is not None:
            outcome.set_exception(error)
        elif not waiting:
            outcome.set_result(None)

    for future in futures:
        future.add_done_callback(one)
    return outcome
