"""Which nodes a key meets first, and how little that changes when a node comes or goes.

The rule: a node owns `virtual_nodes` points of a circle of 64-bit tokens, a key belongs to the first point
after its own token, and the order of nodes met when walking on is the key's preference list. Tokens come
from SHA-256, so every process computes the same circle. Without it (a modulo over the number of nodes, or
Python's salted `hash()`) one more node would move nearly every key, or two nodes would disagree about who
owns what.

Source: Karger et al., "Consistent Hashing and Random Trees" (1997); virtual nodes as in Dynamo (2007),
section 4.2.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from hashlib import sha256


def token_of(key: str) -> int:
    """A key's place on the circle: the first 64 bits of its SHA-256."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big")


class ConsistentHashRing:
    """The circle. Two nodes on one token are ordered by name, so the outcome never depends on insertion order."""

    def __init__(self, nodes: Iterable[str], virtual_nodes: int = 150) -> None:
        if virtual_nodes < 1:
            raise ValueError("virtual_nodes must be at least 1")
        self.virtual_nodes = virtual_nodes
        self._nodes: set[str] = set(nodes)
        self._points = sorted(point for node in self._nodes for point in self._points_of(node))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes on the circle, by name."""
        return tuple(sorted(self._nodes))

    def add(self, node: str) -> None:
        """Put a node on the circle; adding it twice changes nothing."""
        if node in self._nodes:
            return
        self._nodes.add(node)
        for point in self._points_of(node):
            insort(self._points, point)

    def remove(self, node: str) -> None:
        """Take a node off the circle; removing an absent one changes nothing."""
        if node not in self._nodes:
            return
        self._nodes.remove(node)
        self._points = [point for point in self._points if point[1] != node]

    def get_node(self, key: str) -> str:
        """The first node at or after the key. LookupError on an empty ring."""
        if not self._points:
            raise LookupError("the hash ring has no nodes")
        return self._points[self._after(token_of(key))][1]

    def get_replica_nodes(self, key: str, replicas: int = 3) -> list[str]:
        """The first `replicas` distinct nodes from the key on; all nodes when there are fewer.

        LookupError on an empty ring, so that "nowhere" cannot be mistaken for a successful write to no one.
        """
        if not self._points:
            raise LookupError("the hash ring has no nodes")
        wanted: list[str] = []
        if replicas < 1:
            return wanted
        for node in self.walk(token_of(key)):
            wanted.append(node)
            if len(wanted) == replicas:
                break
        return wanted

    def walk(self, token: int) -> Iterator[str]:
        """Every node once, in the order of its first point clockwise from `token`. Nothing on an empty ring."""
        met: set[str] = set()
        start = self._after(token) if self._points else 0
        count = len(self._points)
        for step in range(count):
            node = self._points[(start + step) % count][1]
            if node not in met:
                met.add(node)
                yield node
                if len(met) == len(self._nodes):
                    return

    def _after(self, token: int) -> int:
        # (token + 1, "") sorts behind every point of `token` itself, whatever its node is called.
        at = bisect_right(self._points, (token + 1, ""))
        return at if at < len(self._points) else 0

    def _points_of(self, node: str) -> Iterator[tuple[int, str]]:
        return ((token_of(f"{node}:{i}"), node) for i in range(self.virtual_nodes))
