"""Which key comes next: uniform, or skewed as YCSB has it.

The sequence is drawn before the measurement and from a fixed seed, so that it costs nothing while measuring
and two runs, or two stores, get the same keys in the same order. Ranks are scattered over the keys: otherwise
the hot ones would be neighbours and fall into few shard groups, which no real naming does.
"""

from bisect import bisect_left
from itertools import accumulate

ZIPF = 0.99
"""YCSB's constant (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010, §4)."""

DRAWN = 1 << 16
"""Length of the sequence before it repeats."""


class SplitMix:
    """A small generator of repeatable numbers (Steele, Lea and Flood, OOPSLA 2014); for load, not for secrets."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self.next() >> 11) / (1 << 53)

    def below(self, n: int) -> int:
        return self.next() % n

    def shuffled(self, n: int) -> list[int]:
        """0 to n-1 in some order."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


_MASK = (1 << 64) - 1


def zipf_ranks(n: int, count: int, chance: SplitMix) -> list[int]:
    """`count` ranks from 0 (the most frequent) to n-1, with frequency proportional to 1/(rank+1)^0.99."""
    cumulative = list(accumulate(1 / (rank + 1) ** ZIPF for rank in range(n)))
    total = cumulative[-1]
    return [bisect_left(cumulative, chance.random() * total) for _ in range(count)]


def sequence(n: int, distribution: str, seed: int) -> list[int]:
    """DRAWN key numbers below n; `distribution` is ``zipfian`` or ``uniform``."""
    chance = SplitMix(seed)
    if distribution == "uniform":
        return [chance.below(n) for _ in range(DRAWN)]
    scattered = chance.shuffled(n)
    return [scattered[rank] for rank in zipf_ranks(n, DRAWN, chance)]
