"""Directed graphs with named edges, and the cycles in them. Iterative throughout: a history has thousands of nodes,
an interpreter's stack a thousand frames."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Edge(NamedTuple):
    """`kind` is one of ww, wr, rw (Adya 1999) or rt, for real time; `why` says what it was inferred from."""

    source: int
    target: int
    kind: str
    why: str = ""


class Graph:
    """Nodes are 0 … size - 1. Of several edges of one kind between the same two nodes the first is kept."""

    def __init__(self, size: int, edges: Iterable[Edge] = ()) -> None:
        self.size = size
        self._out: list[dict[tuple[int, str], Edge]] = [{} for _ in range(size)]
        for edge in edges:
            self.add(edge)

    def add(self, edge: Edge) -> None:
        if edge.source != edge.target:
            self._out[edge.source].setdefault((edge.target, edge.kind), edge)

    def of(self, node: int) -> Iterator[Edge]:
        return iter(self._out[node].values())

    def edges(self) -> Iterator[Edge]:
        return (edge for node in range(self.size) for edge in self.of(node))

    def only(self, kinds: frozenset[str]) -> "Graph":
        return Graph(self.size, (edge for edge in self.edges() if edge.kind in kinds))

    def components(self) -> list[list[int]]:
        """The strongly connected components of more than one node (Tarjan 1972), each in ascending order."""
        order, low = [-1] * self.size, [0] * self.size
        on_stack, stack, found, count = [False] * self.size, list[int](), list[list[int]](), 0
        for root in range(self.size):
            if order[root] >= 0:
                continue
            work: list[tuple[int, Iterator[Edge]]] = []
            entered: int | None = root
            while entered is not None or work:
                if entered is not None:
                    order[entered] = low[entered] = count
                    count += 1
                    stack.append(entered)
                    on_stack[entered] = True
                    work.append((entered, self.of(entered)))
                    entered = None
                node, edges = work[-1]
                for edge in edges:
                    if order[edge.target] < 0:
                        entered = edge.target
                        break
                    if on_stack[edge.target]:
                        low[node] = min(low[node], order[edge.target])
                if entered is not None:
                    continue
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack[component[-1]] = False
                    if len(component) > 1:
                        found.append(sorted(component))
        return found

    def path(self, source: int, target: int, within: frozenset[int]) -> list[Edge] | None:
        """A shortest way from one node to another over the nodes of `within`; None when there is none."""
        came: dict[int, Edge] = {}
        todo = deque([source])
        while todo:
            node = todo.popleft()
            for edge in self.of(node):
                if edge.target in came or edge.target not in within:
                    continue
                came[edge.target] = edge
                if edge.target == target:
                    return _back(came, source, target)
                todo.append(edge.target)
        return None

    def cycle(self, component: Sequence[int]) -> list[Edge]:
        """A shortest cycle through some node of a strongly connected component."""
        within = frozenset(component)
        best: list[Edge] | None = None
        for node in component[:64]:  # a shortest one over all would cost a search per node of a large component
            found = self.path(node, node, within)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        assert best is not None, "a strongly connected component has a cycle"
        return best


def _back(came: dict[int, Edge], source: int, target: int) -> list[Edge]:
    edges = [came[target]]
    while edges[-1].source != source:
        edges.append(came[edges[-1].source])
    return edges[::-1]
