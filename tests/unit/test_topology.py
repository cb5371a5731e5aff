"""The table: adopted when newer, never from another cluster, and agreed exactly once at the start."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from raftspine import codec
from raftspine.core.ledger import cluster
from raftspine.errors import Corrupt, Misuse, NoSpace, SpineError, Unavailable
from raftspine.model import META_GROUP, GroupId, Member, NodeId, Table
from raftspine.ports import Position
from raftspine.services.bootstrap import ClusterBootstrap, differences, serve_table
from raftspine.services.deadlines import Bell
from raftspine.services.topology import Topology
from tests.support.fake_engine import DictEngine
from tests.support.fake_log import FakeCluster
from tests.support.fake_rpc import FakeNet

NODES = ("a", "b", "c")


def member(id: str, **fields: Any) -> Member:
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 8788, "peer_port": 8798}
    return Member(NodeId(id), **given | fields)


def table(epoch: int = 1, cluster_id: str = "c1", **fields: Any) -> Table:
    a, b, c, d = (NodeId(n) for n in "abcd")
    given: dict[str, Any] = {
        "strategy": "id",
        "members": (member("a"), member("b"), member("c"), member("d")),
        "groups": ((a, b, c), (b, c, d), (c, d, a), (d, a, b)),
        "meta": (a, b, c),
    }
    return Table(epoch, cluster_id, **given | fields)


class FakeEntropy:
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def random(self) -> float:
        return 0.5

    def token_bytes(self, n: int) -> bytes:
        self.seed += 1
        return bytes([self.seed]) * n


# ── the meta ledger ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_table_wins_and_a_second_changes_nothing() -> None:
    first = cluster.first_table(table(epoch=0, cluster_id=""), "one")
    second = cluster.first_table(table(epoch=0, cluster_id="", strategy="agent"), "two")
    outcome, state = cluster.apply(None, first)
    assert outcome.changed and state.epoch == 1 and state.cluster_id == "one"
    again, same = cluster.apply(state, second)
    assert not again.changed and again.table == same == state


def test_a_meta_command_survives_the_log() -> None:
    command = cluster.first_table(table(), "one")
    assert cluster.decode(cluster.encode(command)) == command


@pytest.mark.parametrize("data", [b"", b"\x02\x90", b"\x01", b"\x01\x93\xa7unheard\x01\x02", b"\x01\xc1"])
def test_a_meta_command_of_a_newer_version_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        cluster.decode(data)


# ── the topology ────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_table_every_question_is_refused_as_not_ready() -> None:
    topology = Topology(NodeId("a"), DictEngine())
    for ask in (
        lambda: topology.table,
        lambda: topology.group_of("x"),
        lambda: topology.replicas(GroupId(0)),
        lambda: topology.peers(GroupId(0)),
    ):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "not_ready"
    assert topology.epoch == 0 and not topology.holds(GroupId(0))


def test_a_table_answers_for_its_groups() -> None:
    topology = Topology(NodeId("a"), DictEngine())
    assert topology.adopt(table())
    assert topology.holds(GroupId(0)) and not topology.holds(GroupId(1)) and topology.holds(META_GROUP)
    assert topology.held() == (0, 2, 3)
    assert topology.peers(GroupId(0)) == ("b", "c") and topology.replicas(GroupId(1)) == ("b", "c", "d")
    assert topology.group_of("dep-42") in topology.group_ids()
    found = topology.member(NodeId("d"))
    assert found is not None and found.host == "127.0.0.1"
    assert topology.member(NodeId("z")) is None


def test_the_partitioning_strategy_of_the_table_decides_the_group() -> None:
    topology = Topology(NodeId("a"), DictEngine())
    topology.adopt(table(strategy="agent"))
    groups = {topology.group_of(f"id-{n}", agent="agent-7") for n in range(50)}
    assert len(groups) == 1


def test_only_a_newer_table_is_taken_and_listeners_hear_of_it() -> None:
    topology = Topology(NodeId("a"), DictEngine())
    heard: list[int] = []
    topology.adopt(table(epoch=2))
    topology.on_change(lambda t: heard.append(t.epoch))
    assert not topology.adopt(table(epoch=1)) and not topology.adopt(table(epoch=2))
    assert topology.adopt(table(epoch=3))
    assert heard == [2, 3] and topology.epoch == 3


def test_another_clusters_table_is_refused_naming_both() -> None:
    topology = Topology(NodeId("a"), DictEngine())
    topology.adopt(table(cluster_id="mine"))
    with pytest.raises(Misuse, match=r"(?s)mine.*theirs"):
        topology.adopt(table(epoch=9, cluster_id="theirs"))
    assert topology.table.cluster_id == "mine"


def test_the_table_is_there_again_after_a_restart() -> None:
    engine = DictEngine()
    Topology(NodeId("a"), engine).adopt(table(epoch=4))
    again = Topology(NodeId("a"), engine)
    assert again.load() == table(epoch=4) and again.epoch == 4


# ── identity ────────────────────────────────────────────────────────────────────────────────────────────────


def bootstrap(engine: DictEngine, node: str = "a", name: str = "prod", plan: Table | None = None) -> Any:
    topology = Topology(NodeId(node), engine)
    made = ClusterBootstrap(NodeId(node), name, plan or table(), topology=topology, engine=engine, data_dir="/data")
    return made, topology


def test_a_data_directory_of_another_cluster_is_refused_with_a_remedy() -> None:
    engine = DictEngine()
    bootstrap(engine)[0].open()
    with pytest.raises(Misuse, match=r"/data.*'prod'.*'test'.*storage\.data_dir"):
        bootstrap(engine, name="test")[0].open()


def test_a_data_directory_of_another_node_is_refused_with_a_remedy() -> None:
    engine = DictEngine()
    bootstrap(engine)[0].open()
    with pytest.raises(Misuse, match=r"/data.*'a'.*'b'.*--node a"):
        bootstrap(engine, node="b")[0].open()


def test_a_cluster_file_that_differs_is_told_and_the_stored_table_rules() -> None:
    engine = DictEngine()
    first, topology = bootstrap(engine)
    assert first.open() == []
    topology.adopt(table())
    plan = table(members=(member("a"), member("b", zone="z2"), member("e")), strategy="tag")
    second, topology = bootstrap(engine, plan=plan)
    told = second.open()
    assert topology.table == table()
    assert [line.split()[0] for line in told] == ["e", "c", "d", "b:", "the"]
    assert differences(table(), table()) == []


# ── agreeing on the first table ─────────────────────────────────────────────────────────────────────────────


class MetaMachine:
    """Just the meta group of a ledger host."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.state: Table | None = None

    def apply(self, group: GroupId, at: Position, time_ms: int, commands: Sequence[bytes]) -> list[Any]:
        results = []
        for command in commands:
            outcome, self.state = cluster.apply(self.state, cluster.decode(command))
            self.topology.adopt(self.state)
            results.append((outcome, at.index))
        return results


class Site:
    """A node with what its bootstrap needs."""

    def __init__(self, node: str, shared: FakeCluster, net: FakeNet, plan: Table, seed: int) -> None:
        self.engine = DictEngine()
        self.bootstrap, self.topology = bootstrap(self.engine, node, plan=plan)
        self.rpc = net.rpc(node)
        self.log = shared.log(node, MetaMachine(self.topology))
        self.entropy = FakeEntropy(seed)
        self.news = Bell()
        self.rpc.on_link(self.news.ring)
        self.bootstrap.open()
        serve_table(self.rpc, self.topology, "prod")

    async def run(self, retry_ms: int = 10) -> Table:
        found: Table = await self.bootstrap.run(self.log, self.rpc, self.entropy, news=self.news, retry_ms=retry_ms)
        return found


def sites(nodes: str = "abcd", plan: Table | None = None) -> tuple[FakeCluster, FakeNet, list[Site]]:
    shared, net = FakeCluster(NODES, [META_GROUP]), FakeNet()
    given = plan or table(epoch=0, cluster_id="")
    return shared, net, [Site(n, shared, net, given, 10 * i) for i, n in enumerate(nodes)]


def test_all_nodes_come_to_the_same_table_also_those_outside_the_meta_group() -> None:
    async def story() -> None:
        shared, _, nodes = sites()
        tables = await asyncio.wait_for(asyncio.gather(*(node.run() for node in nodes)), 5)
        assert len({t.cluster_id for t in tables}) == 1 and tables[0].epoch == 1
        assert all(t == tables[0] for t in tables)
        assert tables[0].cluster_id == (b"\x01" * 16).hex()
        assert len(shared.entries[META_GROUP]) == 1

    asyncio.run(story())


def test_a_lost_answer_and_a_second_proposal_leave_the_first_table() -> None:
    async def story() -> None:
        shared, _, nodes = sites()
        shared.lose_answers = 1
        first = await asyncio.wait_for(nodes[0].run(), 5)
        shared.elect(META_GROUP, "b")
        late = cluster.first_table(table(epoch=0), "late")
        outcome, _ = await nodes[1].log.propose(META_GROUP, cluster.encode(late))
        assert not outcome.changed and outcome.table == first

    asyncio.run(story())


def test_without_a_leader_a_node_waits_and_goes_on_when_told() -> None:
    async def story() -> None:
        shared, _, nodes = sites()
        shared.elect(META_GROUP, None)
        waiting = asyncio.ensure_future(nodes[0].run(retry_ms=60_000))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        shared.elect(META_GROUP, "a")
        nodes[0].news.ring()
        assert (await asyncio.wait_for(waiting, 5)).epoch == 1

    asyncio.run(story())


def test_a_store_that_refuses_for_a_while_delays_the_table_and_no_more() -> None:
    """Seed 1180: the worker that looks for the table died of it, and the node stayed without one."""

    async def story() -> None:
        shared, net, nodes = sites("a")
        await asyncio.wait_for(nodes[0].run(), 5)
        late = Site("d", shared, net, table(epoch=0, cluster_id=""), 10)
        refusals = [NoSpace("the store is full"), Unavailable("it is behind", code="overloaded")]
        stage = late.engine.stage

        def stage_later(rows: Any) -> None:
            if refusals:
                raise refusals.pop()
            stage(rows)

        late.engine.stage = stage_later  # type: ignore[method-assign]
        assert (await asyncio.wait_for(late.run(), 5)).epoch == 1
        assert not refusals

    asyncio.run(story())


def test_a_node_of_another_cluster_is_not_given_the_table() -> None:
    async def story() -> None:
        _, _, nodes = sites()
        await asyncio.wait_for(nodes[0].run(), 5)
        with pytest.raises(SpineError, match="configured for cluster 'other'"):
            await nodes[3].rpc.call(NodeId("a"), "topology.get", "other", timeout_ms=1000)

    asyncio.run(story())


def test_the_identity_and_the_table_are_ordinary_versioned_rows() -> None:
    engine = DictEngine()
    bootstrap(engine)[0].open()
    assert [codec.decode_any(value) for value in engine.rows.values()] == [{"cluster": "prod", "node": "a"}]
