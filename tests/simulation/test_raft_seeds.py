"""Raft under everything at once, by seed: power loss (also in the middle of a sync), cuts, one-way cuts,
resets, lost, repeated and overtaking messages, full and failing disks, handovers, small logs so that
snapshots are needed.

During the run: one leader per term, equal entries at equal indexes, no entry applied twice, leader time
monotonic. After it: replicas equal, no acknowledged append lost or doubled, registers linearizable, no group
halted."""

import pytest

from tests.support.raft_story import tell

SEEDS = range(1, 37)

REGRESSIONS: dict[int, str] = {}
"""Seeds that once failed, and what they found."""


@pytest.mark.parametrize("seed", [*SEEDS, *REGRESSIONS])
def test_raft_keeps_its_promises(seed):
    nodes = 3 if seed % 2 else 5
    datagrams = seed % 4 >= 2
    print(f"seed {seed}, {nodes} nodes, {'datagrams' if datagrams else 'links'}")
    counts = tell(seed, nodes=nodes, datagrams=datagrams, seconds=10)
    assert counts["done"] > 20
    assert counts["reads"] > 10


def test_a_seed_is_one_run():
    assert tell(7, nodes=3, datagrams=True, seconds=5) == tell(7, nodes=3, datagrams=True, seconds=5)
