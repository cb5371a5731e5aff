"""Which writes of a shard group a replica has seen, in space that does not grow with the number of writes.

The rule: an origin numbers its writes from 1 without gaps, so "everything up to `base`, plus these few"
describes any set a replica can hold, and a set once covered stays covered. A version whose dot is covered
and which is not in the store was replaced; that is how a late carrier of a deleted memory is recognised
without keeping its tombstone for ever. Without it deletes come back.

Source: Almeida et al., "Scalable and Accurate Causality Tracking for Eventually Consistent Stores" (2014).
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from msgspec import msgpack

_pack = msgpack.Encoder().encode

Range = tuple[str, int, int]
"""An origin and the first and last sequence number, both inclusive."""


class Vector:
    """A mutable set of dots. `base[o]` = all of o's dots up to and including it; `extras[o]` = dots above a
    gap.

    Read the two maps freely; change them only through the methods, which keep them minimal: no base of 0,
    no extra that the base already covers or could absorb, no empty set of extras. Minimal means that equal
    sets have equal maps.
    """

    __slots__ = ("base", "extras")

    def __init__(self, base: dict[str, int] | None = None, extras: dict[str, set[int]] | None = None) -> None:
        self.base: dict[str, int] = {}
        self.extras: dict[str, set[int]] = {}
        for origin, through in (base or {}).items():
            self.advance(origin, through)
        for origin, seqs in (extras or {}).items():
            for seq in seqs:
                self.add(origin, seq)

    def covers(self, origin: str, seq: int) -> bool:
        """Whether this dot has been seen."""
        if seq <= self.base.get(origin, 0):
            return True
        above = self.extras.get(origin)
        return above is not None and seq in above

    def add(self, origin: str, seq: int) -> bool:
        """Note one dot; False when it was known."""
        through = self.base.get(origin, 0)
        if seq == through + 1:
            self.base[origin] = seq
            if origin in self.extras:
                self._absorb(origin)
            return True
        if seq <= through:
            return False
        above = self.extras.get(origin)
        if above is None:
            self.extras[origin] = {seq}
            return True
        if seq in above:
            return False
        above.add(seq)
        return True

    def advance(self, origin: str, through: int) -> None:
        """Note everything of `origin` up to and including `through`."""
        if through > self.base.get(origin, 0):
            self.base[origin] = through
            if origin in self.extras:
                self._absorb(origin)

    def highest(self, origin: str) -> int:
        """The largest sequence number seen of `origin`, gaps below it or not; 0 when none."""
        return max(self.extras.get(origin, ()), default=self.base.get(origin, 0))

    def dominates(self, other: "Vector") -> bool:
        """Whether everything `other` has seen has been seen here too."""
        for origin, through in other.base.items():
            if through > self.base.get(origin, 0) and not self._covers_range(origin, through):
                return False
        return all(self.covers(origin, seq) for origin, seqs in other.extras.items() for seq in seqs)

    def missing(self, theirs: "Vector") -> list[Range]:
        """What `theirs` covers and this one does not, as the fewest ranges, ordered by origin and number."""
        ranges: list[Range] = []
        for origin in sorted(theirs.base.keys() | theirs.extras.keys()):
            through = self.base.get(origin, 0)
            mine = self.extras.get(origin, set())
            theirs_through = theirs.base.get(origin, 0)
            at = through + 1
            for seq in sorted(s for s in mine if s <= theirs_through):
                if seq > at:
                    ranges.append((origin, at, seq - 1))
                at = seq + 1
            if at <= theirs_through:
                ranges.append((origin, at, theirs_through))
            for seq in sorted(theirs.extras.get(origin, ())):
                if seq > through and seq not in mine:
                    if ranges and ranges[-1][0] == origin and ranges[-1][2] == seq - 1:
                        ranges[-1] = (origin, ranges[-1][1], seq)
                    else:
                        ranges.append((origin, seq, seq))
        return ranges

    def join(self, other: "Vector") -> None:
        """Take over everything `other` has seen."""
        for origin, through in other.base.items():
            self.advance(origin, through)
        for origin, seqs in other.extras.items():
            for seq in seqs:
                self.add(origin, seq)

    @staticmethod
    def meet(vectors: Iterable["Vector"]) -> "Vector":
        """What all of them cover without a gap: the part that is stable. Empty when there are none."""
        everyone = list(vectors)
        met = Vector()
        if everyone:
            first, rest = everyone[0], everyone[1:]
            for origin, through in first.base.items():
                low = min((v.base.get(origin, 0) for v in rest), default=through)
                met.advance(origin, min(low, through))
        return met

    def to_wire(self) -> list[list[Any]]:
        """Plain lists `[origin, base, [extras…]]`, sorted, so equal vectors have equal bytes."""
        return [
            [origin, self.base.get(origin, 0), sorted(self.extras.get(origin, ()))]
            for origin in sorted(self.base.keys() | self.extras.keys())
        ]

    @classmethod
    def from_wire(cls, wire: Iterable[Any]) -> "Vector":
        """Inverse of `to_wire`. ValueError or TypeError on another shape."""
        vector = cls()
        for origin, base, extras in wire:
            if not isinstance(origin, str) or not isinstance(base, int):
                raise TypeError("a vector row is [origin, base, [extras]]")
            vector.advance(origin, base)
            for seq in extras:
                vector.add(origin, seq)
        return vector

    def digest(self) -> bytes:
        """Eight bytes that are equal for equal content, whatever order it arrived in."""
        return blake2b(_pack(self.to_wire()), digest_size=8).digest()

    def copy(self) -> "Vector":
        twin = Vector()
        twin.base = dict(self.base)
        twin.extras = {origin: set(seqs) for origin, seqs in self.extras.items()}
        return twin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and self.base == other.base and self.extras == other.extras

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Vector({self.base!r}, {self.extras!r})"

    def _absorb(self, origin: str) -> None:
        above = self.extras[origin]
        through = self.base[origin]
        while through + 1 in above:
            through += 1
        self.base[origin] = through
        above = {seq for seq in above if seq > through}
        if above:
            self.extras[origin] = above
        else:
            del self.extras[origin]

    def _covers_range(self, origin: str, through: int) -> bool:
        # Only reached when `through` is above the base: then every number between must be an extra.
        above = self.extras.get(origin, set())
        return all(seq in above for seq in range(self.base.get(origin, 0) + 1, through + 1))
