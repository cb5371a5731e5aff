"""The settings there are, section by section, and what each may be on its own.

The rule: a setting is one line in a table here and one field in schema.py or presets.py; nothing else in the
program knows how it is spelled. The same table names the environment variables, so a setting cannot exist in
one and not in the other. Relations between settings are in checks.py.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raftspine.config.presets import PRESETS, Timing
from raftspine.config.reader import Parse, Scalar, Wrong
from raftspine.core.limits import Limits
from raftspine.core.partition import STRATEGIES
from raftspine.model import MAX_GROUPS, Model, Role

T = TypeVar("T")

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+) ?(|KiB|MiB|GiB|TiB)")
_WHOLE = re.compile(r"[+-]?\d+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNSPECIFIED = ("0.0.0.0", "::")
_TEN_MINUTES_MS = 600_000


def text(scalar: Scalar) -> str:
    """1 to 255 printable characters."""
    if scalar.kind not in ("str", "env"):
        raise Wrong(f"{scalar.text!r} reads as {scalar.kind} in YAML", f'put it in quotes: "{scalar.text}"')
    if not 1 <= len(scalar.text) <= 255 or not scalar.text.isprintable():
        raise Wrong("must be 1 to 255 printable characters")
    return scalar.text


def node_id(scalar: Scalar) -> str:
    # No `~`: it separates the node from its boot in the origin of a ring write.
    value = text(scalar)
    if not _ID.fullmatch(value):
        raise Wrong(f"{value!r} is not a node id", "use letters, digits, dot, dash, underscore; at most 64")
    return value


def host(scalar: Scalar) -> str:
    value = text(scalar)
    if value in _UNSPECIFIED:
        raise Wrong(f"{value} is no address another node can reach", "give the address of this machine")
    if not _HOST.fullmatch(value):
        raise Wrong(f"{value!r} is not a host name or address", "give it without port or scheme")
    return value


def path(scalar: Scalar) -> Path:
    return Path(text(scalar)).expanduser()


def whole(lowest: int, highest: int, what: str = "a whole number") -> Parse[int]:
    """A whole number within bounds, both allowed."""

    def parse(scalar: Scalar) -> int:
        if scalar.kind not in ("int", "env") or not _WHOLE.fullmatch(scalar.text) or len(scalar.text) > 19:
            raise Wrong(f"{scalar.text!r} is not {what}", f"use {lowest} to {highest}")
        value = int(scalar.text)
        if not lowest <= value <= highest:
            raise Wrong(f"{value} is out of range for {what}", f"use {lowest} to {highest}")
        return value

    return parse


port = whole(1, 65535, "a port")


def positive(scalar: Scalar) -> float:
    """A number above zero and at most 1000."""
    try:
        value = float(scalar.text) if scalar.kind in ("int", "float", "env") else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise Wrong(f"{scalar.text!r} is not a positive number", "use 1 for a node like the others")
    return value


def size(lowest: int, highest: int) -> Parse[int]:
    """Bytes, as a plain number or with a unit: 512MiB."""

    def parse(scalar: Scalar) -> int:
        match = _SIZE.fullmatch(scalar.text)
        if match is None or len(scalar.text) > 24:
            raise Wrong(f"{scalar.text!r} is not a size", "use bytes, or KiB, MiB, GiB, TiB as in 64GiB")
        value = int(match[1]) * _UNITS[match[2]]
        if not lowest <= value <= highest:
            raise Wrong(f"{scalar.text} is out of range", f"use {lowest} to {highest} bytes")
        return value

    return parse


def choice(*allowed: str) -> Parse[str]:
    def parse(scalar: Scalar) -> str:
        if scalar.text not in allowed:
            raise Wrong(f"{scalar.text[:40]!r} is unknown", f"use one of {', '.join(allowed)}")
        return scalar.text

    return parse


def member_of(kind: Callable[[str], T], allowed: tuple[str, ...]) -> Parse[T]:
    """A word that names a member of an enumeration."""
    word = choice(*allowed)
    return lambda scalar: kind(word(scalar))


model = member_of(Model, tuple(Model))
role = member_of(Role, tuple(Role))

_LIMIT_CEILINGS = {
    "content_bytes": 4 << 20,  # a memory travels in one frame of the main lane (8 MiB), with room around it
    "body_bytes": 16 << 20,
    "batch_body_bytes": 64 << 20,
    "id_bytes": 255,  # the key layout
    "agent_bytes": 255,
    "namespace_bytes": 255,
    "metadata_bytes": 1 << 20,
    "tags": 256,
    "tag_chars": 255,
    "batch_ops": 10_000,
    "list_limit": 10_000,
    "token_chars": 8000,  # aiohttp's default bound for one header
}

_factor = whole(1, 7, "a number of copies")

SETTINGS: dict[str, dict[str, Parse[Any]]] = {
    "cluster": {"name": text, "region": text, "secret_file": path},
    "replication": {"factor": _factor, "write_quorum": _factor, "read_quorum": _factor},
    "consistency": {"default": model},
    "partitioning": {
        "strategy": choice(*STRATEGIES),
        "shard_groups": whole(1, MAX_GROUPS, "a number of shard groups"),
    },
    "storage": {
        "data_dir": path,
        "durability": choice("always", "interval"),
        "map_size_bytes": size(1 << 20, 1 << 46),
        "snapshot_bytes_per_second": size(64 << 10, 1 << 40),
    },
    "timing": {"preset": choice(*PRESETS)}
    | {name: whole(1, _TEN_MINUTES_MS, "a time in ms") for name in Timing.__struct_fields__},
    "limits": {name: whole(1, _LIMIT_CEILINGS.get(name, (1 << 53)), "a limit") for name in Limits.__struct_fields__},
    "security": {"api_keys_file": path, "tls_cert": path, "tls_key": path, "tls_ca": path},
}

NODE_KEYS = ("id", "host", "port", "peer_port", "role", "zone", "weight")
OVERRIDE_KEYS = ("tags", "model")
NESTED_OR_TOP = ("replication", "consistency")
CLUSTER_KEYS = (*SETTINGS["cluster"], "nodes", *NESTED_OR_TOP)
NOT_YET = ("retention", "regions", "mcp")
TOP_KEYS = (*SETTINGS, *NOT_YET)
