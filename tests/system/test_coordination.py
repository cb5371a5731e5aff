"""Locks, gates and watching on real processes: other nodes wait, a leader dies, a node stops."""

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from tests.support.cluster import LocalCluster, await_that
from tests.support.processes import Processes


@pytest.fixture(scope="module")
def cluster(module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    made = LocalCluster(module_processes, tmp_path_factory.mktemp("cluster"))
    made.start()
    return made


def post(cluster: LocalCluster, node: str, path: str, body: Any, method: str = "POST") -> tuple[int, Any]:
    """Status and body; status 0 when the node does not answer."""
    request = urllib.request.Request(
        cluster.url(node) + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=70) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except (urllib.error.URLError, OSError):
        return 0, None


def test_a_lease_outlives_a_killed_leader_and_a_waiter_gets_the_lock(cluster: LocalCluster) -> None:
    status, lease = post(cluster, "n1", "/v1/locks/x/acquire", {"owner": "one", "ttl_seconds": 20})
    assert status == 200
    group = cluster.get("n1", "/v1/route?id=x&tags=critical")[1]
    leader = group["leader"]
    others = [node for node in cluster.ids if node != leader]
    found: list[tuple[int, Any]] = []
    waiting = threading.Thread(
        target=lambda: found.append(
            post(cluster, others[0], "/v1/locks/x/acquire", {"owner": "two", "wait_seconds": 60})
        )
    )
    waiting.start()
    cluster.kill(leader)
    mine = {"lease_id": lease["lease_id"], "fencing_token": lease["fencing_token"]}
    await_that(lambda: post(cluster, others[1], "/v1/locks/x/renew", mine)[0] == 200, "the lease is renewed")
    status, checked = post(cluster, others[1], "/v1/locks/x/check", {"fencing_token": mine["fencing_token"]})
    assert (status, checked["valid"]) == (200, True)
    if not found:  # a waiter whose leader died is told so, and asks again
        assert post(cluster, others[1], "/v1/locks/x/release", mine)[0] == 200
    waiting.join(65)
    status, second = found[0]
    if status != 200:
        status, second = post(cluster, others[0], "/v1/locks/x/acquire", {"owner": "two", "wait_seconds": 60})
    assert status == 200 and second["fencing_token"] > lease["fencing_token"]
    cluster.start(leader)


def test_a_watch_ends_with_its_node_and_goes_on_at_another(cluster: LocalCluster) -> None:
    request = urllib.request.Request(
        cluster.url("n2") + "/v1/watch?kinds=gate", headers={"Accept": "text/event-stream"}
    )
    lines: list[str] = []
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines += [stream.readline().decode().strip() for _ in range(4)]
        assert post(cluster, "n3", "/v1/gates/g", {"state": "open", "uses": 2}, "PUT")[0] == 201
        lines += [stream.readline().decode().strip() for _ in range(4)]
        assert json.loads(lines[6].removeprefix("data: "))["change"] == "opened"
        started = time.monotonic()
        cluster.signal("n2", SIGTERM)
        stream.read()
        assert cluster.running["n2"].wait(20) == 0
        assert time.monotonic() - started < 15, "a stream does not hold a stopping node up"
    token = lines[4].removeprefix("id: ")
    assert post(cluster, "n1", "/v1/gates/g/pass", {"agent_id": "a"})[0] == 200
    await_that(
        lambda: bool(cluster.get("n3", f"/v1/watch?kinds=gate&since={token}")[1]["events"]), "n3 goes on with it"
    )
    seen = cluster.get("n3", f"/v1/watch?kinds=gate&since={token}")[1]
    assert [event["change"] for event in seen["events"]] == ["passed"]
    cluster.start("n2")


def test_the_page_of_examples_can_be_typed(cluster: LocalCluster) -> None:
    """The requests of docs/coordination.md, with the bodies they show."""
    page = (Path(__file__).resolve().parents[2] / "docs/coordination.md").read_text()
    assert "X-Spine-Fencing" in page and "/v1/gates:freeze" in page
    lock, path = "{dep-42}/deploy", "/v1/locks/%7Bdep-42%7D%2Fdeploy"
    status, lease = post(
        cluster, "n1", f"{path}/acquire", {"owner": "agent-7", "ttl_seconds": 30, "wait_seconds": 20}
    )
    assert status == 200
    guard = [{"lock": lock, "token": lease["fencing_token"]}]
    memory = {"content": 1, "tags": ["critical"], "guard": guard}
    assert post(cluster, "n2", "/v1/memories/dep-42", memory, "PUT")[0] == 201
    policy = {"conditions": [{"type": "check", "name": "tests", "max_age_seconds": 3600},
                             {"type": "approval", "min": 1, "groups": ["ops"]}],
              "concurrent": 1, "override": {"people": 2, "seconds": 900}}  # fmt: skip
    assert post(cluster, "n3", "/v1/gates/prod", {"state": "open", "policy": policy}, "PUT")[0] == 201
    artifact = {"artifact_digest": "sha256:1"}
    asked = {**artifact, "requester": "agent-7", "subject": "api"}
    _, made = post(cluster, "n1", "/v1/gates/prod/requests", asked)
    one = f"/v1/gates/prod/requests/{made['id']}"
    assert (
        post(cluster, "n2", f"{one}/report", {**artifact, "check": "tests", "ok": True, "agent_id": "ci"})[0] == 200
    )
    assert post(cluster, "n2", f"{one}/approve", {**artifact, "approver": "ann", "groups": ["ops"]})[0] == 200
    status, opened = post(cluster, "n3", f"{one}/admit", {**artifact, "wait_seconds": 30, "agent_id": "agent-7"})
    assert status == 200
    token = {"fencing_token": opened["fencing_token"]}
    assert post(cluster, "n1", f"{one}/verify", token)[0] == 200
    assert post(cluster, "n1", f"{one}/complete", {**token, "ok": True, "agent_id": "agent-7"})[0] == 200
