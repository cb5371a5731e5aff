"""Deployments through a gate with a policy: approvals, admission, queue, freezes, override, verify, audit."""

from typing import Any

import pytest

from raftspine.core.ledger import audit, events, freezes, gate_acts, gates
from raftspine.core.ledger import gate_requests as requests
from raftspine.core.ledger.gate_commands import (
    AdmitRequest,
    ApproveRequest,
    CompleteRequest,
    EndRequest,
    LiftFreeze,
    LiftHold,
    OverrideRequest,
    PutFreeze,
    ReportCheck,
    RequestGate,
)
from raftspine.core.ledger.gate_policy import Approval, Check, Hold, Override, Policy, Wait
from raftspine.core.ledger.lock_commands import Wake
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.task_commands import DeleteGate, PassGate, PutGate
from tests.support.ledger_store import LedgerLog

GATE, DIGEST = "prod/api", "sha256:abc"
APPROVED = Policy((Approval(),))


class Site:
    """A gate with a policy and people who act on it."""

    def __init__(self, policy: Policy = APPROVED) -> None:
        self.log = LedgerLog()
        self.log.do(PutGate(GATE, "open", policy=policy, agent="ops"))

    def ask(self, id: str, by: str = "ann", subject: str = "", digest: str = DIGEST) -> Outcome:
        return self.log.do(RequestGate(GATE, id, digest, subject=subject, agent=by))

    def approve(self, id: str, by: str = "bob", digest: str = DIGEST, groups: tuple[str, ...] = ()) -> Outcome:
        return self.log.do(ApproveRequest(GATE, id, digest, groups, agent=by))

    def admit(self, id: str, queue: bool = False, digest: str = DIGEST) -> Outcome:
        return self.log.do(AdmitRequest(GATE, id, digest, queue, agent="ann"))

    def opened(self, id: str) -> int:
        outcome = self.admit(id)
        assert outcome.status is Status.GRANTED, outcome
        return int(outcome.result["fencing_token"])

    def complete(self, id: str, token: int, ok: bool = True) -> Outcome:
        return self.log.do(CompleteRequest(GATE, id, token, ok, agent="ann"))

    def freeze(self, scope: str = "prod/", **more: Any) -> Outcome:
        return self.log.do(PutFreeze("f1", scope, "incident", agent="ops", **more))

    def state(self, id: str) -> str:
        row = requests.read(self.log.store, GATE, id)
        assert row is not None
        return str(requests.told(self.log.store, GATE, id, row, self.log.time_ms)["state"])

    def verify(self, id: str, token: int, digest: str | None = None) -> bool:
        return requests.verify(self.log.store, GATE, id, token, digest, self.log.time_ms).valid

    def acts(self, kind: str = gates.KIND, name: str = GATE) -> list[tuple[str, str, bool]]:
        found = audit.read(self.log.store, kind, name, 0, 1000)
        assert audit.broken(found) is None
        return [(entry.action, entry.actor, entry.refused) for entry in found]


def changes(log: LedgerLog) -> list[str]:
    return [event.change for _, event in events.read(log.store, 1, 1000)]


def test_a_deployment_from_request_to_completion() -> None:
    site = Site()
    assert site.ask("r1").result["state"] == "PENDING"
    refused = site.admit("r1")
    assert refused.status is Status.GATE_CLOSED and refused.result["unmet"][0]["type"] == "approval"
    assert site.approve("r1").result["state"] == "READY"
    token = site.opened("r1")
    assert site.verify("r1", token) and site.verify("r1", token, DIGEST)
    assert site.opened("r1") == token, "asked again it is the same admission"
    assert site.complete("r1", token).result["state"] == "PASSED"
    assert not site.verify("r1", token)
    assert site.complete("r1", token, ok=False).result["state"] == "PASSED", "the first end stands"
    assert [action for action, _, _ in site.acts()] == ["set", "request", "approve", "admit", "passed"]


def test_everything_is_bound_to_the_artifact() -> None:
    site = Site(Policy((Approval(), Check("tests"))))
    site.ask("r1")
    assert site.approve("r1", digest="sha256:other").status is Status.WRONG_DIGEST
    assert (
        site.log.do(ReportCheck(GATE, "r1", "sha256:other", "tests", True, agent="ci")).status is Status.WRONG_DIGEST
    )
    assert site.state("r1") == "PENDING"
    site.approve("r1")
    site.log.do(ReportCheck(GATE, "r1", DIGEST, "tests", True, agent="ci"))
    assert site.admit("r1", digest="sha256:other").status is Status.WRONG_DIGEST
    token = site.opened("r1")
    assert not site.verify("r1", token, "sha256:other")
    assert sum(refused for _, _, refused in site.acts()) == 3, "who tried is on record"


def test_the_requester_does_not_approve_and_nobody_counts_twice() -> None:
    site = Site(Policy((Approval(min=2),)))
    site.ask("r1", by="ann")
    assert site.approve("r1", by="ann").status is Status.FORBIDDEN
    assert ("approve", "ann", True) in site.acts()
    site.approve("r1", by="bob")
    site.approve("r1", by="bob")
    assert site.state("r1") == "PENDING"
    site.approve("r1", by="cid")
    assert site.state("r1") == "READY"


def test_who_acts_has_a_name() -> None:
    site = Site()
    site.ask("r1")
    assert site.approve("r1", by="").status is Status.INVALID
    assert site.ask("r2", by="").status is Status.INVALID


def test_one_at_a_time_and_the_rest_in_order() -> None:
    site = Site(Policy())
    for id in ("r1", "r2", "r3"):
        site.ask(id)
    first = site.opened("r1")
    assert site.admit("r2").status is Status.GATE_CLOSED, "without a wish to wait there is no place"
    assert site.admit("r2", queue=True).status is Status.QUEUED
    assert site.admit("r3", queue=True).result["position"] == 2
    site.complete("r1", first)
    assert (site.state("r2"), site.state("r3")) == ("OPEN", "QUEUED")
    second = site.opened("r2")
    assert second > first
    site.complete("r2", second, ok=False)
    assert (site.state("r2"), site.state("r3")) == ("FAILED", "OPEN")


def test_crossing_the_queue_judges_again() -> None:
    site = Site(Policy((Hold("db"),)))
    for id in ("r1", "r2"):
        site.ask(id)
        site.log.do(LiftHold(GATE, id, "db", agent="ops"))
    first = site.opened("r1")
    site.admit("r2", queue=True)
    site.log.do(LiftHold(GATE, "r2", "db", lifted=False, agent="ops"))
    site.complete("r1", first)
    assert site.state("r2") == "PENDING"
    assert ("unqueue", "ann", False) in site.acts()


def test_who_left_the_queue_gets_no_slot() -> None:
    site = Site(Policy(queue_seconds=60))
    for id in ("r1", "r2", "r3"):
        site.ask(id)
    first = site.opened("r1")
    site.admit("r2", queue=True)
    site.log.time_ms += 61_000
    site.admit("r3", queue=True)
    site.complete("r1", first)
    assert (site.state("r2"), site.state("r3")) == ("READY", "OPEN")


def test_a_freeze_closes_at_once_also_for_who_is_through() -> None:
    site = Site(Policy())
    site.ask("r1")
    site.ask("r2")
    token = site.opened("r1")
    site.freeze()
    assert not site.verify("r1", token)
    assert site.admit("r2", queue=True).status is Status.GATE_CLOSED
    site.log.do(LiftFreeze("f1", agent="ops"))
    assert site.verify("r1", token)
    assert site.acts(freezes.KIND, freezes.ALL) == [("freeze", "ops", False), ("unfreeze", "ops", False)]


def test_a_freeze_ends_at_its_time_and_binds_only_its_scope() -> None:
    site = Site(Policy())
    site.ask("r1")
    site.freeze("staging/")
    assert site.state("r1") == "READY"
    site.freeze("", until_ms=site.log.time_ms + 1000)
    assert site.state("r1") == "PENDING"
    site.log.time_ms += 1001
    assert site.state("r1") == "READY"


def test_freezes_that_are_over_make_room_and_one_that_is_over_already_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freezes, "MOST", 3)
    site = Site()
    for number in range(3):
        until_ms = site.log.time_ms + 1000
        done = site.log.do(PutFreeze(f"f{number}", "prod/", "incident", until_ms, agent="ops"))
        assert done.status is Status.DONE
    assert site.log.do(PutFreeze("f3", "prod/", "incident", agent="ops")).status is Status.TOO_MANY
    site.log.time_ms += 1000
    again = site.log.do(PutFreeze("f0", "prod/", "incident", agent="ops"))
    assert again.status is Status.DONE and again.created
    assert [id for id, _ in freezes.page(site.log.store)] == ["f0"]
    late = site.log.do(PutFreeze("f9", "prod/", "incident", site.log.time_ms, agent="ops"))
    assert late.status is Status.INVALID, "a freeze that freezes nothing must not look like one"


def test_a_freeze_also_closes_a_simple_gate() -> None:
    log = LedgerLog()
    log.do(PutGate("prod/simple", "open", uses=5))
    log.do(PutFreeze("f", "prod/", "incident", agent="ops"))
    assert log.do(PassGate("prod/simple", "p1")).status is Status.GATE_CLOSED
    log.do(LiftFreeze("f", agent="ops"))
    assert log.do(PassGate("prod/simple", "p1")).status is Status.DONE


def test_an_override_takes_two_people_and_an_end() -> None:
    site = Site(Policy((Approval(min=3),), override=Override(people=2, seconds=60)))
    site.ask("r1")

    def override(by: str) -> Outcome:
        return site.log.do(OverrideRequest(GATE, "r1", DIGEST, "the site is down", agent=by))

    override("bob")
    assert override("bob").status is Status.FORBIDDEN
    assert site.state("r1") == "PENDING"
    site.freeze()
    override("cid")
    assert site.state("r1") == "READY", "it reaches through a freeze"
    site.log.time_ms += 60_000
    assert site.state("r1") == "PENDING", "and ends"
    override("bob")
    override("cid")
    token = site.opened("r1")
    assert site.verify("r1", token)
    assert Site().log.do(OverrideRequest(GATE, "r1", DIGEST, "x", agent="bob")).status is Status.ABSENT


def test_an_override_lasts_only_as_long_as_the_policy_would_allow_it() -> None:
    override = Override(people=2, seconds=60)
    site = Site(Policy((Approval(),), override=override))
    site.ask("r1")
    for who in ("dan", "eve"):
        site.log.do(OverrideRequest(GATE, "r1", DIGEST, "outage", agent=who))
    assert site.state("r1") == "READY"
    for stricter in (None, Override(people=3)):
        site.log.do(PutGate(GATE, "open", policy=Policy((Approval(),), override=stricter), agent="ops"))
        assert site.admit("r1").status is Status.GATE_CLOSED
    site.log.do(PutGate(GATE, "open", policy=Policy((Approval(),), override=override), agent="ops"))
    assert site.admit("r1").status is Status.GRANTED


def test_a_freeze_may_be_beyond_override() -> None:
    site = Site(Policy((Approval(),), override=Override()))
    site.ask("r1")
    site.freeze(overridable=False)
    for by in ("bob", "cid"):
        site.log.do(OverrideRequest(GATE, "r1", DIGEST, "please", agent=by))
    assert [one["type"] for one in site.admit("r1").result["unmet"]] == ["freeze"]


def test_an_override_never_lets_two_through() -> None:
    site = Site(Policy(override=Override()))
    site.ask("r1")
    site.ask("r2")
    site.opened("r1")
    for by in ("bob", "cid"):
        site.log.do(OverrideRequest(GATE, "r2", DIGEST, "hurry", agent=by))
    assert site.admit("r2").status is Status.GATE_CLOSED


def test_a_policy_without_override_has_none() -> None:
    site = Site()
    site.ask("r1")
    assert site.log.do(OverrideRequest(GATE, "r1", DIGEST, "x", agent="bob")).status is Status.FORBIDDEN


def test_a_new_request_for_the_same_subject_supersedes_the_one_that_waits() -> None:
    site = Site(Policy())
    site.ask("r1", subject="api@prod")
    site.ask("r2", subject="api@prod")
    assert (site.state("r1"), site.state("r2")) == ("SUPERSEDED", "READY")
    site.opened("r2")
    site.ask("r3", subject="api@prod")
    assert site.state("r2") == "OPEN", "who is through is not called back"


def test_ends_by_hand() -> None:
    site = Site(Policy())
    for id in ("r1", "r2", "r3"):
        site.ask(id)
    assert site.log.do(EndRequest(GATE, "r1", True, "no", agent="bob")).result["state"] == "REJECTED"
    assert site.log.do(EndRequest(GATE, "r2", False, agent="bob")).status is Status.FORBIDDEN
    assert site.log.do(EndRequest(GATE, "r2", False, agent="ann")).result["state"] == "CANCELLED"
    assert site.approve("r1").status is Status.WRONG_STATE
    token = site.opened("r3")
    assert site.log.do(EndRequest(GATE, "r3", True, agent="bob")).status is Status.WRONG_STATE
    assert site.verify("r3", token)


def test_time_ends_what_nobody_ends() -> None:
    site = Site(Policy(request_seconds=100, open_seconds=10))
    site.ask("r1")
    site.ask("r2")
    token = site.opened("r1")
    site.log.time_ms += 10_000
    assert not site.verify("r1", token), "closed before anybody has cleared it away"
    site.log.do(Wake())
    assert site.state("r1") == "FAILED"
    site.log.time_ms += 90_000
    assert site.admit("r2").status is Status.WRONG_STATE
    site.log.do(Wake())
    assert site.state("r2") == "EXPIRED"


def test_an_admission_whose_time_is_over_is_not_granted_again() -> None:
    site = Site(Policy(open_seconds=10))
    site.ask("r1")
    token = site.opened("r1")
    site.log.time_ms += 10_000
    assert not site.verify("r1", token)
    assert site.admit("r1").status is Status.WRONG_STATE, "no Wake has come, and still"


def test_ready_is_told_only_when_it_is_so() -> None:
    site = Site(Policy((Approval(), Wait(5))))
    for id in ("r1", "r2"):
        site.ask(id)
    site.approve("r2")
    site.log.time_ms += 5000
    site.log.do(Wake())
    told = [event.data["request"] for _, event in events.read(site.log.store, 1, 99) if event.change == "ready"]
    assert told == ["r2"]


def test_places_outlast_a_gate_that_is_made_anew_and_a_policy_that_shrinks() -> None:
    site = Site(Policy(concurrent=2))
    for id in ("r1", "r2", "r3", "r4"):
        site.ask(id)
    tokens = [site.opened("r1"), site.opened("r2")]
    assert [site.admit(id, queue=True).result["position"] for id in ("r3", "r4")] == [1, 2]
    site.log.do(PutGate(GATE, "open", policy=Policy(concurrent=1), agent="ops"))
    site.complete("r1", tokens[0])
    assert site.state("r3") == "QUEUED", "one is through, and only one may be"
    site.log.do(DeleteGate(GATE, agent="ops"))
    site.complete("r2", tokens[1])
    site.log.do(PutGate(GATE, "open", policy=Policy(concurrent=1), agent="ops"))
    assert site.admit("r4").result["position"] == 1 and site.state("r3") == "OPEN"
    assert [action for action, _, _ in site.acts()].count("delete") == 1, "one chain, unbroken"


def test_no_row_of_a_request_grows_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_acts, "PEOPLE_MOST", 3)
    site = Site()
    site.ask("r1")
    assert site.approve("r1", groups=("g" * 65,)).status is Status.INVALID
    assert site.approve("r1", groups=("g",) * 65).status is Status.INVALID
    assert site.approve("r1", digest="x" * 70_000).status is Status.INVALID, "nor one of its audit chain"
    for number in range(5):
        name = f"h{number}"
        site.log.do(PutGate(GATE, "open", policy=Policy((Hold(name),)), agent="ops"))
        lifted = site.log.do(LiftHold(GATE, "r1", name, agent="ops"))
        assert lifted.status is (Status.DONE if number < 3 else Status.TOO_MANY)
    site.freeze()
    assert site.log.do(LiftFreeze("f1", "x" * 2000, agent="ops")).status is Status.INVALID


def test_a_wait_ripens_by_the_log_s_time() -> None:
    site = Site(Policy((Wait(30),)))
    site.ask("r1")
    assert site.state("r1") == "PENDING"
    site.log.time_ms += 30_000
    site.log.do(Wake())
    assert changes(site.log)[-1] == "ready"
    assert site.state("r1") == "READY"


def test_a_closed_gate_lets_nobody_through() -> None:
    site = Site(Policy())
    site.ask("r1")
    token = site.opened("r1")
    site.log.do(PutGate(GATE, "closed", policy=Policy(), agent="ops"))
    assert not site.verify("r1", token)
    site.log.do(PutGate(GATE, "open", agent="ops"))
    site.ask("r2")
    assert site.admit("r1").status is Status.GRANTED, "its admission stands"
    assert site.log.do(RequestGate(GATE, "r3", DIGEST, agent="ann")).status is Status.ABSENT, "no policy, no requests"


def test_a_gate_with_a_policy_has_no_way_round() -> None:
    site = Site()
    assert site.log.do(PassGate(GATE, "p1")).status is Status.GATE_CLOSED
    assert site.log.do(PutGate(GATE, "open", uses=3, policy=Policy())).status is Status.INVALID


def test_limits_and_rubbish() -> None:
    site = Site(Policy())
    assert site.ask("").status is Status.INVALID
    assert site.ask("r\0").status is Status.INVALID
    site.ask("r1")
    assert site.ask("r1").status is Status.EXISTS
    assert site.approve("nope").status is Status.ABSENT
    assert site.complete("r1", 0).status is Status.NOT_CURRENT
    assert site.log.do(LiftHold(GATE, "r1", "db", agent="x")).status is Status.ABSENT
    assert site.log.do(PutFreeze("", "", "x", agent="ops")).status is Status.INVALID
    assert site.log.do(PutFreeze("f", "", "", agent="ops")).status is Status.INVALID
    assert site.log.do(LiftFreeze("f", agent="ops")).status is Status.ABSENT


def test_ended_requests_are_forgotten_and_the_audit_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftspine.core.ledger.gate_steps.ENDED_KEPT", 3)
    site = Site(Policy())
    for n in range(6):
        site.ask(f"r{n}")
        site.complete(f"r{n}", site.opened(f"r{n}"))
    assert [id for id, _ in requests.page(site.log.store, GATE, 10)] == ["r5", "r4", "r3"]
    assert len(site.acts()) == 1 + 3 * 6


def test_a_changed_chain_is_noticed() -> None:
    site = Site(Policy())
    for n in range(3):
        site.ask(f"r{n}")
    entries = audit.read(site.log.store, gates.KIND, GATE, 0, 10)
    assert audit.broken(entries) is None
    assert audit.broken(entries[1:], entries[0].hash, 1) is None
    assert audit.broken(entries[1:]) is not None
    assert audit.broken([entries[0], entries[2]]) is not None
    changed = entries[1].__class__(
        *[getattr(entries[1], f) if f != "actor" else "eve" for f in entries[1].__struct_fields__]
    )
    assert audit.broken([entries[0], changed, entries[2]]) is not None


def test_a_deleted_gate_closes_for_who_is_through() -> None:
    site = Site(Policy())
    site.ask("r1")
    token = site.opened("r1")
    site.log.do(DeleteGate(GATE, agent="ops"))
    assert not site.verify("r1", token)
    assert freezes.page(site.log.store) == []


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 600])
def test_what_no_gate_is_called_is_read_as_absent(name: str) -> None:
    store = Site().log.store
    assert requests.read(store, name, "r1") is None and requests.read(store, GATE, name) is None
    assert requests.page(store, name, 10) == [] and gates.show(store, name) is None
    assert not requests.verify(store, name, "r1", 1, None, 0).valid
    assert audit.read(store, "gate", name, 0, 10) == [] and audit.head(store, "gate", name) is None
