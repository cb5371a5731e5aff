"""What became of a request whose answer never came, and how to make an unknown outcome definite.

A client that was told "unknown" holds an Idempotency-Key and nothing else: it may not even know the id, when
the server chose it. So the key must be found wherever its request may have gone: in the log of any shard
group, or on the ring. The rule for answering: *done* needs one place that remembers it; *void* needs every
place to say so; anything else is *unknown*, and a place that cannot be asked makes the whole answer
Unavailable. Saying "it did not happen" because one group was not asked is how a payment is made twice.

Voiding writes into every place that the request will never apply there. In a log this is final: the request's
digest is decided once, whichever entry comes first. On the ring it is as strong as the ring is: a void row is
written to W replicas of each group and a coordinator that meets it refuses the write; a coordinator that read
its replicas before the void reached them may still be writing, and then the status says *done* later.
Requests that must be settled for certain belong on the strong path.
"""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from msgspec import msgpack

from raftspine.core.ledger import commands
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import RequestRow, decode_request, encode_request
from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId, Path
from raftspine.ports import Engine, Rpc
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology
from raftspine.services.values import RequestStatus
from raftspine.storage import memories

FIND = "requests.find"
DIGEST_BYTES = 16

DONE, VOID, UNKNOWN = "done", "void", "unknown"

HTTP_STATUS = {
    Status.CREATED: 201,
    Status.CHANGED: 200,
    Status.EQUAL: 200,
    Status.DEMOTED: 200,
    Status.DELETED: 204,
    Status.VERSION_CONFLICT: 409,
    Status.INVALID: 422,
}
"""What the request was answered with. `absent` is missing on purpose: 204 for a delete, 404 for a patch."""

_canonical = msgpack.Encoder(order="deterministic").encode


def digest_of(key: str, tenant: str = "") -> bytes:
    """The 16 bytes by which a request is remembered. `tenant` keeps two tenants' equal keys apart."""
    return blake2b(f"{len(tenant)}:{tenant}{key}".encode(), digest_size=DIGEST_BYTES).digest()


def fingerprint_of(op: str, id: str, *body: Any) -> bytes:
    """16 bytes that tell a retry from another request under the same key. The same for equal bodies, whatever
    the order of keys in their maps."""
    return blake2b(_canonical((op, id, body)), digest_size=DIGEST_BYTES).digest()


class Trace(NamedTuple):
    """What one place remembers of a request; `state` is done or void."""

    state: str
    path: Path
    id: str | None = None
    version: str | None = None
    status: int | None = None


class RingRequests(Protocol):
    """The ring's part, for all groups; each may raise Unavailable."""

    async def find(self, digest: bytes) -> Trace | None:
        """What N-W+1 replicas of each group remember: *done* where one does, *void* where all groups do."""
        ...

    async def void(self, digest: bytes) -> Trace | None:
        """Write a void row to W replicas of each group. The trace of a write that was done before, else None."""
        ...


class Requests:
    """Answers for Idempotency-Keys, on any node."""

    def __init__(
        self,
        strong: StrongPath,
        topology: Topology,
        rpc: Rpc,
        engine: Engine,
        *,
        ring: RingRequests | None = None,
    ) -> None:
        self._strong = strong
        self._topology = topology
        self._rpc = rpc
        self._engine = engine
        self._ring = ring
        rpc.serve(FIND, self._serve_find)

    async def status(self, key: str, *, tenant: str = "", deadline_ms: int | None = None) -> RequestStatus:
        """What became of the request with this key. Unavailable when no place remembers it and one could not
        be asked."""
        digest = digest_of(key, tenant)
        deadline_ms = self._strong.timeout_ms if deadline_ms is None else deadline_ms
        groups = self._topology.group_ids()
        found = await asyncio.gather(
            *(self._find(group, digest, deadline_ms) for group in groups),
            *([] if self._ring is None else [self._ring.find(digest)]),
            return_exceptions=True,
        )
        return _summed_up(key, found)

    async def void(self, key: str, *, tenant: str = "", deadline_ms: int | None = None) -> RequestStatus:
        """Settle that the request will never apply, unless it has already; says which. Unavailable or Unknown
        when a place could not be told: voiding again is safe."""
        digest = digest_of(key, tenant)
        command = commands.encode(commands.VoidRequest(digest))
        told = await asyncio.gather(
            *(self._void(group, command, deadline_ms) for group in self._topology.group_ids()),
            *([] if self._ring is None else [self._void_ring(self._ring, digest)]),
            return_exceptions=True,
        )
        return _summed_up(key, told)

    # ── one group's log ─────────────────────────────────────────────────────────────────────────────────────

    async def _find(self, group: GroupId, digest: bytes, deadline_ms: int) -> Trace | None:
        if self._topology.serves(group):
            return _trace(await self._look(group, digest, deadline_ms))
        problem: SpineError = Unavailable(
            f"no replica of shard group {group} can be reached", code="no_quorum", retry_after_ms=500
        )
        for peer in self._topology.replicas(group):
            try:
                data = await self._rpc.call(peer, FIND, (group, digest, deadline_ms), timeout_ms=deadline_ms)
            except Unavailable as error:
                problem = error
            except Unknown as error:
                problem = Unavailable(error.message, code="no_quorum", details=error.details)
            else:
                return None if data is None else _trace(decode_request(data))
        raise problem

    async def _look(self, group: GroupId, digest: bytes, deadline_ms: int) -> RequestRow | None:
        """This replica's row, linearizable; None when there is none or a day has passed."""
        await self._strong.barrier(group, deadline_ms)
        data = memories.strong_request(self._engine, group, digest)
        if data is None:
            return None
        row = decode_request(data)
        _, leader_time_ms = memories.applied(self._engine, group)
        return None if row.expires_at_ms <= (leader_time_ms or 0) else row

    async def _serve_find(self, peer: NodeId, body: Any) -> bytes | None:
        group, digest, deadline_ms = body
        if not self._topology.serves(group):
            raise Unavailable(f"shard group {group} is not kept here", code="not_ready")
        row = await self._look(group, digest, deadline_ms)
        return None if row is None else encode_request(row)

    async def _void(self, group: GroupId, command: bytes, deadline_ms: int | None) -> Trace:
        # Voiding twice is voiding once, so the strong path may retry it freely.
        outcome, _ = await self._strong.execute(group, command, deadline_ms, replayable=True)
        return _trace_of(outcome)

    async def _void_ring(self, ring: RingRequests, digest: bytes) -> Trace:
        return await ring.void(digest) or Trace(VOID, Path.RING)


def _trace(row: RequestRow | None) -> Trace | None:
    if row is None:
        return None
    return Trace(VOID, Path.STRONG) if row.outcome is None else _trace_of(row.outcome)


def _trace_of(outcome: Outcome) -> Trace:
    if outcome.status is Status.VOIDED:
        return Trace(VOID, Path.STRONG)
    return Trace(DONE, Path.STRONG, outcome.id, outcome.version, HTTP_STATUS.get(outcome.status))


def _summed_up(key: str, found: "Sequence[Trace | BaseException | None]") -> RequestStatus:
    """One answer from all places: done by any, failure of any, void by all, else unknown."""
    for trace in found:
        if isinstance(trace, Trace) and trace.state == DONE:
            return RequestStatus(key, DONE, trace.path, trace.id, trace.version, trace.status)
    for problem in found:
        if isinstance(problem, BaseException):
            raise problem
    state = VOID if found and all(trace is not None for trace in found) else UNKNOWN
    return RequestStatus(key, state)
