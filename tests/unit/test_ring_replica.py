"""One replica of the ring: what it takes, what it refuses, and what its rows say afterwards."""

from itertools import permutations
from typing import Any

import pytest

from raftspine.core.dots import Vector
from raftspine.core.hlc import Hlc, stamp_of
from raftspine.errors import NoSpace, Rejected, Unavailable
from raftspine.model import GroupId, Memory, NodeId, RingRecord, StrongRecord, Version
from raftspine.services.replica import SHADOWED, Promoted, RingReplica
from raftspine.sim.loop import Dice
from raftspine.storage import keys
from raftspine.storage import memories as rows
from tests.support.fake_engine import DictEngine

G = GroupId(3)
LOG = "log-3"


class StoppedClock:
    def wall_ms(self) -> int:
        return 1_000_000

    def monotonic(self) -> float:
        return 1000.0


def replica(engine: DictEngine | None = None, *, seed: int = 1, name: str = "a") -> RingReplica:
    made = RingReplica(NodeId(name), engine or DictEngine(), clock=StoppedClock(), entropy=Dice(seed), hlc=Hlc())
    made.hold([G])
    return made


def version(
    origin: str, seq: int, content: Any, context: dict[str, int] | None = None, *, at: int = 0, id: str = "x"
) -> Version:
    """`content` None: a delete. `at`: milliseconds beside the stopped clock."""
    memory = None if content is None else Memory(content, agent_id="agent", tags=("t",), updated_at_ms=5)
    return Version(id, origin, seq, stamp_of(1_000_000 + at) + seq, context or {}, memory)


def contents(of: RingReplica, id: str = "x") -> list[Any]:
    record = of.record(G, id)
    return [] if record is None else [v.memory.content if v.memory else None for v in record.versions]


def losers(of: RingReplica, id: str = "x") -> set[Any]:
    return {lost.memory.content for lost in rows.conflicts(of.engine, G, id) if lost.memory}


def engine_of(of: RingReplica) -> DictEngine:
    assert isinstance(of.engine, DictEngine)
    return of.engine


# ── covered is inert ──────────────────────────────────────────────────────────────────────────────────────────


def test_covered_is_inert_for_a_late_push() -> None:
    a = replica()
    old = version("b~1", 1, "old")
    a.accept(G, old)
    a.accept(G, version("c~1", 1, None, {"b~1": 1}))
    # The tombstone is purged some day, context and all; only the vector remembers then.
    a.engine.stage(rows.ring_rows(G, "x", a.record(G, "x"), None))
    assert a.accept(G, old) is None
    assert contents(a) == []


def test_covered_is_inert_for_catch_up() -> None:
    a = replica()
    old = version("b~1", 1, "old")
    a.accept(G, old)
    a.accept(G, version("c~1", 1, None, {"b~1": 1}))
    a.engine.stage(rows.ring_rows(G, "x", a.record(G, "x"), None))
    a.take(G, [RingRecord((old,), {"b~1": 1})], [("b~1", 1, "x")])
    assert contents(a) == []


def test_covered_is_inert_after_a_whole_group_was_taken() -> None:
    a = replica()
    a.take_floor(G, Vector({"b~1": 7}))
    a.accept(G, version("b~1", 7, "old"))
    a.take(G, [RingRecord((version("b~1", 6, "older"),), {"b~1": 6})], [])
    assert contents(a) == []


def test_covered_is_inert_for_a_demotion() -> None:
    a = replica()
    left = version(LOG, 1, "left the log")
    a.accept(G, left)
    a.accept(G, version("b~1", 1, "newer", {LOG: 1}))
    a.adopt(G, left)
    assert contents(a) == ["newer"]


# ── one batch ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_record_dot_row_and_index_rows_go_in_one_batch() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, "one"))
    (batch,) = engine_of(a).batches
    assert {key[:1] for key, _ in batch} == {keys.RING, keys.DOT, keys.INDEX}
    engine_of(a).batches.clear()
    a.accept(G, version("b~1", 2, None, {"b~1": 1}))
    (batch,) = engine_of(a).batches
    gone = [key for key, value in batch if value is None]
    assert {key[:1] for key in gone} == {keys.INDEX}, "a delete takes its index rows along"
    assert not engine_of(a).scan(*keys.span(keys.INDEX, G), limit=10)


def test_a_page_of_catch_up_goes_in_one_batch() -> None:
    a = replica()
    records = [RingRecord((version("b~1", n, n, id=f"x{n}"),), {"b~1": n}) for n in (1, 2)]
    a.take(G, records, [("b~1", 1, "x1"), ("b~1", 2, "x2")])
    assert len(engine_of(a).batches) == 1


@pytest.mark.parametrize("refused", ["accept", "take", "take_floor"])
def test_a_vector_never_promises_what_the_store_refused(refused: str) -> None:
    a = replica()
    engine_of(a).full = True
    coming = version("b~1", 1, "one")
    with pytest.raises(NoSpace):
        if refused == "accept":
            a.accept(G, coming)
        elif refused == "take":
            a.take(G, [RingRecord((coming,), {"b~1": 1})], [("b~1", 1, "x")])
        else:
            a.take_floor(G, Vector({"b~1": 1}))
    assert a.vector(G) == Vector()


def test_the_vector_is_what_the_rows_add_up_to() -> None:
    a = replica()
    for seq in (1, 2, 4):
        a.accept(G, version("b~1", seq, seq))
    a.take_floor(G, Vector({"c~1": 9}, {"c~1": {11}}))
    again = replica(DictEngine(engine_of(a).rows))
    assert again.vector(G) == a.vector(G) == Vector({"b~1": 2, "c~1": 9}, {"b~1": {4}, "c~1": {11}})


def test_a_whole_vector_is_covered_only_with_what_lies_above_its_gaps() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, 1))
    assert a.has(G, Vector({"b~1": 1})) and not a.has(G, Vector({"b~1": 1}, {"b~1": {3}}))
    a.accept(G, version("b~1", 3, 3))
    assert a.has(G, Vector({"b~1": 1}, {"b~1": {3}})) and not a.has(G, {"b~1": 3})


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_number_is_used_up_only_when_its_version_is_stored() -> None:
    a = replica()
    a.write(G, "x", None, Memory(1), stamp=a.stamp(None))
    engine_of(a).full = True
    with pytest.raises(NoSpace):
        a.write(G, "y", None, Memory(2), stamp=a.stamp(None))
    engine_of(a).full = False
    made, _ = a.write(G, "y", None, Memory(2), stamp=a.stamp(None))
    assert made.seq == 2
    assert a.has(G, {a.origin: 2}), "a gap would keep sessions waiting for ever"


def test_dots_are_never_used_again_after_a_restart_or_a_rollback() -> None:
    first = replica(seed=1)
    before = DictEngine(engine_of(first).rows)
    made, _ = first.write(G, "x", None, Memory(1), stamp=first.stamp(None))
    again, back = replica(DictEngine(engine_of(first).rows), seed=2), replica(before, seed=3)
    for later in (again, back):
        remade, _ = later.write(G, "x", later.record(G, "x"), Memory(2), stamp=later.stamp(None))
        assert remade.dot != made.dot
    assert replica(DictEngine(engine_of(first).rows), seed=1)._next[G] == 2, "even if chance repeats itself"


def test_a_new_stamp_is_above_the_record_and_the_clock() -> None:
    a = replica()
    ahead = version("b~1", 1, "from a fast clock", at=5000)
    a.accept(G, ahead)
    made, _ = a.write(G, "x", a.record(G, "x"), Memory("mine"), stamp=a.stamp(a.record(G, "x")))
    assert made.stamp > ahead.stamp
    assert contents(a) == ["mine"]


def test_a_stamp_too_far_ahead_is_refused_with_its_dot() -> None:
    a = replica()
    with pytest.raises(Rejected, match="future"):
        a.accept(G, version("b~1", 1, "one", at=60_000))
    assert a.vector(G) == Vector() and contents(a) == []


def test_catch_up_takes_the_rest_of_a_page_with_a_stamp_too_far_ahead() -> None:
    a = replica()
    good, bad = version("b~1", 1, "good", id="g"), version("b~1", 2, "bad", id="b", at=60_000)
    with pytest.raises(Rejected, match="future"):
        a.take(
            G,
            [RingRecord((good,), {"b~1": 1}), RingRecord((bad,), {"b~1": 2})],
            [("b~1", 1, "g"), ("b~1", 2, "b")],
        )
    assert a.vector(G) == Vector({"b~1": 1})
    assert contents(a, "g") == ["good"] and contents(a, "b") == []


def test_of_a_group_it_does_not_hold_yet_a_replica_says_so() -> None:
    """Seed 1205: whoever asked a node in its first moments was told of a KeyError."""
    with pytest.raises(Unavailable, match="does not hold"):
        replica().vector(GroupId(4))


# ── concurrent versions ───────────────────────────────────────────────────────────────────────────────────────


def test_a_conflict_keeps_the_loser_and_tells_the_coordinator_of_either() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, "first", at=10))
    told = a.accept(G, version("c~1", 1, "older", at=5))
    assert told is not None and told.versions[0].origin == "b~1"
    told = a.accept(G, version("d~1", 1, "newer", at=20))
    assert told is not None and told.versions[0].origin == "d~1", "a winner that had not seen its rival is told too"
    assert contents(a) == ["newer", "first", "older"]
    assert losers(a) == {"first", "older"}


def test_what_was_seen_is_replaced_without_a_conflict() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, "first", at=10))
    assert a.accept(G, version("c~1", 1, "second", {"b~1": 1}, at=20)) is None
    assert contents(a) == ["second"] and losers(a) == set()


@pytest.mark.parametrize("at", [5, 20], ids=["loses", "wins"])
def test_a_version_that_catch_up_brought_first_is_told_of_its_rival_all_the_same(at: int) -> None:
    """Seed 1017: this replica was the one at which two quorums met, and said nothing because it knew the dot."""
    a = replica()
    first, late = version("b~1", 1, "first", at=10), version("c~1", 1, "late", at=at)
    a.accept(G, first)
    a.take(G, [RingRecord((late,), {"c~1": 1})], [("c~1", 1, "x")])
    told = a.accept(G, late)
    assert told is not None and {v.origin for v in told.versions} == {"b~1", "c~1"}


def test_a_version_seen_before_and_replaced_since_has_nothing_to_be_told() -> None:
    a = replica()
    late = version("c~1", 1, "late")
    a.take(G, [RingRecord((late,), {"c~1": 1})], [("c~1", 1, "x")])
    assert a.accept(G, late) is None, "alone"
    a.accept(G, version("d~1", 1, "over it", {"c~1": 1}))
    assert a.accept(G, late) is None, "seen by what replaced it"


# ── beside the log ────────────────────────────────────────────────────────────────────────────────────────────


def promote(of: RingReplica, strong: StrongRecord) -> None:
    """What applying a promotion does here (ledger_host): conflict rows for what it had not seen, the record, and
    the ring lets go."""
    record = of.record(G, strong.id)
    for lost in record.versions if record else ():
        if strong.shadow.get(lost.origin, 0) < lost.seq:
            of.engine.stage(rows.conflict_rows(of.engine, G, lost, winner="s", now_ms=1))
    of.engine.stage(rows.strong_rows(G, strong.id, of.strong(G, strong.id), strong))
    of.shadow(G, strong)


def demote(of: RingReplica, left: Version) -> None:
    of.adopt(G, left)
    of.engine.stage(rows.strong_rows(G, left.id, of.strong(G, left.id), None))


def test_a_strong_record_shadows_the_ring_alive_or_dead() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, "seen"))
    promote(a, StrongRecord("x", 1, 0, Memory("strong"), {"b~1": 1}))
    assert contents(a) == [], "nothing is left that could come to light"
    assert a.accept(G, version("c~1", 1, "unseen")) is SHADOWED
    dead = StrongRecord("x", 2, 0, None, {"b~1": 1})
    a.engine.stage(rows.strong_rows(G, "x", a.strong(G, "x"), dead))
    assert a.accept(G, version("c~1", 2, "also unseen")) is SHADOWED
    a.take(G, [RingRecord((version("d~1", 1, "third"),), {"d~1": 1})], [("d~1", 1, "x")])
    assert contents(a) == []
    assert losers(a) == {"unseen", "also unseen", "third"}
    assert a.vector(G).covers("c~1", 2) and a.vector(G).covers("d~1", 1)


def test_a_version_that_catch_up_brought_is_told_of_the_log_all_the_same() -> None:
    a = replica()
    seen, beside = version("b~1", 1, "seen"), version("c~1", 1, "beside", at=900)
    a.accept(G, seen)
    a.take(G, [RingRecord((beside,), {"c~1": 1})], [("c~1", 1, "x")])
    promote(a, StrongRecord("x", 1, 0, Memory("strong"), {"b~1": 1}))
    assert a.accept(G, beside) is SHADOWED
    assert a.accept(G, seen) is None, "what the promotion had seen did not lose to it"
    demote(a, version(LOG, 1, "left the log", {"b~1": 1}))
    told = a.accept(G, beside)
    assert told is not None and told.versions[0].origin == LOG, "it had not seen the demotion"
    a.accept(G, version("d~1", 1, "over both", {LOG: 1, "c~1": 1}))
    assert a.accept(G, beside) is None and contents(a) == ["over both"]


def test_this_nodes_own_version_is_not_stored_under_a_strong_record() -> None:
    a = replica()
    promote(a, StrongRecord("x", 1, 0, Memory("strong")))
    with pytest.raises(Promoted):
        a.write(G, "x", None, Memory("mine"), stamp=a.stamp(None))
    assert a.vector(G) == Vector() and losers(a) == set()


def test_every_order_of_arrival_ends_in_the_same_ring_record() -> None:
    """Ring writes before, during and after a stay in the log reach replicas at any time; the log's own entries keep
    their order. What replicas then hold, and what is in the conflict log or was seen, must not depend on it."""
    seen = version("b~1", 1, "seen", at=1)
    beside = version("c~1", 1, "beside", at=900)  # its clock runs ahead: by stamps alone it would win
    strong = StrongRecord("x", 1, 0, Memory("strong"), {"b~1": 1})
    left = version(LOG, 1, "left the log", {"b~1": 1}, at=3)
    after = version("d~1", 1, "after", {"b~1": 1, LOG: 1}, at=4)
    steps = {
        "seen": lambda of: of.accept(G, seen),
        "beside": lambda of: of.accept(G, beside),
        "promote": lambda of: promote(of, strong),
        "demote": lambda of: demote(of, left),
        "after": lambda of: of.accept(G, after),
    }
    for order in permutations(steps):
        if order.index("promote") > order.index("demote"):
            continue
        of = replica()
        for step in order:
            steps[step](of)
        assert contents(of) == ["after"], order
        assert "beside" in losers(of) or of.record(G, "x").context.get("c~1") == 1, order  # type: ignore[union-attr]
        assert "after" not in losers(of) or order.index("after") < order.index("promote"), order


# ── trimming ──────────────────────────────────────────────────────────────────────────────────────────────────


def dots_left(of: RingReplica) -> int:
    return len(engine_of(of).scan(*keys.span(keys.DOT, G), limit=100))


def test_dot_rows_go_only_below_what_is_stable_and_the_vector_stays() -> None:
    a = replica()
    for seq in range(1, 6):
        a.accept(G, version("b~1", seq, seq))
    assert a.trim(G, 100) == 0, "nothing is known to be stable"
    a.set_stable(G, Vector({"b~1": 3}))
    assert a.trim(G, 2) == 2 and a.trim(G, 100) == 1 and a.trim(G, 100) == 0
    assert dots_left(a) == 2
    assert replica(DictEngine(engine_of(a).rows)).vector(G) == a.vector(G) == Vector({"b~1": 5})


def test_a_trim_the_store_refused_is_done_later() -> None:
    a = replica()
    a.accept(G, version("b~1", 1, 1))
    a.set_stable(G, Vector({"b~1": 1}))
    engine_of(a).full = True
    with pytest.raises(NoSpace):
        a.trim(G, 100)
    engine_of(a).full = False
    assert a.trim(G, 100) == 1 and dots_left(a) == 0
