"""The bytes of one log segment: how records lie in it, and what a place without a whole record means.

The rule it owns is the verdict table below; wal.py only asks. Get it wrong in one direction and a node
refuses to start after every power cut; in the other, one rotten sector silently drops the acknowledged
writes behind it.

    segment = "RSPWAL\\n", format byte, first position (8), crc32 of the foregoing (4)
    record = payload length (4), position (8), unsynced (4), crc32 of these and the payload (4), payload

All numbers are big-endian. `unsynced` counts the records directly before this one that were not known to be
on disk when it was written. Where pages of the cache reached the disk out of order, it proves that the hole
they left was never promised to anybody.

    where no whole record begins    what follows                            verdict
    any segment but the last        anything                                Corrupt
    the last segment                no whole record                         torn tail: cut, reported
    the same, an all-zero sector    whole records, none of them written     torn tail: cut, reported
                                    after a sync that covered the place
    the last segment                any other whole record                  Corrupt

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
_NAME = re.compile(r"[0-9]{20}\.wal")

HEAD_BYTES = _HEAD.size
RECORD_BYTES = _RECORD.size


class Segment(NamedTuple):
    """A segment file and the position of its first record, which its name repeats."""

    first: int
    name: str


class Scan(NamedTuple):
    """What reading a segment came to: whole records found, where the last one ends, the file's length."""

    records: int
    end: int
    length: int


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
    covered = _COVERED.pack(len(payload), position, min(unsynced, 0xFFFFFFFF))
    return b"".join((covered, crc32(payload, crc32(covered)).to_bytes(4, "big"), payload))


def begins_well(segment: Segment, data: bytes) -> bool:
    """Whether the file's first bytes are this segment's."""
    return data[:HEAD_BYTES] == head(segment)


def _record_at(data: memoryview, offset: int, expected: int | None) -> tuple[int, int, int] | None:
    """(end, position, unsynced) of the whole record at `offset`, if one is there with the expected position."""
    start = offset + RECORD_BYTES
    if start > len(data):
        return None
    length, position, unsynced, check = _RECORD.unpack_from(data, offset)
    end = start + length
    if length > MAX_RECORD_BYTES or end > len(data) or position != (expected or position):
        return None
    if crc32(data[start:end], crc32(data[offset : offset + _COVERED.size])) != check:
        return None
    return end, position, unsynced


def records(segment: Segment, data: memoryview) -> Iterator[tuple[int, bytes, int]]:
    """The whole records from the segment's beginning as (position, payload, end), up to the first bad place."""
    offset, position = HEAD_BYTES, segment.first
    while (record := _record_at(data, offset, position)) is not None:
        end = record[0]
        yield position, bytes(data[offset + RECORD_BYTES : end]), end
        offset, position = end, position + 1


def scan(segment: Segment, data: bytes) -> Scan:
    """Count the whole records from the beginning."""
    count, end = 0, HEAD_BYTES
    for _, _, end in records(segment, memoryview(data)):  # noqa: B007 (the last value is the result)
        count += 1
    return Scan(count, end, len(data))


def judge(segment: Segment, data: bytes, found: Scan, *, last: bool) -> None:
    """Return when what follows the last whole record is a torn tail, raise Corrupt when it is damage."""
    if not last:
        raise corrupt(segment.name, found.end, "a record is damaged and newer segments follow it")
    damaged = segment.first + found.records
    view = memoryview(data)
    offset = _successor(view, data, found.end, damaged)
    if offset is None:
        return
    promised = any(position - 1 - unsynced >= damaged for position, unsynced in _walk(view, offset))
    if promised or not _has_zero_sector(data, found.end, offset):
        raise corrupt(segment.name, found.end, f"record {damaged} is damaged and whole records follow it")


def _successor(view: memoryview, data: bytes, start: int, damaged: int) -> int | None:
    """Where the first whole record behind the damaged one begins. Its position is known to within LOOK_AHEAD,
    so it is found by searching for that number; the checksum decides."""
    for position in range(damaged + 1, damaged + 1 + LOOK_AHEAD):
        needle = position.to_bytes(8, "big")
        found = data.find(needle, start + 4)
        while found != -1:
            if _record_at(view, found - 4, position) is not None:
                return found - 4
            found = data.find(needle, found + 1)
    return None


def _walk(view: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """(position, unsynced) of each whole record from `offset` on."""
    while (record := _record_at(view, offset, None)) is not None:
        offset = record[0]
        yield record[1:]


def _has_zero_sector(data: bytes, start: int, end: int) -> bool:
    """Whether a disk sector, as far as it lies in [start, end), holds only zeros. Short pieces prove nothing:
    a record's own header begins with zeros."""
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
