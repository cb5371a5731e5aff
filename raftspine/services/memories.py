"""The memory operations of one node: one API over two paths.

This is the door that HTTP knocks on and the place where one reads which way an operation goes: to the node that holds
the id's shard group (one hop, marked), then to the log or to the ring by what the memory's tags and its stored state
demand. Writes are carried out in writes.py, changes of path in promotion.py.

The rule this module owns is that *not found is never said lightly*: an id found on neither path is confirmed by the
group's read barrier first, because a replica that has not yet applied the entry that made it would otherwise deny a
lock its holder already has.
"""

import asyncio
from contextlib import suppress
from functools import partial
from uuid import UUID  # noqa: TID251 - the format only: chance comes from Entropy

from msgspec import UNSET, structs

from raftspine.core.limits import check_free
from raftspine.core.partition import coordination_key, group_of
from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.errors import InvalidRequest, Misdirected, NotFound, SpineError, Unavailable
from raftspine.model import GroupId, Model, Path, StrongRecord
from raftspine.ports import Clock, Entropy, ReplicatedLog
from raftspine.services.answers import Answers
from raftspine.services.forward import Forwarder
from raftspine.services.listing import Listing
from raftspine.services.locate import Locator
from raftspine.services.pictures import Pictures
from raftspine.services.promotion import ATTEMPTS, Promotion, changing
from raftspine.services.replica import Promoted, RingReplica
from raftspine.services.requests import Requests, digest_of
from raftspine.services.ring import RingPath
from raftspine.services.sessions import Sessions, require_log
from raftspine.services.shown import live, shown
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
from raftspine.services.writes import Writes
from raftspine.storage import memories as rows

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
        pictures: Pictures,
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
        self._answers = Answers(router, sessions)
        self._promotion = Promotion(
            pictures=pictures,
            strong=strong,
            sessions=sessions,
            timeout_ms=strong_timeout_ms,
        )
        self._writes = Writes(
            router=router,
            replica=replica,
            ring=ring,
            strong=strong,
            log=log,
            sessions=sessions,
            answers=self._answers,
            promotion=self._promotion,
            clock=clock,
        )
        forwarder.offer(self)

    # ── storing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def put(self, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        """Store a memory, replacing what is there. Raises the errors of the path that keeps it."""
        check_free(id)
        tags = () if draft.tags is UNSET else draft.tags
        group = await self._locate(ask, id, draft.agent_id or ask.agent_id, tags)
        self._check_guards(ask, group)
        if not self._replica.serves(group):
            return await self._forwarder.put(group, ask, id, draft, expect)
        try:
            return await self._writes.put(group, ask, id, draft, expect)
        except Promoted:
            return await self._promotion.again(group, partial(self._writes.put, group, ask, id, draft, expect))

    async def patch(self, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        """Change some fields of a memory. Raises NotFound."""
        check_free(id)
        group = await self._locate(ask, id, ask.agent_id, ())
        self._check_guards(ask, group)
        if not self._replica.serves(group):
            return await self._forwarder.patch(group, ask, id, patch, expect)
        try:
            return await self._writes.patch(group, ask, id, patch, expect)
        except Promoted:
            return await self._promotion.again(group, partial(self._writes.patch, group, ask, id, patch, expect))

    async def delete(self, ask: Ask, id: str, expect: Expect) -> Answer:
        """Delete a memory; deleting what is absent is done already."""
        check_free(id)
        group = await self._locate(ask, id, ask.agent_id, ())
        self._check_guards(ask, group)
        if not self._replica.serves(group):
            return await self._forwarder.delete(group, ask, id, expect)
        try:
            return await self._writes.delete(group, ask, id, expect)
        except Promoted:
            return await self._promotion.again(group, partial(self._writes.delete, group, ask, id, expect))

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, ask: Ask, id: str) -> Answer:
        """Read a memory as its model, or a model asked for, demands. Raises NotFound, Unavailable."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.serves(group):
            return await self._forwarder.get(group, ask, id)
        wish = ask.consistency
        if ask.group is None and self._incomplete(group, wish):
            with suppress(Unavailable, Misdirected):  # nobody to ask: what is here is the best there is
                return await self._forwarder.get(group, ask, id)
        if wish is Model.EVENTUAL:
            return self._get_here(group, self._sessions.open(ask.token), id)
        token = self._sessions.open(ask.token)
        if token is not None and group in token.index:
            await require_log(self._log, token, group, ask.max_wait_ms)
        strong = self._live_strong(group, id)
        if strong is not None and wish is not None and wish is not Model.STRONG:
            age = self._strong.staleness_ms(group)
            return self._answers.strong(group, strong, Model.EVENTUAL, staleness_ms=age)
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
                    return self._answers.found(token, group, version, wish)
        return await self._get_strongly(ask, token, group, id, certain=certain)

    def _incomplete(self, group: GroupId, wish: Model | None) -> bool:
        """Whether this replica may lack what it once had, so that others should be asked: it lost its disk and does
        not take part in the group's log yet; or, for a read that asks nobody, it has not compared itself with its
        peers since it started."""
        if not self._topology.peers(group):
            return False
        if wish is Model.EVENTUAL and not self._replica.level(group):
            return True
        return group not in self._log.groups() or self._log.status(group).role in ("learner", "removed")

    def _get_here(self, group: GroupId, token: Token | None, id: str) -> Answer:
        """Whatever this replica has, without any wait."""
        strong = self._live_strong(group, id)
        if strong is not None:
            age = self._strong.staleness_ms(group)
            return self._answers.strong(group, strong, Model.EVENTUAL, staleness_ms=age)
        version = shown(self._replica.record(group, id), self._clock.wall_ms())
        if version is None:
            raise NotFound(f"no memory {id!r} on this replica", details={"confirmed": False})
        return self._answers.found(token, group, version, Model.EVENTUAL)

    async def _get_strongly(self, ask: Ask, token: Token | None, group: GroupId, id: str, *, certain: bool) -> Answer:
        """Read after the group's barrier: what the log says, else what a quorum of the ring says. Without a leader
        only what need not be `certain` is answered: that there is no such memory, as far as one can tell."""
        for _ in range(ATTEMPTS):
            index: int | None = None
            try:
                index = await self._strong.barrier(group, self._strong_timeout_ms if certain else ask.max_wait_ms)
            except Unavailable:
                if certain:
                    raise
            strong = self._live_strong(group, id)
            if strong is not None:
                answer = self._answers.strong(group, strong, Model.STRONG)
                answer.index = index
                return answer
            try:
                record = await self._ring.merged(group, id)
            except Promoted:
                certain = True
                continue
            version = shown(record, self._clock.wall_ms())
            if version is not None:
                return self._answers.found(token, group, version, ask.consistency)
            raise NotFound(f"no memory {id!r}", details={"confirmed": index is not None})
        raise changing(id)

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
        if op.guards:
            ask = structs.replace(ask, guards=(*ask.guards, *op.guards))
        if op.op == "delete":
            return await self.delete(ask, op.id, op.expect)
        assert op.draft is not None, "a put carries a draft"
        return await self.put(ask, op.id, op.draft, op.expect)

    async def conflicts(self, ask: Ask, id: str) -> Losers:
        """Writes that lost against concurrent ones, newest first."""
        group = await self._locate(ask, id, ask.agent_id, ())
        if not self._replica.serves(group):
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
        if answer.stored.model is not Model.STRONG and self._replica.serves(group):
            record = self._replica.record(group, id)
            for version in record.versions if record else ():
                text = rows.ring_version(version)
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
        if id is not None and not tags and self._replica.serves(group) and self._live_strong(group, id) is not None:
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

    def new_id(self, ask: Ask, place: int = 0) -> str:
        """An id for a memory that came without one. With an Idempotency-Key it follows from the key and the place in
        the request (a UUIDv8, RFC 9562): a repetition that reached another node with another id would look in another
        place for what the first one did, and do it again. Else a UUIDv7: ordered by time, unique by chance."""
        if ask.idempotency_key is not None:
            digest = bytearray(digest_of(f"{ask.idempotency_key}#{place}#id"))
            digest[6] = 0x80 | (digest[6] & 0x0F)
            digest[8] = 0x80 | (digest[8] & 0x3F)
            return str(UUID(bytes=bytes(digest)))
        ms = self._clock.wall_ms()
        tail = bytearray(self._entropy.token_bytes(10))
        tail[0] = 0x70 | (tail[0] & 0x0F)
        tail[2] = 0x80 | (tail[2] & 0x3F)
        return str(UUID(bytes=ms.to_bytes(6, "big") + bytes(tail)))

    # ── shared steps ──────────────────────────────────────────────────────────────────────────────────────────

    async def _locate(self, ask: Ask, id: str, agent_id: str, tags: tuple[str, ...]) -> GroupId:
        """The shard group of an id. A node that forwards has found it already."""
        if ask.group is not None:
            group = GroupId(ask.group)
            if not self._replica.serves(group):
                raise Misdirected(
                    "this node does not hold the shard group either", details={"epoch": self._topology.epoch}
                )
            return group
        if self._topology.strategy == "id":
            return self._topology.group_of(id, agent_id, tags)
        return await self._locator.find(id, agent_id, tags)

    def _check_guards(self, ask: Ask, group: GroupId) -> None:
        """The log can only judge the tokens of its own locks. Raises InvalidRequest(`cross_group`)."""
        for guard in ask.guards:
            theirs = group_of(coordination_key(guard.lock), len(self._topology.group_ids()))
            if theirs != group:
                raise InvalidRequest(
                    f"guard: the lock {guard.lock!r} lies in another shard group than the memory; a lock named "
                    "{<memory id>}/… lies beside it",
                    field="guard",
                    code="cross_group",
                    lock=guard.lock,
                    groups={"memory": group, "lock": theirs},
                )

    def _live_strong(self, group: GroupId, id: str) -> StrongRecord | None:
        record = self._replica.strong(group, id)
        return None if record is None else live(record, self._clock.wall_ms())


def _asked(ask: Ask, place: int) -> Ask:
    """One operation of a batch: its Idempotency-Key is the batch's and its place."""
    if ask.idempotency_key is None:
        return ask
    return structs.replace(ask, idempotency_key=f"{ask.idempotency_key}#{place}")
