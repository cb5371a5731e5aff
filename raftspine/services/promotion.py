"""The crossing between ring and log: promotions, demotions, and whoever meets one half way.

The rule is *one live id, one path*, and only the log says which. A memory changes its path by an entry of its group's
log; the entry carries what the proposer saw of the id on a quorum of the ring, and up to which demotion, so that
every replica decides alike what was superseded and what is a conflict. After a promotion a quorum applies the entry
before the writer hears of it: every quorum of the ring then meets a replica that knows.

This node may lag behind the log. So whoever finds half way that the log has taken the id over (`Promoted`) waits for
what this replica missed and begins again; nothing read before that wait is written after it. Without this the same id
lives twice, and which of the two a reader gets depends on whom it asks.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from msgspec import structs

from raftspine.core.ledger import commands
from raftspine.core.ledger.commands import MemoryCommand, PatchMemory
from raftspine.core.ledger.outcomes import Status
from raftspine.core.session import Token
from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import GroupId, Model
from raftspine.ports import Clock, ReplicatedLog
from raftspine.services.deadlines import Late, within
from raftspine.services.lineage import origin_of_log
from raftspine.services.refusals import refusal
from raftspine.services.replica import Promoted, RingReplica
from raftspine.services.ring import RingPath
from raftspine.services.sessions import Sessions
from raftspine.services.shown import live
from raftspine.services.strong import StrongPath
from raftspine.services.values import Answer, Expect, Stored

ATTEMPTS = 5
"""How often an operation is built again over a newer picture of log and ring before the caller is told to retry."""

SPREAD_SECONDS = 2.0
"""How long a promotion waits for a quorum to apply it; a follower that is up does so within a heartbeat."""

log = structlog.get_logger()


class Promotion:
    """Takes writes to the log with what the ring holds, and begins operations again that the log overtook."""

    def __init__(
        self,
        *,
        replica: RingReplica,
        ring: RingPath,
        strong: StrongPath,
        log: ReplicatedLog,
        sessions: Sessions,
        clock: Clock,
        timeout_ms: int,
    ) -> None:
        self._replica = replica
        self._ring = ring
        self._strong = strong
        self._log = log
        self._sessions = sessions
        self._clock = clock
        self._timeout_ms = timeout_ms

    async def again(self, group: GroupId, operation: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat an operation that met `Promoted`, each time once this replica has applied what it missed. What it
        left on the ring is in the conflict log, but readers behind in the log may see it for a while; so Unavailable
        says `indeterminate` from here on."""
        try:
            for _ in range(ATTEMPTS - 1):
                await self._strong.barrier(group, self._timeout_ms)
                try:
                    return await operation()
                except Promoted:
                    continue
        except Unavailable as error:
            error.details["indeterminate"] = True
            raise
        raise changing(None, indeterminate=True)

    async def propose(
        self, token: Token | None, group: GroupId, command: MemoryCommand, expect: Expect, model: Model
    ) -> Answer:
        """Have the log decide; `model` is that of a memory which the ring keeps afterwards. When what the command
        carries of the ring is older than the id's last demotion, this replica first applies what it missed and the
        command is built again. Raises the ledger's refusals, Unavailable, Unknown."""
        for _ in range(ATTEMPTS):
            try:
                command = await self._with_ring(group, command)
            except Promoted:
                await self._strong.barrier(group, self._timeout_ms)
                continue
            outcome, index = await self._strong.execute(
                group, commands.encode(command), self._timeout_ms, replayable=bool(command.request)
            )
            if outcome.status is not Status.RING_BEHIND:
                break
            await self._strong.barrier(group, self._timeout_ms)
        else:
            raise changing(command.id)
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

    async def _with_ring(self, group: GroupId, command: MemoryCommand) -> MemoryCommand:
        """The command with what a quorum of the ring holds of its id, unless the log keeps it already. A record
        that only this replica's log lacks is found by the ledger itself, whatever is sent along."""
        if live(self._replica.strong(group, command.id), self._clock.wall_ms()) is not None:
            return structs.replace(command, ring=None, log_seen=0)
        # Gaps below the base may hide the very demotion that must have been seen.
        seen = self._replica.vector(group).base.get(origin_of_log(group), 0)
        return structs.replace(command, ring=await self._ring.merged(group, command.id), log_seen=seen)

    async def _spread(self, group: GroupId, index: int) -> None:
        """Have W replicas apply a promotion; callers without a token depend on it. It is decided already, so a
        replica that is slow now changes nothing about the answer; such a caller, at such a replica, is told of the
        promotion when it has caught up."""
        loop = asyncio.get_running_loop()
        try:
            await within(self._log.wait_applied(group, index), SPREAD_SECONDS, loop)
            await asyncio.gather(self._replica.engine.commit(durable=True), self._ring.applied(group, index))
        except (Late, Unavailable, Unknown) as error:
            log.info("a promotion is not applied on a quorum yet", group=group, index=index, reason=str(error))


def changing(id: str | None, *, indeterminate: bool = False) -> SpineError:
    """What a caller is told whose memory changed its path at each attempt."""
    return Unavailable(
        "the memory keeps moving between ring and log",
        code="not_ready",
        details={"id": id, "indeterminate": indeterminate},
        retry_after_ms=200,
    )
