"""The table of faults: what strikes, what heals, and who must go on serving meanwhile.

A fault is a function that strikes the laboratory and says whom it left in a position to serve: nodes that still form
a majority with each other and hear their clients. The promise to those is checked while the fault is in force,
because a store that merely survives until all is well again would pass every test of its histories. Healing is one
operation for all faults (`Lab.heal`), so that none can forget what another one did.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations, product
from random import Random

from tests.support.lab.network import Link
from tests.support.lab.nodes import Lab


@dataclass(frozen=True)
class Struck:
    """What a fault did. `serving`: nodes whose clients must get both paths written within seconds, through the
    fault; empty when nothing of the kind is promised."""

    what: str
    serving: tuple[str, ...] = ()


Strike = Callable[[Lab, Random, str], Struck]
"""Strikes; the text is the id of a strong memory, whose group's leader is the one that `leader` faults are about."""


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Strike
    nodes: int = 3
    """The least it makes sense with."""

    breaks_disk: bool = False
    """Nodes may say in their logs that the disk refused."""


def inject(fault: Fault, lab: Lab, chance: Random, key: str) -> Struck:
    """Strike, and say what was done."""
    struck = fault.strike(lab, chance, key)
    return Struck(f"{fault.name}: {struck.what}", struck.serving)


def both_ways(left: Iterable[str], right: Iterable[str]) -> list[Link]:
    pairs = list(product(left, right))
    return pairs + [(b, a) for a, b in pairs]


def _others(lab: Lab, *away: str) -> tuple[str, ...]:
    return tuple(node for node in lab.ids if node not in away)


def _some(lab: Lab, chance: Random) -> str:
    return chance.choice(lab.ids)


# ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────


def _kill_one(lab: Lab, chance: Random, key: str) -> Struck:
    victim = _some(lab, chance)
    lab.kill(victim)
    return Struck(f"kill -9 of {victim}", _others(lab, victim))


def _kill_leader(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key)
    lab.kill(victim)
    return Struck(f"kill -9 of {victim}, the leader", _others(lab, victim))


def _kill_all(lab: Lab, chance: Random, key: str) -> Struck:
    lab.kill(*lab.ids)
    return Struck("kill -9 of all nodes at once")


def _restart_storm(lab: Lab, chance: Random, key: str) -> Struck:
    """Nodes die again and again, mostly before they have come up."""
    victims = [_some(lab, chance) for _ in range(6)]
    for victim in victims:
        lab.kill(victim)
        time.sleep(chance.uniform(0.05, 1.2))  # how long a node is left before the next blow is the fault itself
        lab.launch(victim)
        time.sleep(chance.uniform(0.05, 1.2))
    return Struck(f"kill -9 and start of {', '.join(victims)}")


def _pause_one(lab: Lab, chance: Random, key: str) -> Struck:
    victim = _some(lab, chance)
    lab.pause(victim)
    return Struck(f"SIGSTOP of {victim}", _others(lab, victim))


def _pause_leader(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key)
    lab.pause(victim)
    return Struck(f"SIGSTOP of {victim}, the leader", _others(lab, victim))


# ── links ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _isolate_one(lab: Lab, chance: Random, key: str) -> Struck:
    victim = _some(lab, chance)
    lab.network.cut(both_ways([victim], _others(lab, victim)))
    return Struck(f"{victim} alone", _others(lab, victim))


def _isolate_leader(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key)
    lab.network.cut(both_ways([victim], _others(lab, victim)))
    return Struck(f"{victim}, the leader, alone", _others(lab, victim))


def _minority(lab: Lab, chance: Random, key: str) -> Struck:
    """The leader ends up with as many as can be without a majority."""
    leader = lab.await_leader(key)
    others = list(_others(lab, leader))
    chance.shuffle(others)
    few = [leader, *others[: (len(lab.ids) - 1) // 2 - 1]]
    many = tuple(node for node in lab.ids if node not in few)
    lab.network.cut(both_ways(few, many))
    return Struck(f"{'+'.join(few)} (with the leader) | {'+'.join(many)}", many)


def _bridge(lab: Lab, chance: Random, key: str) -> Struck:
    """Two halves that hear only the one node between them."""
    nodes = list(lab.ids)
    chance.shuffle(nodes)
    middle, half = nodes[0], (len(nodes) - 1) // 2
    left, right = nodes[1 : 1 + half], nodes[1 + half :]
    lab.network.cut(both_ways(left, right))
    return Struck(f"{'+'.join(left)} | {middle} hears both | {'+'.join(right)}", (middle,))


def _one_way(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key) if chance.random() < 0.5 else _some(lab, chance)
    others = _others(lab, victim)
    if chance.random() < 0.5:
        lab.network.cut((victim, other) for other in others)
        return Struck(f"{victim} is not heard", others)
    lab.network.cut((other, victim) for other in others)
    return Struck(f"{victim} hears nobody", others)


def _resets(lab: Lab, chance: Random, key: str) -> Struck:
    """Every connection between nodes is reset, several times."""
    for _ in range(5):
        lab.network.refuse(permutations(lab.ids, 2))
        time.sleep(chance.uniform(0.05, 0.4))  # as above
        lab.network.mend()
        time.sleep(chance.uniform(0.05, 0.6))
    return Struck("TCP resets on all links, five times", lab.ids)


def _slow(lab: Lab, chance: Random, key: str) -> Struck:
    delay, jitter = chance.choice([(20, 10), (60, 40)])
    lab.network.degrade(delay_ms=delay, jitter_ms=jitter, seed=chance.randrange(1 << 30))
    return Struck(f"{delay} to {delay + jitter} ms each way, with reordering", lab.ids)


def _lossy(lab: Lab, chance: Random, key: str) -> Struck:
    loss = chance.choice([0.01, 0.04])
    lab.network.degrade(delay_ms=2, jitter_ms=3, loss=loss, seed=chance.randrange(1 << 30))
    return Struck(f"{loss:.0%} of all packets lost", lab.ids)


# ── clocks and disks ───────────────────────────────────────────────────────────────────────────────────────────


def _clock_jump(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key) if chance.random() < 0.5 else _some(lab, chance)
    ahead = chance.choice([-3600, -30, 8])  # an hour ahead is a test of its own: what it writes, nobody takes over
    lab.set_clock(victim, ahead)
    return Struck(f"the clock of {victim} jumps by {ahead:+d} s", _others(lab, victim))


def _disk_full(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key) if chance.random() < 0.5 else _some(lab, chance)
    lab.disks[victim].fill()
    return Struck(f"the disk of {victim} is full", _others(lab, victim))


def _disk_errors(lab: Lab, chance: Random, key: str) -> Struck:
    victim = lab.await_leader(key) if chance.random() < 0.5 else _some(lab, chance)
    writes, syncs = chance.choice([(True, False), (False, True), (True, True)])
    lab.break_disk(victim, writes=writes, syncs=syncs)
    what = " and ".join(name for name, broken in (("writes", writes), ("syncs", syncs)) if broken)
    return Struck(f"EIO for all {what} of {victim}", _others(lab, victim))


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("kill-one", _kill_one),
        Fault("kill-leader", _kill_leader),
        Fault("kill-all", _kill_all),
        Fault("restart-storm", _restart_storm),
        Fault("pause-one", _pause_one),
        Fault("pause-leader", _pause_leader),
        Fault("isolate-one", _isolate_one),
        Fault("isolate-leader", _isolate_leader),
        Fault("minority", _minority, nodes=5),
        Fault("bridge", _bridge),
        Fault("one-way", _one_way),
        Fault("resets", _resets),
        Fault("slow", _slow),
        Fault("lossy", _lossy),
        Fault("clock-jump", _clock_jump),
        Fault("disk-full", _disk_full, breaks_disk=True),
        Fault("disk-errors", _disk_errors, breaks_disk=True),
    )
}
