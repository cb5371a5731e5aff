"""The shapes on the wire, once: what is decoded, what is encoded and what /openapi.json says are these
classes.

The rule: a request body refuses fields it does not know. A misspelt `expected_version` that was silently
dropped would turn a compare-and-set into an overwrite.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from raftspine.http.problems import ErrorBody

MAX_PAGE = 1000

Importance = Literal["low", "medium", "high", "critical"] | Annotated[float, Meta(ge=0, le=1)]


class Guard(Struct, forbid_unknown_fields=True, frozen=True):
    """A lock (or election) of the same shard group, and the token that must be current for the write to happen."""

    lock: Annotated[str, Meta(min_length=1, max_length=255)]
    token: Annotated[int, Meta(ge=1, le=1 << 53)]
    space: Literal["lock", "election"] = "lock"


Guards = Annotated[tuple[Guard, ...], Meta(max_length=16)]


class StoreBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A memory to store. Tags left out keep the stored tags; every other field left out takes its default.
    `id` may repeat the one in the path; on POST it may be left out, and the node makes a UUIDv7."""

    content: Any
    id: str | UnsetType = UNSET
    agent_id: str = ""
    namespace: str = ""
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: Importance = "medium"
    metadata: dict[str, Any] = {}
    ttl_seconds: int | None = None
    pinned: bool = False
    expected_version: str | None = None
    guard: Guards = ()


class PatchBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Fields to change; what is left out stays."""

    content: Any = UNSET
    namespace: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: Importance | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    ttl_seconds: int | UnsetType | None = UNSET
    pinned: bool | UnsetType = UNSET
    expected_version: str | None = None
    guard: Guards = ()


class PutLine(StoreBody, tag_field="op", tag="put", forbid_unknown_fields=True, frozen=True):
    """Store, as PUT /v1/memories/{id} does."""


class GetLine(Struct, tag_field="op", tag="get", forbid_unknown_fields=True, frozen=True):
    """Read, as GET /v1/memories/{id} does."""

    id: str


class DeleteLine(Struct, tag_field="op", tag="delete", forbid_unknown_fields=True, frozen=True):
    """Delete, as DELETE /v1/memories/{id} does."""

    id: str
    expected_version: str | None = None


BatchLine = PutLine | GetLine | DeleteLine


class BatchBody(Struct, forbid_unknown_fields=True, frozen=True):
    """As received: each line stays undecoded, so that a bad one fails alone."""

    ops: list[Raw]


class BatchShape(Struct, forbid_unknown_fields=True, frozen=True):
    """As documented: what BatchBody holds once its lines are decoded."""

    ops: list[BatchLine]


class Record(Struct, frozen=True):
    """A stored memory. Times are RFC 3339, UTC. `consistency` is the model that keeps it."""

    id: str
    namespace: str
    agent_id: str
    content: Any
    tags: tuple[str, ...]
    importance: str | float
    metadata: dict[str, Any]
    ttl_seconds: int | None
    expires_at: str | None
    pinned: bool
    version: str
    content_sha256: str
    consistency: str
    created_at: str
    updated_at: str
    updated_by: str
    last_accessed_at: str | None
    access_count: int
    merged_from: tuple[str, ...]
    precondition: Literal["advisory"] | UnsetType = UNSET


class RecordPage(Struct, frozen=True):
    """`next_cursor` null: this was the last page."""

    items: list[Record]
    next_cursor: str | None


class RecordList(Struct, frozen=True):
    """Newest version first."""

    items: list[Record]


class LostWrite(Struct, frozen=True):
    """A write that lost against a concurrent one. `deleted`: the losing write was a delete, so it has no fields."""

    id: str
    version: str
    winner: str
    lost_at: str
    deleted: bool
    content: Any = None
    agent_id: str = ""
    namespace: str = ""
    tags: tuple[str, ...] = ()
    importance: str | float = "medium"
    metadata: dict[str, Any] = {}
    updated_at: str | None = None
    updated_by: str = ""


class LostWrites(Struct, frozen=True):
    """Losers of concurrent writes to one id."""

    items: list[LostWrite]


class BatchResult(Struct, frozen=True, omit_defaults=True):
    """One line's outcome: its status and either the record or the error. A delete has neither."""

    status: int
    record: Record | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class BatchResults(Struct, frozen=True):
    """One result per operation, in the order of the request."""

    results: list[BatchResult]


class Health(Struct, frozen=True):
    status: Literal["ok"]
    node: str
    version: str


class Ready(Struct, frozen=True):
    ready: bool
    node: str


# ── query strings ──────────────────────────────────────────────────────────────────────────────────────


class NoQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """The route takes no parameters."""


class ModelQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`consistency`: the model asked for; goes before the header X-Spine-Consistency."""

    consistency: str | None = None


class DeleteQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`expected_version`: delete only this version."""

    consistency: str | None = None
    expected_version: str | None = None


class ListParams(Struct, forbid_unknown_fields=True, frozen=True):
    """Filters are conjunctive. `updated_since`: RFC 3339 or milliseconds since 1970. `cursor`: a page's
    `next_cursor`."""

    tag: str | None = None
    namespace: str | None = None
    agent_id: str | None = None
    prefix: str | None = None
    updated_since: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    cursor: str | None = None
    consistency: str | None = None


class RouteQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`tags`: separated by commas."""

    tags: str = ""
    id: str | None = None
    agent_id: str | None = None
