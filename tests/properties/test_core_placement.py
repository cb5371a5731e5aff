"""Tables for any cluster: bounded loads, spread, determinism, and little movement."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.core.placement import build_table, rebuild
from raftspine.model import Member, NodeId, Role, Table


def member(i: int, zone: str = "", role: Role = Role.PRIMARY, host: str = "", weight: float = 1.0) -> Member:
    return Member(NodeId(f"spine-{i}"), host or f"10.0.0.{i}", 8788, 8798, zone, role, weight)


@st.composite
def clusters(draw: st.DrawFn) -> list[Member]:
    size = draw(st.integers(1, 7))
    others = draw(st.lists(st.sampled_from([*Role]), min_size=size - 1, max_size=size - 1))
    return [
        member(
            i,
            zone=draw(st.sampled_from(["", "a", "b", "c"])),
            role=role,
            host=draw(st.sampled_from(["", "shared"])),
            weight=draw(st.sampled_from([0.5, 1.0, 2.0])),
        )
        for i, role in enumerate([Role.PRIMARY, *others])
    ]


def holders(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if m.role is not Role.GATEWAY]


def moved(before: Table, after: Table) -> int:
    return sum(len(set(b) - set(a)) for a, b in zip(before.groups, after.groups, strict=True))


@settings(max_examples=60, deadline=None)
@given(clusters(), st.integers(1, 20), st.integers(1, 4))
def test_every_table_keeps_the_bounds(members: list[Member], groups: int, factor: int) -> None:
    table = build_table("c", members, groups=groups, factor=factor, strategy="id")
    holding = holders(members)
    size = min(factor, len(holding))
    assert len(table.groups) == groups
    assert all(len(set(g)) == len(g) == size for g in table.groups)
    assert {n for g in table.groups for n in g} <= {m.id for m in holding}
    load = Counter(n for g in table.groups for n in g)
    if len({m.weight for m in holding}) == 1:
        assert max(load.values()) <= groups * size / len(holding) + 1
    assert len(table.meta) % 2 == 1
    assert len(set(table.meta)) == len(table.meta) <= 5
    assert all(m.role is Role.PRIMARY for m in members if m.id in table.meta)


@settings(max_examples=30, deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(members: list[Member], rng) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(members)
    rng.shuffle(shuffled)
    one = build_table("c", members, groups=16, factor=3, strategy="id")
    assert build_table("c", shuffled, groups=16, factor=3, strategy="id") == one


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(3, 4), st.sampled_from([8, 16, 64]))
def test_equal_zones_hold_one_replica_each(per_zone: int, zones: int, groups: int) -> None:
    members = [member(i, zone=f"z{i % zones}") for i in range(per_zone * zones)]
    zone = {m.id: m.zone for m in members}
    table = build_table("c", members, groups=groups, factor=3, strategy="id")
    assert all(len({zone[n] for n in g}) == 3 for g in table.groups)
    first = Counter(g[0] for g in table.groups)
    assert max(first.values()) - min(first.get(m.id, 0) for m in members) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(8, 32))
def test_two_nodes_of_a_host_share_no_group_when_there_are_hosts_enough(hosts: int, groups: int) -> None:
    members = [member(i, host=f"host-{i % hosts}") for i in range(2 * hosts)]
    host = {m.id: m.host for m in members}
    table = build_table("c", members, groups=groups, factor=2, strategy="id")
    assert all(host[a] != host[b] for a, b in table.groups)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 8), st.sampled_from([16, 32]))
def test_a_node_more_or_less_moves_its_share_and_no_more(nodes: int, groups: int) -> None:
    members = [member(i) for i in range(nodes)]
    before = build_table("c", members, groups=groups, factor=3, strategy="id")
    grown = rebuild(before, [*members, member(nodes)], 3)
    assert grown.epoch == before.epoch + 1
    arrived = Counter(n for g in grown.groups for n in g)[NodeId(f"spine-{nodes}")]
    assert moved(before, grown) == arrived
    assert groups * 3 // (nodes + 1) <= arrived <= groups * 3 / (nodes + 1) + 1
    shrunk = rebuild(grown, members, 3)
    assert moved(grown, shrunk) == arrived


@settings(max_examples=40, deadline=None)
@given(clusters(), clusters(), st.integers(1, 4))
def test_rebuilding_for_any_members_keeps_the_bounds(old: list[Member], new: list[Member], factor: int) -> None:
    table = rebuild(build_table("c", old, groups=16, factor=3, strategy="id"), new, factor)
    holding = holders(new)
    assert all(len(set(g)) == min(factor, len(holding)) for g in table.groups)
    assert {n for g in table.groups for n in g} <= {m.id for m in holding}
    assert set(table.meta) <= {m.id for m in new if m.role is Role.PRIMARY}
    assert rebuild(table, new, factor).groups == table.groups, "nothing to do for the same members"
