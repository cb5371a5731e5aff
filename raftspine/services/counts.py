"""How many memories each shard group holds, for statistics and for the skew between groups.

The store keeps no counters: one per group would be written with every memory, and wrong for good after the first
mistake. So rows are counted, and the rule is that counting never holds the loop: a store of millions takes seconds to
walk, in which no request would be served and no leader heard. A small store is counted on the spot. A large one is
walked in the background, a few rows at a time: a question is answered with the figures of the last walk and starts
the next one, half a minute later at most. So figures are about as old as the question before.

What counts is ids on both paths, the tombstones of deleted memories among them: exact enough to see growth and skew,
and nothing to send a bill by.
"""

import asyncio

from raftspine.model import GroupId
from raftspine.ports import Engine
from raftspine.services.replica import RingReplica
from raftspine.storage import keys
from raftspine.storage import memories as rows

SMALL_ROWS = 2_000
"""A store of up to this many rows is counted when asked: about a millisecond."""

STEP_ROWS = 500
STEP_SECONDS = 0.005
"""A walk takes so many rows (a fraction of a millisecond), then leaves the loop to others for so long."""

REST = 20
REST_SECONDS = 30.0
"""Between two walks: so many times what the last one took, and no longer than this."""


class Counts:
    """Counts the groups of one replica. `run` is its worker."""

    def __init__(self, engine: Engine, replica: RingReplica) -> None:
        self._engine = engine
        self._replica = replica
        self._walked: dict[GroupId, int] = {}
        self._asked = asyncio.Event()
        self._asked.set()

    def by_group(self) -> dict[GroupId, int]:
        """Ids per group held here: exact for a small store, else as of the last walk. Of a group that the first walk
        has not reached, what could be counted on the spot."""
        counts: dict[GroupId, int] = {}
        left = SMALL_ROWS
        for group in self._replica.groups():
            counts[group] = rows.count(self._engine, group, left + 1) if left >= 0 else 0
            left -= counts[group]
        if left < 0:
            self._asked.set()
            counts.update(self._walked)
        return counts

    async def run(self) -> None:
        """Walk at the start, and then whenever somebody has asked about a store too large to count on the spot."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            steps = 0
            for group in self._replica.groups():
                steps += await self._walk(group)
            await asyncio.sleep(min(REST * steps * STEP_SECONDS, REST_SECONDS))

    async def _walk(self, group: GroupId) -> int:
        """Count one group; the number of steps it took."""
        total = steps = 0
        for kind in (keys.RING, keys.STRONG):
            lo, hi = keys.span(kind, group)
            while found := self._engine.scan(lo, hi, limit=STEP_ROWS):
                total += len(found)
                steps += 1
                lo = found[-1][0] + b"\0"
                await asyncio.sleep(STEP_SECONDS)
        self._walked[group] = total
        return steps
