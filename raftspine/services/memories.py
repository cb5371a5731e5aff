"""One API over two paths: what a memory's tags and its stored state decide, each operation follows.

The rule this module owns is *one live id, one path*. A strong record shadows the ring; a write with strong tags
over a ring memory promotes it, one that drops them demotes it, both by a log entry that carries what the writer
saw. An id found on neither path is confirmed by the group's read barrier before "not found" is said, because a
replica that has not yet applied the entry that made it would otherwise deny a lock its holder already has.

This replica may lag behind the log. So an operation that began on the ring and meets a replica whose log keeps the id
(`Promoted`) waits for what it missed and begins again; and nothing read before an await is written over after it.

Operations for groups this node does not hold go, whole, to a replica: one hop, marked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import UNSET, structs

from raftspine.core.ledger import commands
from raftspine.core.ledger.commands import Condition, DeleteMemory, MemoryCommand, PatchMemory, PutMemory
from raftspine.core.ledger.outcomes import Status
from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.core.version_text import strong_version_text
from raftspine.errors import (
    Conflict,
    InvalidRequest,
    Misdirected,
    NotFound,
    PreconditionFailed,
    SpineError,
    Unavailable,
    Unknown,
)
from raftspine.model import GroupId, Memory, Model, Path, RingRecord, StrongRecord, Version
from raftspine.ports import Clock, Entropy, ReplicatedLog
from raftspine.services import compose
from raftspine.services.deadlines import Late, within
from raftspine.services.forward import Forwarder
from raftspine.services.lineage import origin_of_log
from raftspine.services.listing import Listing
from raftspine.services.locate import Locator
from raftspine.services.refusals import refusal
from raftspine.services.replica import Promoted, RingReplica
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
"""How often an operation is built again over a newer picture of log and ring before the caller is told to retry."""

SPREAD_SECONDS = 2.0
"""How long a promotion waits for a quorum to apply it; a follower that is up does so within a heartbeat."""

log = structlog.get_logger()

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
        locator: Locator,
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
        self._locator = locator
        self._forwarder = forwarder
        self._clock = clock
        self._entropy = entropy
        forwarder.offer(self)

    # ── storing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def put(self, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        """Store a memory, replacing what is there. Raises the errors of the path that keeps it."""
        tags = () if draft.tags is UNSET else draft.tags
        group = await self._locate(ask, id, draft.agent_id or ask.agent_id, tags)
        if not self._replica.holds(group):
            return await self._forwarder.put(group, ask, id, draft, expect)
        return await self._settled(group, lambda: self._put(group, ask, id, draft, expect))

    async def _put(self, group: GroupId, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        token = await self._opened(ask, group)
        request = b""
        if ask.idempotency_key is not None:
            request = digest_of(ask.idempotency_key) + fingerprint_of("put", id, draft, expect)
            replay = await self._replay(ask, token, group, id, request, draft=draft)
            if replay is not None:
                return replay
        strong = self._replica.strong(group, id)
        old = None if strong is not None else self._replica.record(group, id)
        tags = self._tags(draft, self._stored_memory(strong, old))
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
        advisory = expect.version is not None or expect.absent
        if advisory:
            old = await self._ring.merged(group, id)
            self._check(expect, old)
        created = False

        def make(base: RingRecord | None, stamp: int) -> Memory:
            nonlocal created
            winner = shown(base, self._clock.wall_ms())
            before = None if winner is None else winner.memory
            created = before is None
            return compose.fresh(draft, self._tags(draft, before), before, ask.agent_id, stamp >> 16)

        version = await self._ring.write(
            group,
            id,
            old,
            make,
            model=decision.model,
            request=request,
            deps=self._deps(token, decision.model),
            seen=None if token is None else token.needs(group),
            local=not advisory,
            conditional=advisory,
        )
        return self._written(token, group, version, decision.model, created=created, advisory=advisory)

    async def patch(self, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        """Change some fields of a memory. Raises NotFound."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.patch(group, ask, id, patch, expect)
        return await self._settled(group, lambda: self._patch(group, ask, id, patch, expect))

    async def _patch(self, group: GroupId, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        token = await self._opened(ask, group)
        request = b""
        if ask.idempotency_key is not None:
            request = digest_of(ask.idempotency_key) + fingerprint_of("patch", id, patch, expect)
            replay = await self._replay(ask, token, group, id, request)
            if replay is not None:
                return replay
        old = None
        if self._replica.strong(group, id) is None:
            old = await self._ring.merged(group, id)
        strong = self._replica.strong(group, id)
        stored = self._stored_memory(strong, old)
        if stored is None:
            confirmed = await self._confirmed(ask, group)
            strong, old = self._replica.strong(group, id), None
            stored = self._stored_memory(strong, old)
            if stored is None:
                raise NotFound(f"no memory {id!r}", details={"confirmed": confirmed})
        tags = stored.tags if patch.tags is UNSET else patch.tags
        decision = self._router.write(tags, ask.consistency)
        if strong is not None or decision.path is Path.STRONG:
            command = self._patch_command(ask, id, patch, expect, demote=decision.path is Path.RING)
            return await self._propose(token, group, command, expect, decision.model)
        self._check(expect, old)

        def make(base: RingRecord | None, stamp: int) -> Memory:
            winner = shown(base, self._clock.wall_ms())
            if winner is None or winner.memory is None:
                raise NotFound(f"memory {id!r} was deleted meanwhile", details={"confirmed": True})
            return compose.changed(winner.memory, patch, ask.agent_id, stamp >> 16)

        advisory = expect.version is not None
        version = await self._ring.write(
            group,
            id,
            old,
            make,
            model=decision.model,
            request=request,
            deps=self._deps(token, decision.model),
            seen=None if token is None else token.needs(group),
            local=False,
            conditional=advisory,
        )
        return self._written(token, group, version, decision.model, advisory=advisory)

    def _patch_command(self, ask: Ask, id: str, patch: Patch, expect: Expect, *, demote: bool) -> PatchMemory:
        fields = compose.changes(patch)
        if "content" in fields:
            fields["content_sha256"] = compose.content_digest(fields["content"])
        return PatchMemory(
            id=id,
            changes=fields,
            expected=Condition(expect.version, expect.absent),
            request=self._digest(ask),
            fingerprint=fingerprint_of("patch", id, patch, expect),
            agent=ask.agent_id,
            demote=demote,
        )

    async def delete(self, ask: Ask, id: str, expect: Expect) -> Answer:
        """Delete a memory; deleting what is absent is done already."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.delete(group, ask, id, expect)
        return await self._settled(group, lambda: self._delete(group, ask, id, expect))

    async def _delete(self, group: GroupId, ask: Ask, id: str, expect: Expect) -> Answer:
        token = await self._opened(ask, group)
        request = b""
        if ask.idempotency_key is not None:
            request = digest_of(ask.idempotency_key) + fingerprint_of("delete", id, None, expect)
            replay = await self._replay(ask, token, group, id, request)
            if replay is not None:
                replay.stored = None
                return replay
        old, local = None, True
        advisory = expect.version is not None
        if self._replica.strong(group, id) is None:
            old = self._replica.record(group, id)
            if advisory or shown(old, self._clock.wall_ms()) is None:
                old, local = await self._ring.merged(group, id), False
                if shown(old, self._clock.wall_ms()) is None:
                    await self._strong.barrier(group, max(ask.max_wait_ms, 1))
        if self._replica.strong(group, id) is not None:
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
        version = await self._ring.write(
            group,
            id,
            old,
            lambda base, stamp: None,
            model=model,
            request=request,
            deps=self._deps(token, model),
            seen=None if token is None else token.needs(group),
            local=local,
            conditional=advisory,
        )
        return self._written(token, group, version, model, advisory=advisory)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, ask: Ask, id: str) -> Answer:
        """Read a memory as its model, or a model asked for, demands. Raises NotFound, Unavailable."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.get(group, ask, id)
        wish = ask.consistency
        if wish is Model.EVENTUAL:
            return self._get_here(group, self._sessions.open(ask.token), id)
        token = await self._opened(ask, group)
        strong = self._live_strong(group, id)
        if strong is not None and wish is not None and wish is not Model.STRONG:
            answer = self._strong_answer(group, strong, Model.EVENTUAL)
            answer.staleness_ms = self._strong.staleness_ms(group)
            return answer
        certain = wish is Model.STRONG or strong is not None
        if not certain:
            try:
                record = await self._ring.read(
                    group, id, token, model=wish or Model.READ_YOUR_WRITES, wait_ms=ask.max_wait_ms
                )
            except Promoted:
                certain = True
            else:
                version = shown(record, self._clock.wall_ms())
                if version is not None:
                    return self._found(token, group, version, wish)
        return await self._get_strongly(ask, token, group, id, certain=certain)

    def _get_here(self, group: GroupId, token: Token | None, id: str) -> Answer:
        """Whatever this replica has, without any wait."""
        strong = self._live_strong(group, id)
        if strong is not None:
            answer = self._strong_answer(group, strong, Model.EVENTUAL)
            answer.staleness_ms = self._strong.staleness_ms(group)
            return answer
        version = shown(self._replica.record(group, id), self._clock.wall_ms())
        if version is None:
            raise NotFound(f"no memory {id!r} on this replica", details={"confirmed": False})
        return self._found(token, group, version, Model.EVENTUAL)

    async def _get_strongly(self, ask: Ask, token: Token | None, group: GroupId, id: str, *, certain: bool) -> Answer:
        """Read after the group's barrier: what the log says, else what a quorum of the ring says. Without a leader
        only what need not be `certain` is answered: that there is no such memory, as far as one can tell."""
        for _ in range(RING_READS):
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
            try:
                record = await self._ring.merged(group, id)
            except Promoted:
                certain = True
                continue
            version = shown(record, self._clock.wall_ms())
            if version is not None:
                return self._found(token, group, version, ask.consistency)
            raise NotFound(f"no memory {id!r}", details={"confirmed": index is not None})
        raise _changing(id)

    async def list(self, ask: Ask, query: ListQuery) -> Page:
        """A page of the memories that match; see listing.py for what it promises."""
        return await self._listing.page(ask, self._sessions.open(ask.token), query)

    async def local_page(self, ask: Ask, query: ListQuery, groups: Groups) -> Page:
        """A page of groups that another node asks this one for."""
        return await self._listing.local(ask, self._sessions.open(ask.token), query, groups)

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
            if not before.cancelled() and before.exception() is None and before.result().token is not None:
                ask = structs.replace(ask, token=before.result().token)
        if op.op == "get":
            return await self.get(ask, op.id)
        if op.op == "delete":
            return await self.delete(ask, op.id, op.expect)
        assert op.draft is not None, "a put carries a draft"
        return await self.put(ask, op.id, op.draft, op.expect)

    async def conflicts(self, ask: Ask, id: str) -> Losers:
        """Writes that lost against concurrent ones, newest first."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.holds(group):
            return await self._forwarder.conflicts(group, ask, id)
        return [
            Loser(id, lost.version, lost.memory, lost.lost_at_ms, lost.winner)
            for lost in await self._ring.conflicts(group, id)
        ]

    async def versions(self, ask: Ask, id: str) -> Versions:
        """The versions the store still holds, the shown one first: on the ring also concurrent siblings."""
        answer = await self.get(ask, id)
        assert answer.stored is not None, "a found memory is stored"
        kept = [answer.stored]
        group = await self._locate(ask, id, ask.agent_id, ())
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
        if id is None:
            group = self._topology.group_of("", agent_id, tags)
        else:
            group = await self._locate(Ask(), id, agent_id, tags)
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

    async def _locate(self, ask: Ask, id: str, agent_id: str, tags: tuple[str, ...]) -> GroupId:
        """The shard group of an id. A node that forwards has found it already."""
        if ask.group is not None:
            group = GroupId(ask.group)
            if not self._replica.holds(group):
                raise Misdirected(
                    "this node does not hold the shard group either", details={"epoch": self._topology.epoch}
                )
            return group
        if self._topology.strategy == "id":
            return self._topology.group_of(id, agent_id, tags)
        return await self._locator.find(id, agent_id, tags)

    async def _settled(self, group: GroupId, operation: Callable[[], Awaitable[Answer]]) -> Answer:
        """An operation that may find, when it is half done, that the log has taken its id over: begun again then,
        once this replica has applied what it missed. What it left on the ring is in the conflict log."""
        began = False
        for _ in range(RING_READS):
            try:
                try:
                    return await operation()
                except Promoted:
                    began = True
                    await self._strong.barrier(group, self._strong_timeout_ms)
            except Unavailable as error:
                if began:
                    error.details["indeterminate"] = True  # readers behind in the log may see it for a while
                raise
        raise _changing(None, indeterminate=True)

    async def _opened(self, ask: Ask, group: GroupId) -> Token | None:
        """The session's token, once this replica has applied what the session saw in the group's log."""
        token = self._sessions.open(ask.token)
        if token is not None and not await log_applied(self._log, token, group, ask.max_wait_ms):
            raise Unavailable(
                "this replica has not yet applied this session's strong writes",
                code="session_unavailable",
                details={"group": group},
                retry_after_ms=200,
            )
        return token

    def _tags(self, draft: Draft, stored: Memory | None) -> tuple[str, ...]:
        """A draft's tags; left out, those that are stored."""
        if draft.tags is not UNSET:
            return draft.tags
        return () if stored is None else stored.tags

    def _live_strong(self, group: GroupId, id: str) -> StrongRecord | None:
        record = self._replica.strong(group, id)
        if record is None or record.memory is None:
            return None
        return None if rows.is_expired(record.memory, self._clock.wall_ms()) else record

    def _stored_memory(self, strong: StrongRecord | None, old: RingRecord | None) -> Memory | None:
        now_ms = self._clock.wall_ms()
        if strong is not None:
            memory = strong.memory
            return None if memory is None or rows.is_expired(memory, now_ms) else memory
        winner = shown(old, now_ms)
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
            try:
                command = await self._with_ring(group, command)
            except Promoted:
                await self._strong.barrier(group, self._strong_timeout_ms)
                continue
            outcome, index = await self._strong.execute(
                group, commands.encode(command), self._strong_timeout_ms, replayable=bool(command.request)
            )
            if outcome.status is not Status.RING_BEHIND:
                break
            await self._strong.barrier(group, self._strong_timeout_ms)
        else:
            raise _changing(command.id)
        refused = refusal(outcome, header=expect.header, patch=isinstance(command, PatchMemory))
        if refused is not None:
            raise refused
        if outcome.record is not None and command.ring is not None:
            await self._spread(group, index)
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

    async def _spread(self, group: GroupId, index: int) -> None:
        """After a promotion: have W replicas apply it, so that every quorum of the ring meets one that knows. Callers
        without a token depend on it. It is decided already, so a replica that is slow now changes nothing about the
        answer; such a caller, at such a replica, is told of the promotion when it has caught up."""
        loop = asyncio.get_running_loop()
        try:
            await within(self._log.wait_applied(group, index), SPREAD_SECONDS, loop)
            await asyncio.gather(self._replica.engine.commit(durable=True), self._ring.applied(group, index))
        except (Late, Unavailable, Unknown) as error:
            log.info("a promotion is not applied on a quorum yet", group=group, index=index, reason=str(error))

    async def _with_ring(self, group: GroupId, command: MemoryCommand) -> MemoryCommand:
        """The command with what a quorum of the ring holds of its id, unless the log keeps it already. A record
        that only this replica's log lacks is found by the ledger itself, whatever is sent along."""
        if self._live_strong(group, command.id) is not None:
            return structs.replace(command, ring=None, log_seen=0)
        # Gaps below the base may hide the very demotion that must have been seen.
        seen = self._replica.vector(group).base.get(origin_of_log(group), 0)
        return structs.replace(command, ring=await self._ring.merged(group, command.id), log_seen=seen)

    async def _replay(
        self,
        ask: Ask,
        token: Token | None,
        group: GroupId,
        id: str,
        request: bytes,
        *,
        draft: Draft | None = None,
    ) -> Answer | None:
        """The answer to a request that the ring already carried out, made sure of again; None for a new one, and for
        one the ring tried and a promotion beat, which is the log's to decide."""
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
        strong = self._replica.strong(group, id)
        if strong is not None and strong.shadow.get(found.origin, 0) < found.seq:
            return None
        record = None if strong is not None else await self._ring.merged(group, id)
        for version in record.versions if record else ():
            if version.dot == (found.origin, found.seq):
                await self._ring.resend(group, version).future
                model = self._kept(version)
                return self._written(token, group, version, model, created=found.created)
        # Replaced since: what it had stored is gone, so the request says it again; a change of fields cannot.
        memory = None
        if draft is not None:
            memory = compose.fresh(draft, self._tags(draft, None), None, ask.agent_id, found.stamp >> 16)
        else:
            memory = self._stored_memory(strong, record)
        version = Version(id, found.origin, found.seq, found.stamp, {}, memory)
        return self._written(token, group, version, self._kept(version), created=found.created)

    async def _confirmed(self, ask: Ask, group: GroupId) -> bool:
        """Pass the group's barrier, so that a strong memory this replica has not applied yet is seen; False when
        there is no leader to ask in time."""
        try:
            await self._strong.barrier(group, max(ask.max_wait_ms, 1))
        except Unavailable:
            return False
        return True

    def _kept(self, version: Version) -> Model:
        """The model under which the ring keeps a version."""
        kept = self._router.write(() if version.memory is None else version.memory.tags, None).model
        # Strong tags on the ring: written under another configuration.
        return Model.READ_YOUR_WRITES if kept is Model.STRONG else kept

    def _deps(self, token: Token | None, model: Model) -> tuple[tuple[int, str, int], ...]:
        """What a causal write depends on: all its session has seen and not every replica has. An index of a group's
        log goes as an origin without a name; number 0 of it means that the whole group is meant."""
        if token is None or model is not Model.CAUSAL:
            return ()
        seen = self._sessions.extend(token)
        return (
            *((group, origin, seq) for group, dots in seen.dots.items() for origin, seq in dots.items()),
            *((group, "", index) for group, index in seen.index.items()),
            *((group, "", 0) for group in sorted(seen.wide)),
        )

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
        demoted = version.context.get(origin_of_log(group))
        if demoted is not None:  # a replica that has not applied it still believes the id to be the log's
            fresh.wrote(group, origin_of_log(group), demoted)
        stored = None
        if version.memory is not None:
            stored = Stored(version.id, version.memory, version_text(version), model)
        return Answer(
            model=model, stored=stored, created=created, token=self._sessions.seal(fresh), advisory=advisory
        )

    def _found(self, token: Token | None, group: GroupId, version: Version, wish: Model | None) -> Answer:
        memory = version.memory
        assert memory is not None, "only live versions are found"
        kept = self._kept(version)
        served = wish if wish in (Model.EVENTUAL, Model.CAUSAL) else kept
        answer = Answer(model=served, stored=Stored(version.id, memory, version_text(version), kept))
        if served is Model.CAUSAL or version.deps:
            fresh = self._sessions.extend(token)
            fresh.wrote(group, version.origin, version.seq)
            for dep_group, origin, seq in version.deps:
                if origin:
                    fresh.wrote(dep_group, origin, seq)
                elif seq:
                    fresh.logged(dep_group, seq)
                else:
                    fresh.wide.add(dep_group)
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


def _changing(id: str | None, *, indeterminate: bool = False) -> SpineError:
    return Unavailable(
        "the memory keeps moving between ring and log",
        code="not_ready",
        details={"id": id, "indeterminate": indeterminate},
        retry_after_ms=200,
    )


def _mismatch(expect: Expect, current: str | None) -> SpineError:
    details: dict[str, Any] = {"current_version": current}
    wanted = "it to be absent" if expect.absent else f"version {expect.version}"
    message = f"the request expects {wanted}; stored is {current or 'nothing'}"
    if expect.header:
        return PreconditionFailed(message, details=details)
    return Conflict(message, details=details)
