"""A node that lost its disk, a part of it, or a stretch of its past: it never speaks as the one it was, and comes
back as another. Whole nodes, virtual time."""

import asyncio
from typing import Any

import pytest

from raftspine import codec
from raftspine.errors import Corrupt
from raftspine.model import META_GROUP, NodeId, node_of
from raftspine.node import Node
from raftspine.services.identity import LIFE_ROW, open_journal, read_life
from raftspine.sim import loop as virtual
from raftspine.sim.cluster import SimCluster, SimHost
from raftspine.storage import keys
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal
from tests.support.fake_engine import DictEngine
from tests.support.ring_site import Site, story

CRITICAL = ("critical",)


def host(site: Site, node: str) -> SimHost:
    return site.cluster.hosts[NodeId(node)]


def node_at(machine: SimHost) -> Node:
    assert machine.node is not None, f"{machine.id} is down"
    return machine.node


def votes_everywhere(site: Site, node: str) -> bool:
    """Whether every group of the cluster counts on this node, under its present name and no other."""
    one = node_at(host(site, node))
    groups = one.raft.groups()
    if len(groups) != 5:
        return False
    for group in groups:
        leader = one.raft.leader(group)
        if leader is None or host(site, leader).node is None:
            return False
        voters = node_at(host(site, leader)).raft.status(group).voters
        if [v for v in voters if node_of(v) == node] != [one.raft.member]:
            return False
    return True


async def rejoined(site: Site, node: str) -> None:
    await site.until(lambda: host(site, node).up and site.cluster.ready(host(site, node)), f"{node} is ready", 60)
    await site.until(lambda: votes_everywhere(site, node), f"{node} votes in all groups", 60)


async def write(site: Site, first: int, count: int) -> None:
    for n in range(first, first + count):
        await site.put("a", f"strong{n}", n, tags=CRITICAL)
        await site.put("a", f"ring{n}", n)


async def all_there(site: Site, node: str, count: int) -> None:
    for n in range(count):
        assert await site.read(node, f"strong{n}") == n
        assert await site.read(node, f"ring{n}") == n


@pytest.mark.parametrize(("store", "journal"), [(True, True), (False, True), (True, False)])
def test_whatever_it_lost_it_comes_back_as_another_member(store: bool, journal: bool) -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 12)
        await site.agreed()
        before = {g: site.node("a").raft.status(g).voters for g in site.node("a").raft.groups()}
        c = host(site, "c")
        c.crash(power=True)
        c.wipe(store=store, journal=journal)
        c.start()
        assert node_at(c).raft.member == "c"
        assert not site.cluster.ready(c)
        await rejoined(site, "c")
        name = node_at(c).raft.member
        assert name.startswith("c~")
        assert site.node("a").topology.table.member(NodeId("c")).raft_id == name  # type: ignore[union-attr]
        await site.agreed()
        for group, voters in before.items():  # in the very places it had
            now = site.node("a").raft.status(group).voters
            assert [node_of(v) for v in now] == [node_of(v) for v in voters]
        await all_there(site, "c", 12)
        host(site, "b").crash(power=True)
        await site.until(lambda: _led_by(site, "a", "c"), "a and c carry on")
        await write(site, 12, 5)
        await all_there(site, "c", 17)
        if not store:
            assert "raft.void-1" not in c.disk._folders, "there was nothing to put aside"
        elif not journal:
            assert c.disk._folders["raft.void-1"], "what was void is kept"

    story(main)


def all_ready(site: Site) -> bool:
    return all(site.cluster.ready(each) for each in site.cluster.hosts.values())


def _led_by(site: Site, *nodes: str) -> bool:
    log = site.node(nodes[0]).raft
    return all(log.leader(group) in nodes for group in log.groups())


def test_it_keeps_its_new_name_and_may_lose_its_disk_again() -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 3)
        c, names = host(site, "c"), ["c"]
        for _ in range(2):
            c.crash(power=True)
            c.wipe()
            c.start()
            await rejoined(site, "c")
            names.append(node_at(c).raft.member)
            c.crash(power=True)
            c.start()
            await rejoined(site, "c")
            assert node_at(c).raft.member == names[-1]
        assert len(set(names)) == 3
        await all_there(site, "c", 3)

    story(main)


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_the_founder_and_the_leaders_are_no_exception(victim: str) -> None:
    async def main(site: Site) -> None:
        c = host(site, victim)
        c.crash(power=True)
        c.wipe()
        c.start()
        await rejoined(site, victim)
        assert node_at(c).raft.member.startswith(f"{victim}~")

    story(main)


def test_a_rejoin_goes_on_wherever_it_was_interrupted() -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 6)
        c = host(site, "c")
        c.crash(power=True)
        c.wipe()
        c.start()
        for pause in (0.02, 0.1, 0.3, 0.5, 1.0, 2.0):
            await asyncio.sleep(pause)
            c.crash(power=True)
            c.start()
        await rejoined(site, "c")
        await all_there(site, "c", 6)

    story(main)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5])
def test_a_disk_that_refuses_to_note_who_it_is_is_asked_again(seconds: float) -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 3)
        c = host(site, "c")
        c.crash(power=True)
        c.wipe()
        c.start()
        await asyncio.sleep(seconds)
        c.disk.full = True
        await asyncio.sleep(5)
        if node_at(c)._identity.member is None:
            assert "cannot be written" in node_at(c).overview.ready()[1][0]
        c.disk.full = False
        await rejoined(site, "c")

    story(main)


def test_a_rejoin_goes_on_under_another_leader() -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 6)
        c = host(site, "c")
        c.crash(power=True)
        c.wipe()
        c.start()
        for other in ("a", "b", "a"):
            await asyncio.sleep(0.4)
            host(site, other).crash(power=False)
            await asyncio.sleep(0.1)
            host(site, other).start()
        await rejoined(site, "c")
        await all_there(site, "c", 6)

    story(main)


@pytest.mark.parametrize("voids", [True, False])
def test_a_disk_that_was_rolled_back_is_noticed(voids: bool) -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 3)
        c = host(site, "c")
        # As a follower of all, so that the leaders are witnesses of what it acknowledged.
        await node_at(c).raft.step_down_all()
        await site.until(lambda: _led_by(site, "a", "b"), "c leads nothing")
        c.crash(power=False)
        image = c.image()
        c.start()
        await site.until(lambda: site.cluster.ready(c), "c is ready")
        if voids:
            await write(site, 3, 20)
            await site.agreed()
        c.crash(power=False)
        c.restore(image)
        c.start()
        if voids:
            await site.until(lambda: c.up and node_at(c).raft.member.startswith("c~"), "c began anew")
        await rejoined(site, "c")
        assert ("raft.void-1" in c.disk._folders) is voids
        await all_there(site, "c", 23 if voids else 3)

    story(main)


def test_a_journal_rolled_back_beside_its_store_is_noticed_at_the_start() -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 3)
        c = host(site, "c")
        c.crash(power=False)
        journal = c.disk.image("raft")
        c.start()
        await site.until(lambda: site.cluster.ready(c), "c is ready")
        await write(site, 3, 10)
        await site.agreed()
        c.crash(power=False)
        c.disk.restore("raft", journal)
        c.start()
        assert c.disk._folders["raft.void-1"]
        await rejoined(site, "c")
        await all_there(site, "c", 13)

    story(main)


def test_a_journal_damaged_in_the_middle_is_put_aside() -> None:
    async def main(site: Site) -> None:
        await write(site, 0, 3)
        await site.agreed()
        c = host(site, "c")
        c.crash(power=False)
        c.disk.damage("raft", sorted(c.disk.image("raft"))[0], 200)
        c.start()
        assert c.disk._folders["raft.void-1"]
        await rejoined(site, "c")
        await all_there(site, "c", 3)

    story(main)


def test_a_past_life_that_is_restored_is_not_heeded() -> None:
    """The disk that was thought lost turns up again after the node has rejoined without it."""

    async def main(site: Site) -> None:
        await write(site, 0, 3)
        await site.agreed()
        c = host(site, "c")
        c.crash(power=False)
        image = c.image()
        c.wipe()
        c.start()
        await rejoined(site, "c")
        second = node_at(c).raft.member
        await write(site, 3, 3)
        c.crash(power=False)
        c.restore(image)
        c.start()
        await site.until(lambda: c.up and node_at(c).raft.member not in ("c", second), "c has a third name")
        await rejoined(site, "c")
        await all_there(site, "c", 6)

    story(main)


def test_an_emptied_node_never_votes_while_it_cannot_know_whether_a_cluster_exists() -> None:
    """The third node is down and the second cannot be reached: the emptied one is alone with its ignorance, and then
    with a peer that is as ignorant."""

    async def main(site: Site) -> None:
        c, b = host(site, "c"), host(site, "b")
        host(site, "a").crash(power=True)
        heal = site.isolate("c")
        for each in (c, b):
            each.crash(power=True)
            each.wipe()
            each.start()
        await asyncio.sleep(60)
        for each in (c, b):
            node = node_at(each)
            assert node.raft.groups() == ()
            ok, reasons = node.overview.ready()
            assert not ok and "waiting for" in reasons[0] and "a" in reasons[0]
        heal()
        await asyncio.sleep(60)
        for each in (c, b):
            assert node_at(each).raft.groups() == (), "two of three blank nodes do not found"
        host(site, "a").start()
        await asyncio.sleep(60)
        # A majority of the disks is gone for good: nobody may take over, and nobody pretends to.
        assert site.node("a").raft.leader(META_GROUP) is None
        for each in (c, b):
            assert node_at(each).raft.groups() == ()
            assert "rejoining" in node_at(each).overview.ready()[1][0]

    story(main)


# ── founding ──────────────────────────────────────────────────────────────────────────────────────────────────


def founding(main: Any, **options: Any) -> None:
    async def run(loop: virtual.VirtualLoop) -> None:
        cluster = SimCluster(loop, **options)
        await asyncio.wait_for(main(Site(cluster)), 600)
        cluster.shut()

    virtual.run(run, seed=3)


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_a_cluster_is_founded_once_all_have_been_heard(order: str) -> None:
    async def main(site: Site) -> None:
        for name in order[:2]:
            host(site, name).start()
            await asyncio.sleep(20)
        for name in order[:2]:
            reasons = node_at(host(site, name)).overview.ready()[1]
            assert "waiting for" in reasons[0], reasons
            host(site, name).crash(power=True)
            host(site, name).start()
        host(site, order[2]).start()
        await site.until(
            lambda: all(site.cluster.ready(each) for each in site.cluster.hosts.values()), "all are ready"
        )
        assert [node_at(each).raft.member for each in site.cluster.hosts.values()] == ["a", "b", "c"]

    founding(main)


def test_whose_disk_is_lost_while_the_cluster_is_founded_joins_as_another() -> None:
    async def main(site: Site) -> None:
        for each in site.cluster.hosts.values():
            each.start()
        b = host(site, "b")
        await site.until(lambda: node_at(host(site, "a"))._identity.member == "a", "a has founded")
        b.crash(power=True)
        b.wipe()
        b.start()
        await site.until(
            lambda: all(site.cluster.ready(each) for each in site.cluster.hosts.values()), "all are ready"
        )
        await rejoined(site, "b")
        assert node_at(b).raft.member.startswith("b~")

    founding(main)


def test_a_cluster_is_founded_once_the_node_with_the_data_of_another_is_emptied() -> None:
    async def main(site: Site) -> None:
        hosts = site.cluster.hosts
        for each in hosts.values():
            each.start()
        await site.until(lambda: all(site.cluster.ready(each) for each in hosts.values()), "all are ready")
        for name in "abc":
            host(site, name).crash(power=True)
        for name in "ac":
            host(site, name).wipe()
        for each in hosts.values():
            each.start()
        await asyncio.sleep(30)
        for name in "ac":
            assert node_at(host(site, name)).raft.groups() == (), "b's cluster is not theirs, and there is no other"
        b = host(site, "b")
        b.crash(power=True)
        b.wipe()
        b.start()
        await site.until(lambda: all(site.cluster.ready(each) for each in hosts.values()), "all are ready", 60)
        assert [node_at(each).raft.member for each in hosts.values()] == ["a", "b", "c"]

    founding(main)


def test_one_node_founds_alone() -> None:
    async def main(site: Site) -> None:
        host(site, "a").start()
        await site.until(lambda: site.cluster.ready(host(site, "a")), "a is ready", 5)
        host(site, "a").crash(power=True)
        host(site, "a").start()
        await site.until(lambda: site.cluster.ready(host(site, "a")), "a is ready again", 5)
        assert (await site.put("a", "x", 1, tags=CRITICAL)).stored is not None

    founding(main, nodes=1)


def test_data_of_before_lives_were_told_apart_is_taken_over() -> None:
    """An upgrade finds journals without an identity: they are the founding ones."""

    async def main(site: Site) -> None:
        await write(site, 0, 3)
        await site.agreed()
        for machine in site.cluster.hosts.values():
            engine = node_at(machine).engine
            engine.stage([(keys.meta(LIFE_ROW), None)])
            await engine.commit(durable=True)
        for machine in site.cluster.hosts.values():
            machine.crash(power=True)
            journal = Journal.open(Wal.open(machine.disk.directory("raft"), segment_bytes=1 << 20))
            journal.identity, journal._broken = b"", True  # restated without it
            await journal.commit()
        for machine in site.cluster.hosts.values():
            machine.start()
        await site.until(
            lambda: all(site.cluster.ready(each) for each in site.cluster.hosts.values()), "all are ready"
        )
        assert [node_at(each).raft.member for each in site.cluster.hosts.values()] == ["a", "b", "c"]
        await all_there(site, "c", 3)
        c = host(site, "c")
        c.crash(power=True)
        c.wipe(store=False)
        c.start()
        await rejoined(site, "c")
        assert node_at(c).raft.member.startswith("c~")
        await all_there(site, "c", 3)

    story(main)


def test_what_this_process_found_void_is_put_aside_although_the_disk_did_not_take_the_word() -> None:
    async def main(site: Site) -> None:
        c = host(site, "c")
        c.crash(power=True)
        directory, engine = c.disk.directory("raft"), DictEngine()

        def load() -> Journal:
            return Journal.open(Wal.open(directory, segment_bytes=1 << 20))

        life = read_life(load())
        assert life is not None and life.member == "c" and not life.void
        engine.stage([(keys.meta(LIFE_ROW), codec.encode({"life": life.life, "settled": True}))])
        journal, void = open_journal(directory, load, engine, lambda journal: None)  # type: ignore[arg-type]
        assert (void, read_life(journal)) == (None, life)
        journal, void = open_journal(directory, load, engine, lambda journal: None, "denied")  # type: ignore[arg-type]
        assert void == "denied" and journal.groups() == () and read_life(journal) is None
        c.start()
        await rejoined(site, "c")

    story(main)


def test_a_node_that_is_the_whole_cluster_refuses_a_void_journal_and_moves_nothing() -> None:
    async def run(loop: virtual.VirtualLoop) -> None:
        cluster = SimCluster(loop, nodes=1)
        await cluster.start()
        only = next(iter(cluster.hosts.values()))
        only.crash(power=False)
        only.wipe(journal=False)
        with pytest.raises(Corrupt, match="the whole cluster"):
            only.start()
        with pytest.raises(Corrupt, match="the whole cluster"):
            only.start()
        cluster.shut()

    virtual.run(run, seed=3)
