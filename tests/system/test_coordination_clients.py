"""The client and the command line against three nodes: what they hold and watch outlives the node they talk to."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftspine import AsyncSpine, LeaseLost, Spine
from raftspine.cli import main
from tests.support.cluster import LocalCluster
from tests.support.processes import Processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WRITES = 300
POLICY = """
conditions:
  - {type: approval, min: 1}
  - {type: check, name: tests}
"""


@pytest.fixture
def cluster(processes: Processes, tmp_path: Path) -> Iterator[LocalCluster]:
    found = LocalCluster(processes, tmp_path)
    found.start()
    yield found


def test_a_watch_goes_on_at_another_node_without_gap_or_double(cluster: LocalCluster) -> None:
    """Every node is killed once, so the watched one is among them; each write is told once, in order."""

    async def run() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        async with (
            AsyncSpine(cluster.urls, timeout=60) as spine,
            AsyncSpine(cluster.urls[::-1], timeout=60) as writer,
        ):

            async def watch(ready: asyncio.Event) -> None:
                async for event in spine.watch(kinds=["memory"], prefix="w-"):
                    seen.append((event.key, event.number))
                    if event.key == "w-begin":
                        ready.set()
                    if event.key == "w-end":
                        return

            ready = asyncio.Event()
            watching = asyncio.create_task(watch(ready))
            begun = asyncio.ensure_future(ready.wait())
            for attempt in itertools.count():  # what is written before the watch has begun is not told
                await writer.put("w-begin", attempt, tags=["lock"])
                await asyncio.wait((begun,), timeout=0.2)
                if begun.done():
                    break

            async def write() -> None:
                for n in range(WRITES):
                    await writer.put("w-one", n, tags=["lock"])

            writing = asyncio.create_task(write())
            for node in cluster.ids:
                await asyncio.to_thread(cluster.kill, node)
                await asyncio.to_thread(cluster.start, node)
            await writing
            await writer.put("w-end", 0, tags=["lock"])
            await asyncio.wait_for(watching, 60)
        return seen

    seen = asyncio.run(run())
    ours = [number for key, number in seen if key == "w-one"]
    assert len(ours) == WRITES
    assert ours == sorted(set(ours))


def test_a_lease_outlives_the_nodes_one_after_the_other(cluster: LocalCluster) -> None:
    with Spine(cluster.urls, timeout=60) as spine, spine.lock("deploy", ttl=12) as lease:
        for node in cluster.ids:
            cluster.kill(node)
            lease.ensure()
            assert spine.show_lock("deploy")["fencing_token"] == lease.token
            cluster.start(node)
        assert lease.check().valid


def test_a_lease_is_lost_when_a_majority_is(cluster: LocalCluster) -> None:
    with Spine(cluster.urls) as spine, pytest.raises(LeaseLost), spine.lock("deploy", ttl=3) as lease:
        cluster.kill("n2", "n3")
        assert lease.lost.wait(30)


class Cli:
    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._environ = {"RAFTSPINE_URL": url}
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        found = main(arguments, self._environ)
        out, err = self._capsys.readouterr()
        assert found == code, (found, out, err)
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--output", "json"))


def test_the_commands_of_coordination(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli = Cli(cluster.urls[0], capsys)
    _gates(cli, tmp_path)
    _tasks(cli)
    with Spine(cluster.urls) as spine, pytest.raises(LeaseLost), spine.lock("deploy/api", owner="me", ttl=6) as lease:
        (row,) = cli.json("lock", "ls", "--prefix", "deploy/")
        assert (row["name"], row["holder"], row["fencing_token"]) == ("deploy/api", "me", lease.token)
        assert cli.json("lock", "show", "deploy/api")["held"] is True
        assert "taken from me" in cli("lock", "break", "deploy/api", "--reason", "stuck")
        cli("lock", "break", "deploy/api", "--reason", "again", code=4)
        assert lease.lost.wait(30)
    assert cli("election", "show", "cron") == "nobody\n"


def _gates(cli: Cli, tmp_path: Path) -> None:
    cli("gate", "open", "simple", "--uses", "1")
    assert cli.json("gate", "pass", "simple")["uses_left"] == 0
    cli("gate", "pass", "simple", code=4)
    (tmp_path / "policy.yaml").write_text(POLICY)
    cli("gate", "open", "prod", "--policy", str(tmp_path / "policy.yaml"), "--agent", "ops")
    id = cli.json("gate", "request", "prod", "sha256:1", "--subject", "api", "--agent", "bob")["id"]
    cli("gate", "admit", "prod", id, "sha256:1", "--agent", "bob", code=4)
    cli("gate", "approve", "prod", id, "sha256:1", "--agent", "anna")
    assert "READY" in cli("gate", "report", "prod", id, "sha256:1", "tests", "ok", "--agent", "ci")
    token = cli("gate", "admit", "prod", id, "sha256:1", "--agent", "bob").strip()
    assert cli("gate", "verify", "prod", id, token).startswith("yes")
    freeze = cli.json("gate", "freeze", "--reason", "stop", "--agent", "ops")["freeze_id"]
    cli("gate", "verify", "prod", id, token, code=4)
    assert [row["freeze_id"] for row in cli.json("gate", "freezes")] == [freeze]
    cli("gate", "unfreeze", freeze, "--agent", "ops")
    assert "PASSED" in cli("gate", "complete", "prod", id, token, "ok", "--agent", "bob")
    assert [row["state"] for row in cli.json("gate", "requests", "prod")] == ["PASSED"]
    chain = tmp_path / "chain.json"
    chain.write_text(cli("gate", "audit", "prod", "--output", "json"))
    assert "the chain holds" in cli("gate", "audit", "--verify", str(chain))
    chain.write_text(chain.read_text().replace("anna", "eve"))
    cli("gate", "audit", "--verify", str(chain), code=1)
    assert {row["name"] for row in cli.json("gate", "ls")} == {"simple", "prod"}
    cli("gate", "rm", "simple")
    cli("gate", "show", "simple", code=3)


def _tasks(cli: Cli) -> None:
    first = cli.json("task", "enqueue", "mail", "--json", '{"to": "anna"}', "--dedupe-key", "a")
    assert cli.json("task", "enqueue", "mail", "x", "--dedupe-key", "a")["deduplicated"] is True
    cli("task", "enqueue", "mail", "second", "--max-attempts", "1")
    one, two = cli.json("task", "claim", "mail", "-n", "2")
    assert (one["id"], one["payload"]) == (first["id"], {"to": "anna"})
    assert cli.json("task", "complete", "mail", one["id"], str(one["claim_token"]), "--result", "1")["first"] is True
    assert cli.json("task", "complete", "mail", one["id"], str(one["claim_token"]))["first"] is False
    assert "dead" in cli("task", "fail", "mail", two["id"], str(two["claim_token"]), "--error", "no")
    assert [row["error"] for row in cli.json("task", "dead", "mail")] == ["no"]
    assert "ready" in cli("task", "requeue", "mail", two["id"])
    cli("task", "rm", "mail", two["id"])
    assert [row["state"] for row in cli.json("task", "list", "mail")] == ["done"]
    assert cli.json("task", "list")[0]["done"] == 1
    assert cli.json("task", "show", "mail", one["id"])["result"] == 1
