"""Transactions: compare, then write or else write, decided in one log entry of one shard group.

The rule: everything a transaction names must live in one group, and that is found out before anything is proposed;
a lock elsewhere would look unheld to the log that decides, and its guard would be refused for the wrong reason.
"""

from typing import Any

from raftspine.core.ledger.memory_commands import Guard, PutMemory, TxnOp
from raftspine.core.ledger.task_commands import Compare, Txn
from raftspine.model import GroupId
from raftspine.services.coordination.composed import Composed
from raftspine.services.coordination.door import Caller, Door, cross_group
from raftspine.services.topology import Topology


class Txns:
    def __init__(self, door: Door, composed: Composed, topology: Topology) -> None:
        self._door = door
        self._composed = composed
        self._topology = topology

    async def run(
        self,
        caller: Caller,
        compare: tuple[Compare, ...],
        then: tuple[TxnOp, ...],
        otherwise: tuple[TxnOp, ...],
        guards: tuple[Guard, ...],
    ) -> dict[str, Any]:
        """succeeded, and one result for each operation of the branch that was taken."""
        named: dict[str, GroupId] = {}
        for op in (*then, *otherwise):
            tags = op.memory.tags if isinstance(op, PutMemory) else ()
            named[f"memory {op.id}"] = self._topology.group_of(op.id, caller.agent, tags)
        for one in compare:
            if one.memory:
                named.setdefault(f"memory {one.memory}", self._topology.group_of(one.memory, caller.agent))
            if one.lock:
                named[f"lock {one.lock}"] = self._door.group(one.lock)
        for guard in guards:
            named[f"lock {guard.lock}"] = self._door.group(guard.lock)
        if len(set(named.values())) > 1:
            raise cross_group("$", named)
        group = next(iter(named.values()), GroupId(0))
        outcome = await self._composed.execute(group, Txn(compare, then, otherwise, guards), caller)
        return outcome.result
