"""The search agrees with trying everything, on small histories of every model, and finds what was broken."""

import pytest

from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import CAS_REGISTER, COUNTER, LOCK, QUEUE, REGISTER, Model
from raftspine.sim.loop import Dice
from tests.support import brute
from tests.support.histories import drawn, op, swapped_reads


def any_register(dice: Dice, number: int):
    kind = dice.choice(("write", "read", "read", "delete"))
    return kind, number if kind == "write" else None, dice.choice((None, 0, 1, 2)) if kind == "read" else None


def any_version(dice: Dice, number: int):
    kind = dice.choice(("write", "read", "cas", "cas", "delete"))
    seen = dice.choice(
        ({"value": 0, "version": "v0"}, {"value": 1, "version": "v1"}, {"value": 2, "version": "v2"}, None)
    )
    if kind == "read":
        return kind, None, seen
    expected = dice.choice((None, "v0", "v1"))
    output = {"refused": True} if kind == "cas" and dice.chance(0.4) else {"version": f"v{number}"}
    return kind, {"value": number, "expected": expected}, None if kind == "delete" else output


def any_counter(dice: Dice, number: int):
    if dice.chance(0.4):
        return "read", None, dice.below(4)
    return "add", 1 + dice.below(2), dice.choice((None, None, 1, 2, 3))


def any_lock(dice: Dice, number: int):
    kind = dice.choice(("acquire", "acquire", "release", "check", "renew"))
    if kind == "check":
        return kind, {"token": 1 + dice.below(3)}, {"valid": dice.chance(0.5)}
    lease = f"l{number}" if kind == "acquire" else f"l{dice.below(max(1, number))}"
    granted = {"token": 1 + dice.below(3)} if kind == "acquire" else None
    return kind, {"lease": lease}, {"refused": True} if dice.chance(0.3) else granted


def any_queue(dice: Dice, number: int):
    return ("push", number, None) if dice.chance(0.5) else ("pop", None, dice.choice((None, 0, 1, 2)))


@pytest.mark.parametrize(
    ("model", "draw"),
    [
        (REGISTER, any_register),
        (CAS_REGISTER, any_version),
        (COUNTER, any_counter),
        (LOCK, any_lock),
        (QUEUE, any_queue),
    ],
    ids=lambda value: value.name if isinstance(value, Model) else "",
)
def test_it_agrees_with_trying_everything(model: Model, draw) -> None:
    dice, verdicts = Dice(1), {"ok": 0, "violation": 0}
    for _ in range(800):
        history = []
        for number in range(2 + dice.below(4)):
            start = dice.below(10)
            kind, input, output = draw(dice, number)
            if dice.chance(0.25):
                history.append(op(start, None, kind, input))
            else:
                outcome = "fail" if dice.chance(0.05) else "ok"
                history.append(op(start, start + 1 + dice.below(6), kind, input, output, outcome=outcome))
        verdict = linearizable(history, model)
        assert (verdict.status == "ok") == brute.linearizable(history, model), history
        if verdict.status == "violation":
            assert not brute.linearizable(verdict.window, model), (history, verdict.window)
        verdicts[verdict.status] += 1
    assert min(verdicts.values()) > 60, verdicts


def registers(dice: Dice, number: int, state):
    if dice.chance(0.5):
        return "read", None, state
    return ("delete", None, None) if dice.chance(0.1) else ("write", number, None)


def counters(dice: Dice, number: int, state):
    return ("add", 1, state + 1) if dice.chance(0.5) else ("read", None, state)


def queues(dice: Dice, number: int, state):
    return ("push", number, None) if dice.chance(0.6) else ("pop", None, state[0] if state else None)


@pytest.mark.parametrize(("model", "draw"), [(REGISTER, registers), (COUNTER, counters), (QUEUE, queues)])
@pytest.mark.parametrize("unknown", [0.0, 0.05, 0.3])
def test_an_object_that_behaves_is_never_accused(model: Model, draw, unknown: float) -> None:
    for seed in range(6):
        history = drawn(Dice(seed), model, draw, operations=500, processes=8, keys=4, unknown=unknown)
        status = linearizable(history, model, budget=20_000).status
        unsure_pops = any(o.kind == "pop" and o.outcome == "unknown" for o in history)
        assert status == "ok" or (status == "unknown" and unsure_pops), seed


@pytest.mark.parametrize(("model", "draw"), [(REGISTER, registers), (COUNTER, counters)])
def test_exchanged_answers_are_caught(model: Model, draw) -> None:
    """Nearly always: answers of reads that overlap the same writes may be exchanged and still be right."""
    caught = 0
    for seed in range(20):
        dice = Dice(seed)
        history = swapped_reads(dice, drawn(dice, model, draw, operations=300, processes=4, unknown=0.05))
        assert history is not None
        caught += linearizable(history, model).status == "violation"
    assert caught >= 18, caught


def test_a_dropped_write_is_caught() -> None:
    for seed in range(20):
        dice = Dice(seed)
        history = drawn(dice, REGISTER, registers, operations=300, processes=4)
        read = dice.choice([o for o in history if o.kind == "read" and o.output is not None])
        without = [o for o in history if not (o.kind == "write" and o.input == read.output)]
        verdict = linearizable(without, REGISTER)
        assert verdict.status == "violation"
