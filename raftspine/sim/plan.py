"""What a run will be: the cluster, its weather and each fault, drawn from the seed before anything moves.

A failing run is understood by leaving things out until it no longer fails. That only works when leaving one fault out
does not change the others; so every fault has dice of its own, made from the seed and its number, and knows its
moment and length beforehand. Whom it hits is decided when it strikes ("the leader" is not known before), by those
dice.

A seed does not allow everything at once: each run draws the faults it will see (swarm testing: Groce et al., 2012),
so that a frequent fault does not hide what a rare one would show.
"""

import msgspec
from msgspec import Struct

from raftspine.errors import Misuse
from raftspine.sim.loop import Dice
from raftspine.sim.net import Weather

SIZES = (3, 3, 3, 3, 3, 5, 5, 1)
"""Cluster sizes, as often as they are drawn."""

STRATEGIES = ("id", "id", "id", "agent", "tag")


class Strike(Struct, frozen=True, omit_defaults=True):
    """One fault: its number (which makes its dice), its name in the table of faults, when it strikes (seconds after
    the load began) and how long it lasts."""

    number: int
    fault: str
    at: float
    lasts: float


class Plan(Struct, frozen=True):
    """Everything about a run that is decided beforehand. `slow`: links as between continents. `short_logs`: so
    short that a node that was away comes back by a snapshot. `stragglers`: share of
    messages that wait for a retransmission. `pace`: how hurried the clients are, 1 as drawn; 0 is no load at all.
    `load`: what the clients do (run.LOADS)."""

    seed: int
    seconds: float
    nodes: int
    groups: int
    gateways: int
    durability: str
    strategy: str
    slow: bool
    short_logs: bool
    stragglers: float
    strikes: tuple[Strike, ...]
    pace: float = 1.0
    load: str = "memories"

    def weather(self) -> Weather:
        delay = (0.0003, 0.03) if self.slow else (0.0003, 0.003)
        return Weather(delay=delay, stragglers=self.stragglers, give_up=2.0)

    def dice(self, strike: Strike) -> Dice:
        """The chance of one fault, whatever becomes of the others."""
        return Dice((self.seed << 20) ^ (strike.number + 1) * 0x9E3779B97F4A7C15)

    def encode(self) -> str:
        """One line of JSON."""
        return msgspec.json.encode(self).decode()


def decode(text: str) -> Plan:
    """Raises Misuse when the text is not a plan."""
    try:
        return msgspec.json.decode(text, type=Plan)
    except msgspec.DecodeError as error:
        raise Misuse(f"this is not a plan of a simulated run: {error}") from error


class Kind(Struct, frozen=True):
    """What drawing has to know of a fault: how often compared with others, how many seconds it lasts (shortest and
    longest), and how many nodes it takes."""

    name: str
    weight: int
    lasts: tuple[float, float]
    nodes: int = 1


def draw(
    seed: int, seconds: float, kinds: tuple[Kind, ...], *, nodes: int | None = None, load: str = "memories"
) -> Plan:
    """The plan of a seed. `kinds`: the faults to choose from; `nodes`: the cluster's size, drawn when None."""
    dice = Dice(seed)
    drawn_size = dice.choice(SIZES)
    size = drawn_size if nodes is None else nodes
    gateways = 1 if size > 3 and dice.chance(0.3) else 0
    slow = dice.chance(0.2)
    short_logs = dice.chance(0.4)
    strategy = dice.choice(STRATEGIES)
    able = [kind for kind in kinds if kind.nodes <= size]
    chosen = able if dice.chance(0.2) else [kind for kind in able if dice.chance(0.4)] or able
    return Plan(
        seed=seed,
        seconds=seconds,
        nodes=size,
        groups=1 + dice.below(5),
        gateways=gateways,
        durability="always" if dice.chance(0.7) else "interval",
        strategy=strategy,
        slow=slow,
        short_logs=short_logs,
        stragglers=0.01 if slow else dice.choice((0.0, 0.001, 0.003)),
        strikes=tuple(_strikes(dice, seconds, chosen)),
        load=load,
    )


def _strikes(dice: Dice, seconds: float, kinds: list[Kind]) -> list[Strike]:
    """Faults until the load ends, now and then two at once, none much longer than the load; some runs are calmer than
    others."""
    gap = dice.choice((0.7, 1.5, 3.0))
    table = [kind for kind in kinds for _ in range(kind.weight)]
    strikes: list[Strike] = []
    at = dice.uniform(0.0, 2 * gap)
    while table and at < seconds:
        kind = dice.choice(table)
        lasts = min(dice.uniform(*kind.lasts), max(kind.lasts[0], seconds + 1.0 - at))
        strikes.append(Strike(len(strikes), kind.name, round(at, 4), round(lasts, 4)))
        at += dice.uniform(0.1 * gap, 1.9 * gap)
    return strikes
