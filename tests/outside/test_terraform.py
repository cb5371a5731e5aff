"""Terraform's own binary against three real nodes: what its users do, and what goes wrong for them."""

import hashlib
import json
import re
import signal
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from raftspine.core.ledger.terraform import STATE_BYTES
from raftspine.core.ledger.terraform_rows import memory_id
from tests.support.cluster import LocalCluster, await_that
from tests.support.processes import Processes
from tests.support.terraform import EMPTY_BLOCK, Folder
from tests.support.tools import optional

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def binary() -> str:
    return optional("terraform", "that the real client works against these nodes (its wire is tested all the same)")


@pytest.fixture(scope="module")
def cluster(binary: str, module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    made = LocalCluster(module_processes, tmp_path_factory.mktemp("cluster"))
    made.start()
    return made


@pytest.fixture
def site(cluster: LocalCluster, binary: str, tmp_path: Path, request: pytest.FixtureRequest) -> "Iterator[Site]":
    """A state of its own for each test, and all nodes up again afterwards."""
    made = Site(cluster, binary, tmp_path, request.node.name)
    yield made
    for node in cluster.ids:
        if not cluster.running[node].alive():
            cluster.start(node)


class Site:
    """One state, asked for at any node."""

    def __init__(self, cluster: LocalCluster, binary: str, folder: Path, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._binary = binary
        self._folder = folder
        self._made = 0

    def address(self, node: str) -> str:
        return f"{self.cluster.url(node)}/v1/terraform/{quote(self.name, safe='')}"

    def folder(self, node: str = "n1") -> Folder:
        """Another user's working folder, its backend at this node."""
        self._made += 1
        folder = Folder(
            self._binary, self._folder / f"user-{self._made}", self.address(node), user=f"user-{self._made}"
        )
        folder.init()
        return folder

    def get(self, rest: str = "", node: str = "n1") -> tuple[int, Any]:
        return self.cluster.get(node, f"/v1/terraform/{quote(self.name, safe='')}{rest}")

    def bytes(self, node: str = "n1") -> bytes:
        with urllib.request.urlopen(self.address(node), timeout=5) as reply:
            found: bytes = reply.read()
            return found

    def await_lock(self, node: str = "n1") -> str:
        """Wait until somebody holds the lock; its ID."""
        await_that(lambda: self.get("/lock", node)[0] == 200, "the state is locked")
        return str(self.get("/lock", node)[1]["lock"]["ID"])

    def leader(self) -> str:
        id = quote(memory_id(self.name), safe="")
        return str(self.cluster.get("n1", f"/v1/route?id={id}")[1]["leader"])


def test_the_block_in_the_documentation(site: Site, repository: Path) -> None:
    text = (repository / "docs/terraform.md").read_text(encoding="utf-8")
    block = re.search(r"```hcl\n(.*?)```", text, re.DOTALL)
    assert block is not None
    folder = site.folder()
    here = block[1].replace("http://127.0.0.1:8788/v1/terraform/prod", site.address("n2"))
    assert here.count(site.address("n2")) == 3
    main = folder.folder / "main.tf"
    main.write_text(main.read_text().replace(EMPTY_BLOCK, here))
    folder.run("init", "-reconfigure", f"-plugin-dir={folder.folder / 'plugins'}")
    assert "1 added" in folder.apply(input="as documented").text
    assert site.get("/versions", "n3")[1]["versions"][0]["serial"] == 1


def test_init_apply_and_apply_again_through_another_node(site: Site) -> None:
    first, second = site.folder("n1"), site.folder("n2")
    assert "1 added" in first.apply(input="one").text
    assert "No changes" in second.apply(input="one").text
    assert "1 changed" in second.apply(input="two").text
    assert first.run("output", "-raw", "said").text == "two"
    assert [version["serial"] for version in site.get("/versions", "n3")[1]["versions"]] == [2, 1]
    assert site.get("/lock")[0] == 404, "each run gave its lock back"
    assert "1 destroyed" in first.run("destroy", "-auto-approve", "-no-color").text


def test_a_second_apply_is_refused_while_the_first_runs(site: Site, processes: Processes, tmp_path: Path) -> None:
    first, second, go = site.folder("n1"), site.folder("n2"), tmp_path / "go"
    running = first.applying(processes, "first", wait_for=str(go))
    holder = site.await_lock()
    refused = second.apply(input="two", fails=True)
    assert "Error acquiring the state lock" in refused.text
    assert holder in refused.text, "the holder's ID, as the node told it"
    unlocked = second.apply("-lock=false", input="two", fails=True)
    assert "HTTP error: 409" in unlocked.text, "a write without a lock is refused while there is one"
    assert running.alive()
    go.touch()
    assert running.wait(60) == 0, running.output()
    second.apply(input="two", wait_for=str(go))
    assert second.run("output", "-raw", "said").text == "two"


def test_concurrent_applies_follow_one_another(site: Site, processes: Processes) -> None:
    site.folder().apply(input="zero")
    folders = [site.folder(node) for node in ("n1", "n2", "n3", "n1")]
    runs = [
        folder.applying(processes, f"run-{at}", "-lock-timeout=60s", input=f"run {at}")
        for at, folder in enumerate(folders)
    ]
    for run in runs:
        assert run.wait(100) == 0, run.output()
    versions = site.get("/versions")[1]["versions"]
    assert [version["serial"] for version in versions] == [5, 4, 3, 2, 1], "each built upon the one before"
    assert len({version["lineage"] for version in versions}) == 1
    assert len({version["lock_id"] for version in versions}) == 5
    assert site.get("/lock")[0] == 404


def test_pull_and_push(site: Site) -> None:
    first, second = site.folder("n1"), site.folder("n3")
    first.apply(input="one")
    pulled = first.run("state", "pull").text
    assert pulled.encode().rstrip() == site.bytes("n2").rstrip()
    changed = json.loads(pulled)
    changed["serial"] += 1
    changed["outputs"]["said"]["value"] = "pushed"
    (second.folder / "changed.json").write_text(json.dumps(changed))
    second.run("state", "push", "changed.json")
    assert first.pull()["outputs"]["said"]["value"] == "pushed"
    stale = second.folder / "stale.json"
    stale.write_text(pulled)
    assert "serial" in second.run("state", "push", str(stale), fails=True).text
    sent = b'{"version": 4, "serial": 9, "lineage": "%b",\n\t"odd": "\xc3\xbc"  }\n\n' % changed["lineage"].encode()
    request = urllib.request.Request(site.address("n1"), sent, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        assert reply.status == 200
    assert site.bytes("n3") == sent, "byte for byte"


def test_a_large_state_fits_and_a_larger_one_is_refused(site: Site) -> None:
    folder, other = site.folder("n1"), site.folder("n2")
    folder.apply(input="one")
    state = folder.pull()
    for size, fits in ((STATE_BYTES - 4096, True), (STATE_BYTES + 1, False)):
        state["serial"] += 10
        state["outputs"]["said"]["value"] = "x" * size
        (folder.folder / "large.json").write_text(json.dumps(state))
        said = folder.run("state", "push", "large.json", fails=not fits).text
        assert fits or "HTTP error: 413" in said
    assert len(other.pull()["outputs"]["said"]["value"]) == STATE_BYTES - 4096
    assert len(site.bytes("n3")) > STATE_BYTES - 4096
    assert site.get("/lock")[0] == 404


def test_an_old_version_is_brought_back(site: Site) -> None:
    folder = site.folder()
    for text in ("one", "two"):
        folder.apply(input=text)
    request = urllib.request.Request(f"{site.address('n2')}/versions/1/restore", b"", method="POST")
    with urllib.request.urlopen(request, timeout=5) as reply:
        assert json.load(reply)["number"] == 3
    assert folder.pull()["outputs"]["said"]["value"] == "one"
    assert "1 changed" in folder.apply(input="two").text


def test_a_run_that_died_leaves_a_lock_that_is_forced(site: Site, processes: Processes, tmp_path: Path) -> None:
    first, second, go = site.folder("n1"), site.folder("n2"), tmp_path / "never"
    running = first.applying(processes, "first", wait_for=str(go))
    holder = site.await_lock()
    running.kill()
    assert holder in second.apply(fails=True).text
    second.run("force-unlock", "-force", holder)
    assert site.get("/lock")[0] == 404
    entry = site.get("/audit", "n3")[1]["entries"][0]
    assert (entry["action"], entry["subject"], entry["actor"]) == ("force-unlock", holder, "user-2")
    assert entry["details"]["operation"] == "OperationTypeApply"
    second.apply(input="two")
    assert "409" in second.run("force-unlock", "-force", holder, fails=True).text, "there is no lock any more"


def test_a_holder_that_was_deposed_writes_no_state(site: Site, processes: Processes, tmp_path: Path) -> None:
    first, second, go = site.folder("n1"), site.folder("n2"), tmp_path / "go"
    second.apply(input="zero")
    running = first.applying(processes, "first", input="first", wait_for=str(go))
    holder = site.await_lock()
    second.run("force-unlock", "-force", holder)
    second.apply(input="second")
    kept = site.bytes()
    go.touch()  # the first run goes on, and knows nothing
    assert running.wait(100) != 0
    assert "409" in running.output()
    assert site.bytes("n3") == kept, "what the second wrote stands"
    assert second.pull()["outputs"]["said"]["value"] == "second"


def test_an_apply_survives_the_leader(site: Site, processes: Processes, tmp_path: Path) -> None:
    folder_of = {node: site.folder(node) for node in site.cluster.ids}
    leader, go = site.leader(), tmp_path / "go"
    node = next(id for id in site.cluster.ids if id != leader)
    running = folder_of[node].applying(processes, "first", input="one", wait_for=str(go))
    site.await_lock(node)
    site.cluster.kill(leader)
    go.touch()
    assert running.wait(100) == 0, running.output()
    assert folder_of[node].run("output", "-raw", "said").text == "one"
    assert site.get("/lock", node)[0] == 404


def test_the_backends_node_is_killed_during_an_apply(site: Site, processes: Processes, tmp_path: Path) -> None:
    folder, go = site.folder("n1"), tmp_path / "go"
    running = folder.applying(processes, "first", input="one", wait_for=str(go))
    holder = site.await_lock()
    site.cluster.kill("n1")
    go.touch()
    assert running.wait(200) != 0
    assert "errored.tfstate" in running.output(), "Terraform keeps what it could not store"
    folder.init(site.address("n2"))
    await_that(lambda: site.get("/lock", "n2")[0] == 200, "the others have elected leaders")
    assert holder in folder.apply(input="one", fails=True).text, "the lock is still there, at every node"
    folder.run("force-unlock", "-force", holder)
    folder.run("state", "push", "errored.tfstate")
    assert "No changes" in folder.apply(input="one", wait_for=str(go)).text
    site.cluster.start("n1")
    assert site.bytes("n1") == site.bytes("n3")


@pytest.mark.parametrize("name", ["team/prod", "{braces}", "a}b%7D{c", "ü é 名", "q?x=1&y#z", "..", "%2F%00"])
def test_names_of_any_kind(site: Site, name: str) -> None:
    site.name = name
    site.folder("n1").apply(input=name.replace("%", ""))
    other = site.folder("n2")
    assert other.run("output", "-raw", "said").text == name.replace("%", "")
    assert site.get("/lock", "n3")[0] == 404


def test_the_password_is_the_api_key(binary: str, processes: Processes, tmp_path: Path) -> None:
    keys = [
        {"name": f"the-{role}", "sha256": hashlib.sha256(f"{role}'s key".encode()).hexdigest(), "role": role}
        for role in ("reader", "writer", "operator")
    ]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump(keys))
    file.chmod(0o600)
    cluster = LocalCluster(processes, tmp_path, nodes=1, config={"security": {"api_keys_file": str(file)}})
    cluster.start()
    address = f"{cluster.url('n1')}/v1/terraform/prod"

    def user(role: str) -> Folder:
        return Folder(binary, tmp_path / f"as-{role}", address, user="ada", key=f"{role}'s key")

    writer, operator, reader, nobody = (user(role) for role in ("writer", "operator", "reader", "nobody"))
    for folder in (writer, operator, reader):
        folder.init()
    writer.apply(input="one")
    assert reader.run("output", "-raw", "said").text == "one"
    assert "invalid auth" in reader.apply(fails=True).text
    assert "requires auth" in nobody.init(fails=True).text
    running = writer.applying(processes, "first", input="two", wait_for=str(tmp_path / "never"))

    def chain() -> Any:
        credentials = b64encode(b"x:reader's key").decode()
        request = urllib.request.Request(f"{address}/audit", headers={"Authorization": f"Basic {credentials}"})
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.load(reply)["entries"]

    await_that(lambda: "Provisioning with" in running.output(), "the apply is under way")
    running.send(signal.SIGKILL)
    running.kill()
    refused = writer.apply(fails=True).text
    holder = refused.split("ID=")[1].split()[0]
    writer.run("force-unlock", "-force", holder, fails=True)
    operator.run("force-unlock", "-force", holder)
    told = [(entry["actor"], entry["refused"]) for entry in chain()]
    assert told[0] == ("the-writer", True)
    assert told[-1] == ("the-operator", False)
    writer.apply(input="three")
