"""The content of a log entry: one turn's commands with the leader's time, under our own version number.

The engine's notion of a newer command version makes replicas apply entries twice (design/strong-path.md §1,
row 11), so ours comes first in every entry, and a replica that does not know it stops the group instead of
guessing.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from raftspine.model import MemberId
from raftspine.ports import Members

VERSION = 1
MEMBERS_VERSION = 1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, list[bytes]]).decode

_decode_members = msgspec.msgpack.Decoder(tuple[int, list[str], list[str], list[str]]).decode


def pack_members(members: Members) -> bytes:
    """The content of an entry that says who takes part from here on: all of them, not the difference, so that no
    entry before it is needed to know."""
    return _encode((MEMBERS_VERSION, *members))


def members_of(data: Any) -> Members:
    """Members as they travel beside a snapshot; before membership could change that was the voters alone. Raises
    ValueError or TypeError."""
    if all(isinstance(name, str) for name in data):
        return Members(tuple(MemberId(name) for name in data))
    voters, learners, removed = (tuple(MemberId(name) for name in part) for part in data)
    return Members(voters, learners, removed)


def unpack_members(payload: bytes) -> Members:
    """ValueError for content this version cannot read."""
    try:
        version, voters, learners, removed = _decode_members(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"members of an unknown form: {error}") from error
    if version != MEMBERS_VERSION:
        raise ValueError(f"members of version {version}, this node knows {MEMBERS_VERSION}; upgrade it")
    return Members(*(tuple(MemberId(name) for name in part) for part in (voters, learners, removed)))


def pack(time_ms: int, commands: Sequence[bytes]) -> bytes:
    return _encode((VERSION, time_ms, commands))


def unpack(payload: bytes) -> tuple[int, list[bytes]]:
    """(time in ms, commands). ValueError for content this version cannot read."""
    try:
        version, time_ms, commands = _decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"entry of an unknown form: {error}") from error
    if version != VERSION:
        raise ValueError(f"entry of version {version}, this node knows {VERSION}; upgrade it")
    return time_ms, commands
