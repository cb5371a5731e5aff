"""Raft under everything at once, by seed: power loss (also in the middle of a sync), cuts, one-way cuts,
resets, lost, repeated and overtaking messages, full and failing disks, handovers, small logs so that
snapshots are needed; and, in runs of their own, members that come, go and lose their disks.

During the run: one leader per term, equal entries at equal indexes, no entry applied twice, leader time
monotonic, successive members differing by one voter, no removed member elected. After it: replicas equal, no
acknowledged append lost or doubled, registers linearizable, no group halted."""

import pytest

from tests.support.raft_story import tell

SECONDS = 4.0
BATCHES = [range(first, first + 10) for first in range(1, 111, 10)]

REGRESSIONS: dict[int, str] = {}
"""Seeds that once failed, and what they found."""


@pytest.mark.parametrize("seeds", BATCHES, ids=[f"{batch[0]}-{batch[-1]}" for batch in BATCHES])
def test_raft_keeps_its_promises(seeds):
    done = reads = snapshots = 0
    for seed in seeds:
        counts = keeps_its_promises(seed, SECONDS)
        done, reads = done + counts.get("done", 0), reads + counts.get("reads", 0)
        snapshots += counts["snapshots installed"]
    assert done > 200
    assert reads > 200
    assert snapshots > 0


def test_what_was_found_stays_fixed():
    for seed in REGRESSIONS:
        keeps_its_promises(seed, 10.0)


def keeps_its_promises(seed, seconds):
    nodes = 3 if seed % 2 else 5
    datagrams = seed % 4 >= 2
    print(f"seed {seed}, {nodes} nodes, {'datagrams' if datagrams else 'links'}")
    return tell(seed, nodes=nodes, datagrams=datagrams, seconds=seconds)


@pytest.mark.parametrize("seeds", BATCHES[:4], ids=[f"{batch[0]}-{batch[-1]}" for batch in BATCHES[:4]])
def test_raft_keeps_its_promises_while_its_members_change(seeds):
    done = changes = 0
    for seed in seeds:
        nodes = 3 if seed % 2 else 5
        datagrams = seed % 4 >= 2
        print(f"seed {seed}, {nodes} nodes and 2 more, {'datagrams' if datagrams else 'links'}")
        counts = tell(seed, nodes=nodes, datagrams=datagrams, seconds=6, membership=True)
        done += counts["done"]
        changes += counts.get("done: AddLearner", 0) + counts.get("done: Remove", 0)
    assert done > 200
    assert changes > 20


def test_a_seed_is_one_run():
    assert tell(7, nodes=3, datagrams=True, seconds=5) == tell(7, nodes=3, datagrams=True, seconds=5)
    first = tell(8, seconds=5, membership=True)
    assert first == tell(8, seconds=5, membership=True)
