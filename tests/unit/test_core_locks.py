"""Sessions, locks, elections and fences rule by rule, as log entries."""

from typing import Any

import pytest

from raftspine.core.ledger import audit, due, elections, fence, lock_queue, locks, sessions
from raftspine.core.ledger.commands import Guard, PutMemory
from raftspine.core.ledger.lock_commands import (
    ELECTION,
    LOCK,
    AcquireAll,
    AcquireLock,
    BreakLock,
    CloseSession,
    ExpireSession,
    ExpireTicket,
    OpenSession,
    Proclaim,
    RaiseFence,
    ReleaseLock,
    RenewSession,
    Wake,
)
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.model import Memory
from tests.support.ledger_store import LedgerLog

TTL = 30_000


@pytest.fixture
def log() -> LedgerLog:
    return LedgerLog()


def acquire(lease: str, name: str = "deploy", **more: Any) -> AcquireLock:
    return AcquireLock(name, lease, ttl_ms=0 if more.get("session") else TTL, **more)


def queued(lease: str, name: str = "deploy", **more: Any) -> AcquireLock:
    return acquire(lease, name, queue=True, **more)


def release(outcome: Outcome, **more: Any) -> ReleaseLock:
    return ReleaseLock(outcome.id, outcome.result["lease"], outcome.result["token"], **more)


def expire(log: LedgerLog, session: str) -> Outcome:
    """What the leader of this term proposes when it has heard nothing."""
    row = sessions.read(log.store, session)
    assert row is not None
    return log.do(ExpireSession(session, row.number, row.renewed, log.term))


def holders(log: LedgerLog, name: str = "deploy", space: str = LOCK) -> list[str]:
    return [lease for lease, _ in lock_queue.holders(log.store, space, name, 100)]


def waiting(log: LedgerLog, name: str = "deploy") -> list[str]:
    return [lease for lease, _ in lock_queue.waiting(log.store, LOCK, name, 100)]


# ── one holder, then the next ───────────────────────────────────────────────────────────────────────────────


def test_a_lock_is_granted_once_and_says_who_has_it(log: LedgerLog) -> None:
    first = log.do(acquire("a", owner="ann"))
    assert first.status is Status.GRANTED and first.result["hold"] == 1 and first.result["ttl_ms"] == TTL
    second = log.do(acquire("b", owner="bob"))
    assert second.status is Status.LOCK_HELD
    assert second.result["holder"]["owner"] == "ann" and second.result["holder"]["token"] == first.result["token"]
    assert log.effects == [] and holders(log) == ["a"] and sessions.read(log.store, "~b") is None


def test_release_hands_on_in_the_same_entry_in_order(log: LedgerLog) -> None:
    first = log.do(acquire("a"))
    assert [log.do(queued(lease)).result["position"] for lease in "bcd"] == [1, 2, 3]
    assert log.do(release(first)).status is Status.DONE
    assert holders(log) == ["b"] and waiting(log) == ["c", "d"]
    assert log.do(release(first)).status is Status.NOT_CURRENT


def test_tokens_rise_within_an_entry_and_across(log: LedgerLog) -> None:
    tokens = [outcome.result["token"] for outcome in log.entry(*(acquire(c, f"lock-{c}") for c in "abc"))]
    tokens.append(log.do(acquire("d", "lock-d")).result["token"])
    assert tokens == sorted(set(tokens))
    assert tokens[0] >> 10 == log.index - 1 and tokens[-1] >> 10 == log.index


def test_more_grants_in_an_entry_than_an_index_has_numbers_still_rise(log: LedgerLog) -> None:
    tokens = [o.result["token"] for o in log.entry(*(acquire(f"s{i}", f"l{i}") for i in range(1500)))]
    tokens.append(log.do(acquire("last", "last")).result["token"])
    assert tokens == sorted(set(tokens))


def test_an_idle_lock_leaves_no_row(log: LedgerLog) -> None:
    log.do(release(log.do(acquire("a"))))
    left = {name: rows for name, rows in log.store.tables.items() if rows and name != "event"}
    assert left == {}


def test_priority_goes_first_until_age_outweighs_it(log: LedgerLog) -> None:
    first = log.do(acquire("a"))
    log.do(queued("old"))
    log.time_ms += lock_queue.AGING_MS // 2
    log.do(queued("high", priority=1))
    assert waiting(log) == ["high", "old"]
    log.time_ms += lock_queue.AGING_MS
    log.do(queued("late", priority=1))
    assert waiting(log) == ["high", "old", "late"]
    log.do(release(first))
    assert holders(log) == ["high"]


# ── asking again ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ticket_keeps_its_place_and_becomes_the_lease(log: LedgerLog) -> None:
    first = log.do(acquire("a"))
    log.do(queued("b"))
    log.do(queued("c"))
    again = log.do(queued("b"))
    assert (again.status, again.result["position"]) == (Status.QUEUED, 1)
    log.do(release(first))
    granted = log.do(queued("b"))
    assert (granted.status, granted.result["hold"]) == (Status.GRANTED, 1)
    assert log.do(queued("b")).result == granted.result


def test_a_ticket_nobody_asks_for_lapses_unless_asked_since(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    log.do(acquire("a"))
    log.do(queued("b", session="s", ticket_ttl_ms=5000))
    ask = lock_queue.ASKS.get(log.store, LOCK, "deploy", "b")
    assert ask is not None
    log.do(queued("b", session="s"))
    assert log.do(ExpireTicket("deploy", "b", ask.asked, log.term)).status is Status.OVERTAKEN
    ask = lock_queue.ASKS.get(log.store, LOCK, "deploy", "b")
    assert ask is not None
    assert log.do(ExpireTicket("deploy", "b", ask.asked, log.term - 1)).status is Status.OVERTAKEN
    assert log.do(ExpireTicket("deploy", "b", ask.asked, log.term)).status is Status.DONE
    assert waiting(log) == [] and sessions.read(log.store, "s") is not None


def test_a_place_can_be_given_up(log: LedgerLog) -> None:
    log.do(acquire("a"))
    log.do(queued("b"))
    log.do(queued("c"))
    assert log.do(ReleaseLock("deploy", "b")).status is Status.DONE
    assert waiting(log) == ["c"] and sessions.read(log.store, "~b") is None


def test_a_session_has_a_lock_once_with_holds(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    one = log.do(acquire("a", session="s"))
    two = log.do(acquire("a2", session="s"))
    assert (two.result["lease"], two.result["hold"], two.result["token"]) == ("a", 2, one.result["token"])
    assert log.do(acquire("a3", session="s", mode="shared")).status is Status.DEADLOCK
    assert log.do(release(one)).result["hold"] == 1
    assert holders(log) == ["a"]
    assert log.do(release(one)).result["hold"] == 0
    assert holders(log) == []
    one = log.do(acquire("b", session="s"))
    log.do(acquire("b2", session="s"))
    assert log.do(release(one, all=True)).result["hold"] == 0


# ── modes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_readers_share_and_do_not_overtake_a_writer(log: LedgerLog) -> None:
    one = log.do(acquire("r1", mode="shared"))
    two = log.do(acquire("r2", mode="shared"))
    log.do(queued("w"))
    log.do(queued("r3", mode="shared"))
    assert holders(log) == ["r1", "r2"]
    log.do(release(one))
    writer = log.do(release(two)), log.do(queued("w"))
    assert holders(log) == ["w"]
    log.do(queued("r4", mode="shared"))
    log.do(release(writer[1]))
    assert holders(log) == ["r3", "r4"]


def test_a_semaphore_counts_weighted_permits(log: LedgerLog) -> None:
    semaphore = {"mode": "semaphore", "permits": 3}
    assert log.do(acquire("none", mode="semaphore")).status is Status.INVALID
    two = log.do(acquire("two", weight=2, **semaphore))
    assert two.status is Status.GRANTED
    assert log.do(acquire("more", mode="semaphore", permits=4)).status is Status.INVALID
    assert log.do(queued("heavy", mode="semaphore", weight=3)).status is Status.QUEUED
    assert log.do(acquire("light", **semaphore)).status is Status.LOCK_HELD, "only the head may be granted"
    log.do(release(two))
    assert holders(log) == ["heavy"]


def test_what_a_session_has_of_a_semaphore_is_not_made_more_by_asking_again(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    first = log.do(acquire("a", session="s", mode="semaphore", permits=3))
    assert log.do(acquire("b", session="s", mode="semaphore", weight=3)).status is Status.DEADLOCK
    again = log.do(acquire("b", session="s", mode="semaphore"))
    assert again.result["hold"] == 2 and again.result["token"] == first.result["token"]


def test_a_lease_s_name_does_not_give_it_to_another_owner(log: LedgerLog) -> None:
    first = log.do(acquire("mine", agent="ann"))
    assert log.do(acquire("mine", agent="bob")).status is Status.EXISTS
    assert log.do(acquire("mine", "other", agent="bob")).status is Status.EXISTS, "nor its session"
    assert log.do(acquire("mine", agent="ann")).result["token"] == first.result["token"]


def test_many_readers_behind_a_writer_are_granted_over_several_entries(log: LedgerLog) -> None:
    writer = log.do(acquire("w"))
    readers = [f"r{i:03}" for i in range(lock_queue.GRANTS_AT_ONCE + 10)]
    for reader in readers:
        log.do(queued(reader, mode="shared"))
    log.do(release(writer))
    assert len(lock_queue.holders(log.store, LOCK, "deploy", 1000)) == lock_queue.GRANTS_AT_ONCE
    assert due.next_due(log.store) == log.time_ms
    log.do(Wake())
    granted = [lease for lease, _ in lock_queue.holders(log.store, LOCK, "deploy", 1000)]
    assert granted == readers and due.next_due(log.store) is None


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_refused_for_want_of_its_session_may_be_repeated(log: LedgerLog) -> None:
    """So is a session opened in a group: by the first command that needs it there, asked again under the same key."""
    command = acquire("a", session="s", request=b"key", fingerprint=b"what")
    assert log.do(command).status is Status.SESSION_GONE
    log.do(OpenSession("s", TTL))
    assert log.do(command).status is Status.GRANTED
    assert log.do(command).status is Status.GRANTED and holders(log) == ["a"]


def test_an_expiry_gives_back_all_a_session_had(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    log.do(acquire("a", "one", session="s"))
    log.do(acquire("b", "two"))
    log.do(queued("c", "two", session="s"))
    log.do(queued("d", "one"))
    log.do(queued("e", "two"))
    assert expire(log, "s").result == {"released": 2}
    assert holders(log, "one") == ["d"] and waiting(log, "two") == ["e"]
    assert log.do(acquire("f", "three", session="s")).status is Status.SESSION_GONE
    assert not [key for key in log.store.tables["held"] if key.startswith(b"s\0")]


def test_the_end_of_a_session_passes_on_so_many_places_and_a_wake_the_rest(
    log: LedgerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_queue, "GRANTS_PER_COMMAND", 3)
    log.do(OpenSession("s", TTL))
    names = [f"lock-{number}" for number in range(5)]
    for name in names:
        log.do(acquire(f"{name}-held", name, session="s"))
        log.do(queued(f"{name}-next", name))
    log.do(CloseSession("s"))
    assert sum(bool(holders(log, name)) for name in names) == 3
    assert log.do(acquire("newcomer", names[4])).status is Status.LOCK_HELD, "free, and yet another's turn"
    assert due.next_due(log.store) == log.time_ms
    log.do(Wake())
    assert [holders(log, name) for name in names] == [[f"{name}-next"] for name in names]
    assert due.next_due(log.store) is None


def test_an_expiry_is_overtaken_by_the_log_and_by_another_leader(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    row = sessions.read(log.store, "s")
    assert row is not None
    log.do(acquire("a", session="s"))
    assert log.do(ExpireSession("s", row.number, row.renewed, log.term)).status is Status.OVERTAKEN
    log.term = 2
    row = sessions.read(log.store, "s")
    assert row is not None
    assert log.do(ExpireSession("s", row.number, row.renewed, 1)).status is Status.OVERTAKEN
    assert log.do(RenewSession("s", 5000)).result["ttl_ms"] == 5000
    assert log.do(ExpireSession("s", row.number, row.renewed, 2)).status is Status.OVERTAKEN
    assert expire(log, "s").status is Status.DONE


def test_an_expiry_of_an_earlier_session_of_this_name_does_nothing(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    row = sessions.read(log.store, "s")
    assert row is not None
    log.do(CloseSession("s"))
    assert log.do(ExpireSession("s", row.number, row.renewed, 1)).status is Status.ABSENT
    log.do(OpenSession("s", TTL))
    assert log.do(ExpireSession("s", row.number, row.renewed, 1)).status is Status.OVERTAKEN


def test_a_session_is_its_owners_and_its_own_names_are_reserved(log: LedgerLog) -> None:
    assert log.do(OpenSession("s", TTL, "ann")).created
    assert not log.do(OpenSession("s", TTL, "ann")).created
    assert log.do(OpenSession("s", TTL, "bob")).status is Status.EXISTS
    assert log.do(OpenSession("~s", TTL)).status is Status.INVALID
    assert log.do(OpenSession("t", 1999)).status is Status.INVALID


def test_a_session_holds_a_bounded_number_of_things(log: LedgerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftspine.core.ledger.limits.HELD_PER_SESSION", 2)
    log.do(OpenSession("s", TTL))
    assert log.do(acquire("a", "one", session="s")).status is Status.GRANTED
    assert log.do(acquire("b", "two", session="s")).status is Status.GRANTED
    assert log.do(acquire("c", "three", session="s")).status is Status.TOO_MANY
    assert log.do(acquire("a", "one", session="s")).status is Status.GRANTED


# ── involuntary loss ────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_delay_counts_after_a_loss_only(log: LedgerLog) -> None:
    first = log.do(acquire("a", lock_delay_ms=7000))
    log.do(queued("b", lock_delay_ms=7000))
    log.do(release(first))
    assert holders(log) == ["b"]
    log.do(queued("c"))
    expire(log, "~b")
    assert holders(log) == [] and due.next_due(log.store) == log.time_ms + 7000
    assert log.do(queued("c")).result["free_at_ms"] == log.time_ms + 7000
    log.do(Wake())
    assert holders(log) == []
    log.time_ms += 7000
    log.do(Wake())
    assert holders(log) == ["c"] and due.next_due(log.store) is None


def test_a_newcomer_after_the_delay_needs_no_wake_and_does_not_overtake(log: LedgerLog) -> None:
    log.do(acquire("a", lock_delay_ms=7000))
    log.do(queued("b"))
    expire(log, "~a")
    log.time_ms += 7000
    assert log.do(queued("c")).status is Status.QUEUED
    assert holders(log) == ["b"]
    log.time_ms += 1
    assert log.do(Wake()).status is Status.DONE
    assert due.next_due(log.store) is None


def test_a_delayed_lock_nobody_wants_is_forgotten_by_the_wake(log: LedgerLog) -> None:
    log.do(acquire("a", lock_delay_ms=7000))
    expire(log, "~a")
    assert log.do(acquire("b")).status is Status.LOCK_HELD
    log.time_ms += 7000
    log.do(Wake())
    assert locks.show(log.store, LOCK, "deploy") is None
    assert log.do(acquire("b")).status is Status.GRANTED


def test_break_needs_a_reason_and_is_written_down(log: LedgerLog) -> None:
    assert log.do(BreakLock("deploy", "stuck")).status is Status.NOT_CURRENT
    first = log.do(acquire("a", owner="ann"))
    assert log.do(BreakLock("deploy", " ")).status is Status.INVALID
    log.do(queued("b"))
    broken = log.do(BreakLock("deploy", "host burnt down", agent="root"))
    assert broken.result["broken"] == [{"lease": "a", "owner": "ann", "token": first.result["token"]}]
    assert holders(log) == ["b"]
    (entry,) = audit.read(log.store, LOCK, "deploy", 0, 10)
    assert (entry.actor, entry.action, entry.subject, entry.time_ms) == ("root", "break", "ann", log.time_ms)
    assert entry.details["reason"] == "host burnt down"
    assert locks.check(log.store, LOCK, "deploy", first.result["token"]) is None


# ── several locks ───────────────────────────────────────────────────────────────────────────────────────────


def test_acquire_all_takes_all_or_none(log: LedgerLog) -> None:
    log.do(acquire("x", "b"))
    refused = log.do(AcquireAll(("c", "b", "a"), "all", ttl_ms=TTL))
    assert (refused.status, refused.result["name"]) == (Status.LOCK_HELD, "b")
    assert log.effects == [] and holders(log, "a") == []
    granted = log.do(AcquireAll(("c", "a", "a"), "all", ttl_ms=TTL))
    assert granted.status is Status.GRANTED and set(granted.result["tokens"]) == {"a", "c"}
    assert len(set(granted.result["tokens"].values())) == 2
    expire(log, "~all")
    assert holders(log, "a") == [] and holders(log, "c") == []


def test_acquire_all_does_not_take_some_because_it_waits_for_another(log: LedgerLog) -> None:
    log.do(OpenSession("s", TTL))
    log.do(acquire("x", "b"))
    log.do(queued("mine", "b", session="s"))
    assert log.do(AcquireAll(("a", "b", "c"), "all", session="s")).status is Status.LOCK_HELD
    assert log.effects == [] and holders(log, "a") == []
    log.do(acquire("r", "d", session="s", mode="shared"))
    assert log.do(AcquireAll(("a", "d"), "all", session="s")).status is Status.DEADLOCK
    assert log.do(AcquireAll(("a", "d"), "all", session="gone")).status is Status.SESSION_GONE
    assert log.effects == []


def test_the_request_that_would_close_a_circle_is_refused(log: LedgerLog) -> None:
    for session in "xyz":
        log.do(OpenSession(session, TTL))
        log.do(acquire(f"{session}1", f"lock-{session}", session=session))
    assert log.do(queued("x2", "lock-y", session="x")).status is Status.QUEUED
    assert log.do(queued("y2", "lock-z", session="y")).status is Status.QUEUED
    assert log.do(queued("z2", "lock-x", session="z")).status is Status.DEADLOCK
    assert log.do(acquire("z2", "lock-x", session="z")).status is Status.LOCK_HELD, "who does not wait may ask"
    all_of_them = AcquireAll(("lock-x", "free"), "z3", session="z")
    assert log.do(all_of_them).status is Status.LOCK_HELD
    waits = AcquireAll(("lock-x", "free"), "z3", session="z", wait=True)
    assert log.do(waits).status is Status.DEADLOCK


def test_waiting_behind_someone_in_a_queue_counts_as_waiting_for_them(log: LedgerLog) -> None:
    log.do(OpenSession("x", TTL))
    log.do(OpenSession("y", TTL))
    log.do(acquire("reader", "shared", mode="shared"))
    log.do(acquire("y1", "other", session="y"))
    log.do(queued("x1", "shared", session="x"))
    log.do(queued("y2", "shared", session="y", mode="shared"))
    assert log.do(queued("x2", "other", session="x")).status is Status.DEADLOCK


# ── tokens at work ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_guard_is_current_or_the_write_is_fenced(log: LedgerLog) -> None:
    def write(token: int, lock: str = "deploy") -> Outcome:
        return log.do(PutMemory("m", Memory(token), guards=(Guard(lock, token),)))

    first = log.do(acquire("a"))
    token = first.result["token"]
    assert write(token).status is Status.CREATED
    for wrong in (0, -1, token + 1, 1 << 63):
        assert write(wrong).status is Status.FENCED
    assert write(token, "elsewhere").status is Status.FENCED
    assert write(token, "x" * 300).status is Status.FENCED
    log.do(queued("b"))
    expire(log, "~a")
    refused = write(token)
    assert refused.status is Status.FENCED and refused.result == {"lock": "deploy", "token": token}
    assert write(log.do(queued("b")).result["token"]).status is Status.CHANGED


def test_a_write_has_a_bounded_number_of_guards(log: LedgerLog) -> None:
    guard = Guard("deploy", log.do(acquire("a")).result["token"])
    assert log.do(PutMemory("m", Memory(1), guards=(guard,) * 64)).status is Status.CREATED
    assert log.do(PutMemory("m", Memory(2), guards=(guard,) * 65)).status is Status.INVALID


def test_a_replayed_write_answers_as_it_did_when_its_guard_was_current(log: LedgerLog) -> None:
    first = log.do(acquire("a"))
    command = PutMemory("m", Memory(1), guards=(Guard("deploy", first.result["token"]),), request=b"k" * 16)
    assert log.do(command).status is Status.CREATED
    log.do(release(first))
    assert log.do(command).status is Status.CREATED


def test_a_fence_only_rises(log: LedgerLog) -> None:
    assert log.do(RaiseFence("disk", 5)).result == {"highest": 5}
    assert log.do(RaiseFence("disk", 5)).status is Status.DONE
    stale = log.do(RaiseFence("disk", 4))
    assert (stale.status, stale.result) == (Status.STALE_TOKEN, {"highest": 5})
    assert log.do(RaiseFence("disk", 0)).status is Status.INVALID
    assert fence.highest(log.store, "disk") == 5 and fence.highest(log.store, "else") == 0


def test_check_tells_whose_token_it_is(log: LedgerLog) -> None:
    token = log.do(acquire("a", owner="ann")).result["token"]
    found = locks.check(log.store, LOCK, "deploy", token)
    assert found is not None and (found.owner, found.session, found.hold) == ("ann", "~a", 1)
    assert locks.check(log.store, LOCK, "deploy", token + 1) is None
    assert locks.check(log.store, ELECTION, "deploy", token) is None
    assert locks.check(log.store, LOCK, "x\0y", token) is None


# ── elections ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_leader_proclaims_and_resigns_and_the_next_takes_office(log: LedgerLog) -> None:
    first = log.do(acquire("a", "chief", space=ELECTION, owner="ann", metadata="I lead"))
    log.do(queued("b", "chief", space=ELECTION, owner="bob"))
    office = elections.leader(log.store, "chief")
    assert office is not None and (office.owner, office.value) == ("ann", "I lead")
    term = first.result["token"]
    assert log.do(Proclaim("chief", "a", term, {"n": 1})).status is Status.DONE
    assert log.do(Proclaim("chief", "b", 0, "no")).status is Status.NOT_CURRENT
    assert log.do(Proclaim("chief", "a", term + 1, "no")).status is Status.NOT_CURRENT
    office = elections.leader(log.store, "chief")
    assert office is not None and office.value == {"n": 1}
    log.do(ReleaseLock("chief", "a", term, space=ELECTION))
    office = elections.leader(log.store, "chief")
    assert office is not None and office.owner == "bob" and office.term > term
    assert log.do(Proclaim("chief", "a", term, "late")).status is Status.NOT_CURRENT
    guarded = PutMemory("m", Memory(1), guards=(Guard("chief", office.term, ELECTION),))
    assert log.do(guarded).status is Status.CREATED
    assert log.do(acquire("c", "chief", space=ELECTION, mode="shared")).status is Status.INVALID
    assert holders(log, "chief") == [], "elections and locks do not share names"


# ── inspection ──────────────────────────────────────────────────────────────────────────────────────────────


def test_locks_are_listed_by_prefix(log: LedgerLog) -> None:
    for name in ("team/b", "team/a", "other", "team/c"):
        log.do(acquire(name, name))
    assert [name for name, _ in locks.page(log.store, LOCK, "team/", "", 2)] == ["team/a", "team/b"]
    assert [name for name, _ in locks.page(log.store, LOCK, "team/", "team/b", 9)] == ["team/c"]
    shown = locks.show(log.store, LOCK, "team/a")
    assert shown is not None and [lease for lease, _ in shown.holders] == ["team/a"] and shown.waiting == []


def test_a_request_is_decided_once(log: LedgerLog) -> None:
    command = acquire("a", request=b"k" * 16, fingerprint=b"f" * 16)
    first = log.do(command)
    log.do(release(first))
    assert log.do(command) == first and holders(log) == []
    assert log.do(acquire("z", request=b"k" * 16, fingerprint=b"g" * 16)).status is Status.REQUEST_REUSED


@pytest.mark.parametrize(
    "command",
    [
        acquire("a", name=""),
        acquire("a", name="x" * 256),
        acquire("a", name="nul\0"),
        acquire(""),
        acquire("x" * 101),
        acquire("a", mode="upgradable"),
        acquire("a", space="nowhere"),
        acquire("a", priority=101),
        acquire("a", weight=0),
        acquire("a", lock_delay_ms=-1),
        acquire("a", session="~x"),
        AcquireLock("deploy", "a", ttl_ms=0),
        AcquireAll((), "a", ttl_ms=TTL),
        AcquireAll(("a", "nul\0"), "a", ttl_ms=TTL),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(log: LedgerLog, command: Any) -> None:
    assert log.do(command).status is Status.INVALID
    assert log.effects == [] and log.store.tables == {}


@pytest.mark.parametrize(
    "command",
    [
        ReleaseLock("x" * 300, "y" * 300, -5),
        ReleaseLock("deploy", "a", 1 << 62, space="nowhere"),
        CloseSession("\0"),
        RenewSession("x" * 999),
        ExpireSession("", 0, 0, 0),
        ExpireTicket("\0", "\0", -1, -1),
        Proclaim("\0", "\0", -1),
        BreakLock("deploy", "why", -1),
        Wake(-1),
        RaiseFence("", -1),
    ],
)
def test_nonsense_is_an_outcome(log: LedgerLog, command: Any) -> None:
    log.do(acquire("a"))
    before = log.store.copy().replicated()
    log.do(command)
    assert log.store.replicated() == before
