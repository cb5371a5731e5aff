"""The ledger's state as it is read, and the changes to it as values.

The rule: the machine reads through `LedgerView` and answers with effects; the host stores them, in order,
in the same batch as the applied position, before it applies the next command. An effect that were performed
inside the machine could neither be tested as a value nor be made atomic with the position.

Four things make up the replicated state, equal on all replicas at equal positions: strong records, live
request rows, counters, and the rows of coordination (tables.py says what they hold). What the ring holds of an
id is *not* part of it, it differs from replica to replica; it may decide which `Conflict` effects a replica gets,
and never an outcome.
"""

from typing import NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from raftspine.core.ledger.outcomes import Outcome
from raftspine.errors import Corrupt
from raftspine.model import RingRecord, StrongRecord, Version

V1 = b"\x01"


ROW_KEY_BYTES = 480
"""The longest key of a row within its table; with table and group it fits any store's limit (storage/keys.py)."""


class Place(NamedTuple):
    """Where a command stands: its entry's log index, its place within that entry's batch, and the term of the
    leader who stamped the entry."""

    index: int  # type: ignore[assignment]  # the field's word; nobody searches a Place
    sub: int
    term: int = 0


class RequestRow(Struct, frozen=True, array_like=True):
    """The memory of one Idempotency-Key. `outcome` None: voided. From `expires_at_ms` on (leader time) the
    row counts as absent, so a replica may delete it whenever its last applied leader time has passed
    that."""

    fingerprint: bytes
    outcome: Outcome | None
    expires_at_ms: int


class LedgerView(Protocol):
    """What a command may look at: the state after all effects of the commands before it."""

    def strong(self, id: str) -> StrongRecord | None: ...

    def ring(self, id: str) -> RingRecord | None:
        """This replica's own ring record; local, see the module's docstring."""
        ...

    def request(self, digest: bytes) -> RequestRow | None: ...

    def counter(self, name: str) -> int:
        """0 when it was never set. Names are at most 300 bytes of UTF-8."""
        ...

    def row(self, table: str, key: bytes) -> bytes | None:
        """A row of coordination. Keys are at most ROW_KEY_BYTES long."""
        ...

    def rows(
        self, table: str, lo: bytes, hi: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows with lo <= key < hi, in key order (from the upper end when `reverse`)."""
        ...


class SetStrong(Struct, frozen=True, array_like=True, tag="strong"):
    """Replace a strong record; `new` None: the id leaves the log. `old` is for the index rows."""

    id: str
    old: StrongRecord | None
    new: StrongRecord | None


class SetRing(Struct, frozen=True, array_like=True, tag="ring"):
    """Merge a version into the ring record (`core.merge.put`) and its dot into the group's vector."""

    id: str
    version: Version


class Conflict(Struct, frozen=True, array_like=True, tag="conflict"):
    """Keep a ring version that lost against a promotion in the conflict log. Local to this replica."""

    id: str
    loser: Version
    winner: str
    at_ms: int


class SetRequest(Struct, frozen=True, array_like=True, tag="request"):
    """Remember a request."""

    digest: bytes
    row: RequestRow


class SetCounter(Struct, frozen=True, array_like=True, tag="counter"):
    """Set a counter; 0 removes it."""

    name: str
    value: int


class SetRow(Struct, frozen=True, array_like=True, tag="row"):
    """Set a row of coordination; None removes it."""

    table: str
    key: bytes
    value: bytes | None


Effect: TypeAlias = SetStrong | SetRing | Conflict | SetRequest | SetCounter | SetRow
Result: TypeAlias = tuple[Outcome, list[Effect]]

_encode = msgspec.msgpack.Encoder().encode
_row = msgspec.msgpack.Decoder(RequestRow)


def encode_request(row: RequestRow) -> bytes:
    """Marker and msgpack."""
    return V1 + _encode(row)


def decode_request(data: bytes) -> RequestRow:
    """Raises Corrupt."""
    if data[:1] != V1:
        raise Corrupt(f"request row: unknown format marker {data[:1]!r}; was it written by a newer version?")
    try:
        return _row.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise Corrupt(f"request row: {error}") from error
