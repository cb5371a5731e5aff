"""A leader whose store takes no writes hands its groups to a replica that does, and stays where there is none."""

import asyncio
from typing import Any

from raftspine.model import GroupId, NodeId
from raftspine.ports import LogStatus
from raftspine.services.step_aside import WRITABLE, StepAside
from tests.support.fake_engine import DictEngine

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Log:
    """Two groups led here, one elsewhere. `behind` cannot take over."""

    def __init__(self, behind: set[NodeId], voters: tuple[NodeId, ...] = (A, B, C)) -> None:
        self.voters = voters
        self.leaders = {GroupId(0): A, GroupId(1): A, GroupId(2): B}
        self.behind = behind

    def groups(self) -> tuple[GroupId, ...]:
        return tuple(self.leaders)

    def status(self, group: GroupId) -> LogStatus:
        return LogStatus(group, "any", self.leaders[group], 1, 1, 1, 1, self.voters)

    async def transfer(self, group: GroupId, to: NodeId) -> bool:
        if to in self.behind:
            return False
        self.leaders[group] = to
        return True


class Rpc:
    """`full` nodes answer that they take no writes, `gone` ones are not connected."""

    def __init__(self, full: set[NodeId], gone: set[NodeId]) -> None:
        self.full = full
        self.gone = gone
        self.served: dict[str, Any] = {}

    def serve(self, method: str, handler: Any) -> None:
        self.served[method] = handler

    def connected(self, peer: NodeId) -> bool:
        return peer not in self.gone

    async def call(self, peer: NodeId, method: str, body: Any, *, timeout_ms: int) -> bool:
        assert method == WRITABLE and peer not in self.gone
        return peer not in self.full


def leaders(
    *, full: set[NodeId] = frozenset(), gone: set[NodeId] = frozenset(), behind: set[NodeId] = frozenset()
) -> list[NodeId]:
    engine, log = DictEngine(), Log(behind)
    engine.full = True
    aside = StepAside(A, engine, log, Rpc(full, gone))  # type: ignore[arg-type]
    asyncio.run(aside.round())
    return list(log.leaders.values())


def test_all_led_groups_go_to_a_replica_that_takes_writes() -> None:
    assert leaders() == [B, B, B]
    assert leaders(full={B}) == [C, C, B]
    assert leaders(gone={B}) == [C, C, B]


def test_one_that_cannot_take_over_is_passed_by() -> None:
    assert leaders(behind={B}) == [C, C, B]


def test_where_nobody_takes_writes_the_leader_goes_on_serving_reads() -> None:
    assert leaders(full={B, C}) == [A, A, B]
    assert leaders(full={B}, gone={C}) == [A, A, B]


def test_says_whether_its_own_store_takes_writes() -> None:
    engine, rpc = DictEngine(), Rpc(set(), set())
    StepAside(A, engine, Log(set()), rpc)  # type: ignore[arg-type]
    assert rpc.served[WRITABLE](B, None) is True
    engine.full = True
    assert rpc.served[WRITABLE](B, None) is False


def test_who_lost_a_disk_is_asked_by_the_name_of_its_node() -> None:
    engine, log = DictEngine(), Log(set(), voters=(NodeId("a~1"), NodeId("b~1"), NodeId("c~7")))
    engine.full = True
    rpc = Rpc(set(), gone={NodeId("a~1"), NodeId("b~1"), NodeId("c~7")})  # no link goes by the name of a member
    asyncio.run(StepAside(A, engine, log, rpc).round())  # type: ignore[arg-type]
    assert list(log.leaders.values()) == [B, B, B]
