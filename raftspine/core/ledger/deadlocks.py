"""Whether a request would wait for itself.

A session waits for those who hold the lock it asks for, and for those before it in the lock's queue; they wait in
turn for whatever they have asked for. The request that would close a circle is refused, because nobody in the
circle could ever go on; refusing the last one to come leaves the rest as they were (Coffman et al., "System
Deadlocks", 1971: detection at the time of the request).

Two bounds. Only locks of one shard group are seen, since a log knows no other. And the search reads at most
READS rows, which is beyond any circle people build by hand; a circle larger than that is found by no one and ends
when a session does.
"""

from raftspine.core.ledger import sessions
from raftspine.core.ledger.lock_queue import ASKS, HOLDERS, KIND, LOCKS, QUEUE, Ask
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import pack

READS = 2048


class _Search:
    def __init__(self, view: LedgerView) -> None:
        self.view = view
        self.left = READS

    def in_the_way(self, space: str, name: str, ask: Ask | None) -> list[str]:
        """Sessions that hold a lock or stand before this ask in its queue (None: before nobody)."""
        prefix = pack(space, name)
        rows = HOLDERS.page(self.view, prefix, limit=max(self.left, 0))
        if ask is not None:
            lock = LOCKS.get(self.view, space, name)
            lo = prefix if lock is None else prefix + lock.head
            queue = self.view.rows(QUEUE.name, lo, prefix + pack(ask.rank, ask.number), limit=max(self.left, 0))
            rows += [(key, QUEUE.decode(data)) for key, data in queue]
        self.left -= 2 * len(rows)
        asks = [ASKS.get(self.view, space, name, row.lease) for _, row in rows]
        return [other.session for other in asks if other is not None]

    def waits_for(self, session: str) -> list[str]:
        """Sessions that this one waits for, through any of its tickets."""
        found: list[str] = []
        for kind, (space, name), held in sessions.holdings(self.view, session, max(self.left, 0)):
            self.left -= 2
            if kind != KIND:
                continue
            ask = ASKS.get(self.view, space, name, held.ref)
            if ask is not None and not ask.token:
                found += self.in_the_way(space, name, ask)
        return found


def would_wait_for_itself(view: LedgerView, session: str, space: str, name: str, ask: Ask | None) -> bool:
    """Whether `session`, waiting for a lock behind `ask`'s place (None: behind its holders only), would wait for
    itself."""
    row = sessions.read(view, session)
    if row is None or not row.held:
        return False  # nobody waits for one who has nothing
    search = _Search(view)
    seen: set[str] = set()
    ahead = search.in_the_way(space, name, ask)
    while ahead and search.left > 0:
        other = ahead.pop()
        if other == session:
            return True
        if other not in seen:
            seen.add(other)
            ahead += search.waits_for(other)
    return False
