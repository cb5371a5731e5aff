"""Terraform states, their locks and their history rule by rule, as log entries."""

from typing import Any

import pytest

from raftspine.core.ledger import audit, sessions, terraform, terraform_rows
from raftspine.core.ledger.lock_commands import LOCK, AcquireLock, ExpireSession
from raftspine.core.ledger.lock_queue import holders
from raftspine.core.ledger.memory_commands import DeleteMemory
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.terraform_commands import DeleteState, LockState, PutState, RestoreState, UnlockState
from raftspine.core.partition import coordination_key
from raftspine.model import Memory
from tests.support.ledger_store import LedgerLog

DAY = 86_400_000
NAME = "prod"
ODD = "team/{a}}b%7D é"


@pytest.fixture
def log() -> LedgerLog:
    return LedgerLog()


def info(lock_id: str, who: str = "ada@here") -> dict[str, Any]:
    return {"ID": lock_id, "Operation": "OperationTypeApply", "Who": who, "Created": "2026-01-01T00:00:00Z"}


def lock(lock_id: str, name: str = NAME, **more: Any) -> LockState:
    return LockState(name, info(lock_id), DAY, **more)


def put(content: str, lock_id: str = "", name: str = NAME, **more: Any) -> PutState:
    return PutState(name, Memory(content, metadata={"serial": len(content)}), lock_id, **more)


def text(log: LedgerLog, name: str = NAME) -> Any:
    memory = terraform_rows.current(log.store, name).memory
    return None if memory is None else memory.content


def numbers(log: LedgerLog, name: str = NAME) -> list[int]:
    return [kept.number for kept in terraform_rows.current(log.store, name).row.kept]


def expire(log: LedgerLog, lock_id: str, name: str = NAME) -> Outcome:
    session = sessions.named("", terraform_rows.lease_of(name, lock_id))
    row = sessions.read(log.store, session)
    assert row is not None
    return log.do(ExpireSession(session, row.number, row.renewed, log.term))


def chain(log: LedgerLog, name: str = NAME) -> list[tuple[str, str, str, bool]]:
    entries = audit.read(log.store, terraform_rows.KIND, name, 0, 100)
    assert audit.broken(entries) is None
    return [(entry.action, entry.subject, entry.actor, entry.refused) for entry in entries]


def test_a_state_is_locked_written_and_unlocked(log: LedgerLog) -> None:
    granted = log.do(lock("one"))
    assert (granted.status, granted.id) == (Status.GRANTED, NAME)
    assert granted.result["ttl_ms"] == DAY
    written = log.do(put("first", "one", agent="ada"))
    assert (written.status, written.created, written.result) == (Status.CREATED, True, {"number": 1})
    assert text(log) == "first"
    assert log.do(put("second!", "one")).status is Status.CHANGED
    assert log.do(UnlockState(NAME, info("one"))).result["forced"] is False
    assert terraform_rows.held_by(log.store, NAME) is None
    row = terraform_rows.current(log.store, NAME).row
    assert [(kept.number, kept.size, kept.by, kept.lock_id) for kept in row.kept] == [(1, 5, "ada", "one")]
    assert row.current is not None
    assert (row.current.number, row.current.metadata) == (2, {"serial": 7})
    assert chain(log) == []


def test_who_comes_second_is_told_the_holders_info(log: LedgerLog) -> None:
    log.do(lock("one"))
    refused = log.do(lock("two"))
    assert (refused.status, refused.result) == (Status.LOCK_HELD, {"lock": info("one")})
    assert log.effects == []
    assert log.do(lock("one")).status is Status.GRANTED, "the same request again"
    without_lock = log.do(put("x"))
    assert (without_lock.status, without_lock.result) == (Status.LOCK_HELD, {"lock": info("one")})
    assert (text(log), log.effects) == (None, [])


def test_only_the_current_lock_writes(log: LedgerLog) -> None:
    assert log.do(put("x", "never held")).status is Status.FENCED
    log.do(lock("one"))
    log.do(put("first", "one"))
    log.do(UnlockState(NAME, info("one")))
    late = log.do(put("late", "one"))
    assert (late.status, late.result) == (Status.FENCED, {"lock": None})
    log.do(lock("two"))
    late = log.do(put("late", "one"))
    assert (late.status, late.result) == (Status.FENCED, {"lock": info("two")})
    assert log.do(DeleteState(NAME, "one")).status is Status.FENCED
    assert log.do(RestoreState(NAME, 1, "one")).status is Status.FENCED
    assert text(log) == "first"


def test_a_lease_that_ran_out_writes_no_more_and_a_write_prolongs_it(log: LedgerLog) -> None:
    log.do(lock("one"))
    session = sessions.named("", terraform_rows.lease_of(NAME, "one"))
    before = sessions.read(log.store, session)
    log.do(put("first", "one"))
    after = sessions.read(log.store, session)
    assert before is not None
    assert after is not None
    assert after.renewed > before.renewed, "what the leader read before the write is overtaken"
    assert log.do(ExpireSession(session, before.number, before.renewed, log.term)).status is Status.OVERTAKEN
    assert expire(log, "one").status is Status.DONE
    assert log.do(put("late", "one")).status is Status.FENCED
    assert log.do(put("unlocked")).status is Status.CHANGED, "nobody holds it"


def test_unlocking_again_is_no_error_and_unlocking_anothers_is(log: LedgerLog) -> None:
    assert log.do(UnlockState(NAME, info("one"))).status is Status.NOT_CURRENT
    log.do(lock("one"))
    refused = log.do(UnlockState(NAME, info("two"), True))
    assert (refused.status, refused.result) == (Status.NOT_CURRENT, {"lock": info("one")})
    for _ in range(2):
        assert log.do(UnlockState(NAME, info("one"))).status is Status.DONE
    log.do(lock("two"))
    assert log.do(UnlockState(NAME, info("one"))).status is Status.DONE, "a repetition"
    assert terraform_rows.held_by(log.store, NAME) == info("two"), "that ends nothing"


@pytest.mark.parametrize("shown", [{}, {"ID": "one"}, info("one", "eve@there")])
def test_force_unlock_is_an_operators_and_audited(log: LedgerLog, shown: dict[str, Any]) -> None:
    log.do(lock("one"))
    refused = log.do(UnlockState(NAME, shown, agent="eve"))
    assert refused.status is Status.FORBIDDEN
    assert terraform_rows.held_by(log.store, NAME) == info("one")
    forced = log.do(UnlockState(NAME, shown, True, agent="op"))
    assert (forced.status, forced.result) == (Status.DONE, {"forced": True, "lock": info("one")})
    assert chain(log) == [("force-unlock", "one", "eve", True), ("force-unlock", "one", "op", False)]
    told = audit.read(log.store, terraform_rows.KIND, NAME, 1, 1)[0].details
    assert told == {"who": "ada@here", "operation": "OperationTypeApply", "created": "2026-01-01T00:00:00Z"}
    assert [entry.action for entry in audit.read(log.store, LOCK, terraform_rows.lock_name(NAME), 0, 9)] == ["break"]
    assert log.do(put("late", "one")).status is Status.FENCED
    assert log.do(UnlockState(NAME, info("one"))).status is Status.NOT_CURRENT, "its holder learns that it was lost"
    assert log.do(UnlockState(NAME, {}, True)).status is Status.NOT_CURRENT, "there is nothing to unlock"


def test_an_info_that_is_no_text_can_be_audited(log: LedgerLog) -> None:
    log.do(LockState(NAME, {"ID": "one", "Who": b"\xff", "Created": [1.5], "Operation": "x"}, DAY))
    assert log.do(UnlockState(NAME, {}, True)).status is Status.DONE
    assert audit.read(log.store, terraform_rows.KIND, NAME, 0, 1)[0].details == {"operation": "x"}


def test_the_same_lock_id_on_two_states_is_two_locks(log: LedgerLog) -> None:
    log.do(lock("one"))
    log.do(lock("one", ODD))
    log.do(UnlockState(NAME, info("one")))
    assert log.do(put("x", "one", ODD)).status is Status.CREATED
    assert log.do(put("x", "one")).status is Status.FENCED


def test_a_holder_that_came_by_another_door_is_told_in_terraforms_words(log: LedgerLog) -> None:
    log.do(AcquireLock(terraform_rows.lock_name(NAME), "L1", owner="script", ttl_ms=60_000, mode="shared"))
    refused = log.do(lock("one"))
    assert refused.result["lock"]["ID"] == "L1"
    assert refused.result["lock"]["Who"] == "script"
    assert log.do(put("x")).status is Status.LOCK_HELD
    assert log.do(UnlockState(NAME, {}, True)).result["forced"] is True
    assert holders(log.store, LOCK, terraform_rows.lock_name(NAME), 9) == []


def test_the_same_state_again_is_no_new_version(log: LedgerLog) -> None:
    log.do(put("one"))
    again = log.do(put("one"))
    assert (again.status, again.result, numbers(log)) == (Status.EQUAL, {"number": 1}, [])


def test_history_is_kept_bounded_and_brought_back(log: LedgerLog) -> None:
    for at in range(terraform.KEPT + 3):
        log.do(put(f"state {at + 1}"))
    assert numbers(log) == list(range(3, terraform.KEPT + 3))
    assert terraform_rows.version(log.store, NAME, 2) is None
    kept = terraform_rows.version(log.store, NAME, 3)
    assert kept is not None
    assert kept.content == "state 3"
    restored = log.do(RestoreState(NAME, 3, agent="ada"))
    assert (restored.status, restored.result) == (Status.CHANGED, {"number": terraform.KEPT + 4})
    assert text(log) == "state 3"
    assert log.do(RestoreState(NAME, 3)).status is Status.ABSENT, "it made room for what it replaced"
    assert chain(log) == [("restore", "3", "ada", False)]


def test_history_is_bounded_by_bytes(log: LedgerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "KEPT_BYTES", 25)
    for at in range(6):
        log.do(put(f"{at}" * 10))
    assert numbers(log) == [4, 5]


def test_deleting_keeps_the_history(log: LedgerLog) -> None:
    assert log.do(DeleteState(NAME)).result == {"deleted": False}
    log.do(put("one"))
    assert log.do(DeleteState(NAME, agent="ada")).result == {"deleted": True}
    found = terraform_rows.current(log.store, NAME)
    assert (found.memory, found.row.current, terraform_rows.lost(found)) == (None, None, False)
    assert log.do(RestoreState(NAME, 1)).result == {"number": 2}
    assert text(log) == "one"
    assert [entry[0] for entry in chain(log)] == ["delete", "restore"]


def test_a_memory_that_went_another_way_is_not_taken_for_no_state(log: LedgerLog) -> None:
    log.do(put("one"))
    log.do(DeleteMemory(terraform_rows.memory_id(NAME)))
    assert terraform_rows.lost(terraform_rows.current(log.store, NAME))
    assert log.do(put("two")).result == {"number": 2}
    assert not terraform_rows.lost(terraform_rows.current(log.store, NAME))


@pytest.mark.parametrize(
    "command",
    [
        lock("x" * 300),
        LockState(NAME, {}, DAY),
        LockState(NAME, {"ID": 7}, DAY),
        LockState(NAME, {"ID": "a\0"}, DAY),
        LockState(NAME, {"ID": "a"}, 1),
        LockState(NAME, {"ID": "a", "Info": "x" * 5000}, DAY),
        lock("one", ""),
        lock("one", "x" * 250),
        lock("one", "a\0b"),
        put("x", name=""),
        put("x", name="}" * 90),
        put("x", "a\0"),
        put("x" * (terraform.STATE_BYTES + 1)),
        PutState(NAME, Memory({"version": 4})),
        PutState(NAME, Memory("x", metadata={"x": "x" * 5000})),
        UnlockState("", {}, True),
        UnlockState(NAME, {"ID": ""}, True),
        DeleteState(""),
        RestoreState("", 1),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(log: LedgerLog, command: Any) -> None:
    log.do(put("one"))
    assert log.do(command).status is Status.INVALID
    assert log.effects == []


@pytest.mark.parametrize("number", [0, -1, 1 << 60, 99])
def test_a_version_that_is_not_kept(log: LedgerLog, number: int) -> None:
    log.do(put("one"))
    assert log.do(RestoreState(NAME, number)).status is Status.ABSENT


@pytest.mark.parametrize("name", [NAME, ODD, "{x}", "}", "{", "%", "a b/ü"])
def test_state_and_lock_share_a_group_whatever_the_name(name: str) -> None:
    assert coordination_key(terraform_rows.lock_name(name)) == terraform_rows.memory_id(name)


def test_names_that_differ_have_ids_that_differ() -> None:
    names = ["a}", "a%7D", "a%257D", "a%", "a%25", "a"]
    assert len({terraform_rows.memory_id(name) for name in names}) == len(names)
