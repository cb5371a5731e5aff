"""A replica's judgement of itself, by tables: who reported what, and what follows from it."""

from typing import Any

import pytest

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_audit import DISPUTED, PATIENCE_TICKS, REPEAT_TICKS, SOUND, WRONG, Audit
from raftspine.model import GroupId, NodeId
from raftspine.ports import Doubt, Mark

X, Y, Z = b"x" * 16, b"y" * 16, b"z" * 16


class Log:
    group = GroupId(3)

    def __init__(self, voters: str) -> None:
        self.voters = tuple(NodeId(voter) for voter in voters)


class Machine:
    def __init__(self, *marks: Mark, doubt: Doubt | None = None) -> None:
        self.kept = list(marks)
        self.known = doubt

    def marks(self, group: GroupId) -> list[Mark]:
        return self.kept

    def doubt(self, group: GroupId) -> Doubt | None:
        return self.known


class Bench:
    """Replica `a` among `voters`, whose digest below entry 1024 is X."""

    def __init__(self, voters: str = "abc", *, doubt: Doubt | None = None) -> None:
        self.machine = Machine(Mark(1024, 0, X), doubt=doubt)
        self.sent: list[tuple[Any, ...]] = []
        self.doubted = 0
        self.log: Any = Log(voters)
        machine: Any = self.machine
        self.audit = Audit(
            NodeId("a"), self.log, machine, lambda: self.log.voters, lambda *f: self.sent.append(f), self._doubted
        )

    def _doubted(self) -> None:
        self.doubted += 1

    def heard(self, peer: str, digest: bytes, *, below: int = 1024, since: int = 0, standing: int = SOUND) -> None:
        self.audit.heard(NodeId(peer), [[below, since, digest]], standing)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.audit.tick(7)


@pytest.mark.parametrize(
    ("voters", "told", "standing"),
    [
        ("abc", {"b": X, "c": X}, SOUND),
        ("abc", {"b": X, "c": Y}, SOUND),
        ("abc", {"b": Y, "c": Y}, WRONG),
        ("abc", {"b": Y, "c": Z}, DISPUTED),
        ("abc", {"b": X}, SOUND),
        ("abc", {}, SOUND),
        ("ab", {"b": X}, SOUND),
        ("ab", {"b": Y}, DISPUTED),
        ("abcde", {"b": X, "c": X, "d": Y, "e": Y}, SOUND),
        ("abcde", {"b": X, "c": Y, "d": Y, "e": Y}, WRONG),
        ("abcde", {"b": X, "c": Y, "d": Y, "e": Z}, DISPUTED),
        ("abc", {"b": X, "d": Y, "e": Y}, SOUND),  # strangers do not count
    ],
)
def test_the_majority_of_all_voters_decides(voters: str, told: dict[str, bytes], standing: int) -> None:
    bench = Bench(voters)
    for peer, digest in told.items():
        bench.heard(peer, digest)
    assert bench.audit.standing == standing
    assert bench.doubted == (standing != SOUND)
    odd = any(digest != X for peer, digest in told.items() if peer in voters)
    assert bench.audit.divergences == (1 if odd and (standing != SOUND or voters == "abc") else 2 if odd else 0)


def test_a_voter_that_has_not_spoken_is_waited_for_a_little() -> None:
    bench = Bench()
    bench.heard("b", Y)
    bench.tick(PATIENCE_TICKS - 1)
    assert bench.audit.standing == SOUND
    bench.tick()
    assert bench.audit.standing == DISPUTED and not bench.audit.stored
    bench.heard("c", X)
    assert bench.audit.standing == SOUND and not bench.audit.stored, "that the doubt is over is to be stored too"


def test_a_dispute_ends_wrong_when_the_third_agrees_with_the_other() -> None:
    bench = Bench()
    bench.heard("b", Y)
    bench.tick(PATIENCE_TICKS)
    bench.heard("c", Y)
    assert bench.audit.wrong and bench.audit.divergences == 1


def test_marks_with_other_bounds_are_not_compared() -> None:
    bench = Bench()
    for peer in "bc":
        bench.heard(peer, Y, below=2048)
        bench.heard(peer, Y, since=1024)
    bench.tick(10)
    assert bench.audit.standing == SOUND


def test_who_knows_that_it_is_wrong_speaks_against_nobody() -> None:
    bench = Bench()
    bench.heard("b", Y, standing=WRONG)
    bench.tick(10)
    assert bench.audit.standing == SOUND and bench.audit.divergences == 1
    bench.heard("b", X, standing=SOUND)
    bench.heard("b", Y, standing=WRONG)
    assert bench.audit.divergences == 2, "after it was healed it counts anew"


def test_agreement_on_a_later_stretch_lifts_no_doubt() -> None:
    """The chain that began anew does not contain what was disputed."""
    bench = Bench(doubt=Doubt(False, Mark(1024, 0, X), "disputed"))
    bench.machine.kept = [Mark(65536 + 1024, 65536, X)]
    for peer in "bc":
        bench.heard(peer, X, below=65536 + 1024, since=65536)
    assert bench.audit.standing == DISPUTED


def test_being_wrong_ends_with_another_state_only() -> None:
    doubt = Doubt(True, Mark(1024, 0, Y), "wrong")
    bench = Bench(doubt=doubt)
    for peer in "bc":
        bench.heard(peer, X)
    assert bench.audit.wrong
    bench.machine.known = None
    bench.audit.reload()
    assert bench.audit.standing == SOUND


@pytest.mark.parametrize(
    ("report", "standing", "asks"), [(X, SOUND, True), (Y, SOUND, False), (X, DISPUTED, False), (None, SOUND, False)]
)
def test_a_snapshot_is_asked_of_a_leader_that_nothing_speaks_against(
    report: bytes | None, standing: int, asks: bool
) -> None:
    bench = Bench(doubt=Doubt(True, Mark(1024, 0, Y), "wrong"))
    if report is not None:
        bench.heard("b", report, standing=standing)
    bench.audit.ask_for_snapshot(7, NodeId("b"))
    assert (("b", frames.SNAPSHOT_WANTED, 7) in bench.sent) == asks


def test_marks_are_told_when_they_are_new_and_now_and_then() -> None:
    bench = Bench()
    bench.tick()
    assert bench.sent == [(peer, frames.MARKS, 7, [[1024, 0, X]], SOUND) for peer in ("b", "c")]
    bench.tick(REPEAT_TICKS - 2)
    assert len(bench.sent) == 2
    bench.tick()
    assert len(bench.sent) == 4
    assert all(frames.well_formed((3, *frame[1:])) for frame in bench.sent)
    assert not frames.well_formed((3, frames.MARKS, 7, [[1, 2]], 0))
    assert not frames.well_formed((3, frames.MARKS, 7, [[1, 2, "text"]], 0))
