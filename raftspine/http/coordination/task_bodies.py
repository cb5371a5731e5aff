"""Tasks and transactions on the wire."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from raftspine.http.bodies import Guard, Importance
from raftspine.http.coordination.lock_bodies import Id, Priority, Token, Wait

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Lease = Annotated[float, Meta(ge=2, le=86_400)]
State = Literal["ready", "delayed", "claimed", "done", "dead"]


class PutOp(Struct, tag_field="op", tag="put", forbid_unknown_fields=True, frozen=True):
    """Store a memory on the strong path."""

    id: str
    content: Any
    agent_id: str = ""
    namespace: str = ""
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: Importance = "medium"
    metadata: dict[str, Any] = {}
    ttl_seconds: int | None = None
    pinned: bool = False
    expected_version: str | None = None
    absent: bool = False


class PatchOp(Struct, tag_field="op", tag="patch", forbid_unknown_fields=True, frozen=True):
    """Change fields of a memory that exists."""

    id: str
    content: Any = UNSET
    namespace: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    importance: Importance | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    ttl_seconds: int | UnsetType | None = UNSET
    pinned: bool | UnsetType = UNSET
    expected_version: str | None = None


class DeleteOp(Struct, tag_field="op", tag="delete", forbid_unknown_fields=True, frozen=True):
    """Delete a memory."""

    id: str
    expected_version: str | None = None


class GetOp(Struct, tag_field="op", tag="get", forbid_unknown_fields=True, frozen=True):
    """Read a memory in the same step."""

    id: str


Op = PutOp | PatchOp | DeleteOp | GetOp


class Comparison(Struct, forbid_unknown_fields=True, frozen=True):
    """One condition. Of a memory (`id`): its `version`, or whether it `exists`. Of a `lock`: the `token` that must be
    current; without one, that nobody holds it."""

    id: str | None = None
    version: str | None = None
    exists: bool | None = None
    lock: str | None = None
    token: Token | None = None


class TxnBody(Struct, forbid_unknown_fields=True, frozen=True):
    """`then` when every comparison holds, else `else`: one branch, whole, in one step."""

    compare: Annotated[list[Comparison], Meta(max_length=64)] = []
    then: Annotated[list[Op], Meta(max_length=64)] = []
    otherwise: Annotated[list[Op], Meta(max_length=64)] = field(name="else", default=[])
    guard: Annotated[list[Guard], Meta(max_length=64)] = []


class TxnResult(Struct, frozen=True):
    """Which branch was taken, and one result for each of its operations."""

    succeeded: bool
    results: list[dict[str, Any]]


class EnqueueBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A task. `not_before`: RFC 3339 or milliseconds since 1970. `max_attempts` 0: no limit. `backoff_ms`: pause
    after a failed attempt, doubled with each. `then`: memories written in the moment of completion."""

    payload: Any = None
    id: Id | None = None
    priority: Priority = 0
    not_before: str | int | None = None
    max_attempts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    backoff_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 0
    dedupe_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    then: Annotated[list[PutOp], Meta(max_length=64)] = []


class ClaimBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Up to `n` tasks to work on; with `wait_seconds`, once there are some."""

    owner: str = ""
    n: Annotated[int, Meta(ge=1, le=64)] = 1
    lease_seconds: Lease = 60
    wait_seconds: Wait = 0
    session_id: Id | None = None


class ExtendBody(Struct, forbid_unknown_fields=True, frozen=True):
    """More time; `lease_seconds`: of another length from now on."""

    claim_token: Token
    lease_seconds: Lease | None = None


class CompleteBody(Struct, forbid_unknown_fields=True, frozen=True):
    """What came of it; `then` adds to the memories that the task itself says are written."""

    claim_token: Token
    result: Any = None
    then: Annotated[list[PutOp], Meta(max_length=64)] = []


class FailBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Why it failed. `retry` false: to the dead letters. `delay_seconds`: pause before the next attempt."""

    claim_token: Token
    error: Annotated[str, Meta(max_length=1024)] = ""
    retry: bool = True
    delay_seconds: Seconds | None = None


class TasksQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`cursor`: a page's `next_cursor`."""

    state: State | None = None
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Claimed(Struct, frozen=True):
    """Tasks, each with its `claim_token`."""

    tasks: list[dict[str, Any]]
