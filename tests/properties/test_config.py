"""Whatever stands in a cluster file: a whole Config or a list of faults, never another exception."""

import string

import yaml
from hypothesis import given
from hypothesis import strategies as st

from raftspine.config import Config, ConfigFaults, parse
from raftspine.config.environment import VARIABLES
from raftspine.config.keys import CLUSTER_KEYS, NODE_KEYS, SETTINGS, TOP_KEYS
from raftspine.model import Role

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.sampled_from(["a", "127.0.0.1", 8788, 3, "strong", "primary", "local", "always", "1GiB"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_lowercase, max_size=5), inner),
    max_leaves=5,
)
node = st.dictionaries(st.sampled_from(NODE_KEYS), odd, max_size=7)
override = st.fixed_dictionaries({}, optional={"tags": odd, "model": odd})
section = {name: st.dictionaries(st.sampled_from(list(keys)), odd, max_size=4) for name, keys in SETTINGS.items()}
cluster = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(CLUSTER_KEYS, odd) | {"nodes": st.lists(node, max_size=4) | odd}
)
files = st.fixed_dictionaries(
    {"cluster": cluster | odd},
    optional={key: section.get(key, odd) | odd for key in TOP_KEYS if key != "cluster"}
    | {"consistency": st.fixed_dictionaries({}, optional={"default": odd, "overrides": st.lists(override)})},
)


def holds(config: Config) -> None:
    """What everybody who holds a Config may rely on."""
    rep = config.replication
    assert 1 <= rep.write_quorum <= rep.factor and 1 <= rep.read_quorum <= rep.factor
    assert rep.factor <= len(config.data_members())
    assert len({member.id for member in config.members}) == len(config.members) >= 1
    addresses = [(m.host, port) for m in config.members for port in (m.port, m.peer_port)]
    assert len(set(addresses)) == len(addresses)
    assert any(member.role is Role.PRIMARY for member in config.members)
    assert 1 <= config.partitioning.shard_groups <= 64
    assert config.timing.heartbeat_ms < config.timing.election_min_ms < config.timing.election_max_ms
    assert config.name


def check(text: str, env: dict[str, str], dev: bool) -> None:
    try:
        config = parse(text, env, dev=dev)
    except ConfigFaults as error:
        assert error.faults
        assert len({fault.path for fault in error.faults}) == len(error.faults)
        assert all(fault.message for fault in error.faults)
    else:
        holds(config)


@given(files, st.booleans())
def test_any_structure_is_a_config_or_faults(content: object, dev: bool) -> None:
    check(yaml.safe_dump(content), {}, dev)


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_faults(text: str) -> None:
    check(text, {}, False)


VALID = "cluster: {name: x, nodes: [{id: a, host: 127.0.0.1}]}\n"


@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=12) | st.integers().map(str), max_size=4))
def test_any_environment_is_a_config_or_faults(env: dict[str, str]) -> None:
    check(VALID, env, False)


@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 7),
    st.lists(st.sampled_from(list(Role)), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_quorums_load_exactly_when_they_can_be_met(
    factor: int, write: int, read: int, roles: list[Role], strong: bool, dev: bool
) -> None:
    content = {
        "cluster": {
            "name": "x",
            "nodes": [{"id": f"n{i}", "host": f"h{i}", "role": role.value} for i, role in enumerate(roles)],
        },
        "replication": {"factor": factor, "write_quorum": write, "read_quorum": read},
        "consistency": {"overrides": [{"tags": ["t"], "model": "strong" if strong else "causal"}]},
    }
    holders = sum(role is not Role.GATEWAY for role in roles)
    possible = factor <= holders and max(write, read) <= factor and not (strong and factor == 2)
    has_primary = Role.PRIMARY in roles
    try:
        config = parse(yaml.safe_dump(content), {}, dev=dev)
    except ConfigFaults:
        assert not possible or not has_primary
    else:
        assert has_primary and (possible or dev)
        holds(config)
