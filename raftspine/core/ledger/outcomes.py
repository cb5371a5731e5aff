"""What a command came to, as a value that can be logged, sent to the node that asked, and replayed next day.

The rule: an outcome is a function of the state and the command, so every replica computes the same bytes. A
retry with the same Idempotency-Key gets exactly these bytes back.
"""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from raftspine.errors import Corrupt
from raftspine.model import Memory, StrongRecord, Version

V1 = b"\x01"


class Status(StrEnum):
    """The ends a command can come to. All are decided, i.e. replayed on a retry, but for `ring_behind` and
    `session_gone`."""

    CREATED = "created"
    CHANGED = "changed"
    EQUAL = "equal"
    """Nothing to do: the stored memory already says this."""
    DELETED = "deleted"
    DEMOTED = "demoted"
    """Stored, and moved from the log to the ring; `ring` holds the version."""
    ABSENT = "absent"
    """There is no such memory to delete or patch."""
    VERSION_CONFLICT = "version_conflict"
    """The condition does not hold; `current` is the stored version's text, None when there is no memory."""
    INVALID = "invalid"
    REQUEST_REUSED = "request_reused"
    """This Idempotency-Key was used before to ask for something else."""
    VOIDED = "voided"
    """This request was settled as never to apply."""
    RING_BEHIND = "ring_behind"
    """The coordinator's picture of the ring is older than this memory's last demotion: read again and retry."""
    MALFORMED = "malformed"
    """The bytes in the log are no command."""

    # Coordination. `result` says the rest; what is in REFUSALS has changed nothing.
    DONE = "done"
    GRANTED = "granted"
    QUEUED = "queued"
    """The lock is held; the ticket in `result` keeps a place in its queue."""
    LOCK_HELD = "lock_held"
    NOT_CURRENT = "not_current"
    """This lease, claim or place is not, or no longer, what it says it is."""
    FENCED = "fenced"
    """A guard's token is not current."""
    DEADLOCK = "deadlock"
    """Granting this would need the asking session to give something up first."""
    STALE_TOKEN = "stale_token"
    GATE_CLOSED = "gate_closed"
    SESSION_GONE = "session_gone"
    """The session named is not, or no longer, open in this group."""
    TOO_MANY = "too_many"
    """Above a limit of this group's state (limits.py)."""
    EXISTS = "exists"
    """Another thing of this name exists."""
    WRONG_STATE = "wrong_state"
    """The thing exists and is in no state for this."""
    FORBIDDEN = "forbidden"
    """This person may not do this to this thing. The refusal stands in the audit chain."""
    WRONG_DIGEST = "wrong_digest"
    """The thing is about another artifact; as above."""
    OVERTAKEN = "overtaken"
    """A leader's proposal that came too late: the log, or another leader, has heard of the session since."""


REFUSALS = frozenset(
    (
        Status.ABSENT,
        Status.VERSION_CONFLICT,
        Status.INVALID,
        Status.RING_BEHIND,
        Status.LOCK_HELD,
        Status.NOT_CURRENT,
        Status.FENCED,
        Status.DEADLOCK,
        Status.STALE_TOKEN,
        Status.GATE_CLOSED,
        Status.SESSION_GONE,
        Status.TOO_MANY,
        Status.EXISTS,
        Status.WRONG_STATE,
        Status.OVERTAKEN,
    )
)
"""Ends at which a command of coordination leaves nothing behind, whatever it had begun."""


class Outcome(Struct, frozen=True, array_like=True):
    """`record`: the strong record after the command. `ring`: the ring version, where the memory now lives
    there. `version`: its version text. `created`: there was no such memory before. `reason`: for people.
    `result`: what a command of coordination came to, as plain data (each command's module says which)."""

    status: Status
    id: str = ""
    record: StrongRecord | None = None
    version: str | None = None
    created: bool = False
    current: str | None = None
    ring: Version | None = None
    reason: str = ""
    result: dict[str, Any] = {}

    @property
    def memory(self) -> Memory | None:
        """The memory as it stands after the command, on whichever path."""
        if self.record is not None:
            return self.record.memory
        return self.ring.memory if self.ring is not None else None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Outcome)


def encode(outcome: Outcome) -> bytes:
    """Marker and msgpack."""
    return V1 + _encode(outcome)


def decode(data: bytes) -> Outcome:
    """Raises Corrupt."""
    if data[:1] != V1:
        raise Corrupt(f"ledger outcome: unknown format marker {data[:1]!r}; was it written by a newer version?")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise Corrupt(f"ledger outcome: {error}") from error
