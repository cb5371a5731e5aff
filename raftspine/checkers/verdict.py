"""What a checker says: ok, violation or unknown, with the evidence.

`unknown` is a verdict of its own. A checker that ran out of its budget, or was handed a history it cannot judge, has
shown nothing; calling that ok would make a check that cannot fail.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from raftspine.checkers.history import Operation

Status = Literal["ok", "violation", "unknown"]

WORST_FIRST: tuple[Status, ...] = ("violation", "unknown", "ok")


class Verdict(NamedTuple):
    """`judged` operations were looked at. `reason` is for people: empty when ok. `window` is the evidence of a
    violation, in the order of invocation; `found` counts all violations, of which the first is shown."""

    checker: str
    status: Status
    judged: int
    reason: str = ""
    window: tuple[Operation, ...] = ()
    found: int = 0

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self._asdict(), "window": [msgspec.to_builtins(op) for op in self.window]}


def violation(checker: str, judged: int, reason: str, window: Iterable[Operation], found: int = 1) -> Verdict:
    ordered = tuple(sorted(window, key=lambda op: op.invoked_at))
    return Verdict(checker, "violation", judged, reason, ordered, found)


def passed(checker: str, judged: int) -> Verdict:
    return Verdict(checker, "ok", judged)


def undecided(checker: str, judged: int, reason: str) -> Verdict:
    return Verdict(checker, "unknown", judged, reason)


def combined(checker: str, parts: Sequence[Verdict]) -> Verdict:
    """One verdict for parts judged apart: the worst of them, with the first such part's evidence."""
    judged = sum(part.judged for part in parts)
    for status in WORST_FIRST:
        alike = [part for part in parts if part.status == status]
        if alike:
            first, found = alike[0], sum(part.found for part in alike)
            return Verdict(checker, status, judged, first.reason, first.window, found)
    return passed(checker, 0)


def told(op: Operation) -> str:
    """One operation in words, e.g. ``p1 read x -> 5 on spine-2``."""
    text = f"{op.process} {op.kind} {op.key}".rstrip()
    if op.input is not None:
        text += f" {short(op.input)}"
    if op.ok and op.output is not None:
        text += f" -> {short(op.output)}"
    elif op.ok and op.kind in ("read", "pop"):
        text += " -> nothing"
    elif not op.ok:
        text += f" ({'outcome unknown' if op.outcome == 'unknown' else 'failed'})"
    return text + (f" on {op.node}" if op.node else "")


def short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= most else text[: most - 1] + "…"
