"""Is a history of one register linearizable? Just-in-time linearization (Lowe 2017, "Testing for
linearizability"): walk the events in order and keep every picture of the past that is still possible."""

from typing import Any, NamedTuple


class Op(NamedTuple):
    """One operation on one register. `end` None: its outcome is unknown, so it may take effect at any time,
    or never."""

    start: float
    end: float | None
    kind: str  # write | read
    value: Any


_Picture = tuple[Any, frozenset[int]]
"""A value the register may have, and which unfinished operations have taken effect for it."""


def linearizable(history: list[Op], initial: Any = None) -> bool:
    ops = [op for op in history if op.end is not None or op.kind == "write"]
    events: list[tuple[float, int, int]] = []
    for number, op in enumerate(ops):
        events.append((op.start, 0, number))
        if op.end is not None:
            events.append((op.end, 1, number))
    events.sort()  # at equal times starts come first: more overlap, never a false alarm
    pictures: set[_Picture] = {(initial, frozenset())}
    running: set[int] = set()
    for _, ends, number in events:
        if not ends:
            running.add(number)
            continue
        pictures = _closed(pictures, running, ops)
        pictures = {(value, done - {number}) for value, done in pictures if number in done}
        running.discard(number)
        if not pictures:
            return False
    return True


def _closed(pictures: set[_Picture], running: set[int], ops: list[Op]) -> set[_Picture]:
    """The pictures plus all that follow when running operations take effect, in any order."""
    found, fresh = set(pictures), list(pictures)
    while fresh:
        value, done = fresh.pop()
        for number in running - done:
            op = ops[number]
            if op.kind == "read" and op.value != value:
                continue
            following = (op.value if op.kind == "write" else value, done | {number})
            if following not in found:
                found.add(following)
                fresh.append(following)
    return found
