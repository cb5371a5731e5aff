"""Storing, changing and deleting on a replica of the memory's group.

The rule: a write asks first which path keeps the id now and which one its tags demand; when either is the log, the
log decides, else the ring mints a version over what this replica holds. What may not be lost (a field a patch leaves
alone, a version a caller expects) is read from a quorum, and nothing read before an await is minted over after it:
`make` composes anew over what it is handed. A patch composed over one replica's record would bring back what another
replaced.

Each operation may raise `Promoted`: the log took the id over meanwhile, and the caller begins it again
(promotion.py).
"""

from msgspec import UNSET

from raftspine.core.hlc import ms_of
from raftspine.core.ledger.commands import Condition, DeleteMemory, PatchMemory, PutMemory
from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.errors import InvalidRequest, NotFound, Unavailable
from raftspine.model import GroupId, Memory, Model, Path, RingRecord
from raftspine.ports import Clock, ReplicatedLog
from raftspine.services import compose
from raftspine.services.answers import Answers
from raftspine.services.promotion import Promotion
from raftspine.services.replays import Replays, request_of
from raftspine.services.replica import RingReplica
from raftspine.services.requests import DIGEST_BYTES
from raftspine.services.ring import RingPath
from raftspine.services.sessions import Sessions, require_log
from raftspine.services.shown import check, shown, shown_memory
from raftspine.services.strong import StrongPath
from raftspine.services.values import Answer, Ask, Draft, Expect, Patch


class Writes:
    """Carries out writes of groups this node holds."""

    def __init__(
        self,
        *,
        router: Router,
        replica: RingReplica,
        ring: RingPath,
        strong: StrongPath,
        log: ReplicatedLog,
        sessions: Sessions,
        answers: Answers,
        promotion: Promotion,
        clock: Clock,
    ) -> None:
        self._router = router
        self._replica = replica
        self._ring = ring
        self._strong = strong
        self._log = log
        self._sessions = sessions
        self._answers = answers
        self._promotion = promotion
        self._replays = Replays(replica, ring, answers, clock)
        self._clock = clock

    # ── storing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def put(self, group: GroupId, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer:
        """See `Memories.put`."""
        token = await self._opened(ask, group)
        request = b"" if ask.idempotency_key is None else request_of(ask.idempotency_key, "put", id, draft, expect)
        if request and (replay := await self._replays.find(ask, token, group, id, request, draft=draft)) is not None:
            return replay
        strong = self._replica.strong(group, id)
        old = None if strong is not None else self._replica.record(group, id)
        tags = _tags(draft, shown_memory(strong, old, self._clock.wall_ms()))
        decision = self._router.write(tags, ask.consistency)
        if strong is not None or decision.path is Path.STRONG:
            command = self._put_command(ask, id, draft, expect, tags, request, demote=decision.path is Path.RING)
            return await self._promotion.propose(token, group, command, expect, decision.model)
        _refuse_guards(ask)
        advisory = expect.version is not None or expect.absent
        if advisory:
            old = await self._ring.merged(group, id)
            check(expect, old, self._clock.wall_ms())
        created = False

        def make(base: RingRecord | None, stamp: int) -> Memory:
            nonlocal created
            winner = shown(base, self._clock.wall_ms())
            before = None if winner is None else winner.memory
            created = before is None
            return compose.fresh(draft, _tags(draft, before), before, ask.agent_id, ms_of(stamp))

        version = await self._ring.write(
            group,
            id,
            old,
            make,
            model=decision.model,
            request=request,
            deps=self._answers.deps(token, decision.model),
            seen=None if token is None else token.needs(group),
            local=not advisory,
            conditional=advisory,
        )
        return self._answers.written(token, group, version, decision.model, created=created, advisory=advisory)

    async def _opened(self, ask: Ask, group: GroupId) -> Token | None:
        """The caller's token, once this replica has applied what it names of the group's log."""
        token = self._sessions.open(ask.token)
        if token is not None and group in token.index:
            await require_log(self._log, token, group, ask.max_wait_ms)
        return token

    def _put_command(
        self,
        ask: Ask,
        id: str,
        draft: Draft,
        expect: Expect,
        tags: tuple[str, ...],
        request: bytes,
        *,
        demote: bool,
    ) -> PutMemory:
        return PutMemory(
            id=id,
            memory=compose.fresh(draft, tags, None, ask.agent_id, 0),
            keep_tags=draft.tags is UNSET,
            expected=Condition(expect.version, expect.absent),
            request=request[:DIGEST_BYTES],
            fingerprint=request[DIGEST_BYTES:],
            agent=ask.agent_id,
            demote=demote,
            guards=ask.guards,
        )

    # ── changing ──────────────────────────────────────────────────────────────────────────────────────────────

    async def patch(self, group: GroupId, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer:
        """See `Memories.patch`."""
        token = await self._opened(ask, group)
        request = b"" if ask.idempotency_key is None else request_of(ask.idempotency_key, "patch", id, patch, expect)
        if request and (replay := await self._replays.find(ask, token, group, id, request)) is not None:
            return replay
        stored, old = await self._to_change(ask, group, id)
        tags = stored.tags if patch.tags is UNSET else patch.tags
        decision = self._router.write(tags, ask.consistency)
        if self._replica.strong(group, id) is not None or decision.path is Path.STRONG:
            command = self._patch_command(ask, id, patch, expect, request, demote=decision.path is Path.RING)
            return await self._promotion.propose(token, group, command, expect, decision.model)
        _refuse_guards(ask)
        check(expect, old, self._clock.wall_ms())

        def make(base: RingRecord | None, stamp: int) -> Memory:
            winner = shown(base, self._clock.wall_ms())
            if winner is None or winner.memory is None:
                raise NotFound(f"memory {id!r} was deleted meanwhile", details={"confirmed": True})
            return compose.changed(winner.memory, patch, ask.agent_id, ms_of(stamp))

        advisory = expect.version is not None
        version = await self._ring.write(
            group,
            id,
            old,
            make,
            model=decision.model,
            request=request,
            deps=self._answers.deps(token, decision.model),
            seen=None if token is None else token.needs(group),
            local=False,
            conditional=advisory,
        )
        return self._answers.written(token, group, version, decision.model, advisory=advisory)

    async def _to_change(self, ask: Ask, group: GroupId, id: str) -> tuple[Memory, RingRecord | None]:
        """The memory that a patch would change, and the ring's record of it, as of now. Raises NotFound."""
        old = None
        if self._replica.strong(group, id) is None:
            old = await self._ring.merged(group, id)
        stored = shown_memory(self._replica.strong(group, id), old, self._clock.wall_ms())
        if stored is not None:
            return stored, old
        confirmed = await self._confirmed(ask, group)
        stored = shown_memory(self._replica.strong(group, id), None, self._clock.wall_ms())
        if stored is None:
            raise NotFound(f"no memory {id!r}", details={"confirmed": confirmed})
        return stored, None

    async def _confirmed(self, ask: Ask, group: GroupId) -> bool:
        """Pass the group's barrier, so that a strong memory this replica has not applied yet is seen; False when
        there is no leader to ask in time."""
        try:
            await self._strong.barrier(group, max(ask.max_wait_ms, 1))
        except Unavailable:
            return False
        return True

    def _patch_command(
        self, ask: Ask, id: str, patch: Patch, expect: Expect, request: bytes, *, demote: bool
    ) -> PatchMemory:
        fields = compose.changes(patch)
        if "content" in fields:
            fields["content_sha256"] = compose.content_digest(fields["content"])
        return PatchMemory(
            id=id,
            changes=fields,
            expected=Condition(expect.version, expect.absent),
            request=request[:DIGEST_BYTES],
            fingerprint=request[DIGEST_BYTES:],
            agent=ask.agent_id,
            demote=demote,
            guards=ask.guards,
        )

    # ── deleting ──────────────────────────────────────────────────────────────────────────────────────────────

    async def delete(self, group: GroupId, ask: Ask, id: str, expect: Expect) -> Answer:
        """See `Memories.delete`."""
        token = await self._opened(ask, group)
        request = b"" if ask.idempotency_key is None else request_of(ask.idempotency_key, "delete", id, None, expect)
        if request and (replay := await self._replays.find(ask, token, group, id, request)) is not None:
            replay.stored = None
            return replay
        advisory = expect.version is not None
        old, local = await self._to_delete(ask, group, id, advisory=advisory)
        if self._replica.strong(group, id) is not None:
            command = DeleteMemory(
                id=id,
                expected=Condition(expect.version, expect.absent),
                request=request[:DIGEST_BYTES],
                fingerprint=request[DIGEST_BYTES:],
                agent=ask.agent_id,
                guards=ask.guards,
            )
            return await self._promotion.propose(token, group, command, expect, Model.STRONG)
        _refuse_guards(ask)
        check(expect, old, self._clock.wall_ms())
        winner = shown(old, self._clock.wall_ms())
        model = self._router.write(winner.memory.tags if winner and winner.memory else (), None).model
        if old is None:
            return Answer(model=model)
        # What is gone here may be gone here only (a delete that found no quorum), so it is said again to a quorum.
        version = await self._ring.write(
            group,
            id,
            old,
            lambda base, stamp: None,
            model=model,
            request=request,
            deps=self._answers.deps(token, model),
            seen=None if token is None else token.needs(group),
            local=local,
            conditional=advisory,
        )
        return self._answers.written(token, group, version, model, advisory=advisory)

    async def _to_delete(
        self, ask: Ask, group: GroupId, id: str, *, advisory: bool
    ) -> tuple[RingRecord | None, bool]:
        """The ring's record of what a delete would remove, and whether it is the stored one as it stands. An id that
        is not here is looked for on a quorum and behind the group's barrier before it counts as gone."""
        if self._replica.strong(group, id) is not None:
            return None, True
        old = self._replica.record(group, id)
        if not advisory and shown(old, self._clock.wall_ms()) is not None:
            return old, True
        old = await self._ring.merged(group, id)
        if shown(old, self._clock.wall_ms()) is None:
            await self._strong.barrier(group, max(ask.max_wait_ms, 1))
        return old, False


def _refuse_guards(ask: Ask) -> None:
    """The ring has no order of events in which a token could be current. Raises InvalidRequest."""
    if ask.guards:
        raise InvalidRequest(
            "guard: this memory lives on the ring, which cannot check fencing tokens; give it a tag that demands the "
            "strong path, or write it in a transaction",
            field="guard",
        )


def _tags(draft: Draft, stored: Memory | None) -> tuple[str, ...]:
    """A draft's tags; left out, those that are stored."""
    if draft.tags is not UNSET:
        return draft.tags
    return () if stored is None else stored.tags
