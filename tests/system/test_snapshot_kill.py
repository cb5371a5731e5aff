"""Real processes on real files, killed (kill -9) at named steps of taking a snapshot and of shortening the journal.

tests/simulation/test_snapshot_points.py dies at every step, with the power too; this shows for some of them that the
real disk, the real tree and a real process keep what the simulated ones do."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from raftspine import AsyncSpine
from raftspine.errors import SpineError
from tests.support.cluster import SECRET, LocalCluster, await_that
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

NEVER = "never"


class MortalCluster(LocalCluster):
    """Nodes with short logs; `dies_at` says for each at which step its next life ends."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        super().__init__(processes, folder, config={"partitioning": {"shard_groups": 1}})
        self.dies_at: dict[str, str] = {}

    def launch(self, node: str) -> None:
        point = self.dies_at.pop(node, NEVER)
        command = [sys.executable, "-m", "tests.support.dying_node", str(self.write_config(node)), node, point]
        env = {"RAFTSPINE_CLUSTER_SECRET": SECRET}
        self.running[node] = self._processes.start(command, env=env, cwd=Path(__file__).parents[2], name=node)


async def write(urls: list[str], ids: list[str]) -> None:
    """One after the other, so that each is an entry of the log; every one is acknowledged when this returns."""
    async with AsyncSpine(urls, agent_id="writer", timeout=30) as spine:
        for id in ids:
            await spine.put(id, f"{id} " + "x" * 2000, tags=["critical"])


async def check(url: str, ids: list[str]) -> None:
    async with AsyncSpine(url, agent_id="reader", timeout=30) as spine:
        for id in ids:
            assert (await spine.get(id, consistency="eventual")).content.startswith(f"{id} ")


def away(cluster: MortalCluster, ids: list[str]) -> str:
    """Leave n3 behind its peers' logs; its name."""
    asyncio.run(write(cluster.urls, ids[:10]))
    cluster.kill("n3")
    asyncio.run(write(cluster.urls[:2], ids[10:]))
    return "n3"


@pytest.mark.parametrize("point", ["snapshot:chunk", "snapshot:switched", "snapshot:journalled"])
def test_a_receiver_killed_at_this_step_comes_back_whole(processes: Processes, tmp_path: Path, point: str) -> None:
    cluster = MortalCluster(processes, tmp_path)
    cluster.start()
    ids = [f"m{n}" for n in range(200)]
    node = away(cluster, ids)
    cluster.dies_at[node] = point
    cluster.launch(node)
    assert cluster.running[node].wait(60) == -signal.SIGKILL, cluster.tail(node)
    cluster.start(node)

    def level() -> bool:
        applied = set()
        for one in cluster.ids:
            status = cluster.get(one, "/v1/cluster/status")[1]
            groups = () if status is None else status["groups"]
            applied |= {group["applied"] for group in groups if group["group"] == "group 0"} or {None}
        staged = list((tmp_path / node / node / "snapshots").glob("*.snapshot"))
        return len(applied) == 1 and not staged

    await_that(level, "all have applied the same, and the stage is empty", lambda: cluster.tail(node))
    asyncio.run(check(cluster.url(node), ids))
    asyncio.run(write(cluster.urls, ["after"]))


@pytest.mark.parametrize("point", ["journal:sealed", "journal:restated"])
def test_a_node_killed_while_it_shortens_its_log_loses_nothing(
    processes: Processes, tmp_path: Path, point: str
) -> None:
    cluster = MortalCluster(processes, tmp_path)
    cluster.dies_at["n2"] = point
    cluster.start()
    written: list[str] = []

    async def until_it_dies() -> None:
        for n in range(2000):
            try:
                await write([cluster.url("n1"), cluster.url("n3")], [f"m{n}"])
                written.append(f"m{n}")
            except SpineError:
                continue  # its outcome is not known, or it was not done: nothing was promised
            if not cluster.running["n2"].alive():
                return

    asyncio.run(until_it_dies())
    assert cluster.running["n2"].wait(30) == -signal.SIGKILL, cluster.tail("n2")
    cluster.start("n2")
    for node in cluster.ids:
        asyncio.run(check(cluster.url(node), written))
