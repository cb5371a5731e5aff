"""The bytes of one log segment: how records lie in it, and what a place without a whole record means.

The rule it owns is the verdict table below; wal.py only asks. Get it wrong in one direction and a node
refuses to start after every power cut; in the other, one rotten sector silently drops the acknowledged
writes behind it.

    segment = "RSPWAL\\n", format byte, first position (8), crc32 of the foregoing (4)
    record = payload length (4), position (8), unsynced (4), crc32 of these and the payload (4), payload

All numbers are big-endian. `unsynced` counts the records directly before this one that were not known to be
on disk when it was written. Where pages of the cache reached the disk out of order, or never because their sync
failed, it proves that the hole they left was never promised to anybody. The highest bit of the length makes a record
a *mark*: all that the log must still give back stands in this segment before it, but for what the log's owner holds
elsewhere up to the position in its payload. Segments before a whole mark are not looked at. A mark takes no position
of its own but repeats that of the next record.

    where no whole record begins    what follows, here and in newer segments   verdict
    anywhere                        a record written after a sync that         Corrupt
                                    covered the place
    anywhere                        no whole record in this segment            torn tail: cut, reported
    begins unwritten, or holds      whole records, none of them written        torn tail: cut, reported
    an all-zero sector              after a sync that covered the place
    anywhere                        any other whole record                     Corrupt

What is cut takes all newer segments with it: none of them was promised without it. *Unwritten* is a place that holds
only zeros up to the end of its disk sector, which no record of ours does: none is empty.

The all-zero sector as the mark of a torn write is etcd's test (wal/decoder.go, isTornEntry).
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from raftspine.errors import Corrupt

MAX_RECORD_BYTES = 1 << 28
"""A length field above this is damage, not a record: 256 MiB is far above the largest batch ever staged."""

SECTOR_BYTES = 512
TELLING_BYTES = 64
LOOK_AHEAD = 256
"""How many successors of a damaged record are looked for; one ruined 4 KiB page can hold no more."""

REMEDY = (
    "Leave the data directory as it is and this node down (the others go on while they are a majority), and restore "
    "it from a backup. Do not start the node empty under its old id: it would forget what it promised "
    "(docs/operations.md)"
)
"""What the operator can do about damage, whichever file it is in."""

_MAGIC = b"RSPWAL\n\x01"
_HEAD = struct.Struct(">8sQI")
_RECORD = struct.Struct(">IQII")
_COVERED = struct.Struct(">IQI")  # the part of a record's header that its checksum covers
_MARK = 1 << 31  # in the length field
_NAME = re.compile(r"[0-9]{20}\.wal")

HEAD_BYTES = _HEAD.size
RECORD_BYTES = _RECORD.size


class Segment(NamedTuple):
    """A segment file and the position of its first record, which its name repeats."""

    first: int
    name: str


class Scan(NamedTuple):
    """What reading a segment came to: whole records found, marks left out; where the last one ends (0: the header is
    not this segment's); the file's length; the last mark's position, or None; the highest position that a record says
    was on disk before it."""

    records: int
    end: int
    length: int
    mark: int | None
    proven: int


def segment_at(first: int) -> Segment:
    return Segment(first, f"{first:020d}.wal")


def segments_of(names: list[str]) -> list[Segment]:
    """The segments among the files of a directory, oldest first."""
    return [Segment(int(name[:20]), name) for name in sorted(names) if _NAME.fullmatch(name)]


def head(segment: Segment) -> bytes:
    """The first bytes of a segment file."""
    start = _HEAD.pack(_MAGIC, segment.first, 0)[:-4]
    return start + crc32(start).to_bytes(4, "big")


def frame(position: int, unsynced: int, payload: bytes) -> bytes:
    """One record, ready to be appended."""
    return _framed(len(payload), position, unsynced, payload)


def mark(position: int, unsynced: int, after: int) -> bytes:
    """A mark, ready to be appended before the record at `position`: nothing before this segment is needed by an owner
    who holds what was logged up to `after`."""
    return _framed(_MARK | 8, position, unsynced, after.to_bytes(8, "big"))


def _framed(length: int, position: int, unsynced: int, payload: bytes) -> bytes:
    covered = _COVERED.pack(length, position, min(unsynced, 0xFFFFFFFF))
    return b"".join((covered, crc32(payload, crc32(covered)).to_bytes(4, "big"), payload))


class _Record(NamedTuple):
    """A whole record: where its payload begins and ends, its position, what it says was unsynced before it."""

    start: int
    end: int
    position: int
    unsynced: int
    marks: bool

    @property
    def proves(self) -> int:
        """The highest position that was known to be on disk when this was written."""
        return self.position - 1 - self.unsynced


def _record_at(data: memoryview, offset: int, expected: int | None) -> _Record | None:
    """The whole record at `offset`, if one is there with the expected position."""
    start = offset + RECORD_BYTES
    if start > len(data):
        return None
    length, position, unsynced, check = _RECORD.unpack_from(data, offset)
    marks, length = bool(length & _MARK), length & ~_MARK
    end = start + length
    if length > MAX_RECORD_BYTES or end > len(data) or position != (expected or position):
        return None
    if crc32(data[start:end], crc32(data[offset : offset + _COVERED.size])) != check:
        return None
    return _Record(start, end, position, unsynced, marks)


def _whole(segment: Segment, data: memoryview) -> Iterator[_Record]:
    """The records from the segment's beginning up to the first bad place."""
    offset, position = HEAD_BYTES, segment.first
    while (record := _record_at(data, offset, position)) is not None:
        yield record
        offset, position = record.end, position + (not record.marks)


def records(segment: Segment, data: memoryview) -> Iterator[tuple[int, bytes, int]]:
    """The whole records from the segment's beginning as (position, payload, end), up to the first bad place, and
    without the marks."""
    for record in _whole(segment, data):
        if not record.marks:
            yield record.position, bytes(data[record.start : record.end]), record.end


def scan(segment: Segment, data: bytes) -> Scan:
    """Read what is whole from the beginning."""
    if data[:HEAD_BYTES] != head(segment):
        return Scan(0, 0, len(data), None, 0)
    count, end, after, proven = 0, HEAD_BYTES, None, 0
    for record in _whole(segment, memoryview(data)):
        count, end, proven = count + (not record.marks), record.end, max(proven, record.proves)
        if record.marks:
            after = int.from_bytes(data[record.start : record.end], "big")
    return Scan(count, end, len(data), after, proven)


def proven_by(segment: Segment, data: bytes) -> int:
    """The highest position that any whole record of a segment says was on disk, also behind a damaged place."""
    found = scan(segment, data)
    offset = _successor(memoryview(data), data, found.end, segment.first + found.records)
    return max(found.proven, 0 if offset is None else _proven_from(memoryview(data), offset))


def judge(segment: Segment, data: bytes, found: Scan, proven: int) -> None:
    """Return when what follows the last whole record is a torn tail, raise Corrupt when it is damage. `proven`: the
    highest position that newer segments say was on disk."""
    damaged = segment.first + found.records
    view = memoryview(data)
    if found.end == 0 and len(data) >= HEAD_BYTES and any(data[:SECTOR_BYTES]):
        raise corrupt(segment.name, 0, "the segment's header is damaged")
    offset = _successor(view, data, found.end, damaged)
    if offset is not None:
        proven = max(proven, _proven_from(view, offset))
    if proven >= damaged:
        raise corrupt(segment.name, found.end, f"record {damaged} had been on disk, and is damaged or gone")
    if offset is not None and not _never_written(data, found.end, offset):
        raise corrupt(segment.name, found.end, f"record {damaged} is damaged and whole records follow it")


def _successor(view: memoryview, data: bytes, start: int, damaged: int) -> int | None:
    """Where the first whole record behind the damaged one begins. Its position is known to within LOOK_AHEAD,
    so it is found by searching for that number; the checksum decides."""
    for position in range(damaged, damaged + 1 + LOOK_AHEAD):
        needle = position.to_bytes(8, "big")
        found = data.find(needle, start + 4)
        while found != -1:
            if _record_at(view, found - 4, position) is not None:
                return found - 4
            found = data.find(needle, found + 1)
    return None


def _proven_from(view: memoryview, offset: int) -> int:
    """The highest position that the whole records from `offset` on say was on disk."""
    proven = 0
    while (record := _record_at(view, offset, None)) is not None:
        offset, proven = record.end, max(proven, record.proves)
    return proven


def _never_written(data: bytes, start: int, end: int) -> bool:
    """Whether the place where a record should begin shows that the disk never got what was written there: zeros up to
    the end of its sector, or a sector of zeros, as far as it lies in [start, end). Short pieces of the latter prove
    nothing, and neither do the high bytes of a length."""
    stop = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
    if stop - start >= 4 and stop <= end and not any(data[start:stop]):
        return True
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if stop - start >= TELLING_BYTES and not any(data[start:stop]):
            return True
        start = stop
    return False


def corrupt(name: str, offset: int, what: str) -> Corrupt:
    """The error for damage at a place, with what the operator can do about it."""
    return Corrupt(
        f"{name}, offset {offset}: {what}. {REMEDY}",
        details={"file": name, "offset": offset},
    )
