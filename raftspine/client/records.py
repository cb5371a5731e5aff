"""What a caller gets back: frozen values with the names of the API, and nothing that can reach the network.

Unknown fields are ignored, because a client outlives the servers it was written for; missing ones take their
defaults. Without that rule every new field of the API would break every older client.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from raftspine.client import problems
from raftspine.errors import SpineError

T = TypeVar("T")


class Record(Struct, frozen=True, kw_only=True):
    """A memory as the API shows it. Times are RFC 3339 text, UTC. `consistency` is the model that keeps it."""

    id: str
    content: Any = None
    namespace: str = ""
    agent_id: str = ""
    tags: tuple[str, ...] = ()
    importance: str | float = "medium"
    metadata: dict[str, Any] = {}
    ttl_seconds: int | None = None
    expires_at: str | None = None
    pinned: bool = False
    version: str = ""
    content_sha256: str = ""
    consistency: str = ""
    created_at: str | None = None
    updated_at: str | None = None
    updated_by: str = ""
    last_accessed_at: str | None = None
    access_count: int | None = None
    merged_from: tuple[str, ...] = ()
    precondition: str | None = None
    """``advisory`` when a condition on a ring memory was checked, but not as a compare-and-set."""

    @property
    def etag(self) -> str:
        """The version as `If-Match` wants it."""
        return f'"{self.version}"'


class Page(Struct, frozen=True):
    """One page of a listing; `next_cursor` leads to the following one and is None at the end."""

    items: tuple[Record, ...] = ()
    next_cursor: str | None = None

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)


class BatchResult(Struct, frozen=True):
    """What became of one operation of a batch. Exactly one of `record` and `error` is set, or neither after a
    delete."""

    id: str
    status: int
    record: Record | None = None
    error: SpineError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


class _Items(Struct, frozen=True):
    items: tuple[dict[str, Any], ...] = ()


def record(body: bytes) -> Record:
    return _decode(body, Record)


def page(body: bytes) -> Page:
    return _decode(body, Page)


def items(body: bytes) -> tuple[dict[str, Any], ...]:
    """The entries of a document that is a list with a name."""
    return _decode(body, _Items).items


def plain(body: bytes) -> dict[str, Any]:
    return _decode(body, dict[str, Any])


def batch(body: bytes, ids: tuple[str, ...]) -> tuple[BatchResult, ...]:
    """Results in the order of the operations. Raises SpineError when the server sent another number of them."""
    results = plain(body).get("results")
    if not isinstance(results, list) or len(results) != len(ids):
        raise SpineError(f"the server sent no result for each of the {len(ids)} operations of the batch")
    return tuple(_batch_result(id, item) for id, item in zip(ids, results, strict=True))


def _batch_result(id: str, item: dict[str, Any]) -> BatchResult:
    status = int(item["status"])
    if status >= 400:
        return BatchResult(id, status, error=problems.from_envelope(status, item["error"]))
    fields = item.get("record")
    kept = msgspec.convert(fields, Record) if fields else None
    return BatchResult(id if kept is None else kept.id, status, record=kept)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise SpineError(f"the server's answer is not what the API promises: {error}") from error
