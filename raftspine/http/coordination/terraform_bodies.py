"""Terraform's shapes on the wire, and ours around them.

The rule: what Terraform sends may grow by fields we do not know; of a lock's info those are dropped, of a state every
byte is kept.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

Id = Annotated[str, Meta(min_length=1, max_length=255)]
Line = Annotated[str, Meta(max_length=255)]


class LockInfo(Struct, frozen=True):
    """Terraform's account of a lock (statemgr.LockInfo)."""

    id: Id = field(name="ID")
    operation: Line = field(name="Operation", default="")
    info: Annotated[str, Meta(max_length=1024)] = field(name="Info", default="")
    who: Line = field(name="Who", default="")
    version: Line = field(name="Version", default="")
    created: Line = field(name="Created", default="")
    path: Line = field(name="Path", default="")


class About(Struct, frozen=True):
    """What is read of a state, for the list of its versions."""

    serial: int = 0
    lineage: Line = ""
    terraform_version: Line = ""


class LockQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`ID`: of the lock under which this is done."""

    id: Id | None = field(name="ID", default=None)


class AfterQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: the number of the last entry that is known."""

    after: Annotated[int, Meta(ge=0, le=1 << 53)] = 0


class LockTaken(Struct, frozen=True):
    """`fencing_token`: above that of every lock before it."""

    lock: LockInfo
    fencing_token: int
    ttl_ms: int
    ttl_remaining_ms: int
    expires_at: str


class Unlocked(Struct, frozen=True):
    """`forced`: the lock was taken from its holder."""

    forced: bool
    lock: LockInfo


class Written(Struct, frozen=True):
    """`number`: of the version; `created`: there was no state before."""

    number: int
    created: bool


class Deleted(Struct, frozen=True):
    """`deleted`: there was a state."""

    deleted: bool


class StateVersion(Struct, frozen=True):
    """One version of a state, without its content."""

    version: int
    current: bool
    size: int
    content_sha256: str
    written_at: str
    written_by: str
    lock_id: str
    serial: int | None
    lineage: str | None
    terraform_version: str | None


class StateVersions(Struct, frozen=True):
    """Newest first."""

    versions: list[StateVersion]


class AuditChain(Struct, frozen=True):
    """Entries in order, each with the hash of the one before it."""

    entries: list[dict[str, Any]]
