"""Questions that only a group's leader can answer, asked from any node.

What a lease has left is known to one node, the leader that runs its timer (keeper.py), and to nobody else; and an
answer about coordination must not be older than its question. So every read, check and renewal travels to the
leader, which proves by a quorum, asked after the question arrived, that it still is one. The rule: these calls may
be repeated freely, for a renewal heard twice is one heard once, so nothing here ends as *unknown*: there is an
answer or there is none (Unavailable), and never a guess.
"""

from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from raftspine.errors import SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, ReplicatedLog, Rpc
from raftspine.services.barriers import no_leader
from raftspine.services.deadlines import Bell, Late, within
from raftspine.services.leaders import HURRY, Leaders
from raftspine.services.strong import WORTH_RETRYING
from raftspine.services.topology import Topology

RECHECK_SECONDS = 0.1
"""How long to wait for news of a leader before looking again without news."""

Handler = Callable[..., Awaitable[Any]]
"""Called at the leader with the group and the question's arguments, as msgpack carries them (lists for tuples)."""


class AtLeader:
    """Calls to the leaders of shard groups. `news` rings when a leader or a link changed."""

    def __init__(
        self,
        node: NodeId,
        log: ReplicatedLog,
        rpc: Rpc,
        topology: Topology,
        clock: Clock,
        *,
        news: Bell,
        timeout_ms: int,
    ) -> None:
        self._node = node
        self._rpc = rpc
        self._now = clock.monotonic
        self._leaders = Leaders(node, log, rpc, topology)
        self._news = news
        self.timeout_ms = timeout_ms
        self._handlers: dict[str, Handler] = {}

    def serve(self, method: str, handler: Handler) -> None:
        """Have `handler(group, *arguments)` answer at the leader."""
        self._handlers[method] = handler

        async def arrived(peer: NodeId, body: Any) -> Any:
            group, left_ms, hops, arguments = body
            leader = self._leaders.leader(group)
            if leader == self._node:
                try:
                    return await self._here(GroupId(group), method, arguments, left_ms / 1000)
                except Late:
                    raise _unanswered(group, leader, None) from None
            if leader is None or hops < 1:
                raise no_leader(group, leader)
            return await self.ask(GroupId(group), method, *arguments, deadline_ms=left_ms, hops=0)

        self._rpc.serve(method, arrived)

    def leader_changed(self, group: GroupId, leader: NodeId | None) -> None:
        """The log itself has news: what others said is out of date."""
        self._leaders.forget(group)

    async def ask(
        self, group: GroupId, method: str, *arguments: Any, deadline_ms: int | None = None, hops: int = 1
    ) -> Any:
        """The leader's answer. Unavailable when there is none within the deadline (None: the configured one)."""
        loop = get_running_loop()
        ends = self._now() + (self.timeout_ms if deadline_ms is None else deadline_ms) / 1000
        hurry = HURRY
        refused: SpineError | None = None
        while True:
            asked, spare = self._leaders.whom(group, hops)
            left = ends - self._now()
            if left <= 0:
                raise _unanswered(group, asked, refused)
            try:
                return await self._once(group, asked, spare, method, arguments, left)
            except Late:
                raise _unanswered(group, asked, refused) from None
            except (Unavailable, Unknown) as error:
                if error.code not in WORTH_RETRYING and not isinstance(error, Unknown):
                    raise
                refused = error
                self._leaders.learn(group, asked, error)
            if hurry and self._leaders.whom(group, hops)[0] not in (None, asked):
                hurry -= 1
                continue
            hurry = HURRY
            await self._news.heard(max(0.0, min(ends - self._now(), RECHECK_SECONDS)), loop)

    async def _once(
        self, group: GroupId, asked: NodeId | None, hops: int, method: str, arguments: tuple[Any, ...], left: float
    ) -> Any:
        if asked is None:
            raise no_leader(group)
        if asked == self._node:
            return await self._here(group, method, arguments, left)
        left_ms = int(left * 1000) + 1
        return await self._rpc.call(asked, method, (group, left_ms, hops, arguments), timeout_ms=left_ms)

    async def _here(self, group: GroupId, method: str, arguments: Sequence[Any], left: float) -> Any:
        """Answer as the leader; whoever asked does not wait longer than this."""
        loop = get_running_loop()
        return await within(loop.create_task(_run(self._handlers[method](group, *arguments))), left, loop)


async def _run(work: Awaitable[Any]) -> Any:
    return await work


def _unanswered(group: GroupId, asked: NodeId | None, refused: SpineError | None) -> Unavailable:
    if asked is None:
        return no_leader(group)
    return Unavailable(
        f"the leader of shard group {group} did not answer in time",
        code="no_quorum",
        details={"group": group, "leader": asked, **({} if refused is None else {"cause": refused.code})},
        retry_after_ms=500,
    )
