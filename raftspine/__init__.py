"""raftspine: a distributed memory store for agent fleets.

The names below are the public face of the package. They are looked up on first use (PEP 562), because every
process of a node imports this package, down to the checkpoint writer that needs nothing but a file format: an
eager import would cost each of them the HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raftspine._version import __version__

if TYPE_CHECKING:
    from raftspine.client import AsyncSession, AsyncSpine, BatchResult, Page, Record, Session, Spine
    from raftspine.errors import (
        Compacted,
        Conflict,
        Corrupt,
        Deadlock,
        Fenced,
        Forbidden,
        GateClosed,
        Gone,
        InvalidRequest,
        LeaseLost,
        LockHeld,
        Malformed,
        Misdirected,
        Misuse,
        NoSpace,
        NotFound,
        PreconditionFailed,
        RateLimited,
        Rejected,
        SpineError,
        StaleToken,
        TooLarge,
        Unauthorized,
        Unavailable,
        Unknown,
    )

__all__ = [
    "AsyncSession",
    "AsyncSpine",
    "BatchResult",
    "Compacted",
    "Conflict",
    "Corrupt",
    "Deadlock",
    "Fenced",
    "Forbidden",
    "GateClosed",
    "Gone",
    "InvalidRequest",
    "LeaseLost",
    "LockHeld",
    "Malformed",
    "Misdirected",
    "Misuse",
    "NoSpace",
    "NotFound",
    "Page",
    "PreconditionFailed",
    "RateLimited",
    "Record",
    "Rejected",
    "Session",
    "Spine",
    "SpineError",
    "StaleToken",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unknown",
    "__version__",
]

_CLIENT = frozenset({"AsyncSession", "AsyncSpine", "BatchResult", "Page", "Record", "Session", "Spine"})


def __getattr__(name: str) -> Any:
    if name in _CLIENT:
        return getattr(import_module("raftspine.client"), name)
    if name in __all__:
        return getattr(import_module("raftspine.errors"), name)
    raise AttributeError(f"module 'raftspine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
