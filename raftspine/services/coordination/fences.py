"""Fences: the highest token that a resource outside has been shown."""

from raftspine.core.ledger import fence
from raftspine.core.ledger.lock_commands import RaiseFence
from raftspine.services.coordination.door import Caller, Door, Moment


class Fences:
    def __init__(self, door: Door) -> None:
        self._door = door
        door.answers("fence.highest", _highest)

    async def advance(self, caller: Caller, resource: str, token: int) -> int:
        """Show a token; the highest one seen. Conflict(`stale_token`) when a higher one was seen before."""
        command = RaiseFence(resource, token)
        outcome = await self._door.execute(self._door.group(resource), command, caller, repeatable=True)
        return int(outcome.result["highest"])

    async def highest(self, resource: str) -> int:
        """0 when none was shown."""
        return int(await self._door.read(self._door.group(resource), "fence.highest", resource))


def _highest(moment: Moment, resource: str) -> int:
    return fence.highest(moment.view, resource)
