"""The ring's edges, and the partition strategies."""

import pytest

from raftspine.core.partition import coordination_key, group_of, partition_key
from raftspine.core.ring import ConsistentHashRing, token_of
from raftspine.errors import Misuse


def test_an_empty_ring_has_nowhere_to_put_a_key() -> None:
    ring = ConsistentHashRing([])
    with pytest.raises(LookupError):
        ring.get_node("x")
    with pytest.raises(LookupError):
        ring.get_replica_nodes("x")
    assert list(ring.walk(7)) == []


def test_more_replicas_than_nodes_are_all_nodes() -> None:
    assert sorted(ConsistentHashRing(["a", "b"]).get_replica_nodes("x", 5)) == ["a", "b"]
    assert ConsistentHashRing(["a"]).get_replica_nodes("x", 0) == []


def test_nodes_on_one_token_are_met_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftspine.core.ring.token_of", lambda key: 5)
    for order in (["b", "a"], ["a", "b"]):
        ring = ConsistentHashRing([], 2)
        for node in order:
            ring.add(node)
        assert list(ring.walk(4)) == ["a", "b"]
        assert ring.get_node("x") == "a"


def test_a_key_on_a_point_belongs_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the product: the first point *after* the key, round the end to the first."""
    monkeypatch.setattr("raftspine.core.ring.token_of", lambda key: {"a": 1, "b": 2}.get(key[0], 2))
    ring = ConsistentHashRing(["a", "b"], 1)
    assert [next(ring.walk(t)) for t in (0, 1, 2, 3)] == ["a", "b", "a", "a"]


def test_load_is_roughly_even_over_150_points() -> None:
    ring = ConsistentHashRing(["spine-1", "spine-2", "spine-3"])
    counts = [sum(ring.get_node(f"memory-{i}") == node for i in range(3000)) for node in ring.nodes]
    assert all(700 < count < 1300 for count in counts)


def test_digests_are_fixed_for_ever() -> None:
    """These numbers are on disk and in logged tables; a change would lose every memory."""
    assert token_of("spine-1:0") == int.from_bytes(bytes.fromhex("818a56cfe3f79042"), "big")
    assert [group_of(key, 16) for key in ("dep-42", "", "世界")] == [1, 4, 13]


def test_partition_keys() -> None:
    assert partition_key("id", "x", "ann", ("b",)) == "x"
    assert partition_key("agent", "x", "ann", ("b",)) == "ann"
    assert partition_key("agent", "x", "", ()) == "x"
    assert partition_key("tag", "x", "ann", ("b", "a")) == "a"
    assert partition_key("tag", "x", "ann", ()) == "x"
    with pytest.raises(Misuse):
        partition_key("hash", "x", "", ())


def test_braces_pin_a_name() -> None:
    assert coordination_key("deploy/api") == "deploy/api"
    assert coordination_key("{dep-42}/deploy") == coordination_key("x{dep-42}") == "dep-42"
    assert coordination_key("{a}{b}") == "a"
    for odd in ("{}x", "{open", "shut}", "}{", ""):
        assert coordination_key(odd) == odd
