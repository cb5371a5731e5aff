"""Received snapshots on disk, until they are whole, verified and in force.

A snapshot that is gathered in memory costs as much of it as the group is large, and is gone with the process. So each
chunk is appended to a file of its group with its checksum, and what is read back after a crash is the longest run of
chunks that are whole: a torn one and all behind it are cut away, and the sender is asked for them again.

A file that ends with `E` was whole and verified. That it was about to be put in force is noted elsewhere, in the
journal (`GroupLog.expect`), which must know what log goes with the state it finds after a crash.

    file = "RSPSNAP\\x01", frames          frame = kind (1), length (4), SHA-256 of the payload (32), payload
    kinds  H  group, index, term, time_ms, members      D  a chunk      E  number of chunks, SHA-256 of all of them

One file per group, one snapshot per file. What the disk refuses costs the file, never more: it is only a copy.
"""

import re
import struct
from asyncio import Future
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from raftspine.cluster import raft_envelope
from raftspine.errors import Corrupt
from raftspine.model import GroupId
from raftspine.ports import AppendFile, Directory, Members, Position

_MAGIC = b"RSPSNAP\x01"
_FRAME = struct.Struct(">cI32s")
_HEAD, _DATA, _END = b"H", b"D", b"E"
_NAME = re.compile(r"[0-9]{5}\.snapshot")
_MAX_FRAME_BYTES = 1 << 26

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(tuple[int, int, int, int, tuple[Any, ...]]).decode
_decode_end = msgspec.msgpack.Decoder(tuple[int, bytes]).decode


class Target(NamedTuple):
    """What a snapshot stands for: the place in the group's log, and what the journal goes on with from there."""

    at: Position
    time_ms: int
    members: Members


class Staged:
    """The part of one snapshot that is here. `synced` counts the chunks that survive power loss."""

    file: AppendFile

    def __init__(self, target: Target) -> None:
        self.target = target
        self.chunks = 0
        self.synced = 0
        self.size_bytes = 0
        self.unsynced_bytes = 0
        self.digest = sha256()
        self.complete = False


class Staging:
    """All staged snapshots of a node. OSError from any method: the disk refused; `drop` the group's."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._staged: dict[GroupId, Staged] = {}
        for name in directory.names():
            if _NAME.fullmatch(name):
                self._load(GroupId(int(name[:5])), name)

    def get(self, group: GroupId) -> Staged | None:
        return self._staged.get(group)

    def groups(self) -> list[GroupId]:
        return list(self._staged)

    def begin(self, group: GroupId, target: Target) -> Staged:
        """An empty stage for this snapshot; what the group had staged before is gone."""
        self.drop(group)
        staged = Staged(target)
        staged.file = self._directory.open(_name(group))
        self._staged[group] = staged
        head = (group, *target.at, target.time_ms, target.members)
        staged.file.append(_MAGIC + _frame(_HEAD, _encode(head)))
        return staged

    def add(self, staged: Staged, data: bytes) -> None:
        """Append one chunk."""
        staged.file.append(_frame(_DATA, data))
        _count(staged, data)

    def finish(self, staged: Staged) -> None:
        """Note that the whole of it is here, and that its checksum was right."""
        if not staged.complete:
            staged.file.append(_frame(_END, _encode((staged.chunks, staged.digest.digest()))))
            staged.complete = True

    def sync(self, staged: Staged) -> "Future[None]":
        """Resolves when all of it so far survives power loss; fails with OSError."""
        covered, staged.unsynced_bytes = staged.chunks, 0
        done = staged.file.sync()
        done.add_done_callback(lambda done: _note_synced(staged, covered, done))
        return done

    def chunks(self, group: GroupId) -> Iterator[bytes]:
        """The chunks, one in memory at a time, each proven against its checksum. Raises Corrupt, also when they are
        not all there."""
        staged, name = self._staged[group], _name(group)
        count, whole = 0, sha256()
        for kind, payload, _ in _frames(self._directory, name):
            if kind == _DATA:
                count += 1
                whole.update(payload)
                yield payload
        if count != staged.chunks or whole.digest() != staged.digest.digest():
            raise Corrupt(f"{self._directory.path}/{name}: the staged snapshot reads back as another one")

    def drop(self, group: GroupId) -> None:
        """Forget what is staged for a group, if anything is."""
        staged = self._staged.pop(group, None)
        if staged is not None:
            staged.file.close()
        if _name(group) in self._directory.names():
            self._directory.remove(_name(group))

    def close(self) -> None:
        for staged in self._staged.values():
            staged.file.close()

    def _load(self, group: GroupId, name: str) -> None:
        """Take up what a crash left, as far as it is whole; a file without a readable head is no use to anybody."""
        staged, end, complete = _read(self._directory, group, name)
        if staged is None:
            self._directory.remove(name)
            return
        staged.file = self._directory.open(name, truncate_at=end)
        staged.synced, staged.unsynced_bytes, staged.complete = staged.chunks, 0, complete
        self._staged[group] = staged


def _read(directory: Directory, group: GroupId, name: str) -> tuple[Staged | None, int, bool]:
    """What is staged in a file, where its last whole frame ends, and whether that is the last there should be."""
    staged: Staged | None = None
    end = 0
    for kind, payload, stop in _frames(directory, name):
        if kind == _HEAD and staged is None:
            try:
                held, index, term, time_ms, data = _decode_head(payload)
                members = raft_envelope.members_of(data)
            except (msgspec.MsgspecError, ValueError, TypeError):
                return None, 0, False
            if held != group:
                return None, 0, False
            target = Target(Position(index, term), time_ms, members)
            staged = Staged(target)
        elif kind == _DATA and staged is not None:
            _count(staged, payload)
        elif kind == _END and staged is not None:
            if _decode_end(payload) == (staged.chunks, staged.digest.digest()):
                return staged, stop, True
            break
        else:
            break
        end = stop
    return staged, end, False


def _frames(directory: Directory, name: str) -> Iterator[tuple[bytes, bytes, int]]:
    """(kind, payload, where it ends) of each whole frame from the beginning, up to the first that is not."""
    if directory.read(name, 0, len(_MAGIC)) != _MAGIC:
        return
    offset = len(_MAGIC)
    while len(head := directory.read(name, offset, _FRAME.size)) == _FRAME.size:
        kind, length, check = _FRAME.unpack(head)
        if length > _MAX_FRAME_BYTES:
            return
        payload = directory.read(name, offset + _FRAME.size, length)
        if len(payload) != length or sha256(payload).digest() != check:
            return
        offset += _FRAME.size + length
        yield kind, payload, offset


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _FRAME.pack(kind, len(payload), sha256(payload).digest()) + payload


def _count(staged: Staged, data: bytes) -> None:
    staged.chunks += 1
    staged.size_bytes += len(data)
    staged.unsynced_bytes += len(data)
    staged.digest.update(data)


def _note_synced(staged: Staged, covered: int, done: "Future[None]") -> None:
    if not done.cancelled() and done.exception() is None:
        staged.synced = max(staged.synced, covered)


def _name(group: GroupId) -> str:
    return f"{group:05d}.snapshot"
