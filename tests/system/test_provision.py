"""The bootstrap, run for real: a node installed below a directory, and three of them on hosts of their own.

Bootstraps rot unless somebody runs them. What cannot be run here is systemd itself and the virtual machines;
their files are checked by their own tools.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import await_that
from tests.support.hosts import Hosts
from tests.support.processes import Process, Processes
from tests.support.tools import missing, need, need_namespaces, need_root

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

KEY = "the-key-of-the-operator-in-this-test"
SECRET = "a secret of at least thirty-two characters"


def provision(source: Path, root: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [source / "scripts" / "provision.sh", "--root", root, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


def picture(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, modification time and content of every file."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, digest)
    return found


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a host gets of the checkout: a copy, as /vagrant is, that nobody edits while the tests run."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("raftspine", "scripts", "conf"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
        shutil.copy(repository / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """spine-1 as the cluster file has it, installed below a directory."""
    root = tmp_path_factory.mktemp("host")
    done = provision(source, root, "--node", "spine-1", RAFTSPINE_API_KEY=KEY, RAFTSPINE_CLUSTER_SECRET=SECRET)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_installs_what_the_unit_starts(installed: Path, source: Path) -> None:
    unit = (installed / "etc/systemd/system/raftspine.service").read_text(encoding="utf-8")
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).partition("=")[2].split()
    assert os.access(installed / command[0].lstrip("/"), os.X_OK)
    config = installed / command[command.index("--config") + 1].lstrip("/")
    assert config.read_bytes() == (source / "conf/cluster.yaml").read_bytes()
    assert (installed / "etc/raftspine/node.env").read_text(encoding="utf-8").startswith("RAFTSPINE_NODE=spine-1\n")


def test_the_installed_command_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "opt/raftspine/venv/bin/raftspine", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("raftspine ")


def test_nodes_get_no_developers_tools(installed: Path) -> None:
    names = {path.name for path in (installed / "opt/raftspine/venv/bin").iterdir()}
    assert not {"pytest", "mypy", "ruff"} & names


def test_secrets_are_not_for_everyone(installed: Path) -> None:
    for name in ("secret", "api_keys.yaml", "cluster.yaml", "node.env"):
        assert stat.S_IMODE((installed / "etc/raftspine" / name).stat().st_mode) == 0o640
    assert stat.S_IMODE((installed / "var/lib/raftspine").stat().st_mode) == 0o700


def test_keys_are_kept_as_digests(installed: Path) -> None:
    text = (installed / "etc/raftspine/api_keys.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {hashlib.sha256(KEY.encode()).hexdigest(): "operator"}
    assert KEY not in text


def test_a_second_run_changes_nothing(installed: Path, source: Path) -> None:
    before = picture(installed)
    done = provision(source, installed, "--node", "spine-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "provision.sh: spine-1: nothing changed\n"
    assert picture(installed) == before


def test_a_changed_cluster_file_changes_only_that_file(installed: Path, source: Path, tmp_path: Path) -> None:
    edited = tmp_path / "cluster.yaml"
    edited.write_text((source / "conf/cluster.yaml").read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    before = picture(installed)
    try:
        done = provision(source, installed, "--node", "spine-1", "--config", str(edited))
        assert done.returncode == 0, done.stderr
        after = picture(installed)
        assert [name for name in after if after[name] != before.get(name)] == ["etc/raftspine/cluster.yaml"]
    finally:
        provision(source, installed, "--node", "spine-1")


@pytest.mark.parametrize(
    ("node", "edit", "said"),
    [
        ("spine-9", ("", ""), "no node 'spine-9'"),
        ("spine-1", ("factor: 3", "factor: 5"), "5 copies cannot be kept on 3 data nodes"),
    ],
)
def test_what_the_node_would_refuse_is_not_put_in_place(
    installed: Path, source: Path, tmp_path: Path, node: str, edit: tuple[str, str], said: str
) -> None:
    edited = tmp_path / "cluster.yaml"
    edited.write_text((source / "conf/cluster.yaml").read_text(encoding="utf-8").replace(*edit), encoding="utf-8")
    before = picture(installed)
    done = provision(source, installed, "--node", node, "--config", str(edited))
    assert done.returncode == 1
    assert said in done.stderr
    assert picture(installed) == before


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        ([], {}, "--node ID"),
        (["--node", "spine-1", "--config", "/nowhere.yaml"], {}, "no cluster file at /nowhere.yaml"),
        (["--node", "spine-1", "--await", "luck"], {}, "--await is ready, alive or nothing"),
        (["--node", "spine-1", "--verbose"], {}, "unknown argument --verbose"),
        (["--node"], {}, "--node needs a value"),
    ],
)
def test_misuse_is_refused_before_anything_is_done(
    source: Path, tmp_path: Path, arguments: list[str], env: dict[str, str], said: str
) -> None:
    root = tmp_path / "root"
    done = provision(source, root, *arguments, **env)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (root / "opt").exists()


def test_the_vagrantfile_is_valid(repository: Path) -> None:
    vagrant = need("vagrant")
    done = subprocess.run(
        [vagrant, "validate", "--ignore-provider"],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_is_one_systemd_understands(repository: Path) -> None:
    analyze = need("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "verify", "--man=no", repository / "conf/raftspine.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "raftspine" in line]
    unexpected = [line for line in complaints if "is not executable" not in line]
    assert unexpected == []


def test_the_unit_exposes_little(repository: Path, tmp_path: Path) -> None:
    analyze = need("systemd-analyze", "systemd")
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(repository / "conf/raftspine.service", units)
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=25", f"--root={tmp_path}", "raftspine.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-600:] + done.stderr


# ── a bare host ────────────────────────────────────────────────────────────────────────────────

BARE_HOST = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/tmp"
cp -r "$2" "$1/root/tmp/source"
[ -z "$3" ] || chroot "$1/root" sh -c "$3"
"""
"""This machine as a host to spoil: its files, and above them a layer that is gone with the mount namespace."""


def on_a_bare_host(folder: Path, source: Path, script: str) -> "subprocess.CompletedProcess[str]":
    command = [need("unshare", "util-linux"), "--mount", "bash", "-c", BARE_HOST, "bare-host", folder, source, script]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_a_bare_host_gets_a_user_who_can_run_the_node(source: Path, tmp_path: Path) -> None:
    need_root()
    if on_a_bare_host(tmp_path, source, "").returncode != 0:
        missing("no overlay file system can be mounted here")
    done = on_a_bare_host(
        tmp_path,
        source,
        f"""
        export RAFTSPINE_API_KEY='{KEY}'
        /tmp/source/scripts/provision.sh --node spine-1 --no-systemd >/tmp/first || exit 1
        /tmp/source/scripts/provision.sh --node spine-1 --no-systemd
        stat -c '%A %U:%G %n' /etc/raftspine /etc/raftspine/* /var/lib/raftspine
        setpriv --reuid=raftspine --regid=raftspine --clear-groups \
            /opt/raftspine/venv/bin/raftspine serve --config /etc/raftspine/cluster.yaml --node spine-1
        echo ended with $?
        """,
    )
    assert done.stdout.splitlines() == [
        "provision.sh: spine-1: nothing changed",
        "drwxr-x--- root:raftspine /etc/raftspine",
        "-rw-r----- root:raftspine /etc/raftspine/api_keys.yaml",
        "-rw-r----- root:raftspine /etc/raftspine/cluster.yaml",
        "-rw-r----- root:raftspine /etc/raftspine/node.env",
        "-rw-r----- root:raftspine /etc/raftspine/secret",
        "drwx------ raftspine:raftspine /var/lib/raftspine",
        "ended with 2",
    ], done.stderr
    # The configuration was read and accepted; this machine only does not have that address.
    assert "cannot listen on 10.0.1.10" in done.stderr


# ── three hosts ────────────────────────────────────────────────────────────────────────────────


class Site:
    """The product's cluster file, as it is, on hosts with the addresses it names."""

    def __init__(self, installed: Path, hosts: Hosts, processes: Processes) -> None:
        self._etc = installed / "etc/raftspine"
        self._command = installed / "opt/raftspine/venv/bin/raftspine"
        self._state = installed / "var/lib/raftspine"
        self.hosts = hosts
        self._processes = processes
        self.running: dict[str, Process] = {}

    def start(self, node: str) -> None:
        command = [self._command, "serve", "--config", self._etc / "cluster.yaml", "--node", node]
        self.running[node] = self._processes.start(
            self.hosts.inside(node, [str(part) for part in command]),
            env={"RAFTSPINE_STORAGE_DATA_DIR": str(self._state)},
            name=node,
        )

    def ask(self, host: str, node: str, *arguments: str) -> tuple[int, str]:
        """curl, run on `host`, against `node`: status (0 without an answer) and body."""
        url, options = arguments[-1], arguments[:-1]
        address = f"http://{self.hosts.addresses[node]}:8788{url}"
        command = [need("curl"), "-s", "-m", "10", "-w", "\n%{http_code}", *options, address]
        done = subprocess.run(self.hosts.inside(host, command), capture_output=True, text=True, check=False)
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def ready(self, node: str) -> bool:
        process = self.running[node]
        assert process.alive(), f"{node} ended with {process.popen.returncode}:\n{process.output()[-4000:]}"
        return self.ask(node, node, "/readyz")[0] == 200

    def wait_ready(self, *nodes: str) -> None:
        for node in nodes:
            await_that(lambda node=node: self.ready(node), f"{node} ready", self.running[node].output)


@pytest.fixture(scope="module")
def site(installed: Path, source: Path, module_processes: Processes) -> Iterator[Site]:
    need("curl")
    cluster = yaml.safe_load((source / "conf/cluster.yaml").read_text(encoding="utf-8"))["cluster"]
    addresses = {node["id"]: node["host"] for node in cluster["nodes"]}
    with Hosts(need_namespaces(), addresses) as hosts:
        site = Site(installed, hosts, module_processes)
        for node in addresses:
            site.start(node)
        site.wait_ready(*addresses)
        yield site
        module_processes.end_all()  # before the hosts they run on are removed


BEARER = ("-H", f"Authorization: Bearer {KEY}")
JSON = ("-H", "Content-Type: application/json")


def test_provisioning_ends_with_the_clusters_state(site: Site, installed: Path, source: Path) -> None:
    command = [source / "scripts/provision.sh", "--root", installed, "--node", "spine-1", "--await", "ready"]
    done = subprocess.run(
        site.hosts.inside("spine-1", [str(part) for part in command]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAFTSPINE_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    assert "provision.sh: spine-1 is ready at http://10.0.1.10:8788" in done.stdout
    for node in ("spine-1", "spine-2", "spine-3"):
        assert node in done.stdout.partition("is ready at")[2]


def test_three_hosts_make_one_store(site: Site) -> None:
    for path, tags in (("strong", ["critical"]), ("ring", [])):
        body = json.dumps({"content": path, "tags": tags})
        status, said = site.ask("spine-1", "spine-1", *BEARER, *JSON, "-X", "PUT", "-d", body, f"/v1/memories/{path}")
        assert status == 201, said
        for node in ("spine-2", "spine-3"):
            status, said = site.ask("spine-1", node, *BEARER, f"/v1/memories/{path}")
            assert (status, json.loads(said)["content"]) == (200, path)


def test_nobody_gets_in_without_a_key(site: Site) -> None:
    assert site.ask("spine-2", "spine-1", "/v1/memories")[0] == 401
    assert site.ask("spine-2", "spine-1", "-H", "Authorization: Bearer wrong", "/v1/memories")[0] == 401


def test_a_cut_off_host_stops_the_strong_path_there_and_only_there(site: Site) -> None:
    def write(node: str, content: str) -> int:
        body = json.dumps({"content": content, "tags": ["critical"]})
        return site.ask(node, node, *BEARER, *JSON, "-X", "PUT", "-d", body, "/v1/memories/cut")[0]

    site.hosts.cut("spine-3")
    try:
        await_that(lambda: write("spine-1", "majority") in (200, 201), "the majority goes on")
        assert write("spine-3", "minority") in (503, 504)
    finally:
        site.hosts.mend("spine-3")
    site.wait_ready("spine-3")
    status, said = site.ask("spine-3", "spine-3", *BEARER, "/v1/memories/cut")
    assert (status, json.loads(said)["content"]) == (200, "majority")
