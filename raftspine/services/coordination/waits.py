"""Waiting for something to happen in a shard group, without asking again and again.

A long poll must end when the thing it waits for has happened: not at the next tick of a timer, and not while what is
known is still true. So a waiter looks at the state of this node's replica, and is woken by the very rows that entries
write there (LedgerHost.on_rows). The rule that loses no wake-up: register first, look then, sleep last.

A node without a replica asks one that has it, for at most ASKED_SECONDS at a time, so that a lost link costs a
repeated question and never a lost waiter. How many may wait at once is bounded, for each holds memory and a
connection.
"""

from asyncio import Future, get_running_loop
from collections.abc import Sequence
from typing import Any

import structlog

from raftspine.core.ledger.state import SetRow
from raftspine.errors import Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, ReplicatedLog, Rpc
from raftspine.services.coordination.door import Door
from raftspine.services.deadlines import LEAST_SECONDS, Late, within
from raftspine.services.topology import Topology

WAIT = "coordination.wait"
ASKED_SECONDS = 10.0
SPARE_MS = 1000
"""How much longer than the wait itself its answer may take to travel."""
MOST = 50_000

Key = tuple[GroupId, str, bytes]
"""A row: group, table, key."""

log = structlog.get_logger(__name__)


class Waits:
    """Who waits for which row. `counted`: how many wait on this node now, by what they wait for."""

    def __init__(self, door: Door, replicated: ReplicatedLog, rpc: Rpc, topology: Topology, clock: Clock) -> None:
        self._door = door
        self._log = replicated
        self._rpc = rpc
        self._topology = topology
        self._now = clock.monotonic
        self._waiting: dict[Key, list[Future[None]]] = {}
        self.counted: dict[str, int] = {}
        self.draining = False
        rpc.serve(WAIT, self._serve)

    # ── being woken ─────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, group: GroupId, rows: Sequence[SetRow]) -> None:
        """Rows an entry has just written here."""
        if not self._waiting:
            return
        for row in rows:
            self._wake((group, row.table, row.key))

    def drain(self) -> None:
        """This node is stopping: end all waits as if their time were up."""
        self.draining = True
        for key in list(self._waiting):
            self._wake(key)

    def replaced(self, group: GroupId) -> None:
        """The state of a group came from elsewhere: everybody looks again."""
        for key in [key for key in self._waiting if key[0] == group]:
            self._wake(key)

    def _wake(self, key: Key) -> None:
        for waiter in self._waiting.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────

    async def until(
        self, group: GroupId, table: str, key: bytes, query: str, *arguments: Any, seconds: float, index: int = 0
    ) -> Any:
        """The first answer of a query that is not None, looked for whenever the row changes; None when the time is
        up. index: what the replica must have applied before its first look counts. Raises Unavailable when nobody can
        be asked."""
        if self._topology.serves(group):
            return await self._here(group, table, key, query, arguments, seconds, index)
        ends = self._now() + seconds
        while not self.draining:
            left = min(ends - self._now(), ASKED_SECONDS)
            if left <= LEAST_SECONDS:
                return None
            found = await self._there(group, table, key, query, arguments, left, index)
            if found is not None:
                return found
        return None

    async def _here(
        self, group: GroupId, table: str, key: bytes, query: str, arguments: Sequence[Any], seconds: float, index: int
    ) -> Any:
        loop = get_running_loop()
        ends = self._now() + seconds
        if sum(self.counted.values()) >= MOST:
            raise Unavailable("too many are waiting at this node", code="overloaded", retry_after_ms=1000)
        self.counted[query] = self.counted.get(query, 0) + 1
        try:
            await within(self._log.wait_applied(group, index), seconds, loop)
            while True:
                waiter: Future[None] = loop.create_future()
                place = self._waiting.setdefault((group, table, key), [])
                place.append(waiter)
                try:
                    found = self._door.look(group, query, *arguments)
                    if found is not None or self.draining:
                        return found
                    await within(waiter, ends - self._now(), loop)
                finally:
                    self._forget((group, table, key), waiter)
        except Late:
            return None
        finally:
            self.counted[query] -= 1

    def _forget(self, key: Key, waiter: "Future[None]") -> None:
        place = self._waiting.get(key)
        if place is not None and waiter in place:
            place.remove(waiter)
            if not place:
                del self._waiting[key]

    async def _there(
        self, group: GroupId, table: str, key: bytes, query: str, arguments: Sequence[Any], seconds: float, index: int
    ) -> Any:
        wait_ms = int(seconds * 1000)
        body = (group, table, key, query, list(arguments), wait_ms, index)
        refused: Unavailable | None = None
        for peer in self._topology.replicas(group):
            if not self._rpc.connected(peer):
                continue
            try:
                return await self._rpc.call(peer, WAIT, body, timeout_ms=wait_ms + SPARE_MS)
            except Unavailable as error:
                refused = error
            except Unknown as error:
                log.info("a wait was cut off", group=group, peer=peer, reason=error.message)
                return None
        raise refused or Unavailable(
            f"no replica of shard group {group} can be reached", code="no_quorum", retry_after_ms=500
        )

    async def _serve(self, peer: NodeId, body: Any) -> Any:
        group, table, key, query, arguments, wait_ms, index = body
        if self.draining or not self._topology.serves(group):
            raise Unavailable(f"nobody can wait for shard group {group} here", code="not_ready")
        return await self._here(GroupId(group), table, key, query, arguments, wait_ms / 1000, index)
