"""Makes a failing run smaller, until what is left can be read.

The rule: a smaller run counts when it breaks the same promise, wherever and however it does so. First the load ends
where the failure was, then faults are left out, halves before single ones (delta debugging: Zeller & Hildebrandt,
2002). Leaving one out does not change the others, which have their own dice (plan.py), but it changes whatever they
meet; so a failure may go away with a fault that had nothing to do with it. What is found is small, not smallest.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from raftspine.sim.plan import Plan, Strike
from raftspine.sim.run import Violation, play_plan

Attempt = Callable[[Plan], Violation | None]


class Small(NamedTuple):
    """The smallest plan found that breaks `violation.rule`, and after how many runs."""

    plan: Plan
    violation: Violation
    runs: int


def attempt(plan: Plan) -> Violation | None:
    """Run a plan; what it broke, or None."""
    try:
        play_plan(plan)
    except Violation as violation:
        return violation
    return None


def shrink(plan: Plan, violation: Violation, *, runs: int = 40, attempt: Attempt = attempt) -> Small:
    """Look for a smaller plan that breaks the same rule, in at most so many runs."""
    search = _Search(violation.rule, Small(plan, violation, 0), runs, attempt)
    search.shorten()
    search.leave_out()
    search.shorten()
    return search.best


class _Search:
    def __init__(self, rule: str, best: Small, runs: int, attempt: Attempt) -> None:
        self.best = best
        self._rule = rule
        self._left = runs
        self._attempt = attempt

    def _try(self, plan: Plan) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        self.best = self.best._replace(runs=self.best.runs + 1)
        found = self._attempt(plan)
        if found is None or found.rule != self._rule:
            return False
        self.best = self.best._replace(plan=plan, violation=found)
        return True

    def shorten(self) -> None:
        """End the load soon after the failure; what strikes later has nothing to do with it."""
        plan, at = self.best.plan, self.best.violation.at
        for seconds in (at / 2, at + 0.1):
            if seconds < plan.seconds - 0.2:
                strikes = tuple(strike for strike in plan.strikes if strike.at < seconds)
                if self._try(msgspec.structs.replace(plan, seconds=round(seconds, 2), strikes=strikes)):
                    return

    def leave_out(self) -> None:
        """Drop as many faults at once as can be dropped, then fewer."""
        size = max(1, len(self.best.plan.strikes) // 2)
        while self._left > 0 and self.best.plan.strikes:
            start = 0
            while start < len(self.best.plan.strikes):
                strikes = self.best.plan.strikes
                if not self._try(_with(self.best.plan, strikes[:start] + strikes[start + size :])):
                    start += size
            if size == 1:
                return
            size //= 2


def _with(plan: Plan, strikes: tuple[Strike, ...]) -> Plan:
    return msgspec.structs.replace(plan, strikes=strikes)
