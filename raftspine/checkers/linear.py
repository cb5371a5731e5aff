"""Is a history linearizable: is there one order of its operations, true to real time, that the model allows?

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of
the configurations already tried ("Testing for linearizability", 2017, §4) and a decomposition by key, which
linearizability permits (Herlihy and Wing 1990, §3.3). Three reductions keep it small without changing its
answer:

* a pure operation that is possible now is taken now, with no alternative;
* of unknown operations that would do the same, only the one invoked first is tried;
* an unknown write that nobody saw is left out (`Model.needless`).

It never guesses: past its budget of configurations, which is also its bound of memory, the answer is unknown.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from raftspine.checkers.history import Operation
from raftspine.checkers.models import IMPOSSIBLE, Model, Rule
from raftspine.checkers.verdict import Verdict, combined, passed, told, undecided, violation

BUDGET = 300_000
"""Configurations per key: about a hundred megabytes and a few seconds at worst."""

SHRINK_BUDGET = 200_000
"""For making the evidence of a violation smaller, over all attempts together."""


class Overrun(Exception):
    """The budget is used up."""


def linearizable(operations: Iterable[Operation], model: Model, *, budget: int = BUDGET) -> Verdict:
    """Judge each key of the history by `model`, with at most `budget` configurations per key."""
    by_key: dict[str, list[Operation]] = {}
    for op in operations:
        by_key.setdefault(op.key, []).append(op)
    name = f"linearizable {model.name}"
    return combined(name, [_judge(name, ops, model, budget) for _, ops in sorted(by_key.items())])


def _judge(name: str, operations: list[Operation], model: Model, budget: int) -> Verdict:
    foreign = next((op for op in operations if op.kind not in model.rules(())), None)
    if foreign is not None:
        return undecided(name, len(operations), f"a {model.name} has no operation {foreign.kind!r}")
    kept = _relevant(operations, model)
    try:
        found = search(kept, model, budget)
    except Overrun:
        key = operations[0].key
        reason = f"{key}: not decided within {budget} configurations ({len(kept)} operations)"
        return undecided(name, len(operations), reason)
    except (TypeError, KeyError, AttributeError) as error:
        return undecided(name, len(operations), f"{operations[0].key}: not operations of a {model.name}: {error!r}")
    if found.possible:
        return passed(name, len(operations))
    window, stuck = _smallest(kept, model)
    return violation(name, len(operations), _explained(window, stuck, model), window)


def _relevant(operations: Sequence[Operation], model: Model) -> list[Operation]:
    """Without what certainly did not happen, and without unknown operations that explain nothing."""
    maybe = [op for op in operations if op.maybe]
    return [op for op in maybe if op.ok or not model.needless(op, maybe)]


class Found(NamedTuple):
    """The result of a search. When impossible: the operations no order could get past, and the states the object
    could have been in then, at the furthest that the search came."""

    possible: bool
    stuck: tuple[Operation, ...] = ()
    states: tuple[Any, ...] = ()
    steps: int = 0


class _Step(NamedTuple):
    op: Operation
    rule: Rule
    start: int
    end: float
    pure: bool
    twin: int
    """Index of the unknown operation before this one that would do the same; -1 without one."""


class _At(NamedTuple):
    """A configuration: all certain operations below `low` are in the order, those of `window` (bits from `low` on)
    as well, and the unknown ones of `extra`."""

    low: int
    window: int
    extra: int
    state: Any


def search(operations: Sequence[Operation], model: Model, budget: int) -> Found:
    """Depth first over the orders. Raises Overrun past `budget` configurations."""
    rules = model.rules(operations)
    ordered = sorted(operations, key=lambda op: op.invoked_at)
    certain = [_Step(op, rules[op.kind], op.invoked_at, op.ends_at, model.pure(op), -1) for op in ordered if op.ok]
    unsure = _unsure([op for op in ordered if not op.ok], rules)
    start = _At(0, 0, 0, model.initial)
    seen, todo = {start}, [start]
    furthest, ends = -1, dict[_At, list[int]]()
    steps = 0
    while todo:
        at = todo.pop()
        if at.low == len(certain):
            return Found(True, steps=steps)
        steps += 1
        possible, limit = _candidates(certain, at)
        following = _following(certain, unsure, at, possible, limit)
        done = at.low + at.window.bit_count()
        if done > furthest:
            furthest, ends = done, {}
        if done == furthest:
            ends[at] = possible
        for successor in following:
            if successor not in seen:
                if len(seen) >= budget:
                    raise Overrun
                seen.add(successor)
                todo.append(successor)
    stuck = {index for possible in ends.values() for index in possible}
    return Found(
        False,
        tuple(certain[index].op for index in sorted(stuck)),
        tuple(dict.fromkeys(at.state for at in ends)),
        steps,
    )


def _unsure(operations: list[Operation], rules: Any) -> list[_Step]:
    last: dict[bytes, int] = {}
    steps = []
    for index, op in enumerate(operations):
        same = msgspec.json.encode((op.kind, op.input), order="deterministic")
        steps.append(_Step(op, rules[op.kind], op.invoked_at, op.ends_at, False, last.get(same, -1)))
        last[same] = index
    return steps


def _candidates(certain: list[_Step], at: _At) -> tuple[list[int], float]:
    """The certain operations that may come next: begun before any other open one has ended; and that end."""
    open_ones, limit, index, bits = [], float("inf"), at.low, at.window
    while index < len(certain) and certain[index].start <= limit:
        if not bits & 1:
            open_ones.append(index)
            limit = min(limit, certain[index].end)
        index += 1
        bits >>= 1
    return [index for index in open_ones if certain[index].start <= limit], limit


def _following(certain: list[_Step], unsure: list[_Step], at: _At, possible: list[int], limit: float) -> list[_At]:
    """The configurations one operation further; the most promising last, where the search looks first."""
    after: list[tuple[float, _At]] = []
    for index in possible:
        step = certain[index]
        state = step.rule(at.state, step.op)
        if state is IMPOSSIBLE:
            continue
        advanced = _taken(at, index, state)
        if step.pure and state == at.state:
            return [advanced]
        after.append((step.end, advanced))
    after.sort(key=lambda pair: pair[0], reverse=True)
    maybe = []
    for index, step in enumerate(unsure):
        if step.start > limit:
            break
        if at.extra >> index & 1 or (step.twin >= 0 and not at.extra >> step.twin & 1):
            continue
        state = step.rule(at.state, step.op)
        if state is not IMPOSSIBLE and state != at.state:
            maybe.append(_At(at.low, at.window, at.extra | 1 << index, state))
    return [*maybe, *(advanced for _, advanced in after)]


def _taken(at: _At, index: int, state: Any) -> _At:
    low, window = at.low, at.window | 1 << (index - at.low)
    while window & 1:
        low, window = low + 1, window >> 1
    return _At(low, window, at.extra, state)


# ── evidence ───────────────────────────────────────────────────────────────────────────────────────────────────


def _smallest(operations: list[Operation], model: Model) -> tuple[list[Operation], Found]:
    """A small part of an impossible history that is impossible by itself: the shortest beginning, then without
    what can be left out. The budget bounds the effort, not the truth: each step is proven impossible again."""
    left = SHRINK_BUDGET
    best, found = operations, search(operations, model, BUDGET)

    def still(some: list[Operation]) -> bool:
        nonlocal left, best, found
        if left <= 0:
            return False
        try:
            tried = search(some, model, left)
        except Overrun:
            left = 0
            return False
        left -= tried.steps + 1
        if not tried.possible:
            best, found = some, tried
        return not tried.possible

    ends = sorted({op.ends_at for op in operations if op.ok})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if still(_until(operations, ends[middle])):
            high = middle
        else:
            low = middle + 1
    size = max(1, len(best) // 2)
    while size and left > 0:
        place = 0
        while place < len(best):
            part = best[place : place + size]
            rest = best[:place] + best[place + size :]
            if not (all(model.needless(op, rest) for op in part) and still(rest)):
                place += size
        size //= 2
    return best, found


def _until(operations: list[Operation], time: float) -> list[Operation]:
    """The history as it stood at `time`: what was begun later is not there, what had not ended is unknown."""
    return [
        op if op.ends_at <= time else msgspec.structs.replace(op, outcome="unknown", output=None, completed_at=None)
        for op in operations
        if op.invoked_at <= time
    ]


def _explained(window: list[Operation], found: Found, model: Model) -> str:
    states = " or ".join(model.shown(state) for state in found.states[:4]) or "no state"
    culprit = told(found.stuck[0]) if found.stuck else "the last operation"
    rest = f" (nor {', '.join(told(op) for op in found.stuck[1:4])})" if len(found.stuck) > 1 else ""
    return (
        f"{window[0].key}: no order of these {len(window)} operations explains {culprit}{rest}; by then the "
        f"{model.name} could only be {states}"
    )
