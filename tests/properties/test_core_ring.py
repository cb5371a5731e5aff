"""What consistent hashing promises: few keys move, and only to or from the node that came or went."""

from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.core.partition import group_of
from raftspine.core.ring import ConsistentHashRing

names = st.sets(st.text("abcdef0123456789-", min_size=1, max_size=8), min_size=1, max_size=6)
KEYS = [f"key-{i}" for i in range(200)]


@settings(max_examples=40)
@given(names, st.text("xyz", min_size=1, max_size=4))
def test_a_new_node_only_takes(nodes: set[str], new: str) -> None:
    ring = ConsistentHashRing(nodes, 20)
    before = {key: ring.get_node(key) for key in KEYS}
    ring.add(new)
    for key in KEYS:
        assert ring.get_node(key) in (before[key], new)
    ring.remove(new)
    assert {key: ring.get_node(key) for key in KEYS} == before


@settings(max_examples=40)
@given(names, st.integers(0, 9), st.text(max_size=20))
def test_replicas_are_distinct_start_with_the_owner_and_end(nodes: set[str], replicas: int, key: str) -> None:
    ring = ConsistentHashRing(nodes, 20)
    found = ring.get_replica_nodes(key, replicas)
    assert len(found) == len(set(found)) == min(replicas, len(nodes))
    assert found[:1] == [ring.get_node(key)][: len(found)]
    assert set(ring.walk(0)) == nodes


@settings(max_examples=20)
@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_joining_does_not_matter(order: list[str]) -> None:
    one = ConsistentHashRing(["a", "b", "c", "d"], 20)
    two = ConsistentHashRing([], 20)
    for node in order:
        two.add(node)
    assert all(one.get_replica_nodes(k, 4) == two.get_replica_nodes(k, 4) for k in KEYS[:20])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 64))
def test_a_group_is_in_range_and_always_the_same(key: str, groups: int) -> None:
    assert 0 <= group_of(key, groups) < groups
    assert group_of(key, groups) == group_of(key, groups)
