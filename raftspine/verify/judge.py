"""From a history to verdicts: which checker judges which promise, on which workload's operations.

The table is the list of what `raftspine verify` can say. A promise about which nothing was answered is undecided,
never kept: an empty history is no evidence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raftspine.checkers import promises, sessions
from raftspine.checkers.history import Operation
from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import CAS_REGISTER, COUNTER, REGISTER, Model
from raftspine.checkers.verdict import Status, Verdict, undecided

Kept = Mapping[str, Sequence[object] | None]
"""key -> values in its conflict log at the end; None when it could not be read."""


class Check(NamedTuple):
    """`promise` in words; `workloads` whose operations are judged."""

    name: str
    promise: str
    workloads: tuple[str, ...]
    judge: Callable[[list[Operation], Kept], Verdict]


class Judged(NamedTuple):
    check: Check
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        return {"name": self.check.name, "promise": self.check.promise, **self.verdict.document()}


def _linear(model: Model) -> Callable[[list[Operation], Kept], Verdict]:
    return lambda history, _: linearizable((op for op in history if op.kind != "final"), model)


def _repeats(history: list[Operation], _: Kept) -> Verdict:
    answers = promises.exactly_once(history)
    if answers.status != "ok":
        return answers
    strong = [op for op in history if op.info.get("path") == "strong"]
    return linearizable(promises.merged(strong), REGISTER)._replace(judged=answers.judged + len(strong))


CHECKS: tuple[Check, ...] = (
    Check(
        "strong reads and writes",
        "Every strong read shows the last write answered before it began, or a newer one; deletes are writes.",
        ("register",),
        _linear(REGISTER),
    ),
    Check(
        "compare-and-set",
        "Of the writes conditional on one version one succeeds; a refusal means that the version had changed.",
        ("versions",),
        _linear(CAS_REGISTER),
    ),
    Check(
        "counters",
        "No acknowledged increment is lost and none is counted twice.",
        ("counter",),
        _linear(COUNTER),
    ),
    Check(
        "read-your-writes",
        "A session finds what it stored, and not what it removed, on whichever node it asks.",
        ("session",),
        lambda history, _: sessions.judge(history, "read-your-writes", by_reading=False),
    ),
    *(
        Check(
            name,
            promise,
            ("causal",),
            lambda history, _, name=name: sessions.judge(history, name),  # type: ignore[misc]
        )
        for name, promise in (
            ("monotonic reads", "A causal session never reads something older than it has read."),
            ("monotonic writes", "Who sees a session's write also sees that session's earlier writes."),
            ("writes follow reads", "Who sees a write also sees what its writer had read before."),
            ("causal", "A session, and whoever takes over its token, sees everything it could know of."),
        )
    ),
    Check(
        "convergence",
        "When everything is at rest, every node shows the same.",
        ("session", "causal", "shared"),
        lambda history, _: promises.convergence(history),
    ),
    Check(
        "no lost acknowledged write",
        "What was acknowledged is shown at the end, or was superseded, or is in the conflict log.",
        ("register", "session", "causal", "shared"),
        promises.no_lost_write,
    ),
    Check(
        "no zombie",
        "What was deleted does not return.",
        ("session",),
        lambda history, _: promises.no_zombie(history),
    ),
    Check(
        "exactly once",
        "A request repeated under its Idempotency-Key has one effect and gets the first answer again.",
        ("retry-strong", "retry-ring"),
        _repeats,
    ),
)


def judge(history: Iterable[Operation], kept: Kept | None = None) -> list[Judged]:
    """All checks of the table."""
    by_workload: dict[str, list[Operation]] = {}
    for op in history:
        by_workload.setdefault(op.info.get("workload", ""), []).append(op)
    found = []
    for check in CHECKS:
        mine = [op for name in check.workloads for op in by_workload.get(name, ())]
        mine.sort(key=lambda op: op.invoked_at)
        found.append(Judged(check, _one(check, mine, kept or {})))
    return found


def _one(check: Check, history: list[Operation], kept: Kept) -> Verdict:
    if not any(op.ok for op in history):
        return undecided(check.name, 0, "no operation was answered")
    verdict = check.judge(history, kept)
    if verdict.ok and not verdict.judged:
        return undecided(check.name, 0, "nothing was answered that it could judge")
    return verdict


def overall(found: Sequence[Judged]) -> Status:
    """The worst of all."""
    statuses = {judged.verdict.status for judged in found}
    return "violation" if "violation" in statuses else "unknown" if "unknown" in statuses else "ok"
