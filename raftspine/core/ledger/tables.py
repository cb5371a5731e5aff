"""The rows of coordination: how a table's keys are built and its values encoded.

The rule: one Table per kind of row, named once, its values behind a format marker; keys are made of parts that
cannot run into one another and sort as their parts do. State that is looked up by key, or scanned a few rows
at a time from a known place, costs the same with a hundred locks as with a hundred thousand, and a snapshot
carries it without knowing what it is.

Text in a key ends with NUL, so it may hold none; numbers are eight bytes, big-endian. Texts are bounded
(limits.py) so that no key passes ROW_KEY_BYTES; what could be longer goes in as a digest.
"""

from hashlib import blake2b
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from raftspine.core.ledger.state import LedgerView, SetRow
from raftspine.errors import Corrupt

T = TypeVar("T")
Part: TypeAlias = str | int | bytes

V1 = b"\x01"

TABLES: "dict[str, Table[Any]]" = {}
"""All tables by name, for whoever must read rows it did not write (tests, dumps)."""

_encode = msgspec.msgpack.Encoder().encode


def pack(*parts: Part) -> bytes:
    """A key, or what the keys with these first parts begin with. Bytes go in as they are, so only last."""
    key = b""
    for part in parts:  # concatenated in place: a dozen keys are made for each command, on every replica
        if isinstance(part, str):
            key += part.encode() + b"\0"
        else:
            key += part.to_bytes(8, "big") if isinstance(part, int) else part
    return key


def unpack(key: bytes, *kinds: type) -> tuple[Any, ...]:
    """The parts of a key again: `str` or `int` for each."""
    parts: list[Any] = []
    for kind in kinds:
        if kind is str:
            text, _, key = key.partition(b"\0")
            parts.append(text.decode())
        else:
            parts.append(int.from_bytes(key[:8], "big"))
            key = key[8:]
    return tuple(parts)


def digest(text: str) -> bytes:
    """16 bytes for a text in a key that is only ever looked up by value."""
    return blake2b(text.encode(), digest_size=16).digest()


def above(prefix: bytes) -> bytes:
    """An upper bound for all keys that begin with `prefix`. No key begins with 255: text is UTF-8, and numbers
    are far below 2**63."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff"


class Table(Generic[T]):
    """The rows of one kind. Values are frozen structs, encoded as arrays: append fields only, with defaults."""

    def __init__(self, name: str, kind: type[T]) -> None:
        assert name not in TABLES, f"two tables named {name}"
        self.name = name
        self._decoder = msgspec.msgpack.Decoder(kind)
        TABLES[name] = self

    def get(self, view: LedgerView, *parts: Part) -> T | None:
        data = view.row(self.name, pack(*parts))
        return None if data is None else self.decode(data)

    def page(
        self, view: LedgerView, prefix: bytes, *, start: bytes = b"", limit: int, reverse: bool = False
    ) -> list[tuple[bytes, T]]:
        """Up to `limit` rows whose keys begin with `prefix`, from the key `start` on (when it lies behind)."""
        rows = view.rows(self.name, max(prefix, start), above(prefix), limit=limit, reverse=reverse)
        return [(key, self.decode(data)) for key, data in rows]

    def set(self, *parts: Part, value: T | None) -> SetRow:
        """The effect that sets a row; None removes it."""
        return SetRow(self.name, pack(*parts), None if value is None else V1 + _encode(value))

    def decode(self, data: bytes) -> T:
        """Raises Corrupt."""
        if data[:1] != V1:
            raise Corrupt(f"{self.name} row: unknown format marker {data[:1]!r}; was it written by a newer version?")
        try:
            return self._decoder.decode(memoryview(data)[1:])
        except msgspec.DecodeError as error:
            raise Corrupt(f"{self.name} row: {error}") from error
