"""What each operation could have known: happened-before, from what clients saw.

Three things carry knowledge: a session does one thing after another, a read knows the write it returned, and a token
handed over knows what its giver had done by then. Their closure is the causal order (Lamport 1978; Ahamad et al.,
"Causal memory", 1995), kept as a vector clock per operation. The rule about unknown outcomes: a write that was never
answered is known to those who read it and to nobody else, not even to its own session, for it may not have happened.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from raftspine.checkers.graph import Edge, Graph
from raftspine.checkers.history import Operation
from raftspine.checkers.models import frozen
from raftspine.checkers.verdict import told

WRITES = ("write", "delete")


class Unjudgeable(Exception):
    """The history lacks what a judgement rests on."""


class Broken(Exception):
    """No happened-before exists for what the clients saw."""

    def __init__(self, reason: str, window: Sequence[Operation]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.window = window


class Place(NamedTuple):
    """Where an operation stands: the position in its lane, a session or an unknown write alone."""

    lane: str
    position: int


class Past:
    """The causal order of operations `write` (input: a value, unique on its key), `delete`, `read` (output: the
    value, None for nothing) and `handover` (input: the session that gave its token, `session`: the one that took
    it). With `by_reading` False a read carries no knowledge: the order of sessions and handed-over tokens alone.

    Raises Unjudgeable, and Broken when a read returned what cannot have been there.
    """

    def __init__(self, operations: Sequence[Operation], *, by_reading: bool = True) -> None:
        judged = [op for op in operations if op.kind in (*WRITES, "read", "handover")]
        kept = [op for op in judged if op.ok or (op.maybe and op.kind in WRITES)]
        self.history = sorted(kept, key=lambda op: op.invoked_at)
        failed = {(op.key, frozen(op.input)): op for op in judged if op.outcome == "fail" and op.kind == "write"}
        self.places = self._laid_out()
        self.source = self._sources(failed)
        self.clocks = self._clocks(Graph(len(self.history), self._edges(by_reading)))
        self._lanes: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self.deletes: dict[str, list[int]] = {}
        for number, op in enumerate(self.history):
            if op.kind in WRITES:
                positions, numbers = self._lanes.setdefault((op.key, self.places[number].lane), ([], []))
                positions.append(self.places[number].position)
                numbers.append(number)
            if op.kind == "delete":
                self.deletes.setdefault(op.key, []).append(number)

    def before(self, a: int, b: int) -> bool:
        """Whether operation `a` happened before `b`."""
        place = self.places[a]
        return a != b and self.clocks[b].get(place.lane, -1) >= place.position

    def last_write(self, key: str, lane: str, position: int) -> int | None:
        """The last write to `key` in `lane` up to `position`."""
        positions, numbers = self._lanes.get((key, lane), ([], []))
        found = bisect_right(positions, position)
        return numbers[found - 1] if found else None

    def stale(self, read: int, newer: int) -> bool:
        """Whether what `read` returned is older than the write `newer`."""
        source = self.source.get(read)
        if source is not None:
            return self.before(source, newer)
        if self.history[newer].kind == "delete":
            return False
        begun = self.history[read].ends_at
        return all(
            self.before(d, newer) or self.history[d].invoked_at > begun
            for d in self.deletes.get(self.history[newer].key, ())
        )

    # ── construction ───────────────────────────────────────────────────────────────────────────────────────────

    def _laid_out(self) -> list[Place]:
        """Lanes and positions; a session must do one thing at a time."""
        last: dict[str, Operation] = {}
        count: dict[str, int] = {}
        places = []
        for number, op in enumerate(self.history):
            lane = op.session or op.process
            before = last.get(lane)
            if before is not None and before.completed_at is not None and before.completed_at > op.invoked_at:
                raise Unjudgeable(f"session {lane} did two things at once: {told(before)}, {told(op)}")
            last[lane] = op
            count[lane] = count.get(lane, -1) + 1
            places.append(Place(lane, count[lane]) if op.ok else Place(f"{lane} unanswered {number}", 0))
        return places

    def _sources(self, failed: dict[tuple[str, Hashable], Operation]) -> dict[int, int]:
        """For each read that found something, the write that it returned."""
        writers: dict[tuple[str, Hashable], int] = {}
        for number, op in enumerate(self.history):
            if op.kind == "write":
                name = (op.key, frozen(op.input))
                if name in writers:
                    raise Unjudgeable(f"{op.key}: the same value was written twice; values must be unique")
                writers[name] = number
        found = {}
        for number, op in enumerate(self.history):
            if op.kind != "read" or op.output is None:
                continue
            name = (op.key, frozen(op.output))
            if name not in writers:
                refused = failed.get(name)
                why = "whose write had failed" if refused else "which nobody wrote"
                raise Broken(f"{told(op)}, {why}", [refused, op] if refused else [op])
            found[number] = writers[name]
        return found

    def _edges(self, by_reading: bool) -> list[Edge]:
        edges, last, answered = [], dict[str, int](), dict[str, list[int]]()
        for number, op in enumerate(self.history):
            lane = op.session or op.process
            if lane in last:
                edges.append(Edge(last[lane], number, "session"))
            if by_reading and number in self.source:
                edges.append(Edge(self.source[number], number, "wr"))
            if op.kind == "handover":
                given = [n for n in answered.get(str(op.input), ()) if self.history[n].ends_at <= op.invoked_at]
                edges += [Edge(given[-1], number, "token")] if given else []
            if op.ok:
                last[lane] = number
                answered.setdefault(lane, []).append(number)
        return edges

    def _clocks(self, graph: Graph) -> list[dict[str, int]]:
        circles = graph.components()
        if circles:
            window = [self.history[edge.source] for edge in graph.cycle(circles[0])]
            raise Broken(f"{told(window[0])} happened before itself", window)
        waiting = [0] * graph.size
        for edge in graph.edges():
            waiting[edge.target] += 1
        clocks: list[dict[str, int]] = [{} for _ in range(graph.size)]
        ready = [n for n in range(graph.size) if not waiting[n]]
        while ready:
            number = ready.pop()
            place, clock = self.places[number], clocks[number]
            clock[place.lane] = place.position
            for edge in graph.of(number):
                theirs = clocks[edge.target]
                for lane, position in clock.items():
                    if theirs.get(lane, -1) < position:
                        theirs[lane] = position
                waiting[edge.target] -= 1
                if not waiting[edge.target]:
                    ready.append(edge.target)
        return clocks
