"""What may be written to a shard group's log, as bytes that every replica reads alike.

The rule: a command holds everything its outcome depends on besides the state (no clock, no chance, nothing
the applying node happens to know), behind one byte that names the format. A new command or field means a
new marker: a replica that would have to guess halts its group instead, because one that skips what another
applies has diverged for good.

Format 1 knows memories without guards and VoidRequest; format 2 adds guards and coordination. A command that
format 1 can say is still written in it, so that a group works on while its nodes are upgraded one by one.
"""

from typing import NamedTuple, TypeAlias, get_args

import msgspec

from raftspine.core.ledger import gate_commands as gates
from raftspine.core.ledger import lock_commands as locks
from raftspine.core.ledger import task_commands as tasks
from raftspine.core.ledger import terraform_commands as terraform
from raftspine.core.ledger.memory_commands import (
    ANY,
    Condition,
    DeleteMemory,
    GetMemory,
    Guard,
    MemoryCommand,
    PatchMemory,
    PutMemory,
    VoidRequest,
)
from raftspine.core.ledger.nesting import is_too_deep
from raftspine.errors import Corrupt

__all__ = [
    "ANY",
    "Command",
    "Condition",
    "DeleteMemory",
    "GetMemory",
    "Guard",
    "Malformed",
    "MemoryCommand",
    "PatchMemory",
    "PutMemory",
    "VoidRequest",
    "decode",
    "encode",
]

V1 = 1
V2 = 2

FirstFormat: TypeAlias = MemoryCommand | VoidRequest
SessionCommand: TypeAlias = (
    locks.OpenSession | locks.RenewSession | locks.SpreadSession | locks.CloseSession | locks.ExpireSession
)
LockCommand: TypeAlias = (
    locks.AcquireLock
    | locks.AcquireAll
    | locks.ReleaseLock
    | locks.BreakLock
    | locks.ExpireTicket
    | locks.Proclaim
    | locks.RaiseFence
    | locks.NoteRefusal
)
TaskCommand: TypeAlias = (
    tasks.EnqueueTask
    | tasks.ClaimTasks
    | tasks.ExtendTask
    | tasks.CompleteTask
    | tasks.FailTask
    | tasks.RequeueTask
    | tasks.RemoveTask
)
GateCommand: TypeAlias = (
    tasks.PutGate
    | tasks.PassGate
    | tasks.DeleteGate
    | gates.RequestGate
    | gates.ApproveRequest
    | gates.EndRequest
    | gates.ReportCheck
    | gates.LiftHold
    | gates.AdmitRequest
    | gates.CompleteRequest
    | gates.OverrideRequest
    | gates.PutFreeze
    | gates.LiftFreeze
)
TerraformCommand: TypeAlias = (
    terraform.LockState | terraform.UnlockState | terraform.PutState | terraform.DeleteState | terraform.RestoreState
)
Command: TypeAlias = (
    FirstFormat | SessionCommand | LockCommand | TaskCommand | GateCommand | TerraformCommand | tasks.Txn | locks.Wake
)


class Malformed(NamedTuple):
    """Bytes in the log that are no command of this format; applying them is a result like any other."""

    reason: str


_NO_COMMAND = "the bytes are no command of this format"
"""A fixed text: the library's differs between its versions, and replicas must say the same."""

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[int, msgspec.msgpack.Decoder[Command]] = {
    V1: msgspec.msgpack.Decoder(FirstFormat),
    V2: msgspec.msgpack.Decoder(Command),
}
_FIRST_FORMAT = frozenset(get_args(FirstFormat))


def encode(command: Command) -> bytes:
    """Marker and msgpack."""
    first = type(command) in _FIRST_FORMAT and not getattr(command, "guards", ())
    return bytes((V1 if first else V2,)) + _encode(command)


def decode(data: bytes) -> Command | Malformed:
    """The command, or why it is none.

    Corrupt when the marker is of a newer version. The host must then halt the group: this replica can neither
    apply the entry nor skip it.
    """
    if not data:
        return Malformed("an empty command")
    if data[0] > V2:
        raise Corrupt(f"ledger command of format {data[0]}; this version reads up to {V2}")
    decoder = _decoders.get(data[0])
    if decoder is None:
        return Malformed(f"unknown format marker {data[0]}")
    if is_too_deep(data[1:]):
        return Malformed(_NO_COMMAND)
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError):
        # Beside the library's own: text that is not UTF-8, a map as a map's key, and bytes that break off while
        # containers are being opened.
        return Malformed(_NO_COMMAND)
