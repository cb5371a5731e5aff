"""An append-only log in segments: the one place where "written" becomes "will still be there".

The node's data (engine.py) and the Raft journal both answer their callers as soon as such a log has the
record, so what it gives back after a crash decides what the cluster may forget. The rules:

* `replay` returns every record up to the first that was never completed, in order and without a gap; anything else
  is refused as Corrupt (segment.py has the bytes and the verdicts). A record never follows garbage: what a failed
  append left is cut away before the next.
* A file is not trusted past a failed sync. The kernel may have dropped pages, shows them as if nothing had happened
  and calls the next sync a success (Rebello et al., "Can Applications Recover from fsync Failures?", 2020). The same
  goes for whatever a process that died has left. So such *doubted* segments are never appended to, no later sync
  proves them, and no record claims that they were on disk. Their owner says again, in a new segment, what he needs of
  them (`rotate`, `append`, `mark`), syncs that, and drops them. Until the mark is on disk a restart finds the doubted
  segments, cut where something is missing that was never promised; from then on it does not look at them.

Positions rise by one per record, across segments and restarts.
"""

import errno
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator

from raftspine.errors import Corrupt, TooLarge
from raftspine.ports import AppendFile, Directory
from raftspine.storage.segment import (
    HEAD_BYTES,
    MAX_RECORD_BYTES,
    Scan,
    Segment,
    corrupt,
    frame,
    head,
    judge,
    mark,
    proven_by,
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
        self._doubted = 0  # the highest position that no sync of the file it stands in can prove
        self._shadowed: list[Segment] = []  # older than a mark that may not be on disk yet
        self._beyond = 0

    @classmethod
    def open(cls, directory: Directory, *, segment_bytes: int, on_cut: OnCut | None = None) -> "Wal":
        """Check every segment, cut a torn tail and get ready to append, in a new segment, after the last whole
        record. All that is found is doubted.

        `on_cut` is told the file, the offset and the number of bytes cut. Raises Corrupt with ``file`` and
        ``offset`` for damage elsewhere, OSError when the disk refuses.
        """
        wal = cls(directory, segment_bytes)
        try:
            wal._admit_all(on_cut)
        except Corrupt as error:  # a node has two logs, whose segments have the same names
            raise Corrupt(f"{directory.path}/{error.message}", details=error.details) from None
        wal._distrust()
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
    def beyond(self) -> int:
        """What `open` found is complete for an owner who holds elsewhere what was logged up to this position."""
        return self._beyond

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────

    def append(self, payload: bytes) -> int:
        """Write one record to the page cache and return its position. It survives the death of the process at
        once, and power loss after the next `sync`. Raises OSError, and TooLarge above MAX_RECORD_BYTES."""
        return self._put(self._writable(), payload)

    def restate(self, payloads: Iterable[bytes], beyond: int = 0) -> int:
        """Begin a new segment with these records and a mark: all that is needed of this log by an owner who holds
        elsewhere what was logged up to `beyond`. Returns the segment's first position, for `drop_before` as soon as a
        `sync` has succeeded. Raises OSError, and what `payloads` raise; then do it again."""
        first = self.rotate()
        for payload in payloads:
            self._put(self._tail(), payload)
        self._write(self._tail(), mark(self._next, self._next - 1 - self._synced, beyond))
        return first

    def _put(self, file: AppendFile, payload: bytes) -> int:
        if len(payload) > MAX_RECORD_BYTES:
            raise TooLarge(f"a log record of {len(payload)} bytes is above the limit of {MAX_RECORD_BYTES}")
        position = self._next
        self._write(file, frame(position, position - 1 - self._synced, payload))
        self._next = position + 1
        return position

    def _write(self, file: AppendFile, record: bytes) -> None:
        try:
            file.append(record)
        except OSError:
            self._partial = True
            raise
        self._sizes[self._segments[-1].name] += len(record)

    def sync(self) -> "Future[None]":
        """Resolves when everything appended before this call, but for what is doubted, survives power loss; raises or
        fails with OSError. After a failure all of it is doubted."""
        covered, doubted = self._next - 1, self._doubted
        synced = _all([*self._sealing.values(), self._tail().sync()])
        outcome: Future[None] = synced.get_loop().create_future()

        def told(done: "Future[None]") -> None:
            error = OSError(errno.EIO, "the log was closed") if done.cancelled() else done.exception()
            if error is None and doubted < self._doubted:
                error = OSError(errno.EIO, "a sync of the same file failed before this one ended")
            if error is not None:
                self._distrust()
            elif not self._doubted:
                self._synced = max(self._synced, covered)
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        synced.add_done_callback(told)
        return outcome

    def rotate(self) -> int:
        """Begin a new segment and return its first position."""
        self._repair()
        if self._file is not None:
            if self._segments[-1].first == self._next:
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
        a log that lost its unsynced tail. OSError leaves a part of the log; then call it again.
        """
        if position < self._next:
            raise ValueError(f"restart at {position}, but positions up to {self._next - 1} are taken")
        if self._file is not None:
            self._file.close()
            self._file = None
        while self._segments:
            self._remove_oldest()
        self._remove_shadowed()
        self._partial, self._doubted = False, 0
        self._sealing.clear()
        self._next, self._synced = position, position - 1
        self._begin(position)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────

    def _admit_all(self, on_cut: OnCut | None) -> None:
        found = [(segment, self._look(segment)) for segment in segments_of(self._directory.names())]
        marked = [place for place, (_, look) in enumerate(found) if look.mark is not None]
        if marked:
            # They stay for now: whoever wrote the mark may have died before it was on disk.
            self._shadowed = [segment for segment, _ in found[: marked[-1]]]
            found = found[marked[-1] :]
        if found:
            segment, look = found[0]
            self._beyond = segment.first - 1 if look.mark is None else look.mark
        for place, (segment, look) in enumerate(found):
            if place and segment.first < self._next:
                raise corrupt(segment.name, 0, f"it repeats the records up to {self._next - 1}")
            newer = [newer for newer, _ in found[place + 1 :]]
            if not self._admit(segment, look, newer, on_cut):
                return

    def _look(self, segment: Segment) -> Scan:
        return scan(segment, self._directory.read(segment.name))

    def _admit(self, segment: Segment, look: Scan, newer: list[Segment], on_cut: OnCut | None) -> bool:
        """Count the records of a segment found on disk; False when the log ends in it, whatever followed."""
        self._next = segment.first + look.records
        if look.end:
            self._segments.append(segment)
            self._sizes[segment.name] = look.end
            if look.end == look.length and not (newer and newer[0].first > self._next):
                return True
        proven = [proven_by(other, self._directory.read(other.name)) for other in newer]
        judge(segment, self._directory.read(segment.name), look, max(proven, default=0))
        self._cut(segment, look.end, look.length - look.end, newer, on_cut)
        return False

    def _cut(self, segment: Segment, offset: int, lost: int, newer: list[Segment], on_cut: OnCut | None) -> None:
        """End the log at a place in a segment. The newest file goes first: whatever a crash leaves of this is again
        a log that ends here."""
        for gone in reversed(newer):
            size = len(self._directory.read(gone.name))
            self._directory.remove(gone.name)
            if on_cut is not None:
                on_cut(gone.name, 0, size)
        if offset == 0:
            self._directory.remove(segment.name)
        elif lost:
            self._directory.open(segment.name, truncate_at=offset).close()
        if lost and on_cut is not None:
            on_cut(segment.name, offset, lost)

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

    def _distrust(self) -> None:
        """Doubt all that was appended so far, and go on in a new segment. One without records is begun anew."""
        self._sealing.clear()
        self._partial = False
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._segments and self._segments[-1].first == self._next:
            del self._sizes[self._segments.pop().name]
        self._doubted = self._next - 1 if self._segments else 0

    def _seal(self, name: str, file: AppendFile) -> None:
        """Hand a finished segment to the disk, then close it. Later syncs wait for it: their promise includes its
        records. A failure is told to the next of them."""

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
        if self.first_position > self._doubted:
            self._doubted = 0
            self._remove_shadowed()

    def _remove_shadowed(self) -> None:
        while self._shadowed:
            self._directory.remove(self._shadowed[0].name)
            del self._shadowed[0]


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
