"""The commands on Terraform states, as they stand in a shard group's log.

Every command ends in the fields `request`, `fingerprint` and `agent` (as in PutMemory). Order of fields is format:
append only, with defaults.
"""

from typing import Any

from msgspec import Struct

from raftspine.model import Memory


class LockState(Struct, frozen=True, array_like=True, tag="terraform-lock"):
    """Take a state's lock for the `ID` in `info`, which is Terraform's own account of the lock. ttl_ms: how long
    the lease outlives the last word of its holder."""

    name: str
    info: dict[str, Any]
    ttl_ms: int
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class UnlockState(Struct, frozen=True, array_like=True, tag="terraform-unlock"):
    """Give a state's lock back (`info` is what it was taken with), or take it from its holder (any other `info`;
    empty: whoever that is). may_break: the asker has a role for the latter."""

    name: str
    info: dict[str, Any] = {}
    may_break: bool = False
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class PutState(Struct, frozen=True, array_like=True, tag="terraform-put"):
    """Write a state. lock_id: of the lock that must be current; empty: nobody may hold it."""

    name: str
    memory: Memory
    lock_id: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class DeleteState(Struct, frozen=True, array_like=True, tag="terraform-delete"):
    """Delete a state; its history stays."""

    name: str
    lock_id: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class RestoreState(Struct, frozen=True, array_like=True, tag="terraform-restore"):
    """Write what an earlier version said, as a new one."""

    name: str
    number: int
    lock_id: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""
