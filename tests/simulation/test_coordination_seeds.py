"""Whole clusters on seeds: locks, tasks, gates and watchers under crashes, power loss, cuts and resets."""

import pytest

from raftspine.core.ledger import fence, freezes
from raftspine.services.coordination import keeper
from raftspine.sim.run import Report, Violation, play

BATCH = 10
"""Seeds of one test: together they have done everything at least once, which one alone may not."""
DONE = ("grants", "renewals", "guarded writes", "completions", "admissions", "freezes", "passages", "events")


@pytest.mark.parametrize("first", range(1, 61, BATCH))
def test_nothing_promised_is_broken(first: int) -> None:
    total = dict.fromkeys(DONE, 0)
    for seed in range(first, first + BATCH):
        report: Report = play(seed, seconds=8.0, load="coordination")
        for what in DONE:
            total[what] += report.done.get(what, 0)
    assert all(total.values()), total


def test_a_seed_is_a_run() -> None:
    assert str(play(7, seconds=4.0, load="coordination")) == str(play(7, seconds=4.0, load="coordination"))


def test_five_nodes() -> None:
    assert play(11, seconds=8.0, nodes=5, load="coordination").done["grants"]


def found(seeds: range) -> bool:
    for seed in seeds:
        try:
            play(seed, seconds=10.0, load="coordination")
        except Violation:
            return True
    return False


def test_the_load_finds_guards_that_guard_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "refused", lambda view, id, guards: None)
    assert found(range(1, 20))


def test_the_load_finds_renewals_that_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: keeper._Office, key: keeper.Key, seconds: float, now: float) -> None:
        if key not in self.timers:
            self.look(key, now + seconds, seconds)

    monkeypatch.setattr(keeper._Office, "start", forgetful)
    assert found(range(1, 20))


def test_the_load_finds_freezes_that_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezes, "in_force", lambda *args, **more: [])
    assert found(range(1, 20))
