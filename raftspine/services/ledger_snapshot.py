"""A shard group's replicated state as a stream of bytes, and the rows that put it in place of another.

What travels is what the log made and nothing else: strong records, live requests, the ledger's tables, and
the position. Index rows are rebuilt by the receiver, since they follow from the records; what the ring holds
does not belong to the log and arrives by the ring's own catch-up. Sending ring rows along would smuggle
versions past the vectors that promise them.

The stream is one marker byte, then rows as two lengths and two strings, cut into chunks wherever 256 KiB are
full: a record may be larger than a chunk. Whole-stream checksums are the sender's (the Raft host's) business.
"""

import struct
from asyncio import sleep
from collections.abc import AsyncIterator, Iterable, Iterator

from raftspine import codec
from raftspine.core.ledger.memories import outside
from raftspine.core.version_text import strong_version_text
from raftspine.errors import Corrupt, NoSpace
from raftspine.model import GroupId, StrongRecord
from raftspine.ports import Engine, FrozenView, Position, Row, View
from raftspine.storage import keys, memories
from raftspine.storage.segment import MAX_RECORD_BYTES

CHUNK_BYTES = 256 * 1024
MARK = b"\x01"
KINDS = (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER, keys.APPLIED)
PAGE = 64
PAGE_BYTES = 1 << 20
"""Rows read at a time, with a pause for the loop after each page: fewer where they are large, so that a page is about
this many bytes. A page of large records held up every request on the node for its time."""

_LENGTHS = struct.Struct(">II")


class Stream(AsyncIterator[bytes]):
    """The chunks of one frozen view; closes it at the end, or at `aclose`."""

    def __init__(self, view: FrozenView, group: GroupId) -> None:
        self._ended = False
        self._view = view
        self._rows = _rows(view, group)
        self._buffer = bytearray(MARK)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await sleep(0)  # a long snapshot takes turns with the requests
        while len(self._buffer) < CHUNK_BYTES and not self._ended:
            page = next(self._rows, None)
            if page is None:
                self._end()
                break
            for key, value in page:
                self._buffer += _LENGTHS.pack(len(key), len(value)) + key + value
        if not self._buffer:
            raise StopAsyncIteration
        chunk = bytes(self._buffer[:CHUNK_BYTES])
        del self._buffer[:CHUNK_BYTES]
        return chunk

    async def aclose(self) -> None:
        """Give up the rest of the stream, and let go of the view."""
        self._buffer.clear()
        self._end()

    def __del__(self) -> None:
        # A transfer that broke off is dropped unread; the store must not stay pinned until someone notices.
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._view.close()


def _rows(view: View, group: GroupId) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows that a snapshot of the group is made of, in pages."""
    limit = 1
    for kind in KINDS:
        lo, hi = keys.span(kind, group)
        while page := view.scan(lo, hi, limit=limit):
            yield page
            lo = page[-1][0] + b"\0"
            size = sum(len(value) for _, value in page) // len(page) + 1
            limit = max(1, min(PAGE, 2 * limit, PAGE_BYTES // size))


def unpack(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The rows in a stream, with little more of it in memory than one row. Raises Corrupt when it is cut off or of a
    newer format."""
    data, marked = bytearray(), False
    for chunk in chunks:
        data += chunk
        offset = 0
        if not marked and data:
            _check_marker(data)
            offset, marked = 1, True
        while (end := _row_end(data, offset)) is not None:
            key_length, _ = _LENGTHS.unpack_from(data, offset)
            start = offset + _LENGTHS.size
            yield bytes(data[start : start + key_length]), bytes(data[start + key_length : end])
            offset = end
        del data[:offset]
    if not marked:
        _check_marker(data)
    if data:
        raise Corrupt("snapshot: cut off inside a row")


def _check_marker(data: bytearray) -> None:
    if data[:1] != MARK:
        raise Corrupt(f"snapshot: unknown format marker {bytes(data[:1])!r}; from a newer version?")


def _row_end(data: bytearray, offset: int) -> int | None:
    """Where the row at `offset` ends, if all of it is there."""
    if offset + _LENGTHS.size > len(data):
        return None
    key_length, value_length = _LENGTHS.unpack_from(data, offset)
    end = offset + _LENGTHS.size + int(key_length) + int(value_length)
    return None if end > len(data) else end


async def replacement(engine: Engine, group: GroupId, at: Position, chunks: Iterable[bytes]) -> list[Row]:
    """The rows that turn the group's stored state into the snapshot's.

    Raises Corrupt when the chunks are not a snapshot of this group at `at`, NoSpace when the change is larger than
    one record of the node's log can be, as it has to be one.
    """
    coming = await _checked(group, chunks)
    found, time_ms = memories.applied(coming, group)
    if found != at:
        raise Corrupt(f"snapshot of shard group {group} is of entry {found}, not of {at}")
    rows: list[Row] = []
    seen: set[bytes] = set()
    for page in _rows(engine, group):
        await sleep(0)
        for key, data in page:
            seen.add(key)
            fresh = coming.get(key)
            if fresh != data:
                rows += _change(engine, group, key, data, fresh, time_ms)
    for count, (key, fresh) in enumerate(coming.items()):
        if count % PAGE == 0:
            await sleep(0)
        if key not in seen:
            rows += _change(engine, group, key, None, fresh, time_ms)
    size = sum(len(key) + len(data or b"") + 16 for key, data in rows)
    if size > MAX_RECORD_BYTES:
        raise NoSpace(f"shard group {group}: a snapshot that changes {size} bytes cannot be installed at once")
    return rows


async def _checked(group: GroupId, chunks: Iterable[bytes]) -> dict[bytes, bytes]:
    """The snapshot's rows; Corrupt for a key that has no place in a snapshot of this group."""
    prefixes = tuple(keys.kind_of_group(kind, group) for kind in KINDS)
    coming: dict[bytes, bytes] = {}
    for key, value in unpack(chunks):
        if not key.startswith(prefixes):
            raise Corrupt(f"snapshot of shard group {group} holds a foreign row {key[:8]!r}")
        coming[key] = value
        if len(coming) % PAGE == 0:
            await sleep(0)
    return coming


def _change(
    engine: Engine, group: GroupId, key: bytes, old: bytes | None, new: bytes | None, time_ms: int
) -> list[Row]:
    """One row's change, with the index and conflict rows that go with it."""
    if key[:1] != keys.STRONG:
        return [(key, new)]
    was = None if old is None else codec.decode_strong(old)
    now = None if new is None else codec.decode_strong(new)
    rows: list[Row] = list(memories.strong_rows(group, keys.id_of_record(key), was, now))
    if was is None and now is not None:
        rows += _promoted(engine, group, now, time_ms)
    return rows


def _promoted(engine: Engine, group: GroupId, record: StrongRecord, time_ms: int) -> list[Row]:
    """Conflict rows for ring versions here that the promotion did not see, as applying it would have kept."""
    rows: list[Row] = []
    winner = strong_version_text(group, record.index, record.sub)
    for loser in outside(memories.ring(engine, group, record.id), record.shadow):
        rows += memories.conflict_rows(engine, group, loser, winner=winner, now_ms=time_ms)
    return rows
