"""Terraform states against a dumb twin: a holder, a text and a list of all that was ever written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftspine.core.ledger import audit, sessions, terraform, terraform_rows
from raftspine.core.ledger.lock_commands import ExpireSession
from raftspine.core.ledger.outcomes import Status
from raftspine.core.ledger.terraform_commands import DeleteState, LockState, PutState, RestoreState, UnlockState
from raftspine.model import Memory
from tests.support.ledger_pair import LedgerPair

NAME = "{prod}"
DAY = 86_400_000
WRITTEN = (Status.CREATED, Status.CHANGED, Status.EQUAL)

ids = st.sampled_from(["a", "b", "c"])
maybe = st.sampled_from(["", "a", "b", "c"])


def info(lock_id: str) -> dict[str, Any]:
    return {"ID": lock_id, "Who": f"{lock_id}@here"}


class States(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.usual, terraform.KEPT = terraform.KEPT, 3
        self.pair = LedgerPair()
        self.holder: str | None = None
        self.released = ""
        self.text: str | None = None
        self.number = 0
        self.written: dict[int, str] = {}
        self.kept: list[int] = []
        self.acts = 0

    def teardown(self) -> None:
        terraform.KEPT = self.usual

    def do(self, command: Any) -> Status:
        return self.pair.do(command).status

    def may(self, lock_id: str) -> bool:
        return self.holder == (lock_id or None)

    def refusal(self, lock_id: str) -> Status:
        return Status.FENCED if lock_id else Status.LOCK_HELD

    def retire(self) -> None:
        """What is current goes into the history."""
        if self.text is not None:
            self.kept.append(self.number)
        del self.kept[: -terraform.KEPT]

    def wrote(self, text: str) -> None:
        if text == self.text:
            return
        self.retire()
        self.number = max(self.written, default=0) + 1
        self.written[self.number] = self.text = text

    @rule(lock_id=ids)
    def lock(self, lock_id: str) -> None:
        free = self.holder in (None, lock_id)
        assert self.do(LockState(NAME, info(lock_id), DAY)) is (Status.GRANTED if free else Status.LOCK_HELD)
        if free:
            self.holder = lock_id

    @rule(lock_id=ids)
    def unlock(self, lock_id: str) -> None:
        status = self.do(UnlockState(NAME, info(lock_id)))
        if self.holder == lock_id:
            self.holder, self.released = None, lock_id
        elif self.released != lock_id:
            assert status is Status.NOT_CURRENT
            return
        assert status is Status.DONE

    @rule(lock_id=maybe, operator=st.booleans())
    def force(self, lock_id: str, operator: bool) -> None:
        status = self.do(UnlockState(NAME, {"ID": lock_id} if lock_id else {}, operator))
        if self.holder is None or (lock_id and lock_id != self.holder):
            assert status is (Status.DONE if lock_id and lock_id == self.released else Status.NOT_CURRENT)
            return
        self.acts += 1
        assert status is (Status.DONE if operator else Status.FORBIDDEN)
        if operator:
            self.holder = None

    @rule(lock_id=ids)
    def expire(self, lock_id: str) -> None:
        session = sessions.named("", terraform_rows.lease_of(NAME, lock_id))
        row = sessions.read(self.pair.one, session)
        assert (row is not None) is (self.holder == lock_id)
        if row is not None:
            assert self.do(ExpireSession(session, row.number, row.renewed, self.pair.term)) is Status.DONE
            self.holder = None

    @rule(lock_id=maybe, text=st.sampled_from(["one", "two", "three"]))
    def put(self, lock_id: str, text: str) -> None:
        status = self.do(PutState(NAME, Memory(text), lock_id))
        if not self.may(lock_id):
            assert status is self.refusal(lock_id)
            return
        assert status in WRITTEN
        assert (status is Status.EQUAL) is (text == self.text)
        self.wrote(text)

    @rule(lock_id=maybe)
    def delete(self, lock_id: str) -> None:
        status = self.do(DeleteState(NAME, lock_id))
        if not self.may(lock_id):
            assert status is self.refusal(lock_id)
            return
        assert status is Status.DONE
        if self.text is not None:
            self.acts += 1
            self.retire()
            self.text = None

    @rule(lock_id=maybe, number=st.integers(1, 60))
    def restore(self, lock_id: str, number: int) -> None:
        status = self.do(RestoreState(NAME, number, lock_id))
        if not self.may(lock_id):
            assert status is self.refusal(lock_id)
        elif number in self.kept or (number == self.number and self.text is not None):
            assert status in WRITTEN
            self.acts += 1
            self.wrote(self.written[number])
        else:
            assert status is Status.ABSENT

    @rule()
    def a_replica_starts_over(self) -> None:
        self.pair.restore()

    @invariant()
    def the_rows_say_what_the_twin_says(self) -> None:
        view = self.pair.one
        found = terraform_rows.current(view, NAME)
        assert (None if found.memory is None else found.memory.content) == self.text
        assert not terraform_rows.lost(found)
        assert (None if found.row.current is None else found.row.current.number) == (
            None if self.text is None else self.number
        )
        assert [kept.number for kept in found.row.kept] == self.kept
        for number, text in self.written.items():
            memory = terraform_rows.version(view, NAME, number)
            shown = number in self.kept or (number == self.number and self.text is not None)
            assert (None if memory is None else memory.content) == (text if shown else None)
        holder = terraform_rows.held_by(view, NAME)
        assert (None if holder is None else holder["ID"]) == self.holder
        entries = audit.read(view, terraform_rows.KIND, NAME, 0, 1000)
        assert len(entries) == self.acts
        assert audit.broken(entries) is None


States.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestStates = pytest.mark.timeout(900)(States.TestCase)  # a counterexample takes minutes to shrink
