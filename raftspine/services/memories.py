"""One API over two paths: what a memory's tags and its stored state decide, each operation follows.

The rule this module owns is *one live id, one path*. A strong record shadows the ring; a write with strong tags over a
ring memory promotes it, one that drops them demotes it, both by a log entry that carries what the writer saw. An
id found on neither path is confirmed by the group's read barrier before "not found" is said, because a replica
that has not yet applied the entry that made it would otherwise deny a lock its holder already has.

Operations for groups this node does not hold go, whole, to a replica: one hop, marked.
"""

import asyncio
from typing import Any

from msgspec import UNSET, structs

from raftspine.core.ledger import commands
from raftspine.core.ledger.commands import Condition, DeleteMemory, MemoryCommand, PatchMemory, PutMemory
from raftspine.core.ledger.outcomes import Status
from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.core.version_text import log_origin, strong_version_text
from raftspine.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, SpineError, Unavailable
from raftspine.model import GroupId, Memory, Model, Path, RingRecord, StrongRecord, Version
from raftspine.ports import Clock, Entropy, ReplicatedLog
from raftspine.services import compose
from raftspine.services.forward import Forwarder
from raftspine.services.listing import Listing
from raftspine.services.refusals import refusal
from raftspine.services.replica import RingReplica
from raftspine.services.requests import Requests, digest_of, fingerprint_of
from raftspine.services.ring import RingPath, shown, version_text
from raftspine.services.sessions import Sessions, log_applied
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology
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
from raftspine.storage import memories as rows

RING_READS = 5
"""How often a strong write is built again over a newer picture of the ring before the caller is told to retry."""

Results = list[Answer | SpineError]
BatchOps = list[BatchOp]
Losers = list[Loser]
Versions = list[Stored]
Groups = list[GroupId]


class Memories:
    """The memory operations of one node."""

    def __init__(
        self,
        *,
        router: Router,
        topology: Topology,
        replica: RingReplica,
        ring: RingPath,
        strong: StrongPath,
        log: ReplicatedLog,
        sessions: Sessions,
        requests: Requests,
        listing: Listing,
        forwarder: Forwarder,
        clock: Clock,
        entropy: Entropy,
        strong_timeout_ms: int,
    ) -> None:
        self._router = router
        self._topology = topology
        self._replica = replica
        self._ring = ring
        self._strong = strong
        self._log = log
        self._strong_timeout_ms = strong_timeout_ms
        self._sessions = sessions
        self._requests = requests
        self._listing = listing
        self._forwarder = forwarder
        self._clock = clock
        self._entropy = entropy
        forwarder.offer(self)

    # ── storing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def put(self, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        """Store a memory, replacing what is there. Raises the errors of the path that keeps it."""
        tags = None if draft.tags is UNSET else draft.tags
        group = self._locate(id, draft.agent_id or ask.agent_id, tags or ())
        if not self._replica.holds(group):
            return await self._forwarder.put(group, ask, id, draft, expect)
        token = self._sessions.open(ask.token)
        strong = self._live_strong(group, id)
        old = self._replica.record(group, id)
        stored = self._stored_memory(strong, old)
        if tags is None:
            tags = () if stored is None else stored.tags
        decision = self._router.write(tags, ask.consistency)
        if strong is not None or decision.path is Path.STRONG:
            command = PutMemory(
                id=id,
                memory=compose.fresh(draft, tags, None, ask.agent_id, 0),
                keep_tags=draft.tags is UNSET,
                expected=Condition(expect.version, expect.absent),
                request=self._digest(ask),
                fingerprint=fingerprint_of("put", id, draft, expect),
                agent=ask.agent_id,
                demote=decision.path is Path.RING,
            )
            return await self._propose(token, group, command, expect, decision.model)
        request = b""
        if ask.idempotency_key is not None:
            request = self._digest(ask) + fingerprint_of("put", id, draft, expect)
            replay = await self._replay(ask, token, group, id, request, decision.model, draft=draft)
            if replay is not None:
                return replay
        local = True
        if expect.version is not None or expect.absent:
            old, local = await self._ring.merged(group, id), False
            self._check(expect, old)
        winner = shown(old, self._clock.wall_ms())
        stamp = self._replica.stamp(old)
        memory = compose.fresh(draft, tags, winner.memory if winner else None, ask.agent_id, stamp >> 16)
        version = await self._ring.write(
            group,
            id,
            old,
            memory,
            stamp=stamp,
            model=decision.model,
            request=request,
            deps=_deps(token, decision.model),
            local=local,
            conditional=not local,
        )
        return self._written(token, group, version, decision.model, created=winner is None, advisory=not local)

    async def patch(self, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        """Change some fields of a memory. Raises NotFound."""
        group = self._locate(id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.patch(group, ask, id, patch, expect)
        token = self._sessions.open(ask.token)
        strong = self._live_strong(group, id)
        old = None if strong is not None else await self._ring.merged(group, id)
        stored = self._stored_memory(strong, old)
        if stored is None:
            await self._confirm_absent(ask, group, id)
            strong = self._live_strong(group, id)
            stored = self._stored_memory(strong, old)
        if stored is None:
            raise NotFound(f"no memory {id!r}", details={"confirmed": True})
        tags = stored.tags if patch.tags is UNSET else patch.tags
        decision = self._router.write(tags, ask.consistency)
        if strong is not None or decision.path is Path.STRONG:
            fields = compose.changes(patch)
            if "content" in fields:
                fields["content_sha256"] = compose.content_digest(fields["content"])
            command = PatchMemory(
                id=id,
                changes=fields,
                expected=Condition(expect.version, expect.absent),
                request=self._digest(ask),
                fingerprint=fingerprint_of("patch", id, patch, expect),
                agent=ask.agent_id,
                demote=decision.path is Path.RING,
            )
            return await self._propose(token, group, command, expect, decision.model)
        request = b""
        if ask.idempotency_key is not None:
            request = self._digest(ask) + fingerprint_of("patch", id, patch, expect)
            replay = await self._replay(ask, token, group, id, request, decision.model)
            if replay is not None:
                return replay
        self._check(expect, old)
        stamp = self._replica.stamp(old)
        version = await self._ring.write(
            group,
            id,
            old,
            compose.changed(stored, patch, ask.agent_id, stamp >> 16),
            stamp=stamp,
            model=decision.model,
            request=request,
            deps=_deps(token, decision.model),
            local=False,
            conditional=expect.version is not None,
        )
        return self._written(token, group, version, decision.model, advisory=expect.version is not None)

    async def delete(self, ask: Ask, id: str, expect: Expect) -> Answer:
        """Delete a memory; deleting what is absent is done already."""
        group = self._locate(id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.delete(group, ask, id, expect)
        token = self._sessions.open(ask.token)
        strong = self._live_strong(group, id)
        old = self._replica.record(group, id)
        local = True
        if strong is None and (old is None or expect.version is not None):
            old, local = await self._ring.merged(group, id), False
        if strong is None and shown(old, self._clock.wall_ms()) is None:
            await self._confirm_absent(ask, group, id)
            strong = self._live_strong(group, id)
        if strong is not None:
            command = DeleteMemory(
                id=id,
                expected=Condition(expect.version, expect.absent),
                request=self._digest(ask),
                fingerprint=fingerprint_of("delete", id, None, expect),
                agent=ask.agent_id,
            )
            return await self._propose(token, group, command, expect, Model.STRONG)
        self._check(expect, old)
        winner = shown(old, self._clock.wall_ms())
        model = self._router.write(winner.memory.tags if winner and winner.memory else (), None).model
        if winner is None:
            return Answer(model=model)
        request = b""
        if ask.idempotency_key is not None:
            request = self._digest(ask) + fingerprint_of("delete", id, None, expect)
        version = await self._ring.write(
            group,
            id,
            old,
            None,
            stamp=self._replica.stamp(old),
            model=model,
            request=request,
            deps=_deps(token, model),
            local=local,
            conditional=expect.version is not None,
        )
        answer = self._written(token, group, version, model, advisory=expect.version is not None)
        answer.stored = None
        return answer

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, ask: Ask, id: str) -> Answer:
        """Read a memory as its model, or a model asked for, demands. Raises NotFound, Unavailable."""
        group = self._locate(id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.get(group, ask, id)
        token = self._sessions.open(ask.token)
        wish = ask.consistency
        if token is not None and not await log_applied(self._log, token, group, ask.max_wait_ms):
            raise Unavailable(
                "this replica has not yet applied this session's strong writes",
                code="session_unavailable",
                details={"group": group},
                retry_after_ms=200,
            )
        strong = self._live_strong(group, id)
        if strong is None and wish is not Model.STRONG:
            model = wish or Model.READ_YOUR_WRITES
            record = await self._ring.read(group, id, token, model=model, wait_ms=ask.max_wait_ms)
            version = shown(record, self._clock.wall_ms())
            if version is not None:
                return self._found(token, group, version, wish)
            if wish is Model.EVENTUAL:
                raise NotFound(f"no memory {id!r} on this replica", details={"confirmed": False})
        elif strong is not None and self._router.read(Model.STRONG, wish) is not Model.STRONG:
            answer = self._strong_answer(group, strong, Model.EVENTUAL)
            answer.staleness_ms = self._strong.staleness_ms(group)
            return answer
        return await self._get_strongly(ask, token, group, id)

    async def _get_strongly(self, ask: Ask, token: Token | None, group: GroupId, id: str) -> Answer:
        """Read after the group's barrier: what the log says, else what a quorum of the ring says."""
        wish = ask.consistency
        certain = wish is Model.STRONG or self._live_strong(group, id) is not None
        index: int | None = None
        try:
            index = await self._strong.barrier(group, self._strong_timeout_ms if certain else ask.max_wait_ms)
        except Unavailable:
            if certain:
                raise
        strong = self._live_strong(group, id)
        if strong is not None:
            answer = self._strong_answer(group, strong, Model.STRONG)
            answer.index = index
            return answer
        version = shown(await self._ring.merged(group, id), self._clock.wall_ms())
        if version is not None:
            return self._found(token, group, version, wish)
        raise NotFound(f"no memory {id!r}", details={"confirmed": index is not None})

    async def list(self, ask: Ask, query: ListQuery) -> Page:
        """A page of the memories that match; see listing.py for what it promises."""
        return await self._listing.page(ask, self._sessions.open(ask.token), query)

    async def local_page(self, ask: Ask, query: ListQuery, groups: Groups) -> Page:
        """A page of groups that another node asks this one for."""
        return await self._listing.local(ask, self._sessions.open(ask.token), query, groups)

    def holds(self, ask: Ask, id: str) -> bool:
        """Whether this node holds the group of an id."""
        return self._replica.holds(self._locate(id, ask.agent_id, ()))

    async def batch(self, ask: Ask, ops: BatchOps) -> Results:
        """Each operation as if alone, one result each, in order; operations on one id keep their order. Every
        answer's token covers the whole batch."""
        tails: dict[str, asyncio.Task[Answer]] = {}
        tasks = []
        for place, op in enumerate(ops):
            task = asyncio.create_task(self._one(_asked(ask, place), op, tails.get(op.id)))
            tails[op.id] = task
            tasks.append(task)
        results: Results = []
        merged = self._sessions.extend(self._sessions.open(ask.token))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, SpineError):
                raise result
            if isinstance(result, Answer) and (token := self._sessions.open(result.token)) is not None:
                merged.merge(token)
            results.append(result)
        text = self._sessions.seal(merged)
        for result in results:
            if isinstance(result, Answer) and result.token is not None:
                result.token = text
        return results

    async def _one(self, ask: Ask, op: BatchOp, before: "asyncio.Task[Answer] | None") -> Answer:
        if before is not None:
            await asyncio.wait([before])
        if op.op == "get":
            return await self.get(ask, op.id)
        if op.op == "delete":
            return await self.delete(ask, op.id, op.expect)
        assert op.draft is not None, "a put carries a draft"
        return await self.put(ask, op.id, op.draft, op.expect)

    async def conflicts(self, ask: Ask, id: str) -> Losers:
        """Writes that lost against concurrent ones, newest first."""
        group = self._locate(id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.conflicts(group, ask, id)
        return [
            Loser(id, lost.version, lost.memory, lost.lost_at_ms, lost.winner)
            for lost in rows.conflicts(self._replica.engine, group, id)
        ]

    async def versions(self, ask: Ask, id: str) -> Versions:
        """The versions the store still holds, the shown one first: on the ring also concurrent siblings."""
        answer = await self.get(ask, id)
        assert answer.stored is not None, "a found memory is stored"
        kept = [answer.stored]
        group = self._locate(id, ask.agent_id, ())
        if answer.stored.model is not Model.STRONG and self._replica.holds(group):
            record = self._replica.record(group, id)
            for version in record.versions if record else ():
                text = version_text(version)
                if text != kept[0].version and version.memory is not None:
                    kept.append(Stored(id, version.memory, text, answer.stored.model))
        return kept

    # ── explaining ────────────────────────────────────────────────────────────────────────────────────────────

    async def explain(self, tags: tuple[str, ...], id: str | None, agent_id: str) -> Explained:
        """Which model, path, group, leader and replicas a memory with these tags and id would have."""
        decision = self._router.write(tags, None)
        group = self._locate(id or "", agent_id, tags)
        reason = decision.reason
        model, path = decision.model, decision.path
        if id is not None and not tags and self._replica.holds(group) and self._live_strong(group, id) is not None:
            model, path, reason = Model.STRONG, Path.STRONG, "a strong memory with this id exists"
        return Explained(
            model=model,
            path=path,
            group=group,
            leader=self._strong.leader(group),
            replicas=self._topology.replicas(group),
            epoch=self._topology.epoch,
            matched=decision.matched,
            reason=reason,
        )

    async def request_status(self, key: str) -> RequestStatus:
        return await self._requests.status(key)

    async def void_request(self, key: str) -> RequestStatus:
        return await self._requests.void(key)

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562): ordered by time, unique by chance."""
        ms = self._clock.wall_ms()
        tail = bytearray(self._entropy.token_bytes(10))
        tail[0] = 0x70 | (tail[0] & 0x0F)
        tail[2] = 0x80 | (tail[2] & 0x3F)
        text = (ms.to_bytes(6, "big") + bytes(tail)).hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    # ── shared steps ──────────────────────────────────────────────────────────────────────────────────────────

    def _locate(self, id: str, agent_id: str, tags: tuple[str, ...]) -> GroupId:
        """The shard group of an id. Where the key space is cut by agent or tag, a stored memory stays where it is:
        its group is looked for among those this node holds."""
        group = self._topology.group_of(id, agent_id, tags)
        if self._topology.table.strategy == "id":
            return group
        for held in (group, *self._replica.groups()):
            if self._replica.holds(held) and (
                self._replica.record(held, id) is not None or self._replica.strong(held, id) is not None
            ):
                return held
        return group

    def _live_strong(self, group: GroupId, id: str) -> StrongRecord | None:
        record = self._replica.strong(group, id)
        if record is None or record.memory is None:
            return None
        expires = record.memory.expires_at_ms
        return None if expires is not None and expires <= self._clock.wall_ms() else record

    def _stored_memory(self, strong: StrongRecord | None, old: RingRecord | None) -> Memory | None:
        if strong is not None:
            return strong.memory
        winner = shown(old, self._clock.wall_ms())
        return None if winner is None else winner.memory

    def _digest(self, ask: Ask) -> bytes:
        return b"" if ask.idempotency_key is None else digest_of(ask.idempotency_key)

    def _check(self, expect: Expect, record: RingRecord | None) -> None:
        """A precondition against a quorum's merge: it detects a race that is over, not one under way."""
        if expect.version is None and not expect.absent:
            return
        winner = shown(record, self._clock.wall_ms())
        current = None if winner is None else version_text(winner)
        if expect.absent:
            if current is None:
                return
        elif current is not None and expect.version in ("*", current):
            return
        raise _mismatch(expect, current)

    async def _propose(
        self, token: Token | None, group: GroupId, command: MemoryCommand, expect: Expect, model: Model
    ) -> Answer:
        """Have the log decide. A command carries what the ring held of its id; when that was older than the id's
        last demotion, this replica first applies what it missed and the command is built again."""
        for _ in range(RING_READS):
            command = await self._with_ring(group, command)
            outcome, index = await self._strong.execute(
                group, commands.encode(command), self._strong_timeout_ms, replayable=bool(command.request)
            )
            if outcome.status is not Status.RING_BEHIND:
                break
            await self._strong.barrier(group, self._strong_timeout_ms)
        refused = refusal(outcome, header=expect.header, patch=isinstance(command, PatchMemory))
        if refused is not None:
            raise refused
        fresh = self._sessions.extend(token)
        fresh.logged(group, index)
        stored = None
        if outcome.memory is not None and outcome.version is not None:
            kept = model if outcome.ring is not None else Model.STRONG
            stored = Stored(command.id, outcome.memory, outcome.version, kept)
        return Answer(
            model=Model.STRONG,
            stored=stored,
            index=index,
            created=outcome.created,
            token=self._sessions.seal(fresh),
        )

    async def _with_ring(self, group: GroupId, command: MemoryCommand) -> MemoryCommand:
        """The command with what a quorum of the ring holds of its id, unless the log keeps it already. A record
        that only this replica's log lacks is found by the ledger itself, whatever is sent along."""
        if self._live_strong(group, command.id) is not None:
            return command
        seen = self._replica.vector(group).highest(log_origin(group))
        return structs.replace(command, ring=await self._ring.merged(group, command.id), log_seen=seen)

    async def _replay(
        self,
        ask: Ask,
        token: Token | None,
        group: GroupId,
        id: str,
        request: bytes,
        model: Model,
        *,
        draft: Draft | None = None,
    ) -> Answer | None:
        """The answer to a request that was already carried out, made sure of again; None for a new one."""
        digest, fingerprint = request[:16], request[16:]
        found = await self._ring.find_request(group, digest, everywhere=not ask.first_attempt)
        if found is None:
            return None
        if found.void:
            raise Conflict("this request was voided and will never apply", code="request_voided")
        if found.fingerprint != fingerprint:
            raise InvalidRequest(
                "this Idempotency-Key was used for another request",
                code="idempotency_key_reused",
                field="Idempotency-Key",
            )
        record = await self._ring.merged(group, id)
        for version in record.versions if record else ():
            if version.dot == (found.origin, found.seq):
                await self._ring.resend(group, version).future
                return self._written(token, group, version, model, created=found.created)
        stamp_ms = found.stamp >> 16
        memory = None
        if draft is not None:
            tags = () if draft.tags is UNSET else draft.tags
            memory = compose.fresh(draft, tags, None, ask.agent_id, stamp_ms)
        version = Version(id, found.origin, found.seq, found.stamp, {}, memory)
        return self._written(token, group, version, model, created=found.created)

    async def _confirm_absent(self, ask: Ask, group: GroupId, id: str) -> None:
        """Pass the group's barrier, so that a strong memory this replica has not applied yet is seen."""
        await self._strong.barrier(group, max(ask.max_wait_ms, 1))

    def _written(
        self,
        token: Token | None,
        group: GroupId,
        version: Version,
        model: Model,
        *,
        created: bool = False,
        advisory: bool = False,
    ) -> Answer:
        fresh = self._sessions.extend(token)
        fresh.wrote(group, version.origin, version.seq)
        stored = None
        if version.memory is not None:
            stored = Stored(version.id, version.memory, version_text(version), model)
        return Answer(
            model=model, stored=stored, created=created, token=self._sessions.seal(fresh), advisory=advisory
        )

    def _found(self, token: Token | None, group: GroupId, version: Version, wish: Model | None) -> Answer:
        memory = version.memory
        assert memory is not None, "only live versions are found"
        kept = self._router.write(memory.tags, None).model
        if kept is Model.STRONG:
            kept = Model.READ_YOUR_WRITES  # strong tags, but kept by the ring: written under another configuration
        served = Model.EVENTUAL if wish is Model.EVENTUAL else kept
        answer = Answer(model=served, stored=Stored(version.id, memory, version_text(version), kept))
        if served is Model.CAUSAL or version.deps:
            fresh = self._sessions.extend(token)
            fresh.wrote(group, version.origin, version.seq)
            for dep_group, origin, seq in version.deps:
                fresh.wrote(dep_group, origin, seq)
            answer.token = self._sessions.seal(fresh)
        return answer

    def _strong_answer(self, group: GroupId, record: StrongRecord, served: Model) -> Answer:
        assert record.memory is not None, "only live records are answered with"
        text = strong_version_text(group, record.index, record.sub)
        return Answer(model=served, stored=Stored(record.id, record.memory, text, Model.STRONG))


def _asked(ask: Ask, place: int) -> Ask:
    """One operation of a batch: its Idempotency-Key is the batch's and its place."""
    if ask.idempotency_key is None:
        return ask
    return structs.replace(ask, idempotency_key=f"{ask.idempotency_key}#{place}")


def _deps(token: Token | None, model: Model) -> tuple[tuple[int, str, int], ...]:
    """What a causal write depends on: all its session has seen and not every replica has."""
    if token is None or model is not Model.CAUSAL:
        return ()
    return tuple((group, origin, seq) for group, dots in token.dots.items() for origin, seq in dots.items())


def _mismatch(expect: Expect, current: str | None) -> SpineError:
    details: dict[str, Any] = {"current_version": current}
    wanted = "it to be absent" if expect.absent else f"version {expect.version}"
    message = f"the request expects {wanted}; stored is {current or 'nothing'}"
    if expect.header:
        return PreconditionFailed(message, details=details)
    return Conflict(message, details=details)
