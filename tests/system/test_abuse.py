"""One node treated badly: a disk that fills, files that rot, rubbish on its ports, a stop during an upload."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.cluster import SECRET, LocalCluster, await_that
from tests.support.processes import Processes
from tests.support.tools import missing, need, need_root

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB for node n2."""
    need_root()
    mount = need("mount")
    folder = tmp_path / "n2"
    folder.mkdir()
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        missing(f"file systems cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run([need("umount"), "-l", str(folder)], check=True)


def ask(cluster: LocalCluster, node: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    link = http.client.HTTPConnection("127.0.0.1", cluster.http[node], timeout=20)
    try:
        data = None if body is None else json.dumps(body)
        link.request(method, path, data, {"Content-Type": "application/json"})
        reply = link.getresponse()
        return reply.status, json.loads(reply.read() or b"null")
    finally:
        link.close()


def fill(file: Path) -> None:
    """Until nothing fits any more."""
    with file.open("wb", buffering=0) as target:
        while True:
            try:
                target.write(bytes(4096))
            except OSError:
                return


def test_a_node_with_a_full_disk_says_so_passes_on_what_it_can_and_loses_nothing(
    small_disk: Path, processes: Processes, tmp_path: Path
) -> None:
    cluster = LocalCluster(processes, tmp_path)
    kept: dict[str, str] = {}

    def put(node: str, id: str, tags: list[str], size: int = 2000) -> tuple[int, Any]:
        content = f"{id} " + "x" * size
        status, body = ask(cluster, node, "PUT", f"/v1/memories/{id}", {"content": content, "tags": tags})
        if status in (200, 201):
            kept[id] = content
        return status, body

    try:
        cluster.start()
        for i in range(60):
            assert put(cluster.ids[i % 3], f"before-{i}", ["critical"] if i % 2 else [])[0] == 201
        fill(small_disk / "filler")

        def no_ring_write() -> bool:
            status, body = put("n2", "probe", [], 20_000)
            return (status, body["error"]["code"] if status == 507 else "") == (507, "no_space")

        def says_so() -> bool:
            status, body = cluster.get("n2", "/readyz")
            return status == 503 and "Raft journal cannot be written" in body["error"]["message"]

        await_that(no_ring_write, "ring writes get 507")
        for i in range(40):
            put("n1", f"strong-{i}", ["critical"], 20_000)
        await_that(says_so, "n2 reports its journal", lambda: str(cluster.get("n2", "/readyz")))
        await_that(
            lambda: all(put("n2", f"through-{i}", ["critical"])[0] in (200, 201) for i in range(20)),
            "strong writes reach their leaders through the full node",
        )
        for node in ("n1", "n3"):
            assert put(node, f"ring-{node}", [])[0] == 201
        for i in range(0, 60, 2):
            assert ask(cluster, "n2", "GET", f"/v1/memories/before-{i}")[0] == 200

        (small_disk / "filler").unlink()
        cluster.wait_ready("n2")
        assert put("n2", "after", [])[0] == 201
        for node in cluster.ids:
            for id, content in kept.items():
                status, body = ask(cluster, node, "GET", f"/v1/memories/{id}")
                assert (status, body.get("content")) == (200, content), (node, id)
        assert "Traceback" not in cluster.running["n2"].output()
    finally:
        processes.end_all()  # before its disk goes


def test_damaged_files_stop_the_start_with_one_line_that_names_the_place(
    processes: Processes, tmp_path: Path
) -> None:
    cluster = LocalCluster(processes, tmp_path, nodes=1)
    cluster.start()
    for i in range(150):
        ask(cluster, "n1", "PUT", f"/v1/memories/m{i}", {"content": "y" * 500, "tags": ["lock"] if i % 2 else []})
    tree = tmp_path / "n1" / "n1" / "data" / "tree" / "data.mdb"
    await_that(lambda: tree.stat().st_size > 100_000, "a checkpoint")
    cluster.kill("n1")
    sound = tmp_path / "sound"
    shutil.copytree(tmp_path / "n1", sound)

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)

    def halve(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    for pattern, damage in (("raft/*.wal", flip), ("data/log/*.wal", flip), ("data/tree/data.mdb", halve)):
        shutil.rmtree(tmp_path / "n1")
        shutil.copytree(sound, tmp_path / "n1")
        [file] = (tmp_path / "n1" / "n1").glob(pattern)
        damage(file)
        told = len(cluster.running["n1"].output())
        cluster.launch("n1")
        assert cluster.running["n1"].wait(20) == 1, pattern
        said = cluster.running["n1"].output()[told:].splitlines()
        complaint = said[-1]
        assert f"{file}, offset " in complaint and "docs/operations.md" in complaint, complaint
        assert not any("Traceback" in line for line in said)

    shutil.rmtree(tmp_path / "n1")
    shutil.copytree(sound, tmp_path / "n1")
    cluster.start()
    assert ask(cluster, "n1", "GET", "/v1/memories/m1")[0] == 200


def test_a_torn_end_of_the_raft_journal_is_cut_and_said(processes: Processes, tmp_path: Path) -> None:
    cluster = LocalCluster(processes, tmp_path, nodes=1)
    cluster.start()
    for i in range(20):
        assert ask(cluster, "n1", "PUT", f"/v1/memories/m{i}", {"content": "y", "tags": ["lock"]})[0] == 201
    cluster.kill("n1")
    file = max((tmp_path / "n1" / "n1").glob("raft/*.wal"))
    whole = file.stat().st_size
    with file.open("ab") as torn:
        torn.write(b"\0\0\1\0 half a record")
    told = len(cluster.running["n1"].output())
    cluster.start()
    said = [line for line in cluster.running["n1"].output()[told:].splitlines() if "cut a torn record" in line]
    assert len(said) == 1 and str(whole) in said[0] and file.name in said[0]
    for i in range(20):
        assert ask(cluster, "n1", "GET", f"/v1/memories/m{i}")[0] == 200


_ANOTHER_ENGINE = """
import pysyncobj.version
pysyncobj.version.VERSION = "0.3.18"
"""


def test_another_version_of_the_raft_engine_stops_the_start(processes: Processes, tmp_path: Path) -> None:
    """Its safety rules are proven for one version; what they mean for another nobody knows."""
    (tmp_path / "sitecustomize.py").write_text(_ANOTHER_ENGINE)
    cluster = LocalCluster(processes, tmp_path, nodes=1)
    config = str(cluster.write_config("n1"))
    node = processes.start(
        [sys.executable, "-m", "raftspine", "serve", "--config", config, "--node", "n1", "--dev"],
        env={"RAFTSPINE_CLUSTER_SECRET": SECRET, "PYTHONPATH": str(tmp_path)},
        name="n1",
    )
    assert node.wait(30) not in (0, None)
    said = node.output().splitlines()
    assert "pysyncobj 0.3.18 is installed" in said[-1] and "pysyncobj==0.3.17" in said[-1]
    assert not any("Traceback" in line for line in said)


def test_rubbish_on_its_ports_and_a_stalled_upload_neither_end_a_node_nor_keep_it_from_ending(
    processes: Processes, tmp_path: Path
) -> None:
    cluster = LocalCluster(processes, tmp_path, nodes=1)
    cluster.start()
    chance = Random(7)
    hello = bytes.fromhex("16030100c8010000c40303") + chance.randbytes(190)
    rubbish = [hello, b"\xff" * 64, bytes(64), b"\x7f\xff\xff\xffabc", *(chance.randbytes(300) for _ in range(40))]
    for port in (cluster.http["n1"], cluster.peer["n1"]):
        for data in rubbish:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
                link.sendall(data)
    assert cluster.ready("n1")

    stalled = socket.create_connection(("127.0.0.1", cluster.http["n1"]))
    head = "PUT /v1/memories/s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    stalled.sendall(head.encode() + b"{")
    assert ask(cluster, "n1", "GET", "/v1/memories/s")[0] == 404  # the node has seen what was sent before this
    assert cluster.stop("n1") == 0
    stalled.close()
    assert "Traceback" not in cluster.running["n1"].output()
