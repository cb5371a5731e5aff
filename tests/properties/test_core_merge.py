"""The merge laws, over histories as replicas really make them: mint from the local record, deliver in any
order, start a new origin at a reboot, prune contexts.

The twin knows each version's causal past as a plain set of dots and keeps what no other version has in its
past.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.core.dots import Vector
from raftspine.core.merge import (
    MAX_SIBLINGS,
    crowded,
    floor,
    fresh,
    join,
    mint,
    prune_context,
    put,
    rank,
    winner,
)
from raftspine.model import Dot, Memory, RingRecord, Version

REPLICAS = 3


class Replica:
    """One node's record of one id, its vector, and the number of its boot."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boot = 0
        self.seq = 0
        self.record: RingRecord | None = None
        self.vector = Vector()

    @property
    def origin(self) -> str:
        return f"{self.name}~{self.boot}"


class History:
    """Replays events and remembers every version with its true past."""

    def __init__(self) -> None:
        self.replicas = [Replica(f"n{i}") for i in range(REPLICAS)]
        self.versions: list[Version] = []
        self.past: dict[Dot, frozenset[Dot]] = {}
        self.knows: list[set[Dot]] = [set() for _ in range(REPLICAS)]
        self.travelling: list[RingRecord] = []

    def write(self, i: int, stamp_skew: int, delete: bool) -> None:
        replica = self.replicas[i]
        replica.seq += 1
        stamp = max(floor(replica.record) + 1, 100 + stamp_skew)
        memory = None if delete else Memory(f"{replica.origin}/{replica.seq}")
        version = mint(replica.record, "x", replica.origin, replica.seq, stamp, memory)
        self.versions.append(version)
        self.past[version.dot] = frozenset(self.knows[i])
        self.deliver(version, i)

    def deliver(self, version: Version, i: int) -> None:
        replica = self.replicas[i]
        if not replica.vector.covers(*version.dot):
            replica.vector.add(*version.dot)
            replica.record = put(replica.record, version).record
            self.knows[i] |= self.past[version.dot] | {version.dot}

    def sync(self, source: int, target: int) -> None:
        a, b = self.replicas[source], self.replicas[target]
        if a.record is not None:
            incoming = fresh(b.record, a.record, b.vector.covers)
            b.record = incoming if b.record is None else join(b.record, incoming).record
        b.vector.join(a.vector)
        self.knows[target] |= self.knows[source]

    def depart(self, source: int) -> None:
        """A record leaves for a merge that will happen much later."""
        record = self.replicas[source].record
        if record is not None:
            self.travelling.append(record)

    def arrive(self, number: int, target: int) -> None:
        replica = self.replicas[target]
        if self.travelling and replica.record is not None:
            late = fresh(replica.record, self.travelling[number % len(self.travelling)], replica.vector.covers)
            replica.record = join(replica.record, late).record
            for version in late.versions:
                replica.vector.add(*version.dot)
                self.knows[target] |= self.past[version.dot] | {version.dot}

    def prune(self, i: int) -> None:
        stable = Vector.meet(r.vector for r in self.replicas)
        replica = self.replicas[i]
        if replica.record is not None:
            replica.record = prune_context(replica.record, stable.covers)

    def reboot(self, i: int) -> None:
        self.replicas[i].boot += 1
        self.replicas[i].seq = 0

    def live(self) -> set[Dot]:
        """The twin's answer: what is in nobody's past."""
        return {d for d in self.past if not any(d in past for past in self.past.values())}


who = st.integers(0, REPLICAS - 1)
plain_events = st.one_of(
    st.tuples(st.just("write"), who, st.integers(-50, 50), st.booleans()),
    st.tuples(st.just("deliver"), st.integers(0, 40), who),
    st.tuples(st.just("sync"), who, who),
    st.tuples(st.just("reboot"), who),
)
events = st.one_of(
    plain_events,
    st.tuples(st.just("prune"), who),
    st.tuples(st.just("depart"), who),
    st.tuples(st.just("arrive"), st.integers(0, 9), who),
)


def replay(script: list[tuple]) -> History:  # type: ignore[type-arg]
    history = History()
    for event, *args in script:
        if event == "deliver":
            number, target = args
            if history.versions:
                history.deliver(history.versions[number % len(history.versions)], target)
        else:
            getattr(history, event)(*args)
    return history


def records(history: History) -> list[RingRecord]:
    """Records worth joining: those of the replicas and one per version."""
    alone = [put(None, v).record for v in history.versions]
    return [r.record for r in history.replicas if r.record is not None] + alone


def dots(record: RingRecord) -> set[Dot]:
    return {v.dot for v in record.versions}


@given(st.lists(plain_events, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_versions_delivered_in_any_order_and_repeatedly_end_in_the_twins_record(script, rng) -> None:
    history = replay(script)
    if not history.versions:
        return
    ends = []
    for _ in range(3):
        order = history.versions * 2
        rng.shuffle(order)
        record = None
        for version in order:
            record = put(record, version).record
        ends.append(record)
    assert ends[0] == ends[1] == ends[2]
    assert ends[0] is not None
    assert dots(ends[0]) == history.live()
    assert winner(ends[0]) == max(ends[0].versions, key=rank)


@given(st.lists(plain_events, min_size=1, max_size=25), st.data())
def test_join_is_commutative_associative_idempotent_and_monotonic(script, data) -> None:
    pool = records(replay(script))
    if not pool:
        return
    a, b, c = (data.draw(st.sampled_from(pool)) for _ in range(3))
    ab = join(a, b).record
    assert ab == join(b, a).record
    assert join(ab, c).record == join(a, join(b, c).record).record
    assert join(a, a).record == a
    assert join(ab, a).record == join(ab, b).record == ab
    assert all(ab.context[o] >= s for side in (a, b) for o, s in side.context.items())


@given(st.lists(plain_events, min_size=1, max_size=25), st.data())
def test_put_is_join_with_a_record_of_one_version(script, data) -> None:
    history = replay(script)
    pool = records(history)
    if not pool:
        return
    local = data.draw(st.sampled_from(pool))
    version = data.draw(st.sampled_from(history.versions))
    one, two = put(local, version), join(local, put(None, version).record)
    assert one.record == two.record
    assert one.losers == two.losers
    assert one.changed == two.changed == (one.record != local)


@given(st.lists(plain_events, min_size=1, max_size=30))
def test_no_concurrent_version_vanishes_without_having_been_reported(script) -> None:
    """Whoever is live and not shown somewhere was a loser in the merge that hid it."""
    history = replay(script)
    record: RingRecord | None = None
    reported: set[Dot] = set()
    for version in history.versions:
        merged = put(record, version)
        reported |= {v.dot for v in merged.losers}
        record = merged.record
        assert {v.dot for v in record.versions[1:]} <= reported


@given(st.lists(plain_events, max_size=40))
def test_one_origin_never_has_two_live_versions(script) -> None:
    for record in records(replay(script)):
        origins = [v.origin for v in record.versions]
        assert len(set(origins)) == len(origins)


@settings(max_examples=200)
@given(st.lists(events, min_size=1, max_size=40))
def test_pruned_contexts_bring_nothing_back_and_replicas_still_agree(script) -> None:
    history = replay(script)
    for source in range(REPLICAS):
        for target in range(REPLICAS):
            history.sync(source, target)
    for source in reversed(range(REPLICAS)):
        for target in range(REPLICAS):
            history.sync(source, target)
    ends = [r.record for r in history.replicas]
    if ends[0] is None:
        assert not history.live()
        return
    for end in ends:
        assert end is not None
        assert dots(end) == history.live()
        assert winner(end) == max(end.versions, key=rank)


def version(origin: str, stamp: int, context: dict[str, int] | None = None) -> Version:
    return Version("x", origin, 1, stamp, context or {}, Memory(origin))


def test_cutting_siblings_in_the_merge_would_break_its_laws() -> None:
    """Why `crowded` exists: v is cut in one order of joins and survives in the other."""

    def cut(record: RingRecord) -> RingRecord:
        return RingRecord(record.versions[:MAX_SIBLINGS], record.context)

    low = put(None, version("v~0", 1)).record
    many: RingRecord | None = None
    for i in range(MAX_SIBLINGS):
        many = put(many, version(f"u{i}~0", 10 + i)).record
    assert many is not None
    over_many = put(None, version("w~0", 99, dict(many.context))).record

    one = cut(join(cut(join(low, many).record), over_many).record)
    two = cut(join(low, cut(join(many, over_many).record)).record)
    assert one != two

    both = join(low, many).record
    assert crowded(both)
    rewritten = mint(both, "x", "r~0", 1, floor(both) + 1, winner(both).memory)
    assert put(both, rewritten).record.versions == (rewritten,)
