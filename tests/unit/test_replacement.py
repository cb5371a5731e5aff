"""The next step towards the table, from the members alone; and the table's word on who a node is."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
from structlog.testing import capture_logs

from raftspine.core.ledger import cluster
from raftspine.errors import Unavailable
from raftspine.model import GroupId, Member, MemberId, NodeId, Table
from raftspine.ports import AddLearner, LogStatus, Promote, Remove
from raftspine.services.replacement import WAIT, Did, Replacement, next_change

A, B, C = (NodeId(name) for name in "abc")
B1, B2 = MemberId(NodeId("b~1")), MemberId(NodeId("b~2"))


def table(raft_id: str = "") -> Table:
    members = tuple(Member(NodeId(n), "127.0.0.1", 1, 2, raft_id=raft_id if n == "b" else "") for n in "abc")
    return Table(1, "c1", "id", members, ((A, B, C),), (A, B, C))


@pytest.mark.parametrize(
    ("speaks_as", "voters", "learners", "caught_up", "wanted"),
    [
        ("", (A, B, C), (), True, None),
        (B1, (A, B, C), (), True, AddLearner(B1)),
        (B1, (A, B, C), (B1,), False, WAIT),
        (B1, (A, B, C), (B1,), True, Remove(B)),
        (B1, (A, C), (B1,), True, Promote(B1, 1)),
        (B1, (A, C), (B1,), False, WAIT),
        (B1, (A, C), (), True, AddLearner(B1)),
        (B1, (A, B1, C), (), True, None),
        (B2, (A, B, C), (B1,), True, Remove(B1)),  # it lost its disk again before it was back
        (B2, (A, B1, C), (), True, AddLearner(B2)),
        (B2, (A, B1, C), (B2,), True, Remove(B1)),
    ],
)
def test_each_step_follows_from_the_members_and_the_table(speaks_as, voters, learners, caught_up, wanted):
    step = next_change((A, B, C), table(speaks_as), voters, learners, lambda member: caught_up)
    assert step == wanted


def test_the_steps_end_with_the_new_member_in_the_old_place():
    voters, learners, steps = (A, B, C), (), []
    while (step := next_change((A, B, C), table(B1), voters, learners, lambda member: True)) is not None:
        steps.append(type(step))
        if isinstance(step, AddLearner):
            learners = (step.member,)
        elif isinstance(step, Remove):
            voters = tuple(voter for voter in voters if voter != step.member)
        else:
            voters, learners = (*voters[: step.place], step.member, *voters[step.place :]), ()
        assert sum(voter.startswith("b") for voter in voters) <= 1, "one node, one vote"
    assert steps == [AddLearner, Remove, Promote]
    assert voters == (A, B1, C)


def test_the_table_takes_up_a_later_life_once_and_never_an_earlier_one_again():
    _, state = cluster.apply(None, cluster.first_table(table(), "c1"))
    first, second = cluster.SetRaftId(B, B1, ""), cluster.SetRaftId(B, B2, B1)
    for command in (first, second):
        outcome, state = cluster.apply(state, cluster.decode(cluster.encode(command)))
        assert outcome.changed
    assert (state.epoch, state.member(B).speaks_as, state.member(A).speaks_as) == (3, B2, A)
    for late in (first, second, cluster.SetRaftId(NodeId("z"), "z~1", "")):
        outcome, same = cluster.apply(state, late)
        assert not outcome.changed
        assert same is state
    outcome, nothing = cluster.apply(None, first)
    assert (outcome.changed, outcome.table, nothing) == (False, None, None)


def test_a_table_of_before_says_that_nodes_speak_as_themselves():
    data = msgspec.msgpack.encode(msgspec.to_builtins(table()))
    old = msgspec.msgpack.decode(data)
    for member in old["members"]:
        del member["raft_id"]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Table)
    assert read == table()
    assert read.member(B).speaks_as == "b"


def test_a_change_that_is_refused_all_night_is_told_of_once_a_minute():
    class Log:
        def groups(self) -> tuple[GroupId, ...]:
            return (GroupId(0),)

        def leader(self, group: GroupId) -> NodeId:
            return A

        def status(self, group: GroupId) -> LogStatus:
            return LogStatus(group, "leader", A, 1, 1, 1, 1, (A, B, C))

        def caught_up(self, group: GroupId, member: MemberId) -> bool:
            return True

        async def change(self, group: GroupId, change: object) -> None:
            raise Unavailable("no majority could be asked", code="no_quorum")

    async def night() -> None:
        log, topology = Log(), SimpleNamespace(known=table(B1))
        worker = Replacement(A, log, topology)  # type: ignore[arg-type]
        with capture_logs() as lines:
            for _ in range(20):
                assert await worker.step() is Did.THROTTLED
        assert [line["event"] for line in lines] == ["a change of members has to wait"]

    asyncio.run(night())
