"""The session checkers agree with a closure computed by brute force, accept a store that keeps its promises, and
catch one that does not."""

from raftspine.checkers.past import WRITES
from raftspine.checkers.sessions import GUARANTEES, judge
from raftspine.sim.loop import Dice
from tests.support.histories import changed, op


def test_causal_agrees_with_the_closure() -> None:
    dice, verdicts = Dice(2), {"ok": 0, "violation": 0}
    for _ in range(2500):
        history = _anything(dice)
        status = judge(history, "causal").status
        assert (status == "ok") == _causal(history), history
        verdicts[status] += 1
    assert min(verdicts.values()) > 200, verdicts


def test_each_single_guarantee_accuses_only_what_causal_does() -> None:
    dice = Dice(3)
    accused = dict.fromkeys(GUARANTEES, 0)
    for _ in range(3000):
        history = _anything(dice, 20)
        causal = judge(history, "causal").status
        for name in GUARANTEES:
            if judge(history, name).status == "violation":
                accused[name] += 1
                assert causal == "violation", (name, history)
    assert min(accused.values()) > 3, accused


def _anything(dice: Dice, most: int = 10):
    """Three sessions on two keys, with reads that return anything."""
    history, values = [], {"x": [None], "y": [None]}
    for number in range(3 + dice.below(most - 3)):
        session, key = dice.choice("abc"), dice.choice("xy")
        kind = dice.choice(("write", "write", "read", "read", "read", "delete", "handover"))
        end = None if kind in WRITES and dice.chance(0.2) else number * 2 + 1
        common = {"key": key, "process": session, "session": session}
        if kind == "write":
            values[key].append(number)
            history.append(op(number * 2, end, kind, number, **common))
        elif kind == "handover":
            history.append(op(number * 2, end, kind, dice.choice("abc"), **{**common, "key": ""}))
        else:
            output = dice.choice(values[key]) if kind == "read" else None
            history.append(op(number * 2, end, kind, None, output, **common))
    return history


def _causal(history) -> bool:
    """WriteCORead over the transitive closure, computed as a matrix."""
    size = range(len(history))
    source = {
        r: next(
            i for i in size if history[i].kind == "write" and history[i].key == o.key and history[i].input == o.output
        )
        for r, o in enumerate(history)
        if o.kind == "read" and o.output is not None
    }
    before = {(w, r) for r, w in source.items()}
    for b in size:
        for a in range(b):
            if not history[a].ok:
                continue
            given = history[b].kind == "handover" and history[b].input == history[a].session
            if history[a].session == history[b].session or given:
                before.add((a, b))
    for k in size:
        before |= {(a, b) for a in size for b in size if (a, k) in before and (k, b) in before}
    for r in size:
        if history[r].kind != "read":
            continue
        for w in size:
            if history[w].kind not in WRITES or history[w].key != history[r].key or (w, r) not in before:
                continue
            if r in source:
                if (source[r], w) in before:
                    return False
            elif history[w].kind == "write" and not any(
                d < r and history[d].kind == "delete" and history[d].key == history[r].key and (d, w) not in before
                for d in size
            ):
                return False
    return True


def _replicated(dice: Dice, *, honest: bool):
    """Three replicas that get each other's writes late; sessions that carry vectors, honoured or not."""
    replicas = [dict[str, tuple[int, int]]() for _ in range(3)]
    logs: list[list[tuple[str, int, int, list[int]]]] = [[], [], []]
    applied = [[0, 0, 0] for _ in range(3)]
    tokens = {s: [0, 0, 0] for s in "abc"}
    history, stamp = [], 0

    def catch_up(replica: int, origin: int, upto: int) -> None:
        while applied[replica][origin] < upto:
            key, value, at, needs = logs[origin][applied[replica][origin]]
            for other in range(3):
                if other != origin:
                    catch_up(replica, other, needs[other])
            if replicas[replica].get(key, (0, 0))[1] < at:
                replicas[replica][key] = (value, at)
            applied[replica][origin] += 1

    for number in range(60):
        session, replica, key = dice.choice("abc"), dice.below(3), dice.choice("xyz")
        if honest:
            for origin in range(3):
                catch_up(replica, origin, tokens[session][origin])
        if dice.chance(0.5):
            stamp += 1
            logs[replica].append((key, number, stamp, list(applied[replica])))
            catch_up(replica, replica, len(logs[replica]))
            made = op(number * 2, number * 2 + 1, "write", number, key=key, process=session, session=session)
        else:
            output = replicas[replica].get(key, (None, 0))[0]
            made = op(number * 2, number * 2 + 1, "read", None, output, key=key, process=session, session=session)
        tokens[session] = [max(a, b) for a, b in zip(tokens[session], applied[replica], strict=True)]
        history.append(made)
        if dice.chance(0.3):
            origin = dice.below(3)
            catch_up(dice.below(3), origin, dice.below(len(logs[origin]) + 1))
    return history


def test_a_store_that_honours_tokens_is_never_accused() -> None:
    for seed in range(150):
        history = _replicated(Dice(seed), honest=True)
        for name in GUARANTEES:
            assert judge(history, name).ok, (seed, name)


def test_a_store_that_ignores_tokens_is_caught() -> None:
    caught = sum(judge(_replicated(Dice(seed), honest=False), "causal").status == "violation" for seed in range(100))
    assert caught >= 95, caught


def test_an_answer_put_back_in_time_is_caught() -> None:
    caught = 0
    for seed in range(100):
        dice = Dice(seed)
        history = _replicated(dice, honest=True)
        reads = [i for i, o in enumerate(history) if o.kind == "read" and o.output is not None]
        place = reads[-1]
        key = history[place].key
        own = [o.input for o in history[:place] if o.kind == "write" and o.key == key]
        if len(own) < 2:
            continue
        old = changed(history[place], output=None)
        caught += judge([*history[:place], old, *history[place + 1 :]], "causal").status == "violation"
    assert caught >= 60, caught
