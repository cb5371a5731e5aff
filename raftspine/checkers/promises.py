"""Promises about where a history ends, and about repeated requests: nothing acknowledged is lost, nothing deleted
returns, all replicas agree, an Idempotency-Key has one effect, a counter counts.

Unlike an order, these are judged by what is found when everything has come to rest: reads of kind `final`, one per
key and node.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import msgspec

from raftspine.checkers.history import Operation
from raftspine.checkers.models import applied, frozen
from raftspine.checkers.past import WRITES, Broken, Past, Unjudgeable
from raftspine.checkers.verdict import Verdict, passed, short, told, undecided, violation


def finals(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """key -> the answered reads of kind `final`."""
    found: dict[str, list[Operation]] = {}
    for op in history:
        if op.kind == "final" and op.ok:
            found.setdefault(op.key, []).append(op)
    return found


def convergence(history: Iterable[Operation]) -> Verdict:
    """All final reads of a key show the same, on every node that was asked. Unknown when one did not answer."""
    history = list(history)
    shown = finals(history)
    silent = next((op for op in history if op.kind == "final" and not op.ok), None)
    judged, apart = sum(len(ops) for ops in shown.values()), []
    for key, ops in sorted(shown.items()):
        if len({frozen(op.output) for op in ops}) > 1:
            apart.append((key, ops))
    if apart:
        key, ops = apart[0]
        text = ", ".join(f"{op.node or op.process} shows {short(op.output)}" for op in ops)
        return violation("convergence", judged, f"{key}: {text}", ops, len(apart))
    if silent is not None:
        return undecided("convergence", judged, f"{told(silent)} was not answered")
    return passed("convergence", judged)


def no_lost_write(history: Iterable[Operation], kept: Mapping[str, Sequence[object] | None] | None = None) -> Verdict:
    """Each acknowledged write is shown at the end, or in the conflict log (`kept`: key -> values, None for a log that
    could not be read), or superseded: by a write that did not end before it began, and that is shown itself or was
    superseded in turn. That is the most a client can know, for which of them a replica had seen, it is not told."""
    history = list(history)
    shown, logged = finals(history), kept or {}
    judged = 0
    lost: list[tuple[Operation, list[Operation]]] = []
    unread: list[tuple[Operation, list[Operation]]] = []
    by_key: dict[str, list[Operation]] = {}
    for op in history:
        if op.kind in WRITES and op.maybe:
            by_key.setdefault(op.key, []).append(op)
    for key, ops in sorted(shown.items()):
        log = logged.get(key, ())
        found = {frozen(op.output) for op in ops} | {frozen(value) for value in log or ()}
        writes = by_key.get(key, [])
        for op in writes:
            judged += op.ok
            if not op.ok or (frozen(op.input) if op.kind == "write" else None) in found:
                continue
            if not _superseded(op, writes, found):
                (unread if log is None else lost).append((op, ops))
    if unread and not lost:
        reason = f"{told(unread[0][0])} is not shown, and the conflict log of {unread[0][0].key} could not be read"
        return undecided("no lost acknowledged write", judged, reason)
    if not lost:
        return passed("no lost acknowledged write", judged)
    op, ops = lost[0]
    end = "nothing" if ops[0].output is None else short(ops[0].output)
    reason = f"{told(op)} was acknowledged; the end shows {end}, and nothing found then can have replaced it"
    return violation("no lost acknowledged write", judged, reason, [op, *ops], len(lost))


def _superseded(op: Operation, writes: Sequence[Operation], found: set[Hashable]) -> bool:
    """Whether a chain of writes, none of which ended before the one it replaces began, leads from `op` to one that
    was found at the end."""
    ends = [w for w in writes if (frozen(w.input) if w.kind == "write" else None) in found]
    latest, since = max((w.ends_at for w in ends), default=-1.0), op.invoked_at
    while latest < since:
        earlier = min((w.invoked_at for w in writes if w.ends_at >= since), default=since)
        if earlier >= since:
            return False
        since = earlier
    return True


def no_zombie(history: Iterable[Operation]) -> Verdict:
    """What an acknowledged delete knew of is not there at the end, on no node."""
    history = list(history)
    reads = [msgspec.structs.replace(op, kind="read", process=f"final {n}", session="") for n, op in _final(history)]
    try:
        past = Past([op for op in history if op.kind != "final"] + reads)
    except Unjudgeable as error:
        return undecided("no zombie", len(history), str(error))
    except Broken as error:
        return violation("no zombie", len(history), error.reason, error.window)
    found: list[list[Operation]] = []
    judged = 0
    for number, op in enumerate(past.history):
        if not op.process.startswith("final "):
            continue
        judged += 1
        source = past.source.get(number)
        if source is None:
            continue
        removed = (d for d in past.deletes.get(op.key, ()) if past.history[d].ok and past.before(source, d))
        found.extend([past.history[n] for n in (source, delete, number)] for delete in removed)
    if not found:
        return passed("no zombie", judged)
    _, delete_op, last = found[0]
    reason = f"{last.key} shows {short(last.output)} on {last.node or 'a node'}, which {told(delete_op)} had removed"
    return violation("no zombie", judged, reason, found[0], len(found))


def _final(history: Sequence[Operation]) -> list[tuple[int, Operation]]:
    return [(n, op) for n, op in enumerate(history) if op.kind == "final" and op.ok]


def exactly_once(history: Iterable[Operation]) -> Verdict:
    """All answers under one Idempotency-Key (`info["idempotency_key"]`) are the same. That the effect came once is
    judged by the object itself: see `merged`."""
    answers: dict[str, list[Operation]] = {}
    for op in history:
        if "idempotency_key" in op.info and op.ok:
            answers.setdefault(op.info["idempotency_key"], []).append(op)
    judged = sum(len(ops) for ops in answers.values())
    apart = [ops for ops in answers.values() if len({frozen(op.output) for op in ops}) > 1]
    if not apart:
        return passed("exactly once", judged)
    ops = apart[0]
    reason = f"{ops[0].key}: one Idempotency-Key was answered {' and '.join(short(op.output) for op in ops)}"
    return violation("exactly once", judged, reason, ops, len(apart))


def merged(history: Iterable[Operation]) -> list[Operation]:
    """The history with the repeats under one Idempotency-Key as the one operation they are: begun when the first
    was, done by the end of the first that was answered. A repeat that took effect again shows as a write that
    nobody made."""
    repeats: dict[str, list[Operation]] = {}
    single = []
    for op in history:
        key = op.info.get("idempotency_key")
        if key is None:
            single.append(op)
        else:
            repeats.setdefault(key, []).append(op)
    return sorted([*single, *(_one(ops) for ops in repeats.values())], key=lambda op: op.invoked_at)


def _one(ops: Sequence[Operation]) -> Operation:
    first = min(ops, key=lambda op: op.invoked_at)
    best = min(ops, key=lambda op: ({"ok": 0, "unknown": 1, "fail": 2}[op.outcome], op.ends_at))
    if best.outcome == "unknown":
        return msgspec.structs.replace(best, invoked_at=first.invoked_at)
    return msgspec.structs.replace(best, invoked_at=first.invoked_at, info={**best.info, "repeats": len(ops)})


def counter_bounds(history: Iterable[Operation]) -> Verdict:
    """Every read of a counter lies between what was certainly added before it and all that may have been by then.
    Operations `add` (input: a number above 0), `read` and `final`. Cheap, and for counters too busy for `linear`."""
    by_key: dict[str, list[Operation]] = {}
    for op in history:
        if op.kind in ("add", "read", "final"):
            by_key.setdefault(op.key, []).append(op)
    judged, found = 0, []
    for key, ops in sorted(by_key.items()):
        adds = [op for op in ops if op.kind == "add" and op.maybe and applied(op)]
        for read in (op for op in ops if op.kind != "add" and op.ok):
            judged += 1
            least = sum(op.input for op in adds if op.ends_at < read.invoked_at)
            most = sum(op.input for op in adds if op.invoked_at <= read.ends_at)
            shown = read.output or 0
            if not least <= shown <= most:
                found.append((key, read, least, most))
    if not found:
        return passed("counter bounds", judged)
    key, read, least, most = found[0]
    reason = f"{key}: {told(read)}, but {least} had certainly been added before and {most} at most by then"
    return violation("counter bounds", judged, reason, [read], len(found))
