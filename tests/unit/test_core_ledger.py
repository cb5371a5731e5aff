"""The ledger's rules one by one, as a caller of the strong path meets them."""

from typing import Any, get_args

import msgspec
import pytest

from raftspine.core import merge
from raftspine.core.ledger import commands, machine, outcomes
from raftspine.core.ledger.commands import Condition, DeleteMemory, PatchMemory, PutMemory, VoidRequest
from raftspine.core.ledger.lock_commands import Wake
from raftspine.core.ledger.memories import demoted_counter
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import (
    Conflict,
    Effect,
    Place,
)
from raftspine.errors import Corrupt
from raftspine.model import Memory, Version
from tests.support.ledger_store import GROUP, LedgerStore

KEY, PRINT = b"k" * 16, b"f" * 16


class Ledger(LedgerStore):
    """One replica of one group; `time_ms` is the leader's clock, set by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.effects: list[Effect] = []
        self.index = 0
        self.time_ms = 1_000

    def do(self, command: Any) -> Outcome:
        self.index += 1
        place = Place(self.index, 0)
        outcome, self.effects = machine.apply_encoded(self, commands.encode(command), place, GROUP, self.time_ms)
        self.perform(self.effects)
        return outcome


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def put(content: Any = "one", **more: Any) -> PutMemory:
    fields = {name: more.pop(name) for name in ("tags", "ttl_seconds", "content_sha256") if name in more}
    return PutMemory("x", Memory(content, **fields), **more)


def ring_version(origin: str, seq: int, stamp: int, content: Any = "ring", **fields: Any) -> Version:
    return Version("x", origin, seq, stamp, {}, Memory(content, **fields))


def test_put_creates_then_changes_then_finds_nothing_to_do(ledger: Ledger) -> None:
    first = ledger.do(put("one", agent="ann"))
    assert (first.status, first.created, first.version) == (Status.CREATED, True, "s-3-1-0")
    ledger.time_ms = 2_000
    second = ledger.do(put("two", agent="bob"))
    assert (second.status, second.created, second.version) == (Status.CHANGED, False, "s-3-2-0")
    assert second.memory is not None
    assert (second.memory.created_at_ms, second.memory.updated_at_ms) == (1_000, 2_000)
    assert second.memory.updated_by == "bob"
    third = ledger.do(put("two", agent="bob"))
    assert (third.status, third.version) == (Status.EQUAL, "s-3-2-0")
    assert ledger.effects == []


def test_equality_is_that_of_json(ledger: Ledger) -> None:
    ledger.do(put({"n": 1}))
    assert ledger.do(put({"n": True})).status is Status.CHANGED
    assert ledger.do(put({"n": True})).status is Status.EQUAL


def test_compare_and_set(ledger: Ledger) -> None:
    assert ledger.do(put("one", expected=Condition("*"))).status is Status.VERSION_CONFLICT
    created = ledger.do(put("one", expected=Condition(absent=True)))
    assert created.status is Status.CREATED
    refused = ledger.do(put("one", expected=Condition(absent=True)))
    assert (refused.status, refused.current) == (Status.VERSION_CONFLICT, created.version), "even for equal content"
    changed = ledger.do(put("two", expected=Condition(created.version)))
    assert changed.status is Status.CHANGED
    stale = ledger.do(put("three", expected=Condition(created.version)))
    assert (stale.status, stale.current) == (Status.VERSION_CONFLICT, changed.version)
    assert ledger.effects == []


def test_two_who_count_to_the_same_number_do_not_both_succeed(ledger: Ledger) -> None:
    five = ledger.do(put(5)).version
    again = put(6, expected=Condition(five), agent="ann")
    assert ledger.do(again).status is Status.CHANGED
    assert ledger.do(again).status is Status.EQUAL, "the same writer, sent again"
    other = put(6, expected=Condition(five), agent="bob")
    assert ledger.do(other).status is Status.VERSION_CONFLICT
    keyed = put(6, expected=Condition(five), agent="ann", request=KEY, fingerprint=PRINT)
    assert ledger.do(keyed).status is Status.VERSION_CONFLICT, "a new key is a new request"


def test_tags_left_out_are_kept(ledger: Ledger) -> None:
    ledger.do(put(tags=("critical",)))
    kept = ledger.do(put("two", keep_tags=True))
    assert kept.memory is not None
    assert kept.memory.tags == ("critical",)


def test_patch_changes_what_it_names(ledger: Ledger) -> None:
    assert ledger.do(PatchMemory("x", {"content": "two"})).status is Status.ABSENT
    ledger.do(put("one", tags=("a",), content_sha256=b"old", ttl_seconds=60))
    ledger.time_ms = 2_000
    outcome = ledger.do(PatchMemory("x", {"content": "two", "importance": 1}))
    memory = outcome.memory
    assert memory is not None
    assert (memory.content, memory.tags, memory.importance) == ("two", ("a",), 1.0)
    assert memory.content_sha256 == b"", "a digest of other content is worse than none"
    assert memory.expires_at_ms == 61_000
    assert ledger.do(PatchMemory("x", {})).status is Status.EQUAL
    for wrong in ({"id": "y"}, {"tags": "critical"}, {"pinned": 1}, {"ttl_seconds": 0}, {"ttl_seconds": 1 << 50}):
        assert ledger.do(PatchMemory("x", wrong)).status is Status.INVALID
        assert ledger.effects == []


def test_expiry_is_by_leader_time_and_exact(ledger: Ledger) -> None:
    ledger.do(put(ttl_seconds=1))
    ledger.time_ms = 1_999
    assert ledger.do(put(expected=Condition(absent=True))).status is Status.VERSION_CONFLICT
    ledger.time_ms = 2_000
    assert ledger.do(PatchMemory("x", {"pinned": True})).status is Status.ABSENT
    again = ledger.do(put(expected=Condition(absent=True)))
    assert again.status is Status.CREATED
    assert again.memory is not None
    assert again.memory.created_at_ms == 2_000


def test_an_equal_put_prolongs_a_memory_that_expires(ledger: Ledger) -> None:
    ledger.do(put(ttl_seconds=1))
    ledger.time_ms = 1_500
    assert ledger.do(put(ttl_seconds=1)).status is Status.CHANGED
    assert ledger.strongs["x"].memory is not None
    assert ledger.strongs["x"].memory.expires_at_ms == 2_500


def test_delete_is_idempotent_and_leaves_a_record(ledger: Ledger) -> None:
    assert ledger.do(DeleteMemory("x")).status is Status.ABSENT
    assert ledger.strongs == {}
    version = ledger.do(put()).version
    assert ledger.do(DeleteMemory("x", Condition("s-3-9-0"))).status is Status.VERSION_CONFLICT
    assert ledger.do(DeleteMemory("x", Condition(version))).status is Status.DELETED
    assert ledger.strongs["x"].memory is None
    assert ledger.do(DeleteMemory("x", Condition(version))).status is Status.ABSENT
    assert ledger.do(put()).created


def test_a_request_gets_its_first_answer_for_a_day(ledger: Ledger) -> None:
    command = put("one", request=KEY, fingerprint=PRINT)
    first = ledger.do(command)
    ledger.do(put("two"))
    assert outcomes.encode(ledger.do(command)) == outcomes.encode(first)
    assert ledger.effects == []
    assert ledger.do(put("one", request=KEY, fingerprint=b"other")).status is Status.REQUEST_REUSED
    ledger.time_ms += 24 * 3600 * 1000
    assert ledger.do(command).status is Status.CHANGED, "after a day it is a new request"


def test_a_refusal_is_an_answer_too(ledger: Ledger) -> None:
    command = put(expected=Condition("*"), request=KEY, fingerprint=PRINT)
    assert ledger.do(command).status is Status.VERSION_CONFLICT
    ledger.do(put("two"))
    assert ledger.do(command).status is Status.VERSION_CONFLICT


def test_voiding_settles_what_is_open_and_not_what_is_done(ledger: Ledger) -> None:
    assert ledger.do(VoidRequest(KEY)).status is Status.VOIDED
    assert ledger.do(put(request=KEY, fingerprint=PRINT)).status is Status.VOIDED
    assert ledger.strongs == {}
    assert ledger.do(VoidRequest(KEY)).status is Status.VOIDED
    done = ledger.do(put(request=b"2" * 16, fingerprint=PRINT))
    assert ledger.do(VoidRequest(b"2" * 16)) == done
    assert ledger.do(VoidRequest(b"")).status is Status.INVALID


def test_promotion_builds_on_the_ring_and_reports_what_it_did_not_see(ledger: Ledger) -> None:
    seen = ring_version("n~1", 4, 99 << 16, "seen", tags=("t",), created_at_ms=7)
    unseen = ring_version("m~1", 2, 50)
    saw = merge.put(None, seen).record
    ledger.rings["x"] = merge.put(saw, unseen).record
    command = put("new", keep_tags=True, expected=Condition("r-n~1-4"), ring=saw)
    outcome = ledger.do(command)
    assert outcome.status is Status.CHANGED
    assert not outcome.created
    assert outcome.memory is not None
    assert (outcome.memory.tags, outcome.memory.created_at_ms) == (("t",), 7)
    assert ledger.strongs["x"].shadow == {"n~1": 4}
    assert ledger.strongs["x"].stamp == 99 << 16
    losers = [effect for effect in ledger.effects if isinstance(effect, Conflict)]
    assert losers == [Conflict("x", unseen, "s-3-1-0", 1_000)]
    ledger.do(put("newer", ring=saw))
    assert not any(isinstance(effect, Conflict) for effect in ledger.effects), "only the promotion reports"


def test_equal_content_on_the_ring_is_still_promoted(ledger: Ledger) -> None:
    saw = merge.put(None, ring_version("n~1", 4, 99, "same")).record
    assert ledger.do(put("same", ring=saw)).status is Status.CHANGED
    assert ledger.strongs["x"].memory is not None


def test_demotion_makes_one_version_above_all_it_covers(ledger: Ledger) -> None:
    saw = merge.put(None, ring_version("n~1", 4, 2_000 << 16)).record
    ledger.rings["x"] = saw
    ledger.do(put("strong", ring=saw))
    outcome = ledger.do(put("plain", demote=True, request=KEY, fingerprint=PRINT))
    assert (outcome.status, outcome.version) == (Status.DEMOTED, "r-log-3-1")
    version = outcome.ring
    assert version is not None
    assert version.stamp == (2_000 << 16) + 1, "the leader's clock is behind the ring's"
    assert version.context == {"n~1": 4}
    assert version.request == KEY + PRINT
    assert ledger.strongs == {}
    assert ledger.rings["x"].versions == (version,)
    assert ledger.counters == {"ring-seq": 1, demoted_counter("x"): 1, "events/last": 2}


def test_a_promotion_must_have_seen_the_last_demotion(ledger: Ledger) -> None:
    """Otherwise it would build on what the ring held before, and the demoting write would be lost."""
    ledger.do(put("one"))
    ledger.do(put("two", demote=True))
    behind = ledger.do(PatchMemory("x", {"tags": ["critical"]}, request=KEY, fingerprint=PRINT))
    assert behind.status is Status.RING_BEHIND
    assert KEY not in ledger.requests, "the same request may come again"
    good = PatchMemory("x", {"tags": ["critical"]}, request=KEY, fingerprint=PRINT, ring=ledger.rings["x"])
    outcome = ledger.do(good)
    assert outcome.memory is not None
    assert (outcome.memory.content, outcome.memory.tags) == ("two", ("critical",))
    assert ledger.counter(demoted_counter("x")) == 0


def test_a_vector_that_saw_the_demotion_is_enough(ledger: Ledger) -> None:
    """The ring may have deleted, and purged, the memory since."""
    ledger.do(put("one", demote=True))
    assert ledger.do(put("two")).status is Status.RING_BEHIND
    assert ledger.do(put("two", log_seen=1)).status is Status.CREATED


def test_after_a_strong_delete_the_ring_may_hold_the_id_again(ledger: Ledger) -> None:
    before = merge.put(None, ring_version("n~1", 4, 10, "before")).record
    ledger.do(put("strong", ring=before))
    ledger.do(DeleteMemory("x"))
    assert ledger.do(PatchMemory("x", {"pinned": True}, ring=before)).status is Status.ABSENT, "was shadowed"
    after = merge.put(before, ring_version("m~1", 1, 20, "after")).record
    outcome = ledger.do(PatchMemory("x", {"pinned": True}, ring=after))
    assert outcome.memory is not None
    assert outcome.memory.content == "after"
    assert ledger.strongs["x"].shadow == {"n~1": 4, "m~1": 1}


def test_a_dead_record_keeps_its_shadow_under_a_newer_picture(ledger: Ledger) -> None:
    ledger.do(put("strong", ring=merge.put(None, ring_version("n~1", 4, 10)).record))
    ledger.do(DeleteMemory("x"))
    ledger.do(put("again", ring=merge.put(None, ring_version("m~1", 1, 20)).record))
    assert ledger.strongs["x"].shadow == {"n~1": 4, "m~1": 1}


def test_deleting_a_live_record_takes_hidden_ring_versions_along(ledger: Ledger) -> None:
    ledger.do(put("strong"))
    hidden = merge.put(None, ring_version("n~1", 4, 10)).record
    ledger.do(DeleteMemory("x", ring=hidden))
    assert ledger.strongs["x"].shadow == {"n~1": 4}
    assert ledger.do(DeleteMemory("x", ring=hidden)).status is Status.ABSENT


def test_what_is_no_command_is_a_result(ledger: Ledger) -> None:
    for data in (b"", b"\x00", b"\x01", b"\x01\x93\xa3put", b"\x01" + msgspec.msgpack.encode(["lock", "x"])):
        outcome, effects = machine.apply_encoded(ledger, data, Place(1, 0), GROUP, 1)
        assert (outcome.status, effects) == (Status.MALFORMED, [])


def test_every_command_has_a_family() -> None:
    assert set(get_args(commands.Command)) == set(machine.FAMILIES)


def test_what_format_one_can_say_is_written_in_it() -> None:
    """So that nodes of the version before can apply it while a cluster is upgraded."""
    assert commands.encode(put())[0] == 1
    assert commands.encode(put(guards=(commands.Guard("deploy", 7),)))[0] == 2
    other = commands.encode(Wake())
    assert other[0] == 2 and isinstance(commands.decode(b"\x01" + other[1:]), commands.Malformed)


def test_a_command_of_a_newer_format_halts() -> None:
    with pytest.raises(Corrupt):
        commands.decode(b"\x03" + commands.encode(VoidRequest(KEY))[1:])


def test_outcomes_of_another_format_are_corrupt() -> None:
    for data in (b"", b"\x02\x90", b"\x01\x90"):
        with pytest.raises(Corrupt):
            outcomes.decode(data)
