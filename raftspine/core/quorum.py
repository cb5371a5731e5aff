"""Counting replies, kept away from the sockets they come through.

The rule: each member is counted once, whatever it says first, and the verdict is a function of the counts.
Without it a reply delivered twice makes a majority out of one node, and "can no longer be reached" is
noticed only by a timeout.
"""

from typing import Literal

Verdict = Literal["reached", "open", "impossible"]


def majority(n: int) -> int:
    """The smallest number of `n` members that any other majority must meet."""
    return n // 2 + 1


def read_quorum(n: int, w: int) -> int:
    """How many of `n` replicas a read must ask to meet every write that `w` of them hold: N - W + 1."""
    return n - w + 1


class Tally:
    """Votes on one question put to `total` members, `needed` of whom must agree."""

    __slots__ = ("acked", "failed", "needed", "total")

    def __init__(self, needed: int, total: int) -> None:
        self.needed = needed
        self.total = total
        self.acked: set[str] = set()
        self.failed: set[str] = set()

    def ack(self, who: str) -> None:
        """Count an agreement; ignored when this member was counted before."""
        if who not in self.failed:
            self.acked.add(who)

    def fail(self, who: str) -> None:
        """Count a refusal or a lost link; ignored when this member was counted before."""
        if who not in self.acked:
            self.failed.add(who)

    def verdict(self) -> Verdict:
        """`reached` once enough agreed, `impossible` once too few are left who could, else `open`."""
        if len(self.acked) >= self.needed:
            return "reached"
        if self.total - len(self.failed) < self.needed:
            return "impossible"
        return "open"
