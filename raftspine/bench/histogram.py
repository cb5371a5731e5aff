"""Latencies, kept in buckets of constant relative width.

An average hides what users feel and a list of millions of samples slows the generator down; logarithmic
buckets keep every percentile to within 1 % in a few kilobytes (the idea of HdrHistogram, G. Tene). Recording
is one index computation, because it happens on the path that is being measured.
"""

SUB_BITS = 7
"""128 buckets per power of two: a bucket is at most 1/64 of its value wide, and we answer with its middle."""

_LINEAR = 1 << SUB_BITS


class Histogram:
    """Counts of whole microseconds."""

    __slots__ = ("counts", "highest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (_LINEAR * 40)
        self.total = 0
        self.highest = 0

    def record(self, us: int) -> None:
        """Add one sample in microseconds; what is below 0 counts as 0."""
        if us < _LINEAR:
            self.counts[us if us > 0 else 0] += 1
        else:
            shift = us.bit_length() - SUB_BITS
            self.counts[(shift << SUB_BITS) + (us >> shift)] += 1
        self.total += 1
        if us > self.highest:
            self.highest = us

    def merge(self, other: "Histogram") -> None:
        for index, count in enumerate(other.counts):
            if count:
                self.counts[index] += count
        self.total += other.total
        self.highest = max(self.highest, other.highest)

    def percentile_us(self, percent: float) -> int:
        """The value that `percent` of the samples do not exceed, to 1 %; 0 without samples."""
        if percent >= 100:
            return self.highest
        wanted = max(1, -(-self.total * percent // 100))
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return min(_middle(index), self.highest)
        return 0

    def mean_us(self) -> float:
        """The mean, as exact as the buckets are."""
        if not self.total:
            return 0.0
        return sum(_middle(index) * count for index, count in enumerate(self.counts) if count) / self.total

    def summary_ms(self) -> dict[str, float]:
        """The percentiles worth printing, in milliseconds."""
        points = {f"p{p:g}": self.percentile_us(p) for p in (50, 90, 99, 99.9)}
        points["max"] = self.highest
        return {"mean": round(self.mean_us() / 1000, 3), **{k: round(v / 1000, 3) for k, v in points.items()}}


def _middle(index: int) -> int:
    shift = index >> SUB_BITS
    if shift == 0:
        return index
    low = (index & (_LINEAR - 1)) << shift
    return low + (1 << shift >> 1)
