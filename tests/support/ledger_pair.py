"""Two replicas that apply the same log and must never differ; one is now and then made anew from a snapshot."""

from __future__ import annotations

from typing import Any

from raftspine.core.ledger import commands, events, machine, outcomes
from raftspine.core.ledger.outcomes import REFUSALS, Outcome, Status
from raftspine.core.ledger.sessions import HELD, SESSIONS
from raftspine.core.ledger.state import Place, SetRequest
from raftspine.core.ledger.tables import unpack
from raftspine.core.ledger.work import NUMBERS
from tests.support.ledger_store import GROUP, LedgerStore


class LedgerPair:
    """`time_ms`, `term`: the leader's, set by the test. Each command is applied from bytes, by both."""

    def __init__(self) -> None:
        self.one = LedgerStore()
        self.two = LedgerStore()
        self.index = 0
        self.sub = 0
        self.term = 1
        self.time_ms = 1_000_000
        self.asked: list[tuple[Any, Outcome]] = []
        """Commands with a request and the first answer to each."""

    def do(self, command: Any, *, same_entry: bool = False) -> Outcome:
        """Apply a command in a new entry, or as the next of the entry before."""
        self.index, self.sub = (self.index, self.sub + 1) if same_entry and self.index else (self.index + 1, 0)
        data = commands.encode(command)
        place = Place(self.index, self.sub, self.term)
        last, number = events.window(self.one).last, self.one.counter(NUMBERS)
        results = []
        for store in (self.one, self.two):
            outcome, effects = machine.apply_encoded(store, data, place, GROUP, self.time_ms)
            store.perform(effects)
            results.append((outcome, effects))
        assert results[0] == results[1]
        outcome, effects = results[0]
        assert self.one.replicated() == self.two.replicated()
        assert outcomes.decode(outcomes.encode(outcome)) == outcome
        if outcome.status in REFUSALS:
            assert [effect for effect in effects if not isinstance(effect, SetRequest)] == []
        window = events.window(self.one)
        fresh = events.read(self.one, last + 1, 10_000)
        assert [n for n, _ in fresh] == list(range(last + 1, window.last + 1)), "gap-free"
        assert all((event.index, event.sub) == (self.index, self.sub) for _, event in fresh)
        assert self.one.counter(NUMBERS) >= number
        decided = outcome.status not in (Status.RING_BEHIND, Status.SESSION_GONE)  # these ask for the request again
        if decided and getattr(command, "request", b"") and (command, outcome) not in self.asked:
            self.asked.append((command, outcome))
        return outcome

    def again(self, number: int) -> None:
        """Send a request of before again: the same answer, and nothing else."""
        command, first = self.asked[number % len(self.asked)]
        before = self.one.copy().replicated()
        assert outcomes.encode(self.do(command)) == outcomes.encode(first)
        assert self.one.replicated() == before

    def restore(self) -> None:
        """The second replica starts over from a snapshot of the first."""
        self.two = self.one.copy()

    def check_index_by_session(self) -> None:
        """Every session counts what its index has, and no index row is without a session."""
        held: dict[str, int] = {}
        for key in self.one.tables.get(HELD.name, {}):
            session = unpack(key, str)[0]
            held[session] = held.get(session, 0) + 1
        rows = {
            unpack(key, str)[0]: SESSIONS.decode(data) for key, data in self.one.tables.get("session", {}).items()
        }
        assert {id: row.held for id, row in rows.items() if row.held} == held
        assert all(row.held for row in rows.values() if row.own), "a lease's own session goes with it"
