"""What a loop would say again at every turn, all night: the operator hears it when it is new and now and then after.

Pure: the caller brings the time. What is remembered is one thing a subject, so subjects must be few (groups, peers).
"""

from collections.abc import Hashable

AGAIN_SECONDS = 60.0


class Repeats:
    """What was said last of each subject, and when."""

    def __init__(self) -> None:
        self._said: dict[Hashable, tuple[Hashable, float]] = {}

    def due(self, subject: Hashable, what: Hashable, now: float) -> bool:
        """Whether `what` is to be said of `subject` at `now` (monotonic seconds): it differs from what was said last,
        or that is AGAIN_SECONDS ago. Taken as said then."""
        said, at = self._said.get(subject, (None, 0.0))
        if subject in self._said and said == what and now - at < AGAIN_SECONDS:
            return False
        self._said[subject] = (what, now)
        return True

    def over(self, subject: Hashable) -> None:
        """The matter is settled: should it come up again, it is news."""
        self._said.pop(subject, None)
