"""The content of a log entry: one turn's commands with the leader's time, under our own version number.

The engine's notion of a newer command version makes replicas apply entries twice (design/strong-path.md §1,
row 11), so ours comes first in every entry, and a replica that does not know it stops the group instead of
guessing.
"""

from collections.abc import Sequence

import msgspec

VERSION = 1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, list[bytes]]).decode


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
