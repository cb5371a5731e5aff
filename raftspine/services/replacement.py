"""Puts the present life of each node in the places its earlier ones had: one group, one step at a time.

A node that lost its Raft journal is another member now (identity.py), and until the groups count on it the cluster is
one failure away from standing still. Whoever leads a group compares its members with the table and does the next
step:

    the node's present member is unknown here ──► let it learn ──► it has about all of the log
        ──► its earlier life votes no more ──► it votes, in the same place of the order of preference

The old voter goes first because one node must not have two votes in a group. Nothing is remembered between steps:
what to do follows from the table and the group's members alone, so any leader continues what another began, and a
step carried out twice is refused the second time.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial

import structlog

from raftspine.core.repeats import Repeats
from raftspine.errors import SpineError
from raftspine.model import GroupId, MemberId, NodeId, Table, node_of
from raftspine.ports import AddLearner, Change, Promote, Remove, ReplicatedLog
from raftspine.services.topology import Topology

BUSY_SECONDS = 0.05
THROTTLED_SECONDS = 0.5
IDLE_SECONDS = 2.0
"""How long after a table that asks for something is looked at again at the latest."""

STEP_SECONDS = 5.0
"""A step that takes longer waits for a majority that is not there; what became of it is seen next time."""

log = structlog.get_logger(__name__)


class Did(Enum):
    """What a unit of work came to, and so how soon to come again."""

    BUSY = BUSY_SECONDS
    THROTTLED = THROTTLED_SECONDS
    IDLE = IDLE_SECONDS


class Replacement:
    """The worker of one node, for the groups it leads."""

    def __init__(self, node: NodeId, replicated_log: ReplicatedLog, topology: Topology) -> None:
        self._node = node
        self._log = replicated_log
        self._topology = topology
        self._repeats = Repeats()

    async def run(self) -> None:
        """Work until cancelled; a new table starts a round early."""
        loop = asyncio.get_running_loop()
        did = Did.IDLE
        while True:
            await self._topology.arrived.heard(did.value, loop)
            did = await self.step()

    async def step(self) -> Did:
        """One change in one group, if any is wanted."""
        table = self._topology.known
        if table is None:
            return Did.IDLE
        wanted = False
        for group in self._log.groups():
            if self._log.leader(group) != self._node:
                continue
            status = self._log.status(group)
            if status.role != "leader":
                continue
            caught_up = partial(self._log.caught_up, group)
            change = next_change(table.replicas(group), table, status.voters, status.learners, caught_up)
            wanted = wanted or change is not None
            if isinstance(change, (AddLearner, Promote, Remove)) and await self._carry_out(group, change):
                return Did.BUSY
        return Did.THROTTLED if wanted else Did.IDLE

    async def _carry_out(self, group: GroupId, change: Change) -> bool:
        try:
            async with asyncio.timeout(STEP_SECONDS):
                members = await self._log.change(group, change)
        except (SpineError, TimeoutError) as error:
            what = (change, error.code if isinstance(error, SpineError) else "slow")
            if self._repeats.due(group, what, asyncio.get_running_loop().time()):
                log.info("a change of members has to wait", group=group, change=change, reason=str(error))
            return False
        self._repeats.over(group)
        log.info("members changed", group=group, change=change, voters=members.voters, learners=members.learners)
        return True


WAIT = "wait"


def next_change(
    replicas: tuple[NodeId, ...],
    table: Table,
    voters: tuple[MemberId, ...],
    learners: tuple[MemberId, ...],
    caught_up: Callable[[MemberId], bool],
) -> Change | str | None:
    """The next step for one group: a change, WAIT for a learner that has not caught up, or None when all is as the
    table says."""
    speaks = {member.id: member.speaks_as for member in table.members}
    waits = False
    for learner in learners:
        if speaks.get(node_of(learner), learner) != learner:
            return Remove(learner)
    for place, node in enumerate(replicas):
        member = speaks.get(node, MemberId(node))
        earlier = [voter for voter in voters if node_of(voter) == node and voter != member]
        if member in voters:
            if earlier:
                return Remove(earlier[0])
        elif member not in learners:
            return AddLearner(member)
        elif not caught_up(member):
            waits = True
        else:
            return Remove(earlier[0]) if earlier else Promote(member, place)
    return WAIT if waits else None
