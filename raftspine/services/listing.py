"""Lists over all shard groups, wherever they are kept, that still show a caller its own writes.

Each group is read on one replica: this node where it holds the group, else a peer that does. Before a group is read
the replica must have seen what the session's token names; a caller without a token gets the same by having the
replica catch up with what N-W+1 replicas have seen at that moment and pass the group's read barrier.
`consistency=eventual` skips both.

A page is cut after merging, so the cursor is a place in the order, not in a node: the next page may be served by
other replicas. A memory that changes between pages appears at most once in id order.
"""

import asyncio
from collections import defaultdict
from typing import Any

from raftspine.core.dots import Vector
from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.errors import Misdirected, SpineError, Unavailable
from raftspine.model import GroupId, Model, NodeId
from raftspine.ports import Clock, ReplicatedLog, Rpc
from raftspine.services.forward import Forwarder
from raftspine.services.replica import Needs, RingReplica
from raftspine.services.ring import RingPath
from raftspine.services.sessions import log_applied
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology
from raftspine.services.values import Ask, ListQuery, Page, Stored
from raftspine.storage import memories as rows


class Listing:
    """Pages of memories for callers of this node."""

    def __init__(
        self,
        router: Router,
        replica: RingReplica,
        ring: RingPath,
        strong: StrongPath,
        log: ReplicatedLog,
        topology: Topology,
        forwarder: Forwarder,
        rpc: Rpc,
        clock: Clock,
        *,
        barrier_ms: int,
    ) -> None:
        self._barrier_ms = barrier_ms
        self._router = router
        self._replica = replica
        self._ring = ring
        self._strong = strong
        self._log = log
        self._topology = topology
        self._forwarder = forwarder
        self._rpc = rpc
        self._clock = clock
        rpc.serve("ring.seen", self._serve_seen)

    async def page(self, ask: Ask, token: Token | None, query: ListQuery) -> Page:
        """Raises InvalidRequest for a malformed cursor, Unavailable when a group cannot be read as promised."""
        everything = self._topology.group_ids()
        here = [group for group in everything if self._replica.serves(group)]
        away = [group for group in everything if not self._replica.serves(group)]
        pages = await asyncio.gather(
            *([self.local(ask, token, query, here)] if here else []),
            *([self._there(ask, query, away)] if away else []),
        )
        return pages[0] if len(pages) == 1 else merge_pages(list(pages), query)

    async def _there(self, ask: Ask, query: ListQuery, groups: list[GroupId]) -> Page:
        """A page of groups that only others hold; a replica that cannot serve one is passed over for the next."""
        pages: list[Page] = []
        tried: dict[GroupId, set[NodeId]] = {group: set() for group in groups}
        problem: SpineError | None = None
        while tried:
            asked = list(self._split(tried, problem).items())
            calls = (self._forwarder.page(peer, ask, query, wanted) for peer, wanted in asked)
            for (peer, wanted), page in zip(asked, await asyncio.gather(*calls, return_exceptions=True), strict=True):
                if isinstance(page, Page):
                    pages.append(page)
                    for group in wanted:
                        del tried[group]
                elif isinstance(page, Unavailable):
                    problem = page
                    for group in wanted:
                        tried[group].add(peer)
                else:
                    raise page
        return merge_pages(pages, query)

    async def local(self, ask: Ask, token: Token | None, query: ListQuery, groups: list[GroupId]) -> Page:
        """A page of groups this node holds. Raises Misdirected for one it does not."""
        if not all(self._replica.serves(group) for group in groups):
            raise Misdirected(
                "this node does not hold the shard group either", details={"epoch": self._topology.epoch}
            )
        if ask.consistency is not Model.EVENTUAL:
            await asyncio.gather(*(self._current(ask, token, group) for group in groups))
        found = rows.page(self._replica.engine, groups, query, self._clock.wall_ms())
        items = [
            Stored(id, memory, version, Model.STRONG if strong else self._router.on_ring(memory.tags))
            for id, memory, version, strong in found.items
        ]
        return Page(items, found.next)

    async def _current(self, ask: Ask, token: Token | None, group: GroupId) -> None:
        """Wait until this replica may be read for this caller."""
        if token is None:
            seen, _ = await asyncio.gather(self._seen_by_others(group), self._strong.barrier(group, self._barrier_ms))
            needs: list[Needs] = list(seen)
        else:
            needs = [token.needs(group)]
            if group in token.wide or not self._replica.level(group):
                needs += await self._seen_by_others(group)
            if not await log_applied(self._log, token, group, ask.max_wait_ms):
                raise _behind(group)
        for need in needs:
            if not await self._replica.covered(group, need, max(ask.max_wait_ms, 1)):
                raise _behind(group)

    async def _seen_by_others(self, group: GroupId) -> list[Vector]:
        """The vectors of enough other replicas to have met every acknowledged write. Whole vectors: what one holds
        above a gap was acknowledged all the same."""
        needed = self._ring.others_to_read(group)
        answers = await self._ring.ask(self._ring.peers(group), "ring.seen", group, needed)
        return [Vector.from_wire(wire) for wire in answers]

    def _serve_seen(self, peer: NodeId, body: Any) -> Any:
        return self._replica.vector(GroupId(body)).to_wire()

    def _split(self, groups: dict[GroupId, set[NodeId]], problem: SpineError | None) -> dict[NodeId, list[GroupId]]:
        """Whom to ask for which groups, leaving out who failed before. Raises `problem` when nobody is left."""
        there: dict[NodeId, list[GroupId]] = defaultdict(list)
        for group, failed in groups.items():
            live = [n for n in self._topology.replicas(group) if n not in failed and self._rpc.connected(n)]
            if not live:
                raise problem or Unavailable(
                    f"no replica of shard group {group} can be reached", code="no_quorum", retry_after_ms=500
                )
            there[live[0]].append(group)
        return there


def merge_pages(pages: list[Page], query: ListQuery) -> Page:
    """One page out of several over disjoint groups, in the query's order."""
    by_time = query.updated_since_ms is not None

    def place(item: Stored) -> Any:
        return (item.memory.updated_at_ms, item.id) if by_time else item.id

    items = sorted((item for page in pages for item in page.items), key=place)
    more = len(items) > query.limit or any(page.next is not None for page in pages)
    items = items[: query.limit]
    if not more or not items:
        return Page(items, None)
    last = items[-1]
    return Page(items, rows.cursor(last.id, last.memory.updated_at_ms if by_time else None))


def _behind(group: GroupId) -> SpineError:
    return Unavailable(
        "this replica has not yet seen everything this caller wrote",
        code="session_unavailable",
        details={"group": group},
        retry_after_ms=200,
    )
