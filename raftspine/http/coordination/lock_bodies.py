"""Sessions, locks, elections and fences on the wire."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Ttl = Annotated[float, Meta(ge=2, le=86_400)]
Wait = Annotated[float, Meta(ge=0, le=60)]
Token = Annotated[int, Meta(ge=1, le=1 << 53)]
Id = Annotated[str, Meta(min_length=1, max_length=100)]
Priority = Annotated[int, Meta(ge=-100, le=100)]
DelayMs = Annotated[int, Meta(ge=0, le=86_400_000)]
Permits = Annotated[int, Meta(ge=1, le=1_000_000)]
Reason = Annotated[str, Meta(min_length=1, max_length=1024)]


class OpenBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A session to open. With `session_id`, one's own that is open is renewed instead."""

    ttl_seconds: Ttl = 60
    owner: str = ""
    session_id: Id | None = None
    metadata: dict[str, Any] = {}


class AcquireBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A lock to take. `permits`: how many a semaphore has; `weight`: how many of them this takes. Without
    `session_id` the lease is its own session, with `ttl_seconds`. `ticket`: of an earlier call that had to wait."""

    owner: str = ""
    ttl_seconds: Ttl = 60
    wait_seconds: Wait = 0
    mode: Literal["exclusive", "shared", "semaphore"] = "exclusive"
    permits: Permits | None = None
    weight: Permits = 1
    priority: Priority = 0
    lock_delay_ms: DelayMs = 0
    session_id: Id | None = None
    ticket: Id | None = None
    metadata: Any = None


class AcquireAllBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Locks of one shard group to take together, or not at all."""

    names: Annotated[list[str], Meta(min_length=1, max_length=64)]
    owner: str = ""
    ttl_seconds: Ttl = 60
    wait_seconds: Wait = 0
    lock_delay_ms: DelayMs = 0
    session_id: Id | None = None
    metadata: Any = None


class LeaseBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A lease that was given."""

    lease_id: Id
    fencing_token: Token


class ReleaseBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A lease to give back: one hold of it, or with `all` every hold. A ticket is given up with the token 0."""

    lease_id: Id
    fencing_token: Annotated[int, Meta(ge=0, le=1 << 53)]
    all: bool = False


class CheckBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A token to check."""

    fencing_token: Token


class BreakBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Why a lock is taken from its holders; `fencing_token`: from this one only."""

    reason: Reason
    fencing_token: Token | None = None
    agent_id: str = ""


class FenceBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A token that is about to be used on the resource."""

    token: Token


class CampaignBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A candidacy. `value`: what is proclaimed once elected."""

    owner: str = ""
    value: Any = None
    ttl_seconds: Ttl = 60
    wait_seconds: Wait = 0
    priority: Priority = 0
    session_id: Id | None = None
    ticket: Id | None = None


class ProclaimBody(Struct, forbid_unknown_fields=True, frozen=True):
    """What the leader says."""

    lease_id: Id
    fencing_token: Token
    value: Any = None


class PrefixQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`cursor`: a page's `next_cursor`."""

    prefix: str = ""
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ObserveQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """With `wait_seconds` and the `revision` of the last answer: answered once there is another."""

    revision: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None
    wait_seconds: Wait = 0


# ── replies ────────────────────────────────────────────────────────────────────────────────────────────


class Lease(Struct, frozen=True):
    """A lease. `fencing_token` rises with every grant; `hold` counts how often its session has it."""

    lease_id: str
    fencing_token: int
    hold: int
    mode: str
    session_id: str | None
    ttl_ms: int
    ttl_remaining_ms: int
    expires_at: str
    renew_after_ms: int


class Leases(Struct, frozen=True):
    """One lease on several locks: a token for each."""

    lease_id: str
    fencing_tokens: dict[str, int]
    hold: int
    session_id: str | None
    ttl_ms: int
    ttl_remaining_ms: int
    expires_at: str
    renew_after_ms: int


class Life(Struct, frozen=True):
    """A session that was heard of."""

    session_id: str
    ttl_ms: int
    ttl_remaining_ms: int
    expires_at: str
    renew_after_ms: int


class Released(Struct, frozen=True):
    name: str
    lease_id: str
    released: bool
    hold: int


class Checked(Struct, frozen=True):
    """Whether a token is current; what is left of it is a lower bound."""

    valid: bool
    remaining_ms: int


class Fenced(Struct, frozen=True):
    resource: str
    highest: int
