"""Cycles found in the graph are exactly the histories that no order explains, when all lists are read at the end."""

from raftspine.checkers.append import serializable
from raftspine.sim.loop import Dice
from tests.support import brute
from tests.support.histories import changed, op


def test_it_agrees_with_trying_every_order() -> None:
    dice, verdicts = Dice(5), {"ok": 0, "violation": 0}
    for _ in range(3000):
        history = _behaved(dice)
        if dice.chance(0.7):
            history = _damaged(dice, history)
        verdict = serializable(history)
        assert (verdict.status == "ok") == brute.serializable(history), history
        verdicts[verdict.status] += 1
    assert min(verdicts.values()) > 300, verdicts


def _behaved(dice: Dice):
    """Transactions that take effect one at a time, at some instant between their ends; then a read of everything."""
    lists: dict[str, list[int]] = {"x": [], "y": []}
    history, time, element = [], 0, 0
    for _ in range(2 + dice.below(3)):
        time += 1 + dice.below(6)
        asked, answered = [], []
        for _ in range(1 + dice.below(2)):
            key = dice.choice("xy")
            element += 1
            if dice.chance(0.5):
                asked.append(["append", key, element])
                answered.append(["append", key, element])
                lists[key].append(element)
            else:
                asked.append(["read", key, None])
                answered.append(["read", key, list(lists[key])])
        early, late = time - dice.below(8), time + dice.below(8)
        lost = dice.chance(0.15)
        history.append(op(early, None if lost else late, "txn", asked, None if lost else answered))
    everything = [["read", key, list(found)] for key, found in lists.items()]
    history.append(op(90, 91, "txn", [["read", "x", None], ["read", "y", None]], everything))
    return history


def _damaged(dice: Dice, history):
    """One read shows a shorter list, or two elements exchanged; or one transaction takes place at another time."""
    place = dice.below(len(history) - 1)
    found = history[place]
    if not found.ok:
        return history
    if dice.chance(0.4):
        start = dice.below(30)
        moved = changed(found, invoked_at=start, completed_at=start + 1 + dice.below(5))
    else:
        steps = [list(step) for step in found.output]
        for step in steps:
            if step[0] == "read" and step[2]:
                step[2] = step[2][:-1] if dice.chance(0.5) else step[2][::-1]
        moved = changed(found, output=steps)
    return [*history[:place], moved, *history[place + 1 :]]
