"""The memory services and the cluster view in one dictionary: for tests, and to measure this layer alone.

It keeps what a client of the API can observe (versions, preconditions, tags kept when left out, replay by
Idempotency-Key, session token, not found confirmed) and nothing else: one node, no durability, no expiry.
"""

from hashlib import sha256
from typing import Any

import msgspec
from msgspec import UNSET

from raftspine.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, SpineError
from raftspine.http.memories import History, Losers, Ops, Outcomes
from raftspine.model import GroupId, Memory, Model, NodeId, Path, Table
from raftspine.services.values import (
    Answer,
    Ask,
    BatchOp,
    Draft,
    Expect,
    Explained,
    ListQuery,
    Loser,
    Page,
    Patch,
    RequestStatus,
    Stored,
)

FIRST_MS = 1_700_000_000_000
_encode = msgspec.json.Encoder(order="sorted").encode


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def wall_ms(self) -> int:
        return FIRST_MS + int((self.now - 1000.0) * 1000)

    def monotonic(self) -> float:
        return self.now


class FakeEntropy:
    """Counts instead of drawing."""

    def __init__(self) -> None:
        self._drawn = 0

    def random(self) -> float:
        return 0.5

    def token_bytes(self, n: int) -> bytes:
        self._drawn += 1
        return self._drawn.to_bytes(n, "big")


class FakeMemories:
    """Memories in a dictionary. `failing` is raised by the next operation; `asks` are those seen so far."""

    def __init__(self) -> None:
        self.kept: dict[str, Stored] = {}
        self.past: dict[str, list[Stored]] = {}
        self.lost: dict[str, list[Loser]] = {}
        self.asks: list[Ask] = []
        self.failing: Exception | None = None
        self._count = 0
        self._replies: dict[str, tuple[bytes, Answer]] = {}

    def _begin(self, ask: Ask) -> None:
        self.asks.append(ask)
        if self.failing is not None:
            error, self.failing = self.failing, None
            raise error

    async def put(self, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        self._begin(ask)
        asked = _encode([id, draft])
        if ask.idempotency_key is not None and ask.idempotency_key in self._replies:
            before, answer = self._replies[ask.idempotency_key]
            if before != asked:
                raise InvalidRequest("this key was used for another request", field="Idempotency-Key")
            return answer
        old = self.kept.get(id)
        _check(expect, old)
        tags = (old.memory.tags if old else ()) if draft.tags is UNSET else draft.tags
        memory = Memory(
            draft.content,
            draft.agent_id,
            draft.namespace,
            tags,
            draft.importance,
            draft.metadata,
            draft.ttl_seconds,
            None if draft.ttl_seconds is None else FIRST_MS + draft.ttl_seconds * 1000,
            draft.pinned,
            _digest(draft.content),
            old.memory.created_at_ms if old else FIRST_MS,
            FIRST_MS,
            ask.agent_id,
        )
        answer = self._keep(id, memory, created=old is None, advisory=expect.version is not None)
        if ask.idempotency_key is not None:
            self._replies[ask.idempotency_key] = (asked, answer)
        return answer

    def _keep(self, id: str, memory: Memory, *, created: bool, advisory: bool) -> Answer:
        self._count += 1
        strong = "critical" in memory.tags
        model = Model.STRONG if strong else Model.READ_YOUR_WRITES
        stored = self.kept[id] = Stored(id, memory, f"r-n1~0-{self._count}", model)
        self.past.setdefault(id, []).insert(0, stored)
        return Answer(
            model=model,
            stored=stored,
            created=created,
            token=f"token{self._count}",
            index=self._count if strong else None,
            advisory=advisory and not strong,
        )

    async def patch(self, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        self._begin(ask)
        old = self._find(id)
        _check(expect, old)
        fields = msgspec.structs.asdict(patch)
        changed: dict[str, Any] = {name: value for name, value in fields.items() if value is not UNSET}
        if "content" in changed:
            changed["content_sha256"] = _digest(changed["content"])
        memory = msgspec.structs.replace(old.memory, **changed)
        return self._keep(id, memory, created=False, advisory=expect.version is not None)

    async def get(self, ask: Ask, id: str) -> Answer:
        self._begin(ask)
        stored = self._find(id)
        return Answer(model=ask.consistency or stored.model, stored=stored, staleness_ms=0, token=ask.token)

    def _find(self, id: str) -> Stored:
        stored = self.kept.get(id)
        if stored is None:
            raise NotFound(f"no memory {id!r}", details={"confirmed": True})
        return stored

    async def delete(self, ask: Ask, id: str, expect: Expect) -> Answer:
        self._begin(ask)
        _check(expect, self.kept.get(id))
        self.kept.pop(id, None)
        self._count += 1
        return Answer(model=Model.READ_YOUR_WRITES, token=f"token{self._count}")

    async def list(self, ask: Ask, query: ListQuery) -> Page:
        self._begin(ask)
        found = [self.kept[id] for id in sorted(self.kept) if _matches(query, self.kept[id])]
        page = found[: query.limit]
        return Page(page, page[-1].id if len(found) > len(page) else None)

    async def batch(self, ask: Ask, ops: Ops) -> Outcomes:
        return [await self._one(ask, op) for op in ops]

    async def _one(self, ask: Ask, op: BatchOp) -> Answer | SpineError:
        try:
            if op.op == "get":
                return await self.get(ask, op.id)
            if op.op == "delete":
                return await self.delete(ask, op.id, op.expect)
            assert op.draft is not None, "a put brings a draft"
            return await self.put(ask, op.id, op.draft, op.expect)
        except SpineError as error:
            return error

    async def conflicts(self, ask: Ask, id: str) -> Losers:
        self._begin(ask)
        return self.lost.get(id, [])

    async def versions(self, ask: Ask, id: str) -> History:
        self._begin(ask)
        return self.past.get(id, [])

    async def explain(self, tags: tuple[str, ...], id: str | None, agent_id: str) -> Explained:
        strong = "critical" in tags
        return Explained(
            model=Model.STRONG if strong else Model.READ_YOUR_WRITES,
            path=Path.STRONG if strong else Path.RING,
            group=GroupId(0),
            leader=NodeId("n1"),
            replicas=(NodeId("n1"),),
            epoch=1,
            matched=("critical",) if strong else (),
            reason="fake",
        )

    async def request_status(self, key: str) -> RequestStatus:
        if key not in self._replies:
            return RequestStatus(key, "unknown")
        stored = self._replies[key][1].stored
        assert stored is not None, "only puts are remembered"
        return RequestStatus(key, "done", Path.RING, stored.id, stored.version, 201)

    async def void_request(self, key: str) -> RequestStatus:
        status = await self.request_status(key)
        return status if status.state == "done" else RequestStatus(key, "void")

    def new_id(self, ask: Ask, place: int = 0) -> str:
        if ask.idempotency_key is not None:
            return f"of-{ask.idempotency_key}-{place}"
        self._count += 1
        return f"00000000-0000-7000-8000-{self._count:012x}"


class FakeCluster:
    """One node that is well, until `reasons` says otherwise."""

    node_id = "n1"
    version = "0.0.0"

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def topology(self) -> Table:
        return Table(1, "c1", "id", (), ((NodeId("n1"),),), (NodeId("n1"),))

    def status(self) -> dict[str, Any]:
        return {"epoch": 1, "nodes": {"n1": {"read_only": None}}}

    def ready(self) -> tuple[bool, list[str]]:
        return not self.reasons, self.reasons

    def stats(self) -> dict[str, Any]:
        return {"memories": 0}

    def metrics(self) -> bytes:
        return b"# TYPE spine_up gauge\nspine_up 1\n"


def _digest(content: Any) -> bytes:
    return sha256(content.encode() if isinstance(content, str) else _encode(content)).digest()


def _check(expect: Expect, old: Stored | None) -> None:
    current = None if old is None else old.version
    if expect.absent:
        holds = old is None
    else:
        holds = expect.version is None or (old is not None and expect.version in ("*", current))
    if holds:
        return
    details = {"current_version": current}
    if expect.header:
        raise PreconditionFailed("the precondition does not hold", details=details)
    raise Conflict("another version is stored", details=details)


def _matches(query: ListQuery, stored: Stored) -> bool:
    memory = stored.memory
    return (
        (query.tag is None or query.tag in memory.tags)
        and (query.namespace is None or query.namespace == memory.namespace)
        and (query.agent_id is None or query.agent_id == memory.agent_id)
        and (query.prefix is None or stored.id.startswith(query.prefix))
        and (query.updated_since_ms is None or memory.updated_at_ms >= query.updated_since_ms)
        and (query.after is None or stored.id > query.after)
    )
