"""Every passage justified: an auditor who knows only the commands, and none of the machine's code, agrees."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from raftspine.core.ledger import audit
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
from raftspine.core.ledger.task_commands import PutGate
from tests.support.ledger_store import LedgerLog

GATE = "g"
POLICY = Policy(
    (Approval(min=2, groups=("sre",)), Check("ci", max_age_seconds=40), Wait(5), Hold("h")),
    concurrent=2,
    open_seconds=60,
    request_seconds=600,
    queue_seconds=30,
    override=Override(people=2, seconds=20),
)
IDS = ("r1", "r2", "r3", "r4")
PEOPLE = ("ann", "bob", "cid", "dan")
DIGESTS = ("d1", "d2")

ids, people, digests = st.sampled_from(IDS), st.sampled_from(PEOPLE), st.sampled_from(DIGESTS)
commands = st.one_of(
    st.builds(
        lambda id, d, by: RequestGate(GATE, id, d, subject="s" if id == "r4" else "", agent=by), ids, digests, people
    ),
    st.builds(
        lambda id, d, g, by: ApproveRequest(GATE, id, d, g, agent=by),
        ids,
        digests,
        st.sampled_from([("sre",), ()]),
        people,
    ),
    st.builds(lambda id, d, ok: ReportCheck(GATE, id, d, "ci", ok, agent="ci"), ids, digests, st.booleans()),
    st.builds(
        lambda id, lifted: LiftHold(GATE, id, "h", lifted, agent="ops"), ids, st.sampled_from([True, True, False])
    ),
    st.builds(lambda id, d, by: OverrideRequest(GATE, id, d, "why", agent=by), ids, digests, people),
    st.builds(lambda id, d, queue: AdmitRequest(GATE, id, d, queue, agent="ann"), ids, digests, st.booleans()),
    st.builds(lambda id, rejected, by: EndRequest(GATE, id, rejected, agent=by), ids, st.booleans(), people),
    st.builds(lambda id: ("complete", id), ids),
    st.builds(lambda over: PutFreeze("f", "", "stop", overridable=over, agent="ops"), st.booleans()),
    st.just(LiftFreeze("f", agent="ops")),
    st.builds(
        lambda state: PutGate(GATE, state, policy=POLICY, agent="ops"), st.sampled_from(["open", "open", "closed"])
    ),
    st.just(Wake()),
)


Plan = list[tuple[int, Any]]
"""Commands, each with the seconds that pass before it."""


def merits(id: str, digest: str, without: int, pause: int) -> Plan:
    """All that a request needs, or nearly; then the attempt."""
    wanted = [
        RequestGate(GATE, id, digest, agent="ann"),
        ApproveRequest(GATE, id, digest, ("sre",), agent="bob"),
        ApproveRequest(GATE, id, digest, ("sre", "dev"), agent="cid"),
        ReportCheck(GATE, id, digest, "ci", True, agent="ci"),
        LiftHold(GATE, id, "h", agent="ops"),
    ]
    kept = [(0, command) for n, command in enumerate(wanted) if n != without]
    return [*kept, (pause, AdmitRequest(GATE, id, digest, True, agent="ann"))]


def emergency(id: str, digest: str, pause: int) -> Plan:
    words = [(0, OverrideRequest(GATE, id, digest, "why", agent=by)) for by in ("bob", "dan")]
    return [*words, (pause, AdmitRequest(GATE, id, digest, agent="ann"))]


pauses = st.sampled_from([0, 1, 3, 10, 45])
parts = st.one_of(
    st.builds(lambda pause, command: [(pause, command)], pauses, commands),
    st.builds(lambda pause, command: [(pause, command)], pauses, commands),
    st.builds(merits, ids, digests, st.integers(1, 9), pauses),
    st.builds(emergency, ids, digests, pauses),
)
plans = st.lists(parts, max_size=30).map(lambda lists: [step for part in lists for step in part])


@dataclass
class Asked:
    """What people did about one request, each thing with the time it was last done."""

    digest: str
    by: str
    at: int
    approved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    check: tuple[bool, int] | None = None
    lifted: bool = False
    words: set[str] = field(default_factory=set)
    overridden_until: int = 0


class Auditor:
    """Knows who did what, and judges a passage from it."""

    def __init__(self) -> None:
        self.asked: dict[str, Asked] = {}
        self.freeze: bool | None = None
        self.closed = False

    def hear(self, command: Any, status: str, now: int) -> None:
        if status not in ("done", "granted", "queued"):
            return
        match command:
            case RequestGate(_, id, digest, agent=by):
                self.asked[id] = Asked(digest, by, now)
            case ApproveRequest(_, id, _, groups, agent=by):
                self.asked[id].approved[by] = groups
            case ReportCheck(_, id, _, _, ok):
                self.asked[id].check = (ok, now)
            case LiftHold(_, id, _, lifted):
                self.asked[id].lifted = lifted
            case OverrideRequest(_, id, agent=by):
                self.asked[id].words.add(by)
                if len(self.asked[id].words) == 2:
                    self.asked[id].words, self.asked[id].overridden_until = set(), now + 20_000
            case PutFreeze(overridable=overridable):
                self.freeze = overridable
            case LiftFreeze():
                self.freeze = None
            case PutGate(_, state):
                self.closed = state == "closed"

    def justified(self, id: str, now: int) -> bool:
        asked = self.asked[id]
        overridden = now < asked.overridden_until
        frozen = self.freeze is not None and not (self.freeze and overridden)
        if self.closed or frozen:
            return False
        approvers = {by for by, groups in asked.approved.items() if "sre" in groups and by != asked.by}
        checked = asked.check is not None and asked.check[0] and now - asked.check[1] <= 40_000
        return overridden or (len(approvers) >= 2 and checked and now - asked.at >= 5000 and asked.lifted)


@given(plans)
def test_every_passage_is_justified(plan: Plan) -> None:
    log, auditor = LedgerLog(), Auditor()
    log.do(PutGate(GATE, "open", policy=POLICY, agent="ops"))
    tokens: dict[str, int] = {}
    for seconds, step in plan:
        log.time_ms += seconds * 1000
        command = (
            step if not isinstance(step, tuple) else CompleteRequest(GATE, step[1], tokens.get(step[1], 7), True)
        )
        outcome = log.do(command)
        auditor.hear(command, outcome.status, log.time_ms)
        through = 0
        for id in IDS:
            row = requests.read(log.store, GATE, id)
            if row is None or row.state != requests.OPEN:
                continue
            through += 1
            if tokens.get(id) != row.token:
                assert row.token > max(tokens.values(), default=0), "tokens only rise"
                assert auditor.justified(id, log.time_ms), f"{id} went through after {command}"
                tokens[id] = row.token
        assert through <= POLICY.concurrent
    entries = audit.read(log.store, "gate", GATE, 0, 10_000)
    assert audit.broken(entries) is None
    admitted = [entry.details["token"] for entry in entries if entry.action == "admit"]
    assert sorted(admitted) == admitted and set(tokens.values()) <= set(admitted)
    for overridden in {entry.details.get("overridden", False) for entry in entries if entry.action == "admit"}:
        event(f"admitted {'by override' if overridden else 'on the merits'}")


@given(plans)
def test_a_replay_from_empty_gives_the_same_gates(plan: Plan) -> None:
    logs = (LedgerLog(), LedgerLog())
    for log in logs:
        log.do(PutGate(GATE, "open", policy=POLICY, agent="ops"))
        for seconds, step in plan:
            log.time_ms += seconds * 1000
            log.do(step if not isinstance(step, tuple) else CompleteRequest(GATE, step[1], 7, True))
    assert logs[0].store.replicated() == logs[1].store.replicated()
