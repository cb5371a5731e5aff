"""Commands that write memories among other things: completions of tasks, and transactions.

Each memory that such a command writes has to bring its picture of the ring (pictures.py), which only a replica of the
group can draw. The rule: such a command is completed and proposed by a replica; another node hands it over once, with
its deadline, and reports an answer that never came as *unknown*, unless the command may be repeated.
"""

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from msgspec.structs import replace

from raftspine.core.ledger import commands, outcomes, task_rows
from raftspine.core.ledger.memory_commands import GetMemory, TxnOp
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.task_commands import CompleteTask, Txn
from raftspine.core.ledger.task_commands import Picture as Row
from raftspine.errors import Corrupt, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Engine, Rpc
from raftspine.services.coordination.door import Caller, Door
from raftspine.services.coordination.refusals import refusal
from raftspine.services.ledger_host import Stored
from raftspine.services.pictures import Picture, Pictures
from raftspine.services.promotion import ATTEMPTS, changing
from raftspine.services.replica import Promoted
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology

COMPOSED = "coordination.composed"

log = structlog.get_logger(__name__)

Command = Txn | CompleteTask


class Composed:
    def __init__(
        self, door: Door, pictures: Pictures, strong: StrongPath, rpc: Rpc, topology: Topology, engine: Engine
    ) -> None:
        self._door = door
        self._pictures = pictures
        self._strong = strong
        self._rpc = rpc
        self._topology = topology
        self._engine = engine
        rpc.serve(COMPOSED, self._serve)

    async def execute(self, group: GroupId, command: Command, caller: Caller) -> Outcome:
        """As Door.execute, for a command that may write memories."""
        command = replace(command, request=caller.request, fingerprint=caller.fingerprint, agent=caller.agent)
        outcome = await (self._here if self._topology.serves(group) else self._there)(group, command)
        refused = refusal(outcome)
        if refused is not None:
            raise refused
        return outcome

    async def _here(self, group: GroupId, command: Command) -> Outcome:
        for _ in range(ATTEMPTS):
            try:
                seen = {id: await self._pictures.of(group, id) for id in await self._written(group, command)}
            except Promoted:
                await self._strong.barrier(group)
                continue
            whole = _complete(command, seen)
            outcome, index = await self._strong.execute(
                group, commands.encode(whole), replayable=bool(command.request)
            )
            if outcome.status is Status.RING_BEHIND:
                await self._strong.barrier(group)
                continue
            if refusal(outcome) is None and any(picture.ring is not None for picture in seen.values()):
                await self._pictures.spread(group, index)
            return outcome
        raise changing(None)

    async def _written(self, group: GroupId, command: Command) -> Iterable[str]:
        """Ids this command may write. A task's own come from its row, which never changes before its completion; a
        replica that does not have it yet catches up first."""
        if isinstance(command, Txn):
            ops: tuple[TxnOp, ...] = (*command.then, *command.otherwise)
            return dict.fromkeys(op.id for op in ops if not isinstance(op, GetMemory))
        if task_rows.read(Stored(self._engine, group), command.queue, command.id) is None:
            await self._strong.barrier(group)
        body = task_rows.body(Stored(self._engine, group), command.queue, command.id)
        return dict.fromkeys(op.id for op in (*body.then, *command.then))

    async def _there(self, group: GroupId, command: Command) -> Outcome:
        refused: Unavailable | None = None
        for peer in self._topology.replicas(group):
            if not self._rpc.connected(peer):
                continue
            timeout_ms = self._strong.timeout_ms
            try:
                data = await self._rpc.call(peer, COMPOSED, (group, commands.encode(command)), timeout_ms=timeout_ms)
            except Unknown:
                if not command.request:
                    raise
            except Unavailable as error:
                refused = error
            else:
                return outcomes.decode(data)
        raise refused or Unavailable(
            f"no replica of shard group {group} can be reached", code="no_quorum", retry_after_ms=500
        )

    async def _serve(self, peer: NodeId, body: Any) -> bytes:
        group, data = body
        command = commands.decode(data)
        if not isinstance(command, Txn | CompleteTask):
            raise Corrupt(f"{peer} sent a command that writes no memories")
        if not self._topology.serves(group):
            raise Unavailable(f"shard group {group} is not kept here", code="not_ready")
        return outcomes.encode(await self._here(GroupId(group), command))


def _complete(command: Command, seen: dict[str, Picture]) -> Command:
    if isinstance(command, CompleteTask):
        return replace(command, pictures=tuple(Row(id, *picture) for id, picture in seen.items()))
    pictured: Callable[[TxnOp], TxnOp] = lambda op: (  # noqa: E731 - one expression, used twice
        op if isinstance(op, GetMemory) else replace(op, ring=seen[op.id].ring, log_seen=seen[op.id].log_seen)
    )
    return replace(
        command, then=tuple(map(pictured, command.then)), otherwise=tuple(map(pictured, command.otherwise))
    )
