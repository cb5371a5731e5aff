"""What a node says about itself: readiness, counts; and a gateway, which has no journal to lose."""

import asyncio
from typing import Any

import pytest

from raftspine.model import GroupId, NodeId
from raftspine.ports import LogStatus
from raftspine.services import counts
from raftspine.services.values import ANYTHING, Ask, Draft
from tests.support.ring_site import Site, story


class Unheard:
    """A node's log, one group of which has heard of a leader and of nothing else."""

    def __init__(self, log: Any, group: GroupId) -> None:
        self._log = log
        self._group = group

    def groups(self) -> tuple[GroupId, ...]:
        return self._log.groups()  # type: ignore[no-any-return]

    def status(self, group: GroupId) -> LogStatus:
        status: LogStatus = self._log.status(group)
        return status._replace(commit=0, applied=0) if group == self._group else status


def test_a_group_that_has_heard_nothing_from_its_leader_is_not_ready() -> None:
    async def main(site: Site) -> None:
        overview = site.node("c").overview
        assert overview.ready() == (True, [])
        overview._log = Unheard(overview._log, GroupId(2))  # type: ignore[assignment]
        assert overview.ready() == (False, ["group 2 has nothing from its leader yet"])

    story(main)


def test_a_gateway_has_no_journal_to_lose() -> None:
    async def main(site: Site) -> None:
        d = site.cluster.hosts[NodeId("d")]
        d.crash(power=True)
        d.disk.erase("raft")
        d.start()
        await site.until(lambda: site.cluster.ready(d), "the gateway is ready")

    story(main, nodes=4, gateways=1)


async def fill(site: Site, first: int, last: int) -> None:
    memories = site.node("a").memories
    await asyncio.gather(*(memories.put(Ask(), f"m{n}", Draft(n), ANYTHING) for n in range(first, last)))


def test_a_small_store_is_counted_exactly_and_a_large_one_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counts, "SMALL_ROWS", 60)
    monkeypatch.setattr(counts, "STEP_ROWS", 16)

    async def main(site: Site) -> None:
        overview = site.node("a").overview
        await fill(site, 0, 39)
        await site.put("a", "s", 1, tags=("critical",))
        await site.agreed()
        by_group = overview.group_counts()
        assert sum(by_group.values()) == overview.stats()["memories"] == 40
        skew = overview.partition_skew()["memories"]
        assert skew == pytest.approx(max(by_group.values()) / 10, abs=0.001)
        await site.node("a").memories.delete(Ask(), "m0", ANYTHING)
        assert sum(overview.group_counts().values()) == 40, "a tombstone counts until it is forgotten"
        await fill(site, 100, 200)
        await site.until(lambda: sum(overview.group_counts().values()) == 140, "the store was walked", 40)
        taken: list[int] = []
        engine = site.node("a").engine
        scan = engine.scan

        def watched(lo: bytes, hi: bytes, **how: Any) -> Any:
            found = scan(lo, hi, **how)
            taken.append(len(found))
            return found

        monkeypatch.setattr(engine, "scan", watched)
        for _ in range(10):
            assert sum(overview.group_counts().values()) == 140
        assert sum(taken) <= 10 * (60 + 1), "an answer costs no more than a small store does"

    story(main)
