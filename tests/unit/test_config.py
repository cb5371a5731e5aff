"""The cluster file: what loads, what is refused, and that every fault is told at once, with its place."""

import hashlib
from pathlib import Path

import pytest

from raftspine.config import (
    PRESETS,
    ConfigFaults,
    KeyRole,
    Timing,
    guard_bind,
    load,
    load_api_keys,
    parse,
)
from raftspine.config.apikeys import parse_api_keys
from raftspine.config.presets import timing
from raftspine.core.limits import Limits
from raftspine.core.routing import Override
from raftspine.errors import Misuse
from raftspine.model import Member, Model, NodeId, Role

CONF = Path(__file__).resolve().parents[2] / "conf"
SECRET = {"RAFTSPINE_CLUSTER_SECRET": "sixteen bytes or more"}

THREE = """
cluster:
  name: test
  nodes:
    - {id: a, host: 10.0.0.1, zone: z1}
    - {id: b, host: 10.0.0.2, zone: z2}
    - {id: c, host: 10.0.0.3, zone: z3}
"""


def nodes(count: int, extra: str = "") -> str:
    """A cluster of this many nodes on loopback."""
    lines = "".join(f"    - {{id: n{i}, host: 127.0.0.1, port: {9000 + 20 * i}}}\n" for i in range(count))
    return f"cluster:\n  name: test\n  nodes:\n{lines}{extra}"


def faults(text: str, env: dict[str, str] | None = None, *, dev: bool = False) -> dict[str, str]:
    """Path -> the whole line about it."""
    with pytest.raises(ConfigFaults) as raised:
        parse(text, env or {}, dev=dev)
    told = [str(fault) for fault in raised.value.faults]
    for line in told:
        assert line in str(raised.value)
    return {fault.path: str(fault) for fault in raised.value.faults}


# ── what loads ──────────────────────────────────────────────────────────────────────────────────


def test_the_products_cluster_file_loads_with_its_values() -> None:
    config = load(CONF / "cluster.yaml", {})
    assert config.name == "production-memory"
    assert config.members == tuple(
        Member(NodeId(f"spine-{n}"), host, 8788, 8798, zone, Role.PRIMARY)
        for n, host, zone in (
            (1, "10.0.1.10", "us-east-1a"),
            (2, "10.0.1.11", "us-east-1b"),
            (3, "10.0.2.10", "us-west-2a"),
        )
    )
    rep = config.replication
    assert (rep.factor, rep.write_quorum, rep.read_quorum) == (3, 2, 1)
    assert config.consistency.default is Model.READ_YOUR_WRITES
    assert config.consistency.overrides == (
        Override(frozenset(("critical", "lock")), Model.STRONG),
        Override(frozenset(("analytics", "metric")), Model.EVENTUAL),
    )
    assert config.storage.data_dir == Path("/var/lib/raftspine")
    assert config.data_dir(NodeId("spine-1")) == Path("/var/lib/raftspine/spine-1")
    assert config.warnings == ()
    assert "token" in config.notes[0]


def test_replication_and_consistency_may_stand_at_the_top() -> None:
    nested = load(CONF / "cluster.yaml", {})
    text = (CONF / "cluster.yaml").read_text()
    head, _, tail = text.partition("  replication:")
    lifted = head + "".join(line[2:] + "\n" for line in ("  replication:" + tail).splitlines())
    top = parse(lifted, {})
    assert (top.replication, top.consistency) == (nested.replication, nested.consistency)


def test_given_in_both_places_is_a_fault() -> None:
    text = (CONF / "cluster.yaml").read_text() + "replication: {factor: 3}\n"
    assert "(line 31): is given inside cluster as well (line 20)" in faults(text)["replication"]


def test_the_shipped_files_for_one_machine() -> None:
    single = load(CONF / "single.yaml", {})
    assert [m.host for m in single.members] == ["127.0.0.1"] and single.replication.factor == 1
    assert single.replication.write_quorum == 1
    guard_bind(single, NodeId("spine-1"))
    dev = load(CONF / "dev.yaml", {}, dev=True)
    assert [(m.port, m.peer_port) for m in dev.members] == [(8788, 8798), (8888, 8898), (8988, 8998)]
    assert dev.storage.data_dir == Path(".raftspine") and dev.timing == timing("local")
    for member in dev.members:
        guard_bind(dev, member.id)


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 1, 1)), (3, (3, 2, 1)), (5, (3, 2, 1))])
def test_defaults_follow_the_number_of_nodes(count: int, expected: tuple[int, int, int]) -> None:
    config = parse(nodes(count), SECRET)
    rep = config.replication
    assert (rep.factor, rep.write_quorum, rep.read_quorum) == expected
    assert (config.partitioning.strategy, config.partitioning.shard_groups) == ("id", 16)
    assert config.storage.durability == "always" and config.limits == Limits()
    assert config.timing == Timing() and config.consistency.overrides[0].model is Model.STRONG


def test_every_setting_can_be_written() -> None:
    config = parse(
        THREE
        + """
  region: eu
partitioning: {strategy: agent, shard_groups: 64}
storage: {data_dir: /srv/x, durability: interval, map_size_bytes: 2GiB, snapshot_bytes_per_second: 4MiB}
timing: {preset: wan, strong_timeout_ms: 9000}
limits: {content_bytes: 1000, tags: 5}
security: {api_keys_file: /k, tls_cert: /c, tls_key: /p, tls_ca: /a}
retention: {}
regions: []
mcp:
""",
        SECRET,
    )
    assert config.region == "eu" and config.partitioning.shard_groups == 64
    assert config.storage.map_size_bytes == 2 << 30 and config.storage.durability == "interval"
    assert config.storage.snapshot_bytes_per_second == 4 << 20
    assert config.timing.strong_timeout_ms == 9000 and config.timing.heartbeat_ms > Timing().heartbeat_ms
    assert (config.limits.content_bytes, config.limits.tags, config.limits.id_bytes) == (1000, 5, 255)
    assert config.security.tls and config.security.api_keys_file == Path("/k")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_the_relations_between_timings(preset: str) -> None:
    config = parse(nodes(1, f"timing: {{preset: {preset}}}\n"), {})
    t = config.timing
    assert 4 * t.heartbeat_ms <= t.check_quorum_ms <= t.election_min_ms < t.election_max_ms
    assert not [warning for warning in config.warnings if "timing" in warning]


# ── faults ──────────────────────────────────────────────────────────────────────────────────────


def test_ten_faults_are_reported_at_once_each_with_line_and_remedy() -> None:
    text = """\
cluster:
  name: ""
  nodes:
    - {id: a, host: 10.0.0.1, port: 99999}
    - {id: a, host: 10.0.0.2, role: boss}
    - {id: c, host: 10.0.0.3, zon: x}
  replication:
    factor: 3
    write_quorum: 4
consistency: {default: strongest}
partitioning:
  shard_groups: 65
storage: {durability: sometimes}
timing: {election_min_ms: 50}
replicaton: {}
"""
    expected = {
        "cluster.name": 2,
        "cluster.nodes[0].port": 4,
        "cluster.nodes[1].role": 5,
        "cluster.nodes[1].id": 5,
        "cluster.nodes[2].zon": 6,
        "cluster.replication.write_quorum": 9,
        "consistency.default": 10,
        "partitioning.shard_groups": 12,
        "storage.durability": 13,
        "timing.election_min_ms": 14,
        "replicaton": 15,
    }
    told = faults(text)
    assert {path: f"(line {line})" in told.get(path, "") for path, line in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert len(told) == len(expected)
    assert "did you mean 'zone'" in told["cluster.nodes[2].zon"]
    assert "did you mean 'replication'" in told["replicaton"]
    assert all(line.count(";") or "did you mean" in line for path, line in told.items() if path != "cluster.name")


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("", "cluster", "is missing"),
        ("cluster:\n", "cluster.name", "is missing"),
        ("cluster: 5\n", "cluster", "not a mapping"),
        ("- a\n", "", "not a mapping"),
        ("cluster: {name: x}\n", "cluster.nodes", "no nodes"),
        ("cluster: {name: x, nodes: []}\n", "cluster.nodes", "no nodes"),
        ("cluster: {name: x, nodes: {a: 1}}\n", "cluster.nodes", "not a list"),
        ("cluster: {name: x, nodes: [a]}\n", "cluster.nodes[0]", "not a mapping"),
        ("cluster: {name: x, nodes: [{id: a}]}\n", "cluster.nodes[0].host", "is missing"),
        ("cluster: {name: x, nodes: [{id: 1, host: h}]}\n", "cluster.nodes[0].id", "quotes"),
        ("cluster: {name: x, nodes: [{id: a~b, host: h}]}\n", "cluster.nodes[0].id", "not a node id"),
        ("cluster: {name: x, nodes: [{id: a, host: 0.0.0.0}]}\n", "cluster.nodes[0].host", "no address"),
        ("cluster: {name: x, nodes: [{id: a, host: 'http://h'}]}\n", "cluster.nodes[0].host", "not a host"),
        (
            "cluster: {name: x, nodes: [{id: a, host: h, weight: -1}]}\n",
            "cluster.nodes[0].weight",
            "positive",
        ),
        (
            "cluster: {name: x, nodes: [{id: a, host: h, port: 65530}]}\n",
            "cluster.nodes[0].peer_port",
            "65535",
        ),
        ("cluster: {name: x, nodes: [{id: a, host: h, port: 0}]}\n", "cluster.nodes[0].port", "1 to 65535"),
        ("cluster: {name: x, nodes: [{id: a, host: h, role: replica}]}\n", "cluster.nodes", "no primary"),
        (nodes(1, "cluster: {}\n"), "cluster", "given twice"),
        (nodes(1, "timing: {heartbeat_ms: 0}\n"), "timing.heartbeat_ms", "1 to"),
        (nodes(1, "timing: {heartbeat_ms: 1.5}\n"), "timing.heartbeat_ms", "not a time"),
        (nodes(1, "timing: {heartbeat_ms: [1]}\n"), "timing.heartbeat_ms", "a list"),
        (nodes(1, "timing: {election_max_ms: 900}\n"), "timing.election_max_ms", "split the vote"),
        (nodes(1, "timing: {check_quorum_ms: 100}\n"), "timing.check_quorum_ms", "step down"),
        (nodes(1, "timing: {peer_dead_ms: 100}\n"), "timing.peer_dead_ms", "quiet links"),
        (nodes(1, "partitioning: {strategy: hash}\n"), "partitioning.strategy", "id, agent, tag"),
        (nodes(1, "partitioning: {shard_groups: 0}\n"), "partitioning.shard_groups", "1 to 64"),
        (nodes(1, "limits: {content_bytes: 3000000}\n"), "limits.content_bytes", "body_bytes"),
        (nodes(1, "limits: {id_bytes: 256}\n"), "limits.id_bytes", "1 to 255"),
        (nodes(1, "storage: {map_size_bytes: big}\n"), "storage.map_size_bytes", "64GiB"),
        (nodes(1, "storage: {snapshot_bytes_per_second: 1KiB}\n"), "storage.snapshot_bytes_per_second", "65536"),
        (nodes(1, "security: {tls_cert: /x}\n"), "security.tls_cert", "tls_key"),
        (nodes(1, "regions: [eu]\n"), "regions", "not supported"),
        (nodes(1, "mcp: {port: 1}\n"), "mcp", "not supported"),
        (nodes(1, "retention: yes\n"), "retention", "not supported"),
        (nodes(3, "replication: {factor: 3, write_quorum: 4}\n"), "replication.write_quorum", "never answer"),
        (nodes(3, "replication: {factor: 3, read_quorum: 4}\n"), "replication.read_quorum", "majority is 2"),
        (nodes(2, "replication: {factor: 3}\n"), "replication.factor", "2 data nodes"),
        (nodes(2), "replication.factor", "majority of 2 is 2"),
        (nodes(3, "replication: {factor: 2}\n"), "replication.factor", "strong"),
        (
            nodes(3, "consistency: {overrides: [{tags: [a], model: bold}]}\n"),
            "consistency.overrides[0].model",
            "bold",
        ),
        (
            nodes(3, "consistency: {overrides: [{tags: [], model: strong}]}\n"),
            "consistency.overrides[0].tags",
            "empty",
        ),
        (nodes(3, "consistency: {overrides: [{tags: [a]}]}\n"), "consistency.overrides[0].model", "missing"),
        ("cluster: {name: x\n", "file", "not YAML"),
        ("cluster: !!python/object/apply:os.system [id]\n", "cluster", "list"),
        ("a: &a [*a]\n", "a", "not a setting"),
    ],
)
def test_each_fault_is_found(text: str, path: str, words: str) -> None:
    told = faults(text)
    assert words in told[path], told


def test_ports_that_meet_are_faults() -> None:
    text = """
cluster:
  name: x
  nodes:
    - {id: a, host: h, port: 8788}
    - {id: b, host: h, port: 8798}
    - {id: c, host: h, port: 9000, peer_port: 9000}
"""
    told = faults(text)
    assert "h:8798 is taken by cluster.nodes[0].peer_port" in told["cluster.nodes[1].port"]
    assert "taken by cluster.nodes[2].port" in told["cluster.nodes[2].peer_port"]


def test_dev_lets_through_what_is_only_safe_to_play_with() -> None:
    config = parse(nodes(1, "replication: {factor: 3, write_quorum: 2, read_quorum: 1}\n"), {}, dev=True)
    rep = config.replication
    assert (rep.factor, rep.write_quorum, rep.read_quorum) == (1, 1, 1)
    assert any("dev goes on with 1" in warning for warning in config.warnings)
    assert parse(nodes(2), {}, dev=True).replication.factor == 2


def test_two_copies_are_fine_without_strong() -> None:
    config = parse(nodes(2, "consistency: {overrides: []}\n"), {})
    assert config.replication.factor == 2 and config.consistency.overrides == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (nodes(4, "replication: {factor: 4}\n"), "4 copies survive no more"),
        (nodes(1), "one copy"),
        (nodes(3, "replication: {write_quorum: 1}\n"), "no more than 1 copies"),
        (THREE.replace("z2", "z1").replace("z3", "z1"), "all nodes are in zone 'z1'"),
        (nodes(1, "timing: {election_min_ms: 200, check_quorum_ms: 150}\n"), "short pause"),
        (
            nodes(1, "consistency: {overrides: [{tags: [a], model: strong}, {tags: [a], model: causal}]}\n"),
            "stronger of the two",
        ),
    ],
)
def test_questionable_choices_are_warned_about(text: str, words: str) -> None:
    assert any(words in warning for warning in parse(text, {}).warnings), parse(text, {}).warnings


# ── environment and secret ──────────────────────────────────────────────────────────────────────


def test_the_environment_overrides_and_is_named_in_faults() -> None:
    env = {
        "RAFTSPINE_STORAGE_DATA_DIR": "/elsewhere",
        "RAFTSPINE_STORAGE_DURABILITY": "interval",
        "RAFTSPINE_TIMING_PRESET": "local",
        "RAFTSPINE_CLUSTER_NAME": "42",
        "RAFTSPINE_REPLICATION_WRITE_QUORUM": "3",
        "RAFTSPINE_URL": "http://the-client",
        "HOME": "/root",
        **SECRET,
    }
    text = (CONF / "cluster.yaml").read_text()
    config = parse(text, env)
    assert config.storage.data_dir == Path("/elsewhere") and config.storage.durability == "interval"
    assert config.timing == timing("local") and config.name == "42"
    assert config.replication.write_quorum == 3
    assert config.warnings == ()
    told = faults(text, {**env, "RAFTSPINE_STORAGE_DURABILITY": "never", "RAFTSPINE_REPLICATION_FACTOR": "x"})
    assert "(RAFTSPINE_STORAGE_DURABILITY)" in told["storage.durability"]
    assert "(RAFTSPINE_REPLICATION_FACTOR)" in told["cluster.replication.factor"]


def test_variables_that_name_nothing_are_warnings() -> None:
    config = parse(THREE, {"RAFTSPINE_STORAGE_DATADIR": "/x", "RAFTSPINE_FOO": "1"})
    assert any("did you mean RAFTSPINE_STORAGE_DATA_DIR" in warning for warning in config.warnings)
    assert any(warning.startswith("RAFTSPINE_FOO is set") for warning in config.warnings)


def test_the_secret_comes_from_the_environment_or_a_file_and_never_shows(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("a secret in a file\n")
    file.chmod(0o640)
    text = THREE.replace("name: test", f"name: test\n  secret_file: {file}")
    config = parse(text, {})
    assert config.secret == b"a secret in a file"
    assert "secret in a" not in repr(config)
    assert parse(text, SECRET).secret == SECRET["RAFTSPINE_CLUSTER_SECRET"].encode()
    file.chmod(0o644)
    assert "chmod o-rwx" in faults(text)["cluster.secret_file"]
    file.chmod(0o600)
    file.write_text("short")
    assert "holds 5 bytes" in faults(text)["cluster.secret_file"]
    file.unlink()
    assert "cannot read" in faults(text)["cluster.secret_file"]
    assert "short" not in faults(THREE, {"RAFTSPINE_CLUSTER_SECRET": "short"})["cluster.secret_file"]


def test_files_beside_the_cluster_file_are_used(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text((CONF / "cluster.yaml").read_text())
    with pytest.raises(ConfigFaults) as raised:
        guard_bind(load(cluster, {}), NodeId("spine-1"))
    assert [fault.path for fault in raised.value.faults] == ["security.api_keys_file", "cluster.secret_file"]
    (tmp_path / "secret").write_text("sixteen bytes or more")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "api_keys.yaml").write_text("")
    config = load(cluster, {})
    assert config.security.api_keys_file == tmp_path / "api_keys.yaml"
    guard_bind(config, NodeId("spine-1"))


def test_nodes_on_loopback_need_a_secret_unless_alone_or_in_dev() -> None:
    with pytest.raises(ConfigFaults, match="cluster secret"):
        guard_bind(parse(nodes(3), {}), NodeId("n0"))
    guard_bind(parse(nodes(3), SECRET), NodeId("n0"))
    guard_bind(parse(nodes(3), {}, dev=True), NodeId("n0"))
    guard_bind(parse(nodes(1), {}), NodeId("n0"))
    with pytest.raises(Misuse, match="did you mean 'n0'"):
        guard_bind(parse(nodes(1), {}), NodeId("n00"))


def test_a_node_on_the_network_needs_keys_even_in_dev() -> None:
    for host in ("10.0.0.1", "localhost.example.org", "::"):
        text = f"cluster: {{name: x, nodes: [{{id: a, host: '{host}'}}]}}\n"
        if host == "::":
            assert "no address" in faults(text)["cluster.nodes[0].host"]
            continue
        with pytest.raises(ConfigFaults, match="without API keys"):
            guard_bind(parse(text, SECRET, dev=True), NodeId("a"))


def test_a_file_that_cannot_be_read_is_the_operators_fault(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"cannot read the cluster file .*nope"):
        load(tmp_path / "nope.yaml", {})
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"cluster: {name: \xe9}")
    with pytest.raises(Misuse, match="not UTF-8 at byte 16"):
        load(latin, {})


# ── API keys ────────────────────────────────────────────────────────────────────────────────────


def test_api_keys_in_both_shapes(tmp_path: Path) -> None:
    digests = [hashlib.sha256(key).digest() for key in (b"k1", b"k2")]
    file = tmp_path / "keys.yaml"
    file.write_text(
        f"- {{name: ci, sha256: {digests[0].hex()}, role: writer}}\n"
        f"- {{name: boss, sha256: '{digests[1].hex().upper()}', role: approver}}\n"
    )
    file.chmod(0o600)
    keys = load_api_keys(file)
    assert {digest: tuple(key) for digest, key in keys.items()} == {
        digests[0]: ("ci", KeyRole.WRITER),
        digests[1]: ("boss", KeyRole.APPROVER),
    }
    file.write_text(f"# comment\n{digests[0].hex()}: operator\n")
    assert [key.role for key in load_api_keys(file).values()] == [KeyRole.OPERATOR]
    file.chmod(0o666)
    with pytest.raises(Misuse, match="chmod o-w"):
        load_api_keys(file)


def test_a_digest_that_looks_like_a_number_is_still_a_digest() -> None:
    numeric = "1" * 64
    assert parse_api_keys(f"- {{name: a, sha256: {numeric}, role: reader}}\n")
    assert parse_api_keys(f"{numeric}: reader\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no keys"),
        ("hello", "not a list of keys"),
        ("- {name: a, role: reader}\n", "sha256 (line 1): is missing"),
        ("- {name: a, sha256: sk-live-123, role: reader}\n", "64 hex digits"),
        (f"- {{name: a, sha256: {'ab' * 32}, role: king}}\n", "'king' is unknown"),
        (f"{'ab' * 32}: reader\n{'AB' * 32}: writer\n", "same key"),
        ("a: [1\n", "not YAML"),
        (f"- {{name: a, sha256: {'ab' * 32}, role: reader, rolle: x}}\n", "did you mean 'role'"),
    ],
)
def test_faulty_key_files(text: str, words: str) -> None:
    with pytest.raises(ConfigFaults) as raised:
        parse_api_keys(text)
    assert words in str(raised.value) and "sk-live" not in str(raised.value)
