"""The door to the ledger of coordination: which group a name belongs to, how a command is decided, what is read.

The rules: whatever is left to chance (ids of leases, sessions, claims, passages) is drawn here, before the log. A
refusal of the log becomes an error in one place (refusals.py). What is read is read at the leader, behind a barrier
that began after the question; a group without a quorum answers nothing at all, for a lock that was free a second ago
may be held now by somebody on the other side.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from raftspine.core.ledger import commands
from raftspine.core.ledger.commands import Command
from raftspine.core.ledger.outcomes import Outcome
from raftspine.core.ledger.state import LedgerView
from raftspine.core.partition import coordination_key, group_of
from raftspine.errors import InvalidRequest, NotFound
from raftspine.model import GroupId
from raftspine.ports import Clock, Engine, Entropy, ReplicatedLog
from raftspine.services.coordination.keeper import Keeper
from raftspine.services.coordination.leader import AtLeader
from raftspine.services.coordination.refusals import refusal
from raftspine.services.ledger_host import LedgerHost, Stored
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology

READ = "coordination.read"
RENEW = "coordination.renew"
REMAINING = "coordination.remaining"
ID_BYTES = 12


class Caller(NamedTuple):
    """Who asks. request, fingerprint: digests of the Idempotency-Key and of what was asked under it, or empty.
    groups: those the caller belongs to, which approvals may ask for."""

    agent: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    groups: tuple[str, ...] = ()


class Moment(NamedTuple):
    """A group's state at its leader, behind a barrier. now_ms: a time not behind the log's. remaining: milliseconds a
    session has left, by its id."""

    view: LedgerView
    now_ms: int
    remaining: Callable[[str], int | None]
    group: GroupId


Query = Callable[..., Any]
"""Called with a Moment and the question's arguments; returns plain data (what msgpack carries)."""


class Door:
    """What the services of coordination stand on."""

    def __init__(
        self,
        *,
        strong: StrongPath,
        leader: AtLeader,
        log: ReplicatedLog,
        keeper: Keeper,
        host: LedgerHost,
        topology: Topology,
        engine: Engine,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._strong = strong
        self._leader = leader
        self._log = log
        self._keeper = keeper
        self._host = host
        self._topology = topology
        self._engine = engine
        self._entropy = entropy
        self.clock = clock
        self._queries: dict[str, Query] = {}
        leader.serve(READ, self._serve_read)
        leader.serve(RENEW, self._serve_renew)
        leader.serve(REMAINING, self._serve_remaining)

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────

    def group(self, name: str) -> GroupId:
        """The shard group of a lock, election, gate, queue, fence or session. Raises Unavailable without a table."""
        return group_of(coordination_key(name), len(self._topology.group_ids()))

    def one_group(self, names: Sequence[str], field: str) -> GroupId:
        """The group all these names share. InvalidRequest(`cross_group`) when they do not."""
        groups = {name: self.group(name) for name in names}
        if len(set(groups.values())) != 1:
            raise cross_group(field, groups)
        return next(iter(groups.values()))

    def groups(self) -> tuple[GroupId, ...]:
        return self._topology.group_ids()

    def id(self) -> str:
        return self._entropy.token_bytes(ID_BYTES).hex()

    # ── deciding ────────────────────────────────────────────────────────────────────────────────────────────

    async def decide(
        self, group: GroupId, command: Command, caller: Caller, *, repeatable: bool = False
    ) -> tuple[Outcome, int]:
        """What the log made of a command, refusals included, and the index it was decided at. repeatable: deciding it
        twice is deciding it once. Raises Unavailable, Unknown."""
        command = replace(command, request=caller.request, fingerprint=caller.fingerprint, agent=caller.agent)
        return await self._strong.execute(
            group, commands.encode(command), replayable=repeatable or bool(caller.request)
        )

    async def execute(self, group: GroupId, command: Command, caller: Caller, *, repeatable: bool = False) -> Outcome:
        """As `decide`; raises what a refusal means."""
        outcome, _ = await self.decide(group, command, caller, repeatable=repeatable)
        refused = refusal(outcome)
        if refused is not None:
            raise refused
        return outcome

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    def answers(self, name: str, query: Query) -> None:
        """Have `query(moment, *arguments)` answer to `read(name)`."""
        self._queries[name] = query

    async def read(self, group: GroupId, name: str, *arguments: Any) -> Any:
        """A query's answer, linearizable. Raises Unavailable."""
        return await self._leader.ask(group, READ, name, *arguments)

    def look(self, group: GroupId, name: str, *arguments: Any) -> Any:
        """A query's answer from this node's replica as it is, which may be behind."""
        return self._queries[name](self._moment(group), *arguments)

    def _moment(self, group: GroupId) -> Moment:
        now_ms = max(self.clock.wall_ms(), self._host.applied(group).time_ms)
        return Moment(
            Stored(self._engine, group), now_ms, lambda session: self._keeper.remaining_ms(group, session), group
        )

    async def _serve_read(self, group: GroupId, name: str, *arguments: Any) -> Any:
        query = self._queries.get(name)
        if query is None:
            raise NotFound(f"this node's version cannot answer {name}")
        await self._log.wait_applied(group, await self._log.read_index(group))
        return query(self._moment(group), *arguments)

    # ── renewing ────────────────────────────────────────────────────────────────────────────────────────────

    async def renew(self, group: GroupId, session: str) -> int:
        """Hear of a session; its TTL in milliseconds, which counts from before the call. NotFound, Unavailable."""
        return int(await self._leader.ask(group, RENEW, session))

    async def _serve_renew(self, group: GroupId, session: str) -> int:
        return (await self._keeper.renew(group, session)).ttl_ms

    async def remaining_ms(self, group: GroupId, session: str) -> int | None:
        """How long a session has left by its leader's timer, for a hint: without a proof that it still leads."""
        found = await self._leader.ask(group, REMAINING, session)
        return None if found is None else int(found)

    async def _serve_remaining(self, group: GroupId, session: str) -> int | None:
        return self._keeper.remaining_ms(group, session)


def cross_group(field: str, groups: dict[str, GroupId]) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: these lie in different shard groups; put the same text in {{braces}} into each name to keep them "
        "together",
        field=field,
        code="cross_group",
        groups=dict(groups),
    )
