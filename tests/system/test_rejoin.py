"""Three real node processes, one of which loses its data directory."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftspine import AsyncSpine
from tests.support.cluster import LocalCluster, await_that
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(processes: Processes, tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(processes, tmp_path)
    made.start()
    yield made


def status(cluster: LocalCluster, node: str) -> Any:
    return cluster.get(node, "/v1/cluster/status")[1]


def votes_everywhere(cluster: LocalCluster, node: str) -> bool:
    """Whether the groups' leaders count on this node, by its present name and no other."""
    name = status(cluster, node)["raft_id"]
    accounts = {each: status(cluster, each) for each in cluster.ids if cluster.running[each].alive()}
    led: set[str] = set()
    for account in accounts.values():
        for group in (each for each in (account or {"groups": ()})["groups"] if each["role"] == "leader"):
            led.add(group["group"])
            if [voter for voter in group["voters"] if voter.partition("~")[0] == node] != [name]:
                return False
    return len(led) == len(status(cluster, node)["groups"]) == 17


async def write(cluster: LocalCluster, nodes: list[str], name: str, count: int) -> None:
    async with AsyncSpine([cluster.url(node) for node in nodes], agent_id="writer", timeout=30) as spine:
        for n in range(count):
            await spine.put(f"{name}-strong-{n}", f"{n}", tags=["critical"])
            await spine.put(f"{name}-ring-{n}", f"{n}")


async def read_back(cluster: LocalCluster, node: str, name: str, count: int) -> None:
    async with AsyncSpine(cluster.url(node), agent_id="reader", timeout=30) as spine:
        for n in range(count):
            assert (await spine.get(f"{name}-strong-{n}")).content == f"{n}"
            assert (await spine.get(f"{name}-ring-{n}")).content == f"{n}"


def test_a_node_whose_data_directory_is_gone_rejoins_and_is_counted_on(cluster: LocalCluster, tmp_path: Path) -> None:
    asyncio.run(write(cluster, cluster.ids, "before", 40))
    cluster.kill("n2")
    shutil.rmtree(tmp_path / "n2")
    cluster.start("n2")
    assert status(cluster, "n2")["raft_id"].startswith("n2~")
    await_that(lambda: votes_everywhere(cluster, "n2"), "n2 votes in all groups", lambda: cluster.tail("n2"))
    asyncio.run(read_back(cluster, "n2", "before", 40))

    cluster.kill("n3")  # now n2 has to be counted on
    asyncio.run(write(cluster, ["n1", "n2"], "after", 40))
    cluster.start("n3")
    for node in cluster.ids:
        asyncio.run(read_back(cluster, node, "before", 40))
        asyncio.run(read_back(cluster, node, "after", 40))

    name = status(cluster, "n2")["raft_id"]
    assert cluster.stop("n2") == 0
    cluster.start("n2")
    assert status(cluster, "n2")["raft_id"] == name, "it keeps the name with the disk"


def test_a_node_put_back_to_an_older_image_begins_anew_by_itself(cluster: LocalCluster, tmp_path: Path) -> None:
    """The process goes on: it finds itself void, puts its journal aside and comes back as another member."""
    asyncio.run(write(cluster, cluster.ids, "before", 5))
    assert cluster.stop("n2") == 0  # which also hands leadership to the others, who then are witnesses
    shutil.copytree(tmp_path / "n2", tmp_path / "image")
    cluster.start("n2")
    asyncio.run(write(cluster, cluster.ids, "between", 60))
    assert cluster.stop("n2") == 0
    shutil.rmtree(tmp_path / "n2")
    shutil.copytree(tmp_path / "image", tmp_path / "n2")
    process_before = cluster.running["n2"]
    cluster.launch("n2")
    assert cluster.running["n2"] is not process_before

    def renamed() -> bool:
        account = status(cluster, "n2")
        return account is not None and str(account["raft_id"]).startswith("n2~")

    await_that(renamed, "n2 has begun anew", lambda: cluster.tail("n2"))
    cluster.wait_ready("n2")
    await_that(lambda: votes_everywhere(cluster, "n2"), "n2 votes in all groups", lambda: cluster.tail("n2"))
    assert len(list((tmp_path / "n2").glob("*/raft.void-1")) + list((tmp_path / "n2").glob("raft.void-1"))) == 1
    asyncio.run(read_back(cluster, "n2", "before", 5))
    asyncio.run(read_back(cluster, "n2", "between", 60))
