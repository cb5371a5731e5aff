"""What coordination tells about itself in numbers.

The rule: a figure about the state is counted by the leader of each shard group and by nobody else, so that the sum
over all nodes is the cluster's; and no scrape may cost more than a bounded walk, so the rows are counted at most
every COUNTED_SECONDS and at most ROWS_MOST of them (`spine_coordination_uncounted` is 1 when there were more).
"""

from collections.abc import Iterable

from raftspine.core.ledger.lock_queue import LOCKS
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.task_rows import CLAIMED, DEAD, DELAYED, DONE, QUEUES, READY
from raftspine.model import META_GROUP, GroupId, NodeId
from raftspine.ports import Clock, Engine, ReplicatedLog
from raftspine.services.coordination.keeper import Keeper
from raftspine.services.coordination.waits import Waits
from raftspine.services.coordination.watch import Watch
from raftspine.services.ledger_host import Stored

COUNTED_SECONDS = 10.0
ROWS_MOST = 20_000
PAGE = 1000
STATES = (READY, DELAYED, CLAIMED, DONE, DEAD)

Figure = tuple[str, float]
"""Text and value."""


class Figures:
    """`count` raises a counter: expired sessions and tickets, admissions and refusals at gates."""

    def __init__(
        self,
        node: NodeId,
        log: ReplicatedLog,
        engine: Engine,
        clock: Clock,
    ) -> None:
        self._node = node
        self._log = log
        self._engine = engine
        self._now = clock.monotonic
        self._counted: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._rows_at = float("-inf")

    def count(self, what: str) -> None:
        self._counted[what] = self._counted.get(what, 0) + 1

    def gauges(self, keeper: Keeper, waits: Waits, watch: Watch) -> dict[str, Figure]:
        sessions, _ = keeper.counts()
        rows = self._state()
        told: dict[str, Figure] = {
            "spine_sessions": ("Open sessions of the groups this node leads.", sessions),
            "spine_locks_held": ("Locks and elections held, of the groups this node leads.", rows["held"]),
            "spine_lock_waiters": ("Places in queues of locks, of the groups this node leads.", rows["waiting"]),
            "spine_waiting_requests": ("Requests that wait at this node.", sum(waits.counted.values())),
            "spine_watchers": ("Watchers at this node.", watch.watchers),
            "spine_coordination_uncounted": ("1 when there were too many rows to count.", rows["uncounted"]),
        }
        for state in STATES:
            told[f"spine_tasks_{state}"] = (f"Tasks that are {state}, of the groups this node leads.", rows[state])
        return told

    def counters(self, watch: Watch) -> dict[str, Figure]:
        names = {
            "session": ("spine_session_expirations", "Sessions that ended because nobody heard of them."),
            "ticket": ("spine_ticket_expirations", "Places in queues that lapsed."),
            "admitted": ("spine_gate_admissions", "Passages and admissions at gates, asked of this node."),
            "refused": ("spine_gate_refusals", "Refusals at gates, asked of this node."),
        }
        told: dict[str, Figure] = {name: (text, self._counted.get(what, 0)) for what, (name, text) in names.items()}
        told["spine_watch_encodings"] = ("Events encoded for watchers, once for all at this node.", watch.encodings)
        return told

    def _state(self) -> dict[str, int]:
        if self._now() - self._rows_at < COUNTED_SECONDS:
            return self._rows
        self._rows_at = self._now()
        self._rows = rows = dict.fromkeys(("held", "waiting", "uncounted", *STATES), 0)
        left = ROWS_MOST
        for group in self._led():
            view = Stored(self._engine, group)
            left = _walk(view, rows, left)
        rows["uncounted"] = int(left <= 0)
        return rows

    def _led(self) -> Iterable[GroupId]:
        return [
            group for group in self._log.groups() if group != META_GROUP and self._log.leader(group) == self._node
        ]


def _walk(view: LedgerView, rows: dict[str, int], left: int) -> int:
    """Count one group's rows; returns how many more may be looked at."""
    start = b""
    while left > 0:
        locks = LOCKS.page(view, b"", start=start, limit=PAGE)
        left -= len(locks)
        for _, lock in locks:
            rows["held"] += lock.holders > 0
            rows["waiting"] += lock.waiting
        if len(locks) < PAGE:
            break
        start = locks[-1][0] + b"\0"
    queues = QUEUES.page(view, b"", limit=PAGE)
    for _, queue in queues:
        for state in STATES:
            rows[state] += getattr(queue, state)
    return left - len(queues)
