"""The crossing between ring and log: promotions, demotions, and whoever meets one half way.

The rule is *one live id, one path*, and only the log says which. A memory changes its path by an entry of its group's
log; the entry carries what the proposer saw of the id on a quorum of the ring, and up to which demotion, so that
every replica decides alike what was superseded and what is a conflict. After a promotion a quorum applies the entry
before the writer hears of it: every quorum of the ring then meets a replica that knows.

This node may lag behind the log. So whoever finds half way that the log has taken the id over (`Promoted`) waits for
what this replica missed and begins again; nothing read before that wait is written after it. Without this the same id
lives twice, and which of the two a reader gets depends on whom it asks.
"""

from collections.abc import Awaitable, Callable

from msgspec import structs

from raftspine.core.ledger import commands
from raftspine.core.ledger.commands import MemoryCommand, PatchMemory
from raftspine.core.ledger.outcomes import Status
from raftspine.core.session import Token
from raftspine.errors import SpineError, Unavailable
from raftspine.model import GroupId, Model
from raftspine.services.pictures import Pictures
from raftspine.services.refusals import refusal
from raftspine.services.replica import Promoted
from raftspine.services.sessions import Sessions
from raftspine.services.strong import StrongPath
from raftspine.services.values import Answer, Expect, Stored

ATTEMPTS = 5
"""How often an operation is built again over a newer picture of log and ring before the caller is told to retry."""


class Promotion:
    """Takes writes to the log with what the ring holds, and begins operations again that the log overtook."""

    def __init__(
        self,
        *,
        pictures: Pictures,
        strong: StrongPath,
        sessions: Sessions,
        timeout_ms: int,
    ) -> None:
        self._pictures = pictures
        self._strong = strong
        self._sessions = sessions
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
                ring, log_seen = await self._pictures.of(group, command.id)
            except Promoted:
                await self._strong.barrier(group, self._timeout_ms)
                continue
            command = structs.replace(command, ring=ring, log_seen=log_seen)
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
            await self._pictures.spread(group, index)
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


def changing(id: str | None, *, indeterminate: bool = False) -> SpineError:
    """What a caller is told whose memory changed its path at each attempt."""
    return Unavailable(
        "the memory keeps moving between ring and log",
        code="not_ready",
        details={"id": id, "indeterminate": indeterminate},
        retry_after_ms=200,
    )
