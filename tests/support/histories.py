"""Histories for the checkers' tests: short to write by hand, or drawn from an object that really behaves."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from raftspine.checkers.history import Operation
from raftspine.checkers.models import IMPOSSIBLE, Model
from raftspine.sim.loop import Dice


def op(
    start: int,
    end: int | None,
    kind: str,
    input: Any = None,
    output: Any = None,
    *,
    key: str = "x",
    process: str = "",
    outcome: str = "",
    **more: Any,
) -> Operation:
    """One operation; without an end its outcome is unknown."""
    return Operation(
        process=process or f"p{start}",
        key=key,
        kind=kind,
        input=input,
        output=output,
        invoked_at=start,
        completed_at=end,
        outcome=outcome or ("unknown" if end is None else "ok"),
        **more,
    )


def changed(operation: Operation, **fields: Any) -> Operation:
    return msgspec.structs.replace(operation, **fields)


Draw = Callable[[Dice, int, Any], tuple[str, Any, Any]]
"""(dice, number, state) -> kind, input and, as a function of the state it takes effect in, the output."""


def drawn(
    dice: Dice,
    model: Model,
    draw: Draw,
    *,
    operations: int,
    processes: int,
    keys: int = 1,
    unknown: float = 0.0,
) -> list[Operation]:
    """A history of an object that behaves as the model says: each operation takes effect at one instant between
    its two ends; a share of them is never answered, and takes effect later, or not at all."""
    free_at = [dice.below(20) for _ in range(processes)]
    planned = []
    for number in range(operations):
        process = min(range(processes), key=lambda p: free_at[p])
        start = free_at[process] + 1 + dice.below(10)
        end = start + 2 + dice.below(40)
        lost = dice.chance(unknown)
        effect = start + 1 + dice.below(end - start - 1)
        if lost:
            effect = None if dice.chance(0.5) else start + dice.below(400)
        free_at[process] = end
        planned.append((effect, number, f"p{process}", start, end, lost, f"k{dice.below(keys)}"))
    states: dict[str, Any] = {}
    found = []
    for effect, number, process, start, end, lost, key in sorted(
        planned, key=lambda plan: (plan[0] is None, plan[0] or 0, plan[1])
    ):
        state = states.get(key, model.initial)
        kind, input, output = draw(dice, number, state)
        made = op(start, end, kind, input, output, key=key, process=process)
        if effect is not None:
            state = model.rules(())[kind](state, made)
            assert state is not IMPOSSIBLE, (states, made)
            states[key] = state
        found.append(changed(made, outcome="unknown", output=None) if lost else made)
    return sorted(found, key=lambda o: o.invoked_at)


def swapped_reads(dice: Dice, history: Sequence[Operation]) -> list[Operation] | None:
    """The same history with the answers of two reads of one key exchanged; None when there are none that differ."""
    reads: dict[str, list[int]] = {}
    for place, o in enumerate(history):
        if o.kind == "read" and o.ok:
            reads.setdefault(o.key, []).append(place)
    pairs = [found for found in reads.values() if len({repr(history[i].output) for i in found}) > 1]
    if not pairs:
        return None
    places = dice.choice(pairs)
    a = dice.choice(places)
    b = dice.choice([i for i in places if history[i].output != history[a].output])
    found = list(history)
    found[a] = changed(history[a], output=history[b].output)
    found[b] = changed(history[b], output=history[a].output)
    return found
