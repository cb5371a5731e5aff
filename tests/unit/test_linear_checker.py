"""The checker of register histories, on histories with known verdicts and against a dumb twin."""

import itertools

from raftspine.sim.loop import Dice
from tests.support.linear import Op, linearizable


def w(start, end, value):
    return Op(start, end, "write", value)


def r(start, end, value):
    return Op(start, end, "read", value)


def test_known_verdicts():
    assert linearizable([w(0, 1, 1), r(2, 3, 1)])
    assert not linearizable([w(0, 1, 1), r(2, 3, None)])
    assert linearizable([w(0, None, 1), r(2, 3, None), r(4, 5, 1)])
    assert not linearizable([w(0, None, 1), r(2, 3, 1), r(4, 5, None)])
    assert linearizable([w(0, 9, 1), w(0, 9, 2), r(1, 2, 2), r(3, 4, 1)])
    assert not linearizable([w(0, 2.5, 1), w(0, 9, 2), r(1, 2, 2), r(3, 4, 1), r(5, 6, 2)])
    assert not linearizable([r(0, 1, 5), w(2, 3, 5)])


def dumb(history):
    """Try every order of every choice of the unknown operations."""
    known = [op for op in history if op.end is not None]
    unknown = [op for op in history if op.end is None and op.kind == "write"]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if any(
                    later.end is not None and later.end < earlier.start
                    for place, earlier in enumerate(order)
                    for later in order[place + 1 :]
                ):
                    continue
                value, fits = None, True
                for op in order:
                    if op.kind == "write":
                        value = op.value
                    elif op.value != value:
                        fits = False
                        break
                if fits:
                    return True
    return False


def test_it_agrees_with_trying_everything():
    dice, verdicts = Dice(1), {True: 0, False: 0}
    for _ in range(1500):
        history = []
        for number in range(2 + dice.below(4)):
            start = dice.random() * 10
            end = None if dice.chance(0.2) else start + dice.random() * 5
            kind = dice.choice(("write", "read"))
            value = number if kind == "write" else dice.choice([None, 0, 1, 2])
            history.append(Op(start, end, kind, value))
        verdict = linearizable(history)
        assert verdict == dumb(history), history
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 100
