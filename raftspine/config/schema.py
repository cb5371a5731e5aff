"""What a cluster file says, once it has been read: one frozen value that the whole node shares.

The rule: a `Config` is complete and consistent, or it does not exist. Whoever holds one need not check or
default anything again. Without it each user of a setting grows an opinion of its own about its absence.

The fields are the words of the cluster file. What each may be is in keys.py, how they relate in checks.py.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from raftspine.config.presets import Timing
from raftspine.core.limits import Limits
from raftspine.core.routing import Override
from raftspine.errors import Misuse
from raftspine.model import Member, Model, NodeId, Role

DEFAULT_DATA_DIR = Path("/var/lib/raftspine")
DEFAULT_PORT = 8788
PEER_PORT_OFFSET = 10
DEFAULT_SHARD_GROUPS = 16

DEFAULT_OVERRIDES = (
    Override(frozenset(("critical", "lock")), Model.STRONG),
    Override(frozenset(("analytics", "metric")), Model.EVENTUAL),
)


class Replication(Struct, frozen=True):
    """How many copies a memory has, and how many must have answered."""

    factor: int
    write_quorum: int
    read_quorum: int = 1


class Consistency(Struct, frozen=True):
    """Which model tags ask for; `default` where none matches."""

    default: Model = Model.READ_YOUR_WRITES
    overrides: tuple[Override, ...] = DEFAULT_OVERRIDES


class Partitioning(Struct, frozen=True):
    """What is hashed (`id`, `agent` or `tag`) and into how many shard groups. Fixed at cluster creation."""

    strategy: str = "id"
    shard_groups: int = DEFAULT_SHARD_GROUPS


class Storage(Struct, frozen=True):
    """`durability` of the ring: `always` (acknowledge after the sync) or `interval`. `map_size_bytes` is the
    most the tree may grow to; the file is sparse. `snapshot_bytes_per_second` is the most a node sends of Raft
    snapshots, all peers and groups together, so that those who wait for answers do not notice."""

    data_dir: Path = DEFAULT_DATA_DIR
    durability: str = "always"
    map_size_bytes: int = 64 << 30
    snapshot_bytes_per_second: int = 16 << 20


class Security(Struct, frozen=True):
    """Files; all of `tls_…` or none."""

    api_keys_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None


class Fault(NamedTuple):
    """One thing that is wrong. `path` is the YAML path, `where` the line or the environment variable."""

    path: str
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.path} ({self.where})" if self.where else self.path
        return f"{place}: {self.message}; {self.remedy}" if self.remedy else f"{place}: {self.message}"


class ConfigFaults(Misuse):
    """All that is wrong with a configuration, at once; the message has one line per fault."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(
            f"{source}: {count}\n{lines}",
            code="bad_config",
            details={"source": source, "faults": [fault._asdict() for fault in faults]},
        )


@dataclass(frozen=True, slots=True)
class Config:
    """One cluster, as every node of it is told.

    `secret` never shows in a repr. `warnings` are questionable choices, `notes` explain unsuspicious ones
    that raise questions; both are sentences for people. `dev` says that unsafe settings were let through on
    purpose.
    """

    name: str
    members: tuple[Member, ...]
    replication: Replication
    region: str = "default"
    secret: bytes | None = field(default=None, repr=False)
    consistency: Consistency = field(default_factory=Consistency)
    partitioning: Partitioning = field(default_factory=Partitioning)
    storage: Storage = field(default_factory=Storage)
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    security: Security = field(default_factory=Security)
    dev: bool = False
    source: str = "configuration"
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def member(self, node: str) -> Member:
        """The member of this id. Misuse when there is none."""
        for member in self.members:
            if member.id == node:
                return member
        ids = [member.id for member in self.members]
        close = difflib.get_close_matches(node, ids, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the cluster file names {', '.join(ids)}"
        raise Misuse(f"{self.source}: no node {node!r}; {hint}")

    def data_members(self) -> tuple[Member, ...]:
        """Those that hold shard groups."""
        return tuple(member for member in self.members if member.role is not Role.GATEWAY)

    def data_dir(self, node: NodeId) -> Path:
        """This node's own folder: several nodes of one machine share `storage.data_dir`."""
        return self.storage.data_dir / node
