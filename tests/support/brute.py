"""Slow twins of the checkers: try everything, understand nothing. For small histories only."""

import itertools
from collections.abc import Sequence

from raftspine.checkers.history import Operation
from raftspine.checkers.models import IMPOSSIBLE, Model


def linearizable(history: Sequence[Operation], model: Model) -> bool:
    """Try every order of every choice of the unknown operations."""
    rules = model.rules(history)
    certain = [op for op in history if op.outcome == "ok"]
    unsure = [op for op in history if op.outcome == "unknown"]
    return any(
        _possible(order, model.initial, rules)
        for count in range(len(unsure) + 1)
        for chosen in itertools.combinations(unsure, count)
        for order in itertools.permutations([*certain, *chosen])
        if _true_to_time(order)
    )


def _true_to_time(order: Sequence[Operation]) -> bool:
    return not any(
        later.ends_at < earlier.invoked_at for place, earlier in enumerate(order) for later in order[place + 1 :]
    )


def _possible(order, state, rules) -> bool:
    for op in order:
        state = rules[op.kind](state, op)
        if state is IMPOSSIBLE:
            return False
    return True


def serializable(history: Sequence[Operation]) -> bool:
    """Transactions over lists: some order, true to real time, of the certain ones and any of the unknown."""
    certain = [op for op in history if op.outcome == "ok"]
    unsure = [op for op in history if op.outcome == "unknown"]
    return any(
        _lists(order)
        for count in range(len(unsure) + 1)
        for chosen in itertools.combinations(unsure, count)
        for order in itertools.permutations([*certain, *chosen])
        if _true_to_time(order)
    )


def _lists(order: Sequence[Operation]) -> bool:
    lists: dict[str, list[int]] = {}
    for op in order:
        for kind, key, value in op.output if op.ok else op.input:
            if kind == "append":
                lists.setdefault(key, []).append(value)
            elif op.ok and list(value) != lists.get(key, []):
                return False
    return True
