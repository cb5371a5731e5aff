"""Which node to ask, and how long to wait before asking again.

The rule: stay with a node while it answers, step to the next at its first failure, and only pause after every
node has had its turn. Pausing first would turn the loss of one node of three into a delay that nobody needs;
never pausing would make a thousand clients hammer the two that are left.
"""

from collections.abc import Sequence

from yarl import URL

from raftspine.errors import Misuse
from raftspine.ports import Entropy

FIRST_PAUSE_MS = 25
"""Long enough for a leader to be elected after a few doublings, short enough to go unnoticed when it was a blip."""

LONGEST_PAUSE_MS = 1000


class Endpoints:
    """The base addresses of one cluster's nodes, in the caller's order, with one of them preferred."""

    def __init__(self, urls: str | Sequence[str]) -> None:
        """Raises Misuse when an address is not http(s)://host[:port]."""
        given = (urls,) if isinstance(urls, str) else tuple(urls)
        self._urls = tuple(_checked(url) for url in given)
        if not self._urls:
            raise Misuse("a client needs the address of at least one node")
        self._preferred = 0

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def all(self) -> tuple[str, ...]:
        return self._urls

    def current(self) -> str:
        return self._urls[self._preferred]

    def failed(self, url: str) -> None:
        """Step on, unless another request has already left this address."""
        if url == self.current():
            self._preferred = (self._preferred + 1) % len(self._urls)


class Backoff:
    """The pauses of one request: none within a round over the nodes, then doubling, each jittered to between
    half and all of itself (Brooker, "Exponential Backoff and Jitter", AWS 2015: jitter keeps retries
    apart)."""

    def __init__(self, nodes: int, entropy: Entropy) -> None:
        self._nodes = nodes
        self._entropy = entropy
        self._failures = 0

    def next_s(self, retry_after_ms: int | None) -> float:
        """Seconds to wait after one more failure; at least what the server asked for, once a round is over."""
        self._failures += 1
        rounds, within = divmod(self._failures, self._nodes)
        if within:
            return 0.0
        pause_ms = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS << min(rounds - 1, 10))
        pause_ms = max(pause_ms, min(retry_after_ms or 0, LONGEST_PAUSE_MS))
        return pause_ms * (0.5 + self._entropy.random() / 2) / 1000


def _checked(url: str) -> str:
    try:
        parsed = URL(url)
        fit = parsed.scheme in ("http", "https") and bool(parsed.host)
    except ValueError:
        fit = False
    if not fit:
        raise Misuse(f"{url!r} is not the address of a node; it should look like http://127.0.0.1:8788")
    return url.rstrip("/")
