"""Did each session see what it was promised? Terry et al., "Session Guarantees for Weakly Consistent Replicated
Data" (1994), and causal consistency over sessions whose tokens were handed over.

All five ask one question of each read: is there a write that it had to know of, and that is newer than what it
returned? They differ in which writes those are; that is the table below. Newer is meant in the causal order, so two
writes that did not know of each other never accuse a read. (The last is the pattern `WriteCORead` of Bouajjani et
al., "On verifying causal consistency", POPL 2017, which with `Past`'s own two makes up the whole of weak causality.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from raftspine.checkers.history import Operation
from raftspine.checkers.past import WRITES, Broken, Past, Unjudgeable
from raftspine.checkers.verdict import Verdict, passed, told, undecided, violation


class _Session:
    """What one session has done and seen so far."""

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        """key -> its last answered write."""
        self.seen: dict[str, list[int]] = {}
        """key -> the writes its reads returned, without those that happened before another of them."""
        self.horizon: dict[str, int] = {}
        """lane -> the position up to which its writes were seen, because a later one of them was."""


class _Walk:
    """The history of one key space, walked in the order of time."""

    def __init__(self, past: Past) -> None:
        self.past = past
        self.sessions: dict[str, _Session] = {}
        self.reads: dict[tuple[str, str], list[int]] = {}
        """(lane, key) -> the reads of that lane that found something, in order."""

    def session(self, number: int) -> _Session:
        return self.sessions.setdefault(self.past.places[number].lane, _Session())

    def note(self, number: int) -> None:
        past, op = self.past, self.past.history[number]
        session = self.session(number)
        if op.kind in WRITES and op.ok:
            session.own[op.key] = number
        source = past.source.get(number)
        if source is None:
            return
        seen = [w for w in session.seen.get(op.key, ()) if w != source and not past.before(w, source)]
        session.seen[op.key] = [*seen, source]
        place = past.places[source]
        session.horizon[place.lane] = max(session.horizon.get(place.lane, -1), place.position)
        self.reads.setdefault((past.places[number].lane, op.key), []).append(number)


def _own(walk: _Walk, read: int) -> Iterator[int]:
    own = walk.session(read).own.get(walk.past.history[read].key)
    if own is not None:
        yield own


def _seen(walk: _Walk, read: int) -> Iterator[int]:
    yield from walk.session(read).seen.get(walk.past.history[read].key, ())


def _before_a_seen_write(walk: _Walk, read: int) -> Iterator[int]:
    key = walk.past.history[read].key
    for lane, position in walk.session(read).horizon.items():
        found = walk.past.last_write(key, lane, position - 1)
        if found is not None:
            yield found


def _read_before_a_seen_write(walk: _Walk, read: int) -> Iterator[int]:
    past = walk.past
    key = past.history[read].key
    for lane, position in walk.session(read).horizon.items():
        earlier = [n for n in walk.reads.get((lane, key), ()) if past.places[n].position < position]
        if earlier:
            yield past.source[earlier[-1]]


def _known(walk: _Walk, read: int) -> Iterator[int]:
    key = walk.past.history[read].key
    for lane, position in walk.past.clocks[read].items():
        found = walk.past.last_write(key, lane, position)
        if found is not None:
            yield found


Required = Callable[[_Walk, int], Iterator[int]]

GUARANTEES: Mapping[str, tuple[Required, str]] = {
    "read-your-writes": (_own, "which the same session had written"),
    "monotonic reads": (_seen, "which the same session had read"),
    "monotonic writes": (_before_a_seen_write, "which its writer wrote before another write this session had seen"),
    "writes follow reads": (
        _read_before_a_seen_write,
        "which a writer had read before a write this session had seen",
    ),
    "causal": (_known, "which it causally depends on"),
}
"""name -> the writes a read must know of, and why, in words."""


def judge(operations: Iterable[Operation], guarantee: str, *, by_reading: bool = True) -> Verdict:
    """One guarantee of the table. `by_reading` False judges what is newer by the order of sessions alone: what a
    session reads does then not become the past of its writes, as under `read-your-writes`, which orders a
    session's own writes and nothing else."""
    history = list(operations)
    required, why = GUARANTEES[guarantee]
    try:
        past = Past(history, by_reading=by_reading)
    except Unjudgeable as error:
        return undecided(guarantee, len(history), str(error))
    except Broken as error:
        return violation(guarantee, len(history), error.reason, error.window)
    walk, found = _Walk(past), []
    for number, op in enumerate(past.history):
        if op.kind == "read":
            newer = next((w for w in required(walk, number) if w != number and past.stale(number, w)), None)
            if newer is not None:
                found.append((number, newer))
        walk.note(number)
    if not found:
        return passed(guarantee, len(past.history))
    read, newer = found[0]
    reason = f"{told(past.history[read])} is older than {told(past.history[newer])}, {why}"
    return violation(guarantee, len(past.history), reason, _window(past, read, newer), len(found))


def _window(past: Past, read: int, newer: int) -> Sequence[Operation]:
    """The read, what it returned, what it should have known, and the reader's session in between."""
    lane = past.places[read].lane
    between = [n for n in range(newer, read) if past.places[n].lane == lane and past.history[n].kind != "read"]
    numbers = {read, newer, *between[-4:]}
    if read in past.source:
        numbers.add(past.source[read])
    return [past.history[n] for n in sorted(numbers)]
