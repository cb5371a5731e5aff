"""What the log has to be told of the ring before it may write a memory.

The ledger decides alike on every replica only if the command brings what the proposer saw of the id on a quorum of
the ring, and up to which demotion (promotion.py says why). This is where that is looked up, for a write on its own
and for the writes inside a transaction or a task's completion.
"""

import asyncio
from typing import NamedTuple

import structlog

from raftspine.errors import Unavailable, Unknown
from raftspine.model import GroupId, RingRecord
from raftspine.ports import Clock, ReplicatedLog
from raftspine.services.deadlines import Late, within
from raftspine.services.lineage import origin_of_log
from raftspine.services.replica import RingReplica
from raftspine.services.ring import RingPath
from raftspine.services.shown import live

SPREAD_SECONDS = 2.0
"""How long a promotion waits for a quorum to apply it; a follower that is up does so within a heartbeat."""

log = structlog.get_logger()


class Picture(NamedTuple):
    """`ring`: the joined record of a quorum, None when there is none or the log keeps the id; `log_seen`: the last
    demotion that was seen."""

    ring: RingRecord | None = None
    log_seen: int = 0


class Pictures:
    def __init__(self, replica: RingReplica, ring: RingPath, replicated: ReplicatedLog, clock: Clock) -> None:
        self._replica = replica
        self._ring = ring
        self._log = replicated
        self._clock = clock

    async def of(self, group: GroupId, id: str) -> Picture:
        """What a quorum of the ring holds of an id, unless the log keeps it already. A record that only this
        replica's log lacks is found by the ledger itself, whatever is sent along. Raises Promoted, Unavailable."""
        if live(self._replica.strong(group, id), self._clock.wall_ms()) is not None:
            return Picture()
        # Gaps below the base may hide the very demotion that must have been seen.
        seen = self._replica.vector(group).base.get(origin_of_log(group), 0)
        return Picture(await self._ring.merged(group, id), seen)

    async def spread(self, group: GroupId, index: int) -> None:
        """Have W replicas apply a promotion; callers without a token depend on it. It is decided already, so a
        replica that is slow now changes nothing about the answer; such a caller, at such a replica, is told of the
        promotion when it has caught up."""
        loop = asyncio.get_running_loop()
        try:
            await within(self._log.wait_applied(group, index), SPREAD_SECONDS, loop)
            await asyncio.gather(self._replica.engine.commit(durable=True), self._ring.applied(group, index))
        except (Late, Unavailable, Unknown) as error:
            log.info("a promotion is not applied on a quorum yet", group=group, index=index, reason=str(error))
