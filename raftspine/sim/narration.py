"""What happened, in lines that a person can read: one for each fault, leader, start, end and second of work.

A seed that fails is worth as much as the story it tells. Every line has the virtual second and who it is about. The
newest lines are kept for the report of a failure; all of them go to whoever listens, and into a checksum, so that two
runs can be compared without keeping either.
"""

from collections import deque
from collections.abc import Callable
from hashlib import blake2b

KEPT_LINES = 60


class Narration:
    """`now` is the run's virtual time in seconds; `listen` gets every line at once."""

    def __init__(self, now: Callable[[], float], listen: Callable[[str], None] | None = None) -> None:
        self._now = now
        self._listen = listen
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._digest = blake2b(digest_size=8)
        self.lines = 0

    def tell(self, who: str, what: str) -> None:
        """`who`: a node, or what part of the simulated world."""
        line = f"{self._now():10.4f}  {who:<5} {what}"
        self.lines += 1
        self._tail.append(line)
        self._digest.update(line.encode())
        if self._listen is not None:
            self._listen(line)

    def tail(self) -> str:
        """The newest lines, oldest first."""
        skipped = self.lines - len(self._tail)
        head = [f"… {skipped} lines before (--log FILE writes them all)"] if skipped else []
        return "\n".join([*head, *self._tail])

    def checksum(self) -> str:
        """Of all lines so far; equal runs have equal ones."""
        return self._digest.hexdigest()
