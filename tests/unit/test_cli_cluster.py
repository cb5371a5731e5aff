"""`cluster status` and its diagnosis, and what `dev` checks before it starts anything."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raftspine.cli import main
from raftspine.cli.diagnosis import View, diagnose, raft_lag, ring_lag, snapshots
from raftspine.cli.exits import Exit
from raftspine.model import Member, NodeId
from tests.support.fake_server import FakeServer

NAMES = ("n1", "n2", "n3")


def group(name: str, role: str, **more: Any) -> dict[str, Any]:
    made = {"group": name, "role": role, "leader": "n1", "term": 1, "commit": 10, "applied": 10, "last": 10}
    return {**made, "voters": list(NAMES), **more}


def node(name: str, *, leads: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "node": name,
        "version": "1",
        "ready": True,
        "reasons": [],
        "epoch": 1,
        "cluster_id": "c",
        "read_only": None,
        "store_used_ratio": 0.1,
        "peers": {peer: {"connected": True, "pending_dots": 0, "lag_seconds": 0.0} for peer in NAMES if peer != name},
        "groups": [group("meta", "leader" if leads else "follower")],
        **more,
    }


def views(**changed: dict[str, Any] | None) -> list[View]:
    """Three healthy nodes, except where told otherwise; None is a node that is down."""
    made = []
    for n, name in enumerate(NAMES):
        status = changed.get(name, node(name, leads=n == 0))
        silence = "" if status is not None else "Connection refused"
        made.append(View(Member(NodeId(name), f"10.0.0.{n + 1}", 8788, 8798), status, silence))
    return made


def problems(*seen: View) -> list[str]:
    return [finding.problem for finding in diagnose(seen)]


def test_all_is_well() -> None:
    assert problems(*views()) == []


def test_a_node_that_is_down_is_told_once() -> None:
    one = node("n1", leads=True)
    one["peers"]["n2"] = {"connected": False, "pending_dots": 900, "lag_seconds": 60.0}
    assert problems(*views(n1=one, n2=None)) == ["n2 does not answer at http://10.0.0.2:8788 (Connection refused)"]


def test_a_replica_that_differs_is_told_with_what_will_happen() -> None:
    def quarantined(reason: str) -> dict[str, Any]:
        return node(
            "n2",
            ready=False,
            reasons=[f"group 4: {reason}"],
            groups=[group("meta", "follower"), group("group 4", "follower", reason=reason, quarantined=True)],
        )

    wrong = "this replica differs from the majority below entry 1024: n2 aa, n1 bb, n3 bb"
    (finding,) = (f for f in diagnose(views(n2=quarantined(wrong))) if "leader" not in f.problem)
    assert finding.problem == f"n2 shows nothing of group 4: {wrong}" and "by itself" in finding.remedy
    torn = "replicas differ and none has a majority below entry 1024: n2 aa, n1 bb"
    (finding,) = (f for f in diagnose(views(n2=quarantined(torn))) if "leader" not in f.problem)
    assert "nobody knows which replica is right" in finding.remedy


def test_snapshots_on_their_way_are_shown() -> None:
    sending = node("n1", groups=[group("group 4", "leader", snapshots=[{"to": "n2", "index": 9, "bytes": 3 << 20}])])
    taking = node("n2", groups=[group("group 4", "follower", snapshots=[{"index": 9, "bytes": 1 << 19}])])
    one, two, three = views(n1=sending, n2=taking)
    assert snapshots(one) == ["n1 sends n2 a snapshot of group 4: 3.0 MiB so far"]
    assert snapshots(two) == ["n2 receives a snapshot of group 4: 0.5 MiB so far"]
    assert snapshots(three) == []


def test_a_lost_majority_names_who_must_come_back() -> None:
    alone = node("n1", groups=[group("group 10", "candidate"), group("group 2", "candidate")])
    findings = diagnose(views(n1=alone, n2=None, n3=None))
    assert findings[2].problem.startswith("group 2, group 10 have lost the majority")
    assert findings[2].remedy.startswith("bring back n2, n3")


def test_an_election_is_not_a_lost_majority() -> None:
    electing = {name: node(name, groups=[group("group 1", "candidate")]) for name in NAMES}
    assert problems(*views(**electing)) == ["group 1 has no leader"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"read_only": "disk full", "reasons": ["writes are refused: disk full"]}, ["n2 refuses writes: disk full"]),
        ({"ready": False, "reasons": ["group 1 is not loaded yet"]}, ["n2 is not ready: group 1 is not loaded yet"]),
        ({"store_used_ratio": 0.9}, ["the store of n2 is 90% full"]),
        ({"version": "2"}, ["versions differ: n1 1, n2 2, n3 1"]),
        ({"epoch": 2}, ["epochs differ: n1 1, n2 2, n3 1"]),
        ({"cluster_id": "other"}, ["these nodes belong to 2 different clusters"]),
        (
            {
                "groups": [group("meta", "halted", reason="damaged log")],
                "ready": False,
                "reasons": ["meta: damaged log"],
            },
            ["n2 has stopped meta: damaged log"],
        ),
        ({"groups": [group("meta", "follower", commit=10, applied=0)]}, []),
    ],
    ids=str,
)
def test_each_trouble_has_one_finding(change: dict[str, Any], said: list[str]) -> None:
    assert problems(*views(n2=node("n2", **change))) == said


def test_a_link_missing_between_two_that_are_up() -> None:
    two = node("n2")
    two["peers"]["n3"]["connected"] = False
    assert problems(*views(n2=two)) == ["n2 has no link to n3, though both are up"]


def test_lag_is_what_the_others_see() -> None:
    one = node("n1", leads=True, groups=[group("meta", "leader", commit=5000, applied=5000)])
    one["peers"]["n3"] = {"connected": True, "pending_dots": 70, "lag_seconds": 7.5}
    seen = views(n1=one)
    assert ring_lag(seen[2], seen) == (7.5, 70)
    assert raft_lag(seen[2], seen) == 4990
    assert problems(*seen)[:1] == ["n2 is 4990 log entries behind"]
    assert "n3 is 8 s behind (70 ring writes)" in problems(*seen)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def servers() -> Iterator[list[FakeServer]]:
    with FakeServer("n1") as one, FakeServer("n2") as two, FakeServer("n3") as three:
        started = [one, two, three]
        members = []
        for server in started:
            port = urlsplit(server.url).port
            assert port is not None
            server.status = node(server.name, leads=server is one)
            members.append({"id": server.name, "host": "127.0.0.1", "port": port, "peer_port": 1, "zone": "z"})
        for server in started:
            server.topology = {"epoch": 1, "members": members, "groups": []}
        yield started


def status(servers: list[FakeServer], *arguments: str) -> int:
    return main(["cluster", "status", *arguments], {"RAFTSPINE_URL": ",".join(s.url for s in servers)})


def test_status_of_a_healthy_cluster(servers: list[FakeServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(servers[2:]) == Exit.OK, "asking one node is enough to find the others"
    out = capsys.readouterr().out
    assert out.count("ready") == 3 and "all is well" in out
    assert status(servers, "--output", "json") == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert [n["node"] for n in document["nodes"]] == ["n1", "n2", "n3"]


def test_status_with_one_node_down(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer("n1") as one:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            gone = listener.getsockname()[1]
        one.status = node("n1", leads=True)
        one.topology = {
            "members": [
                {"id": "n1", "host": "127.0.0.1", "port": urlsplit(one.url).port, "peer_port": 1},
                {"id": "n2", "host": "127.0.0.1", "port": gone, "peer_port": 1},
            ]
        }
        assert status([one]) == Exit.FAILED
    out = capsys.readouterr().out
    assert "down" in out and "raftspine serve --config FILE --node n2" in out and "Connection refused" in out


def test_status_when_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert main(["cluster", "status", "--timeout", "0.2"], {"RAFTSPINE_URL": url}) == Exit.UNAVAILABLE
    assert "does not answer" in capsys.readouterr().out


# ── dev, before it starts anything ──────────────────────────────────────────────────────────────────────────


def test_dev_says_which_port_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        code = main(["dev", "--nodes", "1", "--port", str(port), "--data-dir", str(tmp_path / "d")], {})
    assert code == Exit.USAGE
    assert f"port {port} in use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_dev_touches_no_folder_it_did_not_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster: {name: production}\n")
    (tmp_path / "data").mkdir()
    code = main(["dev", "--fresh", "--nodes", "1", "--port", "61788", "--data-dir", str(tmp_path)], {})
    assert code == Exit.USAGE
    assert "was not written by" in capsys.readouterr().err
    assert (tmp_path / "data").exists()


def test_dev_writes_a_file_the_node_accepts_and_keeps_the_secret_to_itself(tmp_path: Path) -> None:
    from argparse import Namespace

    from raftspine import config
    from raftspine.cli import dev
    from raftspine.cli.children import NodeSpec
    from raftspine.errors import Misuse

    specs = [NodeSpec(f"spine-{n}", 8788 + 100 * n) for n in range(3)]
    options = Namespace(shard_groups=4, durability="interval")
    document = dev._document(tmp_path, specs, options)
    file = dev._prepare(tmp_path, document, fresh=False)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    loaded = config.load(file, {}, dev=True)
    assert [member.id for member in loaded.members] == [spec.id for spec in specs]
    assert dev._prepare(tmp_path, document, fresh=False) == file, "starting again is fine"
    with pytest.raises(Misuse, match="other nodes, ports or shard groups"):
        dev._prepare(tmp_path, dev._document(tmp_path, specs[:2], options), fresh=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.txt").write_text("x")
    dev._prepare(tmp_path, dev._document(tmp_path, specs[:2], options), fresh=True)
    assert not (tmp_path / "data").exists() and (tmp_path / "mine.txt").exists()
