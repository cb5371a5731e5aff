"""Bugs of our own, each of which somebody must notice: a random seed where one does, a placed scenario where chance
would take too long (terms on answers, votes and read rounds matter only when a frame of a past term arrives at the
one moment that counts).

Which seed finds a mutant changes with everything that changes a run, so only one that any seed finds is held to its
seed here. Measured in 2026 (`scripts/sim --mutant NAME --seeds 200 --seconds 3 --no-shrink`): a seed finds
`truncate-always` (17, 33 in two versions) and `deposed-reads` (16, 58); none of 60 found `unsynced-votes` or
`reuse-read-context`; the others were not searched to the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from raftspine.errors import Misuse
from raftspine.sim import mutants
from raftspine.sim.mutants import MUTANTS, Mutant, mutated
from raftspine.sim.run import Violation, play
from tests.defects.test_row_01_truncation import test_ours_repeated_append as repeated_append
from tests.defects.test_row_04_term_of_answers import test_ours_answer_from_an_older_term as older_answer
from tests.defects.test_row_06_votes import test_ours_repeated_vote as repeated_vote
from tests.unit import test_raft_guard, test_ring_cluster, test_ring_replica


class BySeed(NamedTuple):
    seed: int
    rule: str
    seconds: float = 3.0


CAUGHT: dict[str, BySeed | None] = {
    "drop-fsync": BySeed(1, "on disk"),
    "unsynced-votes": None,
    "no-term-stamp": None,
    "truncate-always": None,
    "reuse-read-context": None,
    "deposed-reads": None,
    "no-commit-cap": None,
    "vote-twice": None,
    "covered-not-inert": None,
    "reuse-dots": None,
    "advertise-unsynced": None,
}

PLACED: dict[str, Callable[[], object]] = {
    "unsynced-votes": test_raft_guard.test_a_vote_waits_for_the_journal,
    "no-term-stamp": older_answer,
    "truncate-always": repeated_append,
    "reuse-read-context": test_raft_guard.test_a_read_needs_an_echo_from_after_the_question,
    "deposed-reads": test_raft_guard.test_a_read_needs_an_echo_from_after_the_question,
    "no-commit-cap": test_raft_guard.test_a_follower_is_told_no_commit_index_beyond_what_it_has_acknowledged,
    "vote-twice": repeated_vote,
    "covered-not-inert": test_ring_replica.test_covered_is_inert_for_a_late_push,
    "reuse-dots": test_ring_replica.test_dots_are_never_used_again_after_a_restart_or_a_rollback,
    "advertise-unsynced": test_ring_cluster.test_only_durable_vectors_are_told,
}


def test_every_mutant_is_caught_by_something() -> None:
    assert set(CAUGHT) == set(MUTANTS)
    assert {name for name, by in CAUGHT.items() if by is None} <= set(PLACED)


@pytest.mark.parametrize("name", [name for name, by in CAUGHT.items() if by is not None])
def test_a_seed_catches(name: str) -> None:
    by = CAUGHT[name]
    assert by is not None
    with mutated(name), pytest.raises(Violation) as caught:
        play(by.seed, by.seconds)
    assert caught.value.rule == by.rule
    play(by.seed, by.seconds)  # and without the bug it has nothing to say


@pytest.mark.parametrize("name", sorted(PLACED))
def test_a_placed_scenario_catches(name: str) -> None:
    with mutated(name), pytest.raises((AssertionError, TimeoutError, RuntimeError)):
        PLACED[name]()
    PLACED[name]()


def test_a_mutant_whose_target_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Mutant("of what was renamed", ((mutants.Journal, "_no_such_method", lambda real: real),))
    monkeypatch.setitem(MUTANTS, "lost", lost)
    with pytest.raises(Misuse, match="Journal has no _no_such_method any more"), mutated("lost"):
        pass
    with pytest.raises(Misuse, match="unknown mutant"), mutated("nonsense"):
        pass
