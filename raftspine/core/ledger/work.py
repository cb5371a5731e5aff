"""One command of coordination on its way: what it sees, what it has changed so far, what it will tell watchers.

The rule: a family's function reads and writes here as if the state were its own, and returns an outcome; when
that is a refusal, everything it had begun is dropped. So "all or nothing" is kept in one place, and a function
may take several steps (end a session, hand each of its locks on) and see each of them.

It also gives the numbers: fencing tokens, places in queues, ids of sessions. Each is above all before it in this
group, and not below the log index times 1024, so that who knows a token knows about when in the log it was
given: token >> 10 is the entry's index, or a later one when an entry gave more than 1024.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from raftspine.core.ledger import events, limits
from raftspine.core.ledger.outcomes import REFUSALS, Outcome, Status
from raftspine.core.ledger.overlay import Overlay
from raftspine.core.ledger.requests import once
from raftspine.core.ledger.state import Effect, LedgerView, Place, Result, SetCounter
from raftspine.core.ledger.tables import Part, Table

T = TypeVar("T")

NUMBERS = "numbers"
"""Counter: the last number given."""
NUMBERS_PER_INDEX_BITS = 10


class Work(Overlay):
    """`at`, `group`, `time_ms`: as the machine was given them. `agent`: who asks. `grants`: how many
    places in queues of locks have become leases (lock_queue.py bounds them)."""

    def __init__(self, view: LedgerView, at: Place, group: int, time_ms: int, agent: str = "") -> None:
        super().__init__(view)
        self.at = at
        self.group = group
        self.time_ms = time_ms
        self.agent = agent
        self.grants = 0
        self.effects: list[Effect] = []
        self._happened: list[events.Happening] = []

    def do(self, *effects: Effect) -> None:
        """Take up effects, in order."""
        self.effects += effects
        self.perform(effects)

    def put(self, table: Table[T], *key: Part, value: T) -> None:
        self.do(table.set(*key, value=value))

    def remove(self, table: Table[Any], *key: Part) -> None:
        self.do(table.set(*key, value=None))

    def number(self) -> int:
        """The next number."""
        number = max(self.counter(NUMBERS) + 1, self.at.index << NUMBERS_PER_INDEX_BITS)
        self.do(SetCounter(NUMBERS, number))
        return number

    def tell(self, kind: str, key: str, change: str, revision: int, **data: Any) -> None:
        """Append an event. Data that is None or empty is left out."""
        told = {name: value for name, value in data.items() if value not in (None, "", {})}
        self._happened.append(events.Happening(kind, key, change, str(revision), told))

    def take(self, effects: list[Effect]) -> None:
        """Take up what a command on a memory came to, and tell of it."""
        self.do(*effects)
        self._happened += events.of_memories(effects, self.group)

    def finish(self) -> list[Effect]:
        """All effects, the events included."""
        return self.effects + events.append(self, self.at, self.time_ms, self._happened)


def family(rule: Callable[[Work, Any], Outcome]) -> Callable[[LedgerView, Any, Place, int, int], Result]:
    """A row of machine.FAMILIES from a function that works on a Work."""

    def decide(view: LedgerView, command: Any, at: Place, group: int, time_ms: int) -> Result:
        def afresh() -> Result:
            agent = getattr(command, "agent", "")
            if agent and (wrong := limits.name(agent, "agent")):
                return invalid("", wrong), []
            work = Work(view, at, group, time_ms, agent)
            outcome = rule(work, command)
            return outcome, [] if outcome.status in REFUSALS else work.finish()

        return once(view, getattr(command, "request", b""), getattr(command, "fingerprint", b""), time_ms, afresh)

    return decide


def invalid(id: str, reason: str) -> Outcome:
    return Outcome(Status.INVALID, id, reason=reason)
