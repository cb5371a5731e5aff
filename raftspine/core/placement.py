"""Who keeps which shard group: the walk along the hash ring, and what has to be put right afterwards.

The rule, in order of weight: no node holds more than its weighted share plus one; the replicas of a group
sit on different hosts, then in different zones; loads are even. Walking the ring alone guarantees none of
it: with 16 groups the luckiest of three nodes may be the first replica of half of them, and two replicas on
one host are one replica when the host dies. Everything is a function of the arguments, whatever their
order, so any two nodes plan the same table.

The repair is a descent: it applies the change that lowers the cost most until none does. It therefore also
moves as little as it can when it starts from a table that was good before a node came or went (`rebuild`).

Source: Mirrokni et al., "Consistent Hashing with Bounded Loads" (2017), for the bound; the repair is ours.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

from raftspine.core.ring import ConsistentHashRing, token_of
from raftspine.errors import Misuse
from raftspine.model import MAX_GROUPS, Member, NodeId, Role, Table

META_VOTERS = 5

_Cost = tuple[int, int, int, Fraction]
"""Replicas above a cap, replicas sharing a host, replicas sharing a zone, unevenness. Compared in this order."""

_NO_CHANGE: _Cost = (0, 0, 0, Fraction(0))
_N = TypeVar("_N")


def build_table(
    cluster_id: str,
    members: Sequence[Member],
    *,
    groups: int,
    factor: int,
    strategy: str,
    epoch: int = 1,
) -> Table:
    """The table of a new cluster. `factor` is clamped to the number of members that hold data.

    Misuse without a member that may hold data or vote, for repeated ids, and for a number of groups out of
    range.
    """
    if not 1 <= groups <= MAX_GROUPS:
        raise Misuse(f"{groups} shard groups are out of range; use 1 to {MAX_GROUPS}")
    plan = _Plan(members, groups, factor)
    plan.fill()
    plan.improve()
    return _table(cluster_id, strategy, epoch, members, plan, before=None)


def rebuild(table: Table, members: Sequence[Member], factor: int) -> Table:
    """The next table for other members or another factor, at the next epoch, moving as few replicas as the
    rules allow. Misuse as in `build_table`."""
    plan = _Plan(members, len(table.groups), factor)
    plan.keep(table.groups)
    plan.fill()
    plan.improve()
    return _table(table.cluster_id, table.strategy, table.epoch + 1, members, plan, before=table)


class _Plan:
    """Replica sets while they are being worked out."""

    def __init__(self, members: Sequence[Member], groups: int, factor: int) -> None:
        holders = _holders(members)
        if not holders:
            raise Misuse("no member may hold data: all are gateways, or their weight is 0")
        self.nodes = [m.id for m in holders]
        self.groups = groups
        self.factor = max(1, min(factor, len(holders)))
        self.host = {m.id: m.host for m in holders}
        # A member that names no zone is taken to be alone in its own; otherwise all unnamed would look alike.
        self.zone: dict[NodeId, object] = {m.id: m.zone or (m.id,) for m in holders}
        self.weight = {m.id: Fraction(m.weight) for m in holders}
        self.share = _shares(self.weight, groups * self.factor, groups)
        self.cap = {n: min(groups, int(self.share[n]) + 1) for n in self.nodes}
        self.load = dict.fromkeys(self.nodes, 0)
        ring = ConsistentHashRing(self.nodes)
        self.walks = [[NodeId(n) for n in ring.walk(group_token(g))] for g in range(groups)]
        self.sets: list[list[NodeId]] = [[] for _ in range(groups)]

    def keep(self, groups: Iterable[Sequence[NodeId]]) -> None:
        """Start from an older table, as far as its nodes still hold data."""
        for g, replicas in enumerate(groups):
            for node in [n for n in replicas if n in self.load][: self.factor]:
                self._take(g, node)

    def fill(self) -> None:
        """Give each group its replicas, one per round, so that no group is left with the nodes nobody wanted."""
        for size in range(1, self.factor + 1):
            for g in range(self.groups):
                if len(self.sets[g]) < size:
                    self._take(g, self._best_fit(g))

    def improve(self) -> None:
        """Descend to a plan that no single change makes better."""
        if self.factor < len(self.nodes):
            while self._replace_one() or self._swap_two():
                pass

    def _take(self, g: int, node: NodeId) -> None:
        self.sets[g].append(node)
        self.load[node] += 1

    def _best_fit(self, g: int) -> NodeId:
        def misfit(node: NodeId) -> tuple[bool, int, int, bool]:
            load = self.load[node]
            return load >= self.cap[node], *self._crowding([*self.sets[g], node]), load >= self.share[node]

        # min() takes the first of equals, that is the one met first on the walk.
        return min((n for n in self.walks[g] if n not in self.sets[g]), key=misfit)

    def _crowding(self, nodes: Sequence[NodeId]) -> tuple[int, int]:
        """How many replicas share a host, and how many a zone, with one before them."""
        hosts = {self.host[n] for n in nodes}
        zones = {self.zone[n] for n in nodes}
        return len(nodes) - len(hosts), len(nodes) - len(zones)

    def _replace_one(self) -> bool:
        """Move the one replica whose move helps most; False when none helps."""
        best: tuple[_Cost, int, NodeId, NodeId] | None = None
        crowding = [self._crowding(s) for s in self.sets]
        for leaver in self.nodes:
            for taker in self.nodes:
                if leaver == taker:
                    continue
                over, uneven = self._shift(leaver, taker)
                for g, replicas in enumerate(self.sets):
                    if leaver not in replicas or taker in replicas:
                        continue
                    if (over, uneven) >= (0, 0) and crowding[g] == (0, 0):
                        continue
                    hosts, zones = self._crowding(_replaced(replicas, leaver, taker))
                    cost = (over, hosts - crowding[g][0], zones - crowding[g][1], uneven)
                    if cost < (best[0] if best else _NO_CHANGE):
                        best = (cost, g, leaver, taker)
        if best is None:
            return False
        _, g, leaver, taker = best
        self.sets[g] = _replaced(self.sets[g], leaver, taker)
        self.load[leaver] -= 1
        self.load[taker] += 1
        return True

    def _shift(self, leaver: NodeId, taker: NodeId) -> tuple[int, Fraction]:
        """What moving one replica does to the caps and to the sum of squared distances from the shares."""
        over = (self.load[taker] >= self.cap[taker]) - (self.load[leaver] > self.cap[leaver])
        ahead = self.load[leaver] - self.share[leaver]
        behind = self.load[taker] - self.share[taker]
        return over, 2 * (behind - ahead + 1)

    def _swap_two(self) -> bool:
        """Exchange replicas between a group with too little spread and another, loads unchanged."""
        for g, mine in enumerate(self.sets):
            if self._crowding(mine) == (0, 0):
                continue
            for h, theirs in enumerate(self.sets):
                before = _sum(self._crowding(mine), self._crowding(theirs))
                for leaver in mine:
                    for taker in theirs:
                        if leaver in theirs or taker in mine:
                            continue
                        a, b = _replaced(mine, leaver, taker), _replaced(theirs, taker, leaver)
                        if _sum(self._crowding(a), self._crowding(b)) < before:
                            self.sets[g], self.sets[h] = a, b
                            return True
        return False


def group_token(group: int) -> int:
    """Where on the circle a shard group sits."""
    return token_of(f"group:{group}")


def _table(
    cluster_id: str,
    strategy: str,
    epoch: int,
    members: Sequence[Member],
    plan: _Plan,
    before: Table | None,
) -> Table:
    first = _preferred(plan, before)
    groups = tuple(
        (first[g], *(n for n in plan.walks[g] if n in replicas and n != first[g]))
        for g, replicas in enumerate(plan.sets)
    )
    meta = _voters(members, before.meta if before else ())
    return Table(epoch, cluster_id, strategy, tuple(sorted(members, key=lambda m: m.id)), groups, meta)


def _preferred(plan: _Plan, before: Table | None) -> list[NodeId]:
    """The first replica of each group (it leads, and is asked first), as even as the replica sets allow.

    Starting from the walk, or from the older table, leadership is handed along chains of groups from the node
    with most above its share to the one with most below it.
    """
    first = [
        before.groups[g][0] if before and before.groups[g][0] in s else next(n for n in plan.walks[g] if n in s)
        for g, s in enumerate(plan.sets)
    ]
    total = sum(plan.weight.values())
    count = {n: first.count(n) - plan.groups * plan.weight[n] / total for n in plan.nodes}
    while True:
        chain = _chain(plan, first, count)
        if not chain:
            return first
        for g, node in chain:
            count[first[g]] -= 1
            count[node] += 1
            first[g] = node


def _chain(plan: _Plan, first: list[NodeId], count: dict[NodeId, Fraction]) -> list[tuple[int, NodeId]]:
    """Steps (group, its new first) that take one group from a node and in the end give one to a node that has
    over one fewer, counted from the shares; empty when there is no such pair."""
    for start in sorted(plan.nodes, key=lambda n: (-count[n], n)):
        came: dict[NodeId, tuple[int, NodeId]] = {}
        queue = [start]
        for node in queue:
            for g in (g for g, leader in enumerate(first) if leader == node):
                for other in plan.sets[g]:
                    if other != start and other not in came:
                        came[other] = (g, node)
                        queue.append(other)
        end = min(came, key=lambda n: (count[n], n), default=start)
        if count[start] - count[end] > 1:
            steps = []
            while end != start:
                g, giver = came[end]
                steps.append((g, end))
                end = giver
            return steps[::-1]
    return []


def _voters(members: Sequence[Member], current: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """An odd number of primaries, five at most: those that vote already first, then over zones and hosts."""
    ring = {m.id: m for m in members if m.role is Role.PRIMARY}
    if not ring:
        raise Misuse("no member is a primary; the meta group needs at least one")
    size = min(META_VOTERS, len(ring) - 1 + len(ring) % 2)
    walk = list(ConsistentHashRing(ring).walk(token_of("meta")))
    chosen = [ring[n] for n in current if n in ring][:size]
    while len(chosen) < size:
        zones = [m.zone for m in chosen if m.zone]
        hosts = [m.host for m in chosen]
        free = [ring[NodeId(n)] for n in walk if ring[NodeId(n)] not in chosen]
        chosen.append(min(free, key=lambda m: (zones.count(m.zone), hosts.count(m.host))))
    return tuple(m.id for m in chosen)


def _holders(members: Sequence[Member]) -> list[Member]:
    if len({m.id for m in members}) != len(members):
        raise Misuse("two members have the same id")
    holders = [m for m in members if m.role is not Role.GATEWAY and m.weight > 0]
    return sorted(holders, key=lambda m: m.id)


def _shares(weight: dict[NodeId, Fraction], total: int, most: int) -> dict[NodeId, Fraction]:
    """Split `total` by weight, none above `most`: what a heavy node cannot take is split among the others."""
    share: dict[NodeId, Fraction] = {}
    open_, left = dict(weight), Fraction(total)
    while open_:
        unit = left / sum(open_.values())
        capped = [n for n, w in open_.items() if w * unit >= most]
        if not capped:
            return share | {n: w * unit for n, w in open_.items()}
        for n in capped:
            share[n] = Fraction(most)
            left -= most
            del open_[n]
    return share


def _replaced(items: Sequence[_N], old: _N, new: _N) -> list[_N]:
    return [new if item == old else item for item in items]


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
