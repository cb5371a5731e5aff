"""Replicas that come to another state than the others: found at the next mark, shown to nobody, and healed where a
majority says what is right."""

import asyncio
from typing import Any

import pytest

from raftspine.cluster import raft_snapshot
from raftspine.cluster.raft_host import RaftLimits
from raftspine.errors import SpineError, Unavailable
from raftspine.model import GroupId, Model, NodeId
from raftspine.node import Node, Sizes
from raftspine.services import ledger_chain
from raftspine.services.values import ANYTHING, Ask, Patch
from raftspine.sim.cluster import SimHost
from raftspine.storage import keys, memories
from tests.support.ring_site import Site, story

GROUP = GroupId(0)
SMALL = Sizes(RaftLimits(compact_entries=500, keep_entries=50))


@pytest.fixture(autouse=True)
def frequent_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_chain, "INTERVAL", 8)
    monkeypatch.setattr(ledger_chain, "EPOCH", 64 * 8)


def play(main: Any, **options: Any) -> None:
    story(main, groups=1, sizes=SMALL, level=False, **options)


async def write(site: Site, count: int, *, start: int = 0) -> None:
    """Strong writes, each in an entry of its own, through whoever can."""
    for number in range(start, start + count):
        for attempt in range(60):
            try:
                node = str(site.cluster.live()[attempt % len(site.cluster.live())].id)
                await site.put(node, f"m{number % 10}", number, tags=("critical",), key=f"k{number}")
                break
            except SpineError:
                assert attempt < 59, "no write came through"
                await asyncio.sleep(0.2)


def leader(site: Site) -> SimHost:
    return next(host for host in site.cluster.live() if host.node and host.node.raft.leader(GROUP) == host.id)


def followers(site: Site) -> list[SimHost]:
    return [host for host in site.cluster.hosts.values() if host is not leader(site)]


def run_of(host: SimHost) -> Node:
    assert host.node is not None
    return host.node


def go_wrong(host: SimHost, text: str) -> None:
    """From the next entry on that has effects, once: this replica stores something else than the others."""
    ledger = run_of(host)._ledger
    apply = ledger._apply_shard

    def wrong(group: Any, *entry: Any) -> Any:
        results, rows, done = apply(group, *entry)
        if group == GROUP and done:
            del ledger._apply_shard
            done.append(text.encode())
        return results, rows, done

    ledger._apply_shard = wrong  # type: ignore[method-assign]


def quarantined(host: SimHost) -> bool:
    return host.node is not None and host.node.raft.status(GROUP).quarantined


def state(host: SimHost) -> dict[bytes, bytes]:
    kinds = (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER, keys.APPLIED)
    scan = run_of(host).engine.scan
    return {key: data for kind in kinds for key, data in scan(*keys.span(kind, GROUP), limit=100_000)}


async def healed(site: Site) -> None:
    hosts = site.cluster.hosts.values()
    await site.until(lambda: all(site.cluster.ready(host) for host in hosts), "all are ready", 60)
    await site.agreed()
    assert len({tuple(sorted(state(host).items())) for host in hosts}) == 1
    assert not any(quarantined(host) for host in hosts)


def test_a_follower_that_differs_is_found_quarantined_and_healed() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        odd = followers(site)[0]
        site.hold(str(odd.id), raft_snapshot.OFFER)
        key = memories.keys.strong(GROUP, "m0")
        go_wrong(odd, "odd")
        await write(site, 20, start=3)
        await site.until(lambda: quarantined(odd), "it is found")
        others = [host for host in site.cluster.hosts.values() if host is not odd]
        assert not any(quarantined(host) for host in others)
        node = run_of(odd)
        ok, reasons = node.overview.ready()
        assert not ok and "differs from the majority" in reasons[0]
        page = node.overview.metrics().decode()
        assert 'spine_raft_quarantined{group="0"} 1.0' in page and "spine_raft_divergence_total 1.0" in page
        assert f"spine_raft_ignored_frames_total {node.raft.frames_ignored():.1f}" in page
        group = next(g for g in node.overview.status()["groups"] if g["group"] == "group 0")
        assert group["quarantined"] and "differs" in group["reason"]
        await site.until(lambda: all(run_of(other).raft.divergences() == 1 for other in others), "the others say so")

        # what it has is shown to nobody, and who asks it gets the others' answer
        node.engine.stage([(key, node.engine.get(keys.strong(GROUP, "m1")))])
        for wish in (None, Model.STRONG, Model.EVENTUAL):
            assert await site.read(str(odd.id), "m0", wish=wish) == await site.read(str(others[0].id), "m0")
        with pytest.raises(Unavailable):
            await node.raft.read_index(GROUP)
        with pytest.raises(Unavailable):
            await node.raft.wait_applied(GROUP, 1)
        assert await node.raft.transfer(GROUP, odd.id) is False

        # leadership is not taken from who may not hand it over, and the doubt outlives the process
        before = leader(site)
        assert not await run_of(before).raft.transfer(GROUP, odd.id)
        await site.until(lambda: node.raft._groups[GROUP].audit.stored, "the doubt is on disk")
        odd.crash(power=True)
        odd.start()
        site.hold(str(odd.id), raft_snapshot.OFFER)
        await site.until(lambda: GROUP in run_of(odd).raft.groups(), "it takes part again")
        assert quarantined(odd)
        stood = run_of(odd).raft.status(GROUP).applied
        await write(site, 10, start=30)
        status = run_of(odd).raft.status(GROUP)
        assert status.quarantined and status.applied == stood, "nothing is built on it"
        await site.until(lambda: run_of(odd).raft.status(GROUP).commit > stood + 5, "its log goes on")
        odd.crash(power=False)
        odd.start()
        await healed(site)
        assert run_of(odd).raft.traffic.installed == 1
        odd.crash(power=True)
        odd.start()
        await healed(site)

    play(main)


def test_a_wrong_replica_is_healed_although_all_have_lost_a_disk_once() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        for lost in site.cluster.hosts.values():
            lost.crash(power=True)
            lost.wipe()
            lost.start()

            def counts(lost: SimHost = lost) -> bool:
                views = [run_of(host) for host in site.cluster.live()]
                member = run_of(lost).raft.member
                return "~" in member and all(
                    member in view.raft.status(group).voters for view in views for group in view.raft.groups()
                )

            await site.until(counts, "it votes again", 60)
            await site.agreed()
        odd = followers(site)[0]
        installed = run_of(odd).raft.traffic.installed
        go_wrong(odd, "odd")
        await write(site, 20, start=3)
        await site.until(lambda: run_of(odd).raft.traffic.installed > installed, "it got another state", 60)
        await healed(site)

    play(main)


def test_a_wrong_replica_votes_and_is_never_a_candidate() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        odd = followers(site)[0]
        site.hold(str(odd.id), raft_snapshot.OFFER)
        go_wrong(odd, "odd")
        await write(site, 12, start=3)
        await site.until(lambda: run_of(odd).raft._groups[GROUP].audit.wrong, "it is found")
        for round in range(4):
            gone = leader(site)
            gone.crash(power=False)
            rest = [host for host in site.cluster.live() if host is not odd]
            ends = site.cluster.loop.time() + 20
            while not leader_is(rest[0]):
                assert run_of(odd).raft.status(GROUP).role == "follower"
                assert site.cluster.loop.time() < ends, "with its vote the other one leads"
                await asyncio.sleep(0.01)
            await write(site, 2, start=100 + 2 * round)
            gone.start()
            await site.until(lambda gone=gone: site.cluster.ready(gone), "it is back")

    play(main)


def test_a_leader_that_differs_makes_way() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        odd = leader(site)
        go_wrong(odd, "odd")
        await write(site, 20, start=3)
        await site.until(lambda: run_of(odd).raft.divergences() > 0, "it is found")
        await site.until(
            lambda: any(leader_is(host) for host in site.cluster.live() if host is not odd), "another leads"
        )
        await healed(site)
        await write(site, 20, start=40)
        await healed(site)
        assert run_of(odd).raft.traffic.installed == 1

    play(main)


def leader_is(host: SimHost) -> bool:
    return host.node is not None and host.node.raft.status(GROUP).role == "leader"


def test_a_stored_record_that_rots_is_found_by_what_is_built_on_it() -> None:
    async def main(site: Site) -> None:
        await site.put("a", "m0", "sound", tags=("critical",))
        odd = followers(site)[0]
        await site.agreed()
        key = keys.strong(GROUP, "m0")
        stored = run_of(odd).engine.get(key)
        assert stored is not None and b"sound" in stored
        run_of(odd).engine.stage([(key, stored.replace(b"sound", b"sounf"))])
        await site.node("a").memories.patch(Ask(), "m0", Patch(metadata={"n": 1}), ANYTHING)
        await write(site, 12, start=21)
        await site.until(lambda: run_of(odd).raft.divergences() == 1, "it is found")
        await healed(site)
        assert b"sounf" not in b"".join(state(odd).values())

    play(main)


def test_three_that_all_differ_are_all_quarantined_and_nobody_guesses() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        for host in list(site.cluster.hosts.values())[:2]:
            go_wrong(host, f"odd {host.id}")
        for number in range(3, 20):
            try:
                async with asyncio.timeout(2):
                    await site.put("a", "m1", number, tags=("critical",))
            except (SpineError, TimeoutError):
                break
        hosts = list(site.cluster.hosts.values())
        await site.until(lambda: all(quarantined(host) for host in hosts), "all are quarantined")
        assert all("none has a majority" in (run_of(h).raft.status(GROUP).reason or "") for h in hosts)
        for host in hosts:
            host.crash(power=True)
        for host in hosts:
            host.start()
        await asyncio.sleep(20)
        assert all(quarantined(host) for host in hosts), "and stay so"
        for wish in (Model.STRONG, Model.EVENTUAL):
            with pytest.raises(SpineError):
                await site.read("a", "m1", wish=wish)
        with pytest.raises(SpineError):
            await site.put("b", "m1", 99, tags=("critical",))

    play(main)


@pytest.mark.parametrize("odd_leads", [False, True])
def test_two_that_differ_wait_for_the_third(odd_leads: bool) -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        odd = leader(site) if odd_leads else followers(site)[0]
        third = next(host for host in followers(site) if host is not odd)
        await site.agreed()
        third.crash(power=True)
        go_wrong(odd, "odd")
        pair = [host for host in site.cluster.hosts.values() if host is not third]
        work = asyncio.ensure_future(write(site, 14, start=3))
        await site.until(lambda: all(quarantined(host) for host in pair), "both are quarantined")
        assert not any(run_of(host).raft._groups[GROUP].audit.wrong for host in pair)
        third.start()
        await site.until(lambda: not quarantined(third) and sum(map(quarantined, pair)) <= 1, "the third decides")
        await healed(site)
        await work
        assert run_of(odd).raft.traffic.installed == 1

    play(main)


def test_two_replicas_that_differ_are_both_quarantined() -> None:
    async def main(site: Site) -> None:
        await write(site, 3)
        go_wrong(leader(site), "odd")
        work = asyncio.ensure_future(write(site, 14, start=3))
        await site.until(lambda: all(map(quarantined, site.cluster.hosts.values())), "both are quarantined")
        await asyncio.sleep(10)
        assert all(map(quarantined, site.cluster.hosts.values()))
        work.cancel()

    play(main, nodes=2)


def test_state_of_an_earlier_version_is_compared_from_the_next_boundary_on() -> None:
    async def main(site: Site) -> None:
        await write(site, 5)
        await site.agreed()
        for host in site.cluster.hosts.values():
            host.crash(power=False)
        for host in site.cluster.hosts.values():
            host.start()
            engine, key = run_of(host).engine, keys.applied(GROUP)
            row = engine.get(key)
            assert row is not None
            at, more = memories.applied(engine, GROUP)
            engine.stage([(key, memories.encode([at.index, at.term, more]))])
            run_of(host)._ledger._applied.clear()
        await write(site, 20, start=5)
        await site.agreed()
        (since,) = {run_of(host)._ledger.marks(GROUP)[-1].since for host in site.cluster.hosts.values()}
        assert since == 8
        go_wrong(followers(site)[0], "odd")
        await write(site, 12, start=30)
        await site.until(lambda: any(run_of(h).raft.traffic.installed for h in site.cluster.live()), "it is healed")
        await healed(site)

    play(main)


def test_chains_that_began_at_different_places_are_no_divergence_and_meet_again() -> None:
    async def main(site: Site) -> None:
        await write(site, 5)
        await site.agreed()
        late = followers(site)[0]
        engine = run_of(late).engine
        at, more = memories.applied(engine, GROUP)
        engine.stage([(keys.applied(GROUP), memories.encode([at.index, at.term, more]))])
        run_of(late)._ledger._applied.clear()
        await write(site, 30, start=5)
        await site.agreed()
        await asyncio.sleep(3)
        hosts = site.cluster.hosts.values()
        assert {run_of(host)._ledger.marks(GROUP)[-1].since for host in hosts} == {0, 8}
        assert sum(run_of(host).raft.divergences() for host in hosts) == 0
        await write(site, 520, start=40)
        await site.agreed()
        assert {run_of(host)._ledger.marks(GROUP)[-1].since for host in hosts} == {512}
        assert len({run_of(host)._ledger.marks(GROUP)[-1] for host in hosts}) == 1

    play(main)


def test_replaying_the_log_after_a_crash_comes_to_the_same_marks() -> None:
    async def main(site: Site) -> None:
        for round in range(4):
            await write(site, 13, start=13 * round)
            for host in site.cluster.hosts.values():
                host.crash(power=True)
            for host in site.cluster.hosts.values():
                host.start()
            await healed(site)
        marks = {host.id: run_of(host)._ledger.marks(GROUP)[-1] for host in site.cluster.hosts.values()}
        assert len(set(marks.values())) == 1 and marks[NodeId("a")].below >= 48

    play(main)
