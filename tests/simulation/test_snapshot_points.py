"""Whole nodes that die at every named step of compacting a log and of taking a snapshot, with and without the power:
whatever the step, the node comes back, nothing acknowledged is missing, and the replicas are equal."""

import asyncio
from collections.abc import Callable

import pytest

from raftspine.cluster import raft_snapshot
from raftspine.cluster.raft_host import RaftLimits
from raftspine.errors import NoSpace, SpineError
from raftspine.model import GroupId
from raftspine.node import Node, Sizes
from raftspine.services import ledger_snapshot
from raftspine.sim.cluster import SimHost
from raftspine.storage import keys, memories
from tests.support.ring_site import Site, story

GROUP = GroupId(0)

SMALL = Sizes(RaftLimits(compact_entries=20, keep_entries=4, entry_bytes=1500), rotate_bytes=20_000)
"""A few dozen writes are enough for compactions, rotations of the journal and snapshots."""

RECEIVING = (
    "snapshot:chunk", "snapshot:staged", "snapshot:verified", "snapshot:switching", "snapshot:switched",
    "snapshot:reset", "snapshot:journalled", "snapshot:cleared",
)  # fmt: skip

SHORTENING = (
    "compaction:flushed", "compaction:recorded", "journal:sealed", "journal:restated", "journal:dropped",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_snapshot, "CHUNK_BYTES", 2048)
    monkeypatch.setattr(raft_snapshot, "SYNC_BYTES", 5000)


class Writers:
    """Strong writes through whoever is up, and what of them was acknowledged."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.acknowledged: list[str] = []
        self._count = 0

    async def write(self, count: int, *, through: str | None = None) -> None:
        for _ in range(count):
            self._count += 1
            id = f"m{self._count}"
            for attempt in range(100):
                try:
                    await self.site.put(through or self._someone(), id, "x" * 500, tags=("critical",), key=f"k-{id}")
                except SpineError:
                    assert attempt < 99, "no write came through"
                    await asyncio.sleep(0.2)
                else:
                    self.acknowledged.append(id)
                    break

    def _someone(self) -> str:
        live = self.site.cluster.live()
        return str(live[self._count % len(live)].id)

    async def judge(self) -> None:
        """All nodes up, equal, and with everything that was acknowledged."""
        cluster = self.site.cluster
        await self.site.until(
            lambda: all(cluster.ready(host) for host in cluster.hosts.values()), "all are ready", 60
        )
        await self.site.agreed()
        first = state(cluster.live()[0].node)
        for host in cluster.live():
            assert host.node is not None
            for id in self.acknowledged:
                assert memories.strong(host.node.engine, GROUP, id) is not None, f"{host.id} lost {id}"
            assert state(host.node) == first
            staging = host.node.raft._staging
            await self.site.until(lambda staging=staging: staging.groups() == [], "nothing is left on the stage")


def state(node: Node | None) -> dict[bytes, bytes]:
    """The whole strong state, the chain of hashes over its history included."""
    assert node is not None
    kinds = (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER, keys.APPLIED)
    return {key: data for kind in kinds for key, data in node.engine.scan(*keys.span(kind, GROUP), limit=100_000)}


def dies_once(host: SimHost, point: str, *, power: bool, after: int = 1) -> list[str]:
    """Let the machine die the `after`th time it passes a step, and come back a little later. Returns how often it was
    passed."""
    seen: list[str] = []

    def passed(host: SimHost, name: str) -> None:
        if name == point:
            seen.append(name)
            if len(seen) == after:
                host.crash(power=power)
                asyncio.get_running_loop().call_later(0.3, host.start)

    host.on_point = passed
    return seen


def leader(site: Site) -> SimHost:
    return next(host for host in site.cluster.live() if host.node and host.node.raft.leader(GROUP) == host.id)


def follower(site: Site) -> SimHost:
    return next(host for host in site.cluster.hosts.values() if host is not leader(site))


async def left_behind(site: Site, writers: Writers) -> SimHost:
    """A follower that is down, and that only a snapshot can bring back."""
    await writers.write(3)
    host = follower(site)
    assert host.node is not None
    had = host.node.raft.status(GROUP).last
    host.crash(power=True)
    await writers.write(40)

    def shortened() -> bool:
        nodes = [other.node for other in site.cluster.live() if other.node is not None]
        return all(node.raft._groups[GROUP].log.base > max(had, 10) for node in nodes)

    await site.until(shortened, "the logs are short")
    return host


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
@pytest.mark.parametrize("point", RECEIVING)
def test_a_receiver_that_dies_at_this_step_comes_back_whole(point: str, power: bool) -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)
        seen = dies_once(host, point, power=power, after=4 if point == "snapshot:chunk" else 1)
        host.start()
        await site.until(lambda: host.lives == 3, "it died there and came back")
        await writers.write(5)
        await writers.judge()
        assert seen and host.node is not None and host.node.raft._groups[GROUP].log.base > 10

    story(main, groups=1, sizes=SMALL, level=False)


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
@pytest.mark.parametrize("point", SHORTENING)
@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_node_that_dies_while_it_shortens_its_log_loses_nothing(point: str, power: bool, who: str) -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        await writers.write(3)
        host = leader(site) if who == "leader" else follower(site)
        seen = dies_once(host, point, power=power)
        for _ in range(12):
            await writers.write(8)
            await asyncio.sleep(0.2)
        assert seen, "the step was passed"
        await site.until(lambda: host.lives == 2, "it came back")
        await writers.judge()

    story(main, groups=1, sizes=SMALL, level=False)


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
@pytest.mark.parametrize("point", ["snapshot:verified", "snapshot:switching", "snapshot:switched", "snapshot:reset"])
def test_a_snapshot_may_contradict_the_log_it_replaces(point: str, power: bool) -> None:
    """A snapshot during a truncation: the deposed leader holds entries of its own at the snapshot's index."""

    async def main(site: Site) -> None:
        writers = Writers(site)
        await writers.write(3)
        old = leader(site)
        heal = site.isolate(old.id)
        assert old.node is not None
        group = old.node.raft._groups[GROUP]
        lost = [old.node.raft.propose(GROUP, b"\x01" + b"never to be committed" * 100) for _ in range(120)]
        await asyncio.sleep(0.05)
        tail = group.log.last
        assert tail > 100
        rest = [host for host in site.cluster.hosts.values() if host is not old]
        await site.until(lambda: any(h.node and h.node.raft.leader(GROUP) == h.id for h in rest), "a new leader")
        while len(writers.acknowledged) < 45:
            await writers.write(1, through=str(rest[0].id))

        def shortened() -> bool:
            return all(h.node is not None and h.node.raft._groups[GROUP].log.base > 20 for h in rest)

        await site.until(shortened, "the logs are short")
        seen = dies_once(old, point, power=power)
        heal()
        await site.until(lambda: old.lives == 2, "it died there and came back")
        await asyncio.gather(*lost, return_exceptions=True)
        await writers.write(5)
        await writers.judge()
        assert seen == [point] or len(seen) > 1
        assert old.node.raft._groups[GROUP].log.last < tail

    story(main, groups=1, sizes=SMALL, level=False)


def test_two_snapshots_in_a_row() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        for round in (1, 2):
            host = await left_behind(site, writers)
            host.start()
            await site.until(lambda host=host, round=round: host.points.get("snapshot:cleared", 0) >= 1, f"{round}")
            await writers.judge()
            host.crash(power=True)
            await writers.write(40)
            host.start()
            await writers.judge()
            host.points.clear()

    story(main, groups=1, sizes=SMALL, level=False)


# ── going on where it stopped ──────────────────────────────────────────────────────────────────────────────


def resumed(site: Site) -> int:
    return sum(host.node.raft.traffic.resumed_bytes for host in site.cluster.live() if host.node is not None)


def received(host: SimHost) -> int:
    return 0 if host.node is None else host.node.raft.traffic.received_bytes


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_a_receiver_that_restarts_says_what_it_holds(power: bool) -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)
        dies_once(host, "snapshot:chunk", power=power, after=8)
        host.start()
        await site.until(lambda: host.lives == 3, "it died and came back")
        await writers.judge()
        whole = len(b"".join(state(host.node).values()))
        limit = whole if power else whole - 6 * 2048
        assert 0 < received(host) < limit, "the second life was sent the rest only"

    story(main, groups=1, sizes=SMALL, level=False)


def test_another_leader_goes_on_with_the_same_snapshot() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)
        sender = leader(site)
        handed: list[bool] = []

        def passed(host: SimHost, point: str) -> None:
            if point == "snapshot:chunk" and host.points[point] == 8:
                sender.crash(power=False)
                handed.append(True)

        host.on_point = passed
        host.start()
        await site.until(lambda: handed, "the sender died")
        await site.until(lambda: host.points.get("snapshot:cleared", 0) == 1, "another one went on", 60)
        assert resumed(site) >= 7 * 2048
        sender.start()
        await writers.judge()

    story(main, groups=1, sizes=SMALL, level=False)


def test_a_lost_link_costs_a_chunk_and_not_the_transfer() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)

        def passed(host: SimHost, point: str) -> None:
            if point == "snapshot:chunk" and host.points[point] % 4 == 0:
                for other in site.cluster.ids:
                    if other != host.id:
                        site.cluster.network.reset(other, host.id)

        host.on_point = passed
        host.start()
        await writers.judge()
        size = len(b"".join(state(host.node).values()))
        assert received(host) < size * 1.5

    story(main, groups=1, sizes=SMALL, level=False)


# ── what a bad snapshot may not do ─────────────────────────────────────────────────────────────────────────


def spoilt(host: SimHost, spoil: Callable[[SimHost], None]) -> None:
    """Do something to a machine when its snapshot is on the stage, once."""

    def passed(host: SimHost, point: str) -> None:
        if point == "snapshot:staged" and host.points[point] == 1:
            spoil(host)

    host.on_point = passed


def test_a_stage_that_reads_back_wrong_is_not_installed_and_is_sent_again() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)

        def rot(host: SimHost) -> None:
            host.disk.damage("staging", "00000.snapshot", 4000)

        spoilt(host, rot)
        host.start()
        await site.until(lambda: host.points.get("snapshot:cleared", 0) == 1, "the second one is in force")
        assert host.points["snapshot:staged"] == 2 and host.points["snapshot:verified"] == 1
        assert host.node is not None and host.node.raft.traffic.failed == 1
        await writers.judge()

    story(main, groups=1, sizes=SMALL, level=False)


def test_a_disk_that_is_full_while_staging_changes_nothing() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)

        def fill(host: SimHost, point: str) -> None:
            if point == "snapshot:chunk" and host.points[point] == 3:
                host.disk.full = True
                asyncio.get_running_loop().call_later(3.0, setattr, host.disk, "full", False)

        host.on_point = fill
        host.start()
        await site.until(lambda: host.disk.full, "the disk is full")
        assert host.node is not None and host.node.raft.status(GROUP).applied < 20
        await writers.judge()

    story(main, groups=1, sizes=SMALL, level=False)


def test_a_store_without_room_keeps_the_stage_and_the_old_state() -> None:
    async def main(site: Site) -> None:
        writers = Writers(site)
        host = await left_behind(site, writers)

        def refuse(host: SimHost, point: str) -> None:
            if point == "snapshot:verified" and host.points[point] == 1:
                assert host.node is not None
                host.node.engine._refusal = lambda: NoSpace("no room")

        host.on_point = refuse
        host.start()
        await site.until(lambda: host.node is not None and host.node.raft.traffic.failed > 0, "it was refused")
        assert host.node is not None and host.node.raft.status(GROUP).applied < 20
        assert host.points.get("snapshot:switched", 0) == 0
        host.node.engine._refusal = None
        await writers.judge()
        size = len(b"".join(state(host.node).values()))
        assert received(host) < size * 1.5, "the group was at rest, so it was not sent again"

    story(main, groups=1, sizes=SMALL, level=False)
