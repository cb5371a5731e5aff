"""The tables of clusters people really run."""

from collections import Counter

import pytest

from raftspine.core.placement import build_table, rebuild
from raftspine.errors import Misuse
from raftspine.model import Member, NodeId, Role


def member(name: str, zone: str = "", role: Role = Role.PRIMARY, host: str = "", weight: float = 1.0) -> Member:
    return Member(NodeId(name), host or name, 8788, 8798, zone, role, weight)


PRODUCT = [member("spine-1", "us-east-1a"), member("spine-2", "us-east-1b"), member("spine-3", "us-west-2a")]


def test_the_products_three_nodes() -> None:
    table = build_table("c", PRODUCT, groups=16, factor=3, strategy="id")
    assert (table.epoch, table.cluster_id, table.strategy) == (1, "c", "id")
    assert all(len(set(g)) == 3 for g in table.groups)
    assert sorted(Counter(g[0] for g in table.groups).values()) == [5, 5, 6]
    assert len(table.meta) == 3


def test_a_fourth_node_takes_a_quarter() -> None:
    before = build_table("c", PRODUCT, groups=16, factor=3, strategy="id")
    after = rebuild(before, [*PRODUCT, member("spine-4", "us-west-2b")], 3)
    moved = [set(new) - set(old) for new, old in zip(after.groups, before.groups, strict=True)]
    assert Counter(n for m in moved for n in m) == {"spine-4": 12}
    assert set(Counter(n for g in after.groups for n in g).values()) == {12}
    assert set(Counter(g[0] for g in after.groups).values()) == {4}
    assert after.epoch == 2
    assert after.meta == before.meta


def test_one_node_is_a_cluster() -> None:
    table = build_table("c", [member("only")], groups=16, factor=3, strategy="id")
    assert table.groups == ((NodeId("only"),),) * 16
    assert table.meta == ("only",)


def test_gateways_hold_nothing_and_replicas_do_not_vote() -> None:
    members = [*PRODUCT, member("gate", role=Role.GATEWAY), member("copy", role=Role.REPLICA)]
    table = build_table("c", members, groups=16, factor=3, strategy="id")
    held = Counter(n for g in table.groups for n in g)
    assert "gate" not in held
    assert held["copy"] == 12
    assert set(table.meta) == {m.id for m in PRODUCT}


def test_a_heavier_node_holds_more_but_never_twice_the_same_group() -> None:
    members = [member("big", weight=9), *PRODUCT]
    held = Counter(n for g in build_table("c", members, groups=16, factor=2, strategy="id").groups for n in g)
    assert held["big"] == 16
    assert sorted(held[m.id] for m in PRODUCT) == [5, 5, 6]


@pytest.mark.parametrize(("primaries", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_the_meta_group_is_odd_and_at_most_five(primaries: int, voters: int) -> None:
    members = [member(f"n{i}", zone=f"z{i % 3}") for i in range(primaries)]
    table = build_table("c", members, groups=4, factor=3, strategy="id")
    assert len(table.meta) == voters
    zones = Counter(table.member(n).zone for n in table.meta)  # type: ignore[union-attr]
    assert len(zones) == min(3, voters)


@pytest.mark.parametrize(
    ("members", "groups"),
    [
        ([], 16),
        ([member("g", role=Role.GATEWAY)], 16),
        ([member("r", role=Role.REPLICA)], 16),
        ([member("a", weight=0)], 16),
        ([member("a"), member("a")], 16),
        (PRODUCT, 0),
        (PRODUCT, 65),
    ],
)
def test_impossible_clusters_are_refused(members: list[Member], groups: int) -> None:
    with pytest.raises(Misuse):
        build_table("c", members, groups=groups, factor=3, strategy="id")


def test_two_replicas_change_places_where_no_single_move_helps() -> None:
    members = [member("n0", "b"), member("n1", "d", weight=2), member("n2", "c"), member("n3", "d")]
    zone = {m.id: m.zone for m in members}
    table = build_table("c", members, groups=4, factor=2, strategy="id")
    assert all(zone[a] != zone[b] for a, b in table.groups)
