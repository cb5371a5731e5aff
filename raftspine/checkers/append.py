"""Are transactions over lists strictly serializable? Infers who must have come before whom, and looks for cycles.

After Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations" (VLDB 2020): a list
that is only appended to shows, in one read, the order of all its writes. So the edges of Adya's dependency graph
(1999) need no guess: ww from an element to the next one, wr from the last element read to its reader, rw from a
reader to the element after the last it saw; and rt where one transaction ended before another began. A cycle is
a history without any order: named by Adya's phenomena, with `-realtime` when it needs an rt edge.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from raftspine.checkers.graph import Edge, Graph
from raftspine.checkers.history import Operation
from raftspine.checkers.models import frozen
from raftspine.checkers.verdict import Verdict, passed, short, told, undecided, violation

NAME = "strictly serializable lists"

WRITES = frozenset({"ww", "rt"})
READS = frozenset({"ww", "wr", "rt"})

MOST_TRIED = 500
"""rw edges of one component that are tried for a cycle with no other; past it the cycle counts as G2."""


class _Step(NamedTuple):
    """One step of a transaction: an element appended, or the list read (None: the answer is not known)."""

    kind: str
    key: str
    element: Hashable
    seen: tuple[Hashable, ...] | None


class _Fault(Exception):
    """The first thing wrong that is not a cycle, with the operations that show it."""

    def __init__(self, reason: str, *operations: Operation) -> None:
        super().__init__(reason)
        self.reason = reason
        self.operations = operations


def serializable(operations: Iterable[Operation]) -> Verdict:
    """Judge operations `append` (input: an element), `read` (output: the list) and `txn` (input and output: steps
    ``["append", key, element]`` and ``["read", key, list]``). Elements are unique per key."""
    history = sorted(operations, key=lambda op: op.invoked_at)
    try:
        steps = [_steps(op) for op in history]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        return undecided(NAME, len(history), f"not operations on lists: {error}")
    try:
        appended = _writers(history, steps)
        orders = _orders(history, steps, appended)
        _internal(history, steps)
    except _Fault as fault:
        return violation(NAME, len(history), fault.reason, fault.operations)
    except ValueError as error:
        return undecided(NAME, len(history), str(error))
    graph = Graph(len(history), _edges(history, steps, appended, orders))
    found = _anomaly(graph)
    if found is None:
        return passed(NAME, len(history))
    name, cycle = found
    return violation(NAME, len(history), _explained(name, cycle, history), [history[edge.source] for edge in cycle])


def _steps(op: Operation) -> list[_Step]:
    if op.kind == "append":
        return [_Step("append", op.key, frozen(op.input), None)]
    if op.kind == "read":
        return [_Step("read", op.key, None, _seen(op, op.output))]
    if op.kind != "txn":
        raise ValueError(f"kind {op.kind!r}")
    answered = op.output if op.ok else op.input
    return [
        _Step(kind, key, frozen(value) if kind == "append" else None, _seen(op, value) if kind == "read" else None)
        for kind, key, value in answered
    ]


def _seen(op: Operation, value: Any) -> tuple[Hashable, ...] | None:
    return tuple(frozen(element) for element in value or ()) if op.ok else None


_Element = tuple[str, Hashable]


def _writers(history: Sequence[Operation], steps: Sequence[list[_Step]]) -> dict[_Element, int]:
    """Who appended what. Raises ValueError when an element was appended twice: then no read names its writer."""
    found: dict[_Element, int] = {}
    for number, taken in enumerate(steps):
        for step in taken:
            if step.kind != "append":
                continue
            if (step.key, step.element) in found:
                raise ValueError(f"{step.key}: {step.element!r} was appended twice; elements must be unique")
            found[step.key, step.element] = number
    return found


def _reads(steps: Sequence[list[_Step]]) -> Iterator[tuple[int, _Step, tuple[Hashable, ...]]]:
    return ((n, step, step.seen) for n, taken in enumerate(steps) for step in taken if step.seen is not None)


def _orders(
    history: Sequence[Operation], steps: Sequence[list[_Step]], appended: dict[_Element, int]
) -> dict[str, tuple[Hashable, ...]]:
    """The longest list seen of each key, of which every other read is a beginning. Raises _Fault."""
    longest: dict[str, tuple[tuple[Hashable, ...], int]] = {}
    for number, step, seen in _reads(steps):
        reader = history[number]
        if len(set(seen)) != len(seen):
            raise _Fault(f"{step.key}: an element is in the list twice: {short(list(map(str, seen)))}", reader)
        for element in seen:
            writer = appended.get((step.key, element))
            if writer is None:
                raise _Fault(f"{step.key}: {told(reader)} shows {element!r}, which nobody appended", reader)
            if history[writer].outcome == "fail":
                raise _Fault(f"G1a, aborted read: {step.key} shows {element!r}", history[writer], reader)
        best, by = longest.get(step.key, ((), number))
        shorter, longer = sorted((seen, best), key=len)
        if longer[: len(shorter)] != shorter:
            raise _Fault(f"{step.key}: two reads disagree about the order of its elements", history[by], reader)
        if len(seen) > len(best) or step.key not in longest:
            longest[step.key] = (seen, number)
        _intermediate(history, steps, appended, number, step.key, seen)
    return {key: order for key, (order, _) in longest.items()}


def _intermediate(
    history: Sequence[Operation],
    steps: Sequence[list[_Step]],
    appended: dict[_Element, int],
    reader: int,
    key: str,
    seen: tuple[Hashable, ...],
) -> None:
    """G1b: the last element read is not the last its writer appended to this list."""
    if not seen or appended[key, seen[-1]] == reader:
        return
    writer = appended[key, seen[-1]]
    last = [step.element for step in steps[writer] if step.kind == "append" and step.key == key][-1]
    if last != seen[-1]:
        text = f"G1b, intermediate read: {key} shows {seen[-1]!r} but not {last!r} of the same transaction"
        raise _Fault(text, history[writer], history[reader])


def _internal(history: Sequence[Operation], steps: Sequence[list[_Step]]) -> None:
    """Within one transaction: a read shows its own appends so far, after what an earlier read showed."""
    for number, taken in enumerate(steps):
        if not history[number].ok:
            continue
        known: dict[str, tuple[Hashable, ...]] = {}
        own: dict[str, tuple[Hashable, ...]] = {}
        for step in taken:
            if step.kind == "append":
                own[step.key] = (*own.get(step.key, ()), step.element)
                continue
            mine, seen = own.get(step.key, ()), step.seen or ()
            fits = seen[len(seen) - len(mine) :] == mine if mine else True
            if step.key in known:
                fits = seen == (*known[step.key], *mine)
            if not fits:
                raise _Fault(f"internal: a transaction's read of {step.key} contradicts itself", history[number])
            known[step.key], own[step.key] = seen, ()


# ── the graph ──────────────────────────────────────────────────────────────────────────────────────────────────


def _edges(
    history: Sequence[Operation],
    steps: Sequence[list[_Step]],
    appended: dict[_Element, int],
    orders: dict[str, tuple[Hashable, ...]],
) -> Iterator[Edge]:
    place = {(key, element): n for key, order in orders.items() for n, element in enumerate(order)}
    unseen: dict[str, list[tuple[Hashable, int]]] = {}
    for (key, element), writer in appended.items():
        if (key, element) not in place and history[writer].ok:
            unseen.setdefault(key, []).append((element, writer))
    for key, order in orders.items():
        for before, after in pairwise(order):
            yield Edge(appended[key, before], appended[key, after], "ww", f"{key} has {before!r} before {after!r}")
        for element, writer in unseen.get(key, ()) if order else ():
            why = f"{key} has {order[-1]!r}, and {element!r} only later"
            yield Edge(appended[key, order[-1]], writer, "ww", why)
    for reader, step, seen in _reads(steps):
        order = orders[step.key]
        if seen:
            yield Edge(appended[step.key, seen[-1]], reader, "wr", f"{seen[-1]!r} of {step.key} was read")
        following = [order[len(seen)]] if len(seen) < len(order) else [e for e, _ in unseen.get(step.key, ())]
        for element in following:
            yield Edge(reader, appended[step.key, element], "rw", f"{element!r} of {step.key} was not there yet")
    yield from _real_time(history)


def _real_time(history: Sequence[Operation]) -> Iterator[Edge]:
    """Edges whose paths say all of real time: each operation from those that ended last before it began."""
    events = [(op.invoked_at, 0, n) for n, op in enumerate(history)]
    events += [(int(op.ends_at), 1, n) for n, op in enumerate(history) if op.ok]
    latest: list[int] = []
    for _, ended, number in sorted(events):
        op = history[number]
        if ended:
            latest = [n for n in latest if history[n].ends_at >= op.invoked_at] + [number]
        elif op.maybe:
            for before in latest:
                yield Edge(before, number, "rt", "it had ended before")


def _anomaly(graph: Graph) -> tuple[str, list[Edge]] | None:
    """The gravest phenomenon, with a cycle that shows it; cycles without rt edges first."""
    for kinds, suffix in ((frozenset[str](), ""), (frozenset({"rt"}), "-realtime")):
        writes = graph.only((WRITES - {"rt"}) | kinds)
        reads = graph.only((READS - {"rt"}) | kinds)
        every = graph.only((READS - {"rt"}) | kinds | {"rw"})
        for name, some in (("G0, a cycle of writes", writes), ("G1c, a circle of information", reads)):
            for component in some.components():
                return _named(name, suffix, some.cycle(component))
        for component in every.components():
            single = _single(reads, every, component)
            if single is not None:
                return _named("G-single, a read skew", suffix, single)
        for component in every.components():
            return _named("G2, a write skew", suffix, every.cycle(component))
    return None


def _single(reads: Graph, every: Graph, component: Sequence[int]) -> list[Edge] | None:
    """A cycle with exactly one rw edge. Edges that lead back in time are tried first: a cycle needs one."""
    within = frozenset(component)
    edges = [e for node in component for e in every.of(node) if e.kind == "rw" and e.target in within]
    edges.sort(key=lambda edge: edge.target - edge.source)
    for edge in edges[:MOST_TRIED]:
        back = reads.path(edge.target, edge.source, within)
        if back is not None:
            return [edge, *back]
    return None


def _named(name: str, suffix: str, cycle: list[Edge]) -> tuple[str, list[Edge]]:
    code, _, text = name.partition(",")
    return f"{code}{suffix if any(edge.kind == 'rt' for edge in cycle) else ''},{text}", cycle


def _explained(name: str, cycle: list[Edge], history: Sequence[Operation]) -> str:
    links = [f"({told(history[e.source])}) {e.kind}→ ({told(history[e.target])}): {e.why}" for e in cycle]
    return f"{name}: each came before the next, and the last before the first: " + "; ".join(links)
