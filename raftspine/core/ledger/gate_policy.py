"""When may a deployment go through a gate? A policy is a list of conditions; this says which of them are not met.

The rule: the verdict is a function of the policy, of what is known of the request, and of the log's time, so that
every replica, and an auditor who replays the log years later, comes to the same one. Nothing is met by default: a
check nobody reported, an approval of another artifact, a condition of a kind this version cannot judge (it cannot
even be stored) all keep the gate closed. And every condition that is not met is named, because people act on the
reason and not on a "no".

Times are milliseconds since 1970, the log's; lengths in a policy are seconds, as people write them. Weekly
windows are in UTC plus a fixed offset: rules for summer time change by decree, and replicas with different tables
would differ.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from raftspine.core.ledger import limits

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTE_MS = 60_000
DAY_MS = 1440 * MINUTE_MS
_THURSDAY = 3
"""The weekday of the day 0, 1970-01-01."""

CONDITIONS_MOST = 32
SECONDS_MOST = 366 * 86_400
PEOPLE_MOST = 16
GROUPS_MOST = 64
CONCURRENT_MOST = 64


class Check(Struct, frozen=True, tag_field="type", tag="check", forbid_unknown_fields=True):
    """A report of this name said ok for the request's artifact, at most `max_age_seconds` ago (None: ever)."""

    name: str
    max_age_seconds: int | None = None


class Approval(Struct, frozen=True, tag_field="type", tag="approval", forbid_unknown_fields=True):
    """So many people have approved the artifact: of `groups`, where any are named."""

    min: int = 1
    groups: tuple[str, ...] = ()
    distinct_from_requester: bool = True


class Wait(Struct, frozen=True, tag_field="type", tag="wait", forbid_unknown_fields=True):
    """So much time has passed since the request was made."""

    seconds: int


class Window(Struct, frozen=True, tag_field="type", tag="window", forbid_unknown_fields=True):
    """The weekly hours in which the gate may open. `end` before `start` reaches into the next day."""

    start: str
    end: str
    days: tuple[str, ...] = DAYS
    utc_offset_minutes: int = 0


class Frozen(Struct, frozen=True, tag_field="type", tag="freeze", forbid_unknown_fields=True):
    """A freeze planned ahead: closed from `starts_at_ms` until `ends_at_ms`."""

    starts_at_ms: int
    ends_at_ms: int
    reason: str = ""


class Hold(Struct, frozen=True, tag_field="type", tag="hold", forbid_unknown_fields=True):
    """Closed until somebody lifts the hold of this name on the request."""

    name: str


Condition: TypeAlias = Check | Approval | Wait | Window | Frozen | Hold


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """So many people with the role, each with a reason, may set the conditions aside for so long. Never the
    queue: two deployments at once are no emergency's remedy."""

    people: int = 2
    seconds: int = 900


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """`concurrent`: how many may be through at once. `open_seconds`: how long one may take. `request_seconds`:
    how long a request may wait. `queue_seconds`: how long a place in the queue is kept unasked. `supersede`: a
    new request for the same subject ends the one before. `override` None: there is none."""

    conditions: tuple[Condition, ...] = ()
    concurrent: int = 1
    open_seconds: int = 3600
    request_seconds: int = 7 * 86_400
    queue_seconds: int = 60
    supersede: bool = True
    override: Override | None = None


class Approved(Struct, frozen=True, array_like=True):
    """One person's approval."""

    by: str
    groups: tuple[str, ...]
    at_ms: int
    comment: str = ""


class Reported(Struct, frozen=True, array_like=True):
    """The last report of a check."""

    ok: bool
    at_ms: int
    by: str
    details: str = ""


class Facts(NamedTuple):
    """What is known of a request: all of it about the one artifact it was made for."""

    requester: str
    requested_at_ms: int
    approvals: tuple[Approved, ...]
    checks: Mapping[str, Reported]
    lifted: tuple[str, ...]


Unmet: TypeAlias = dict[str, Any]
"""A condition that is not met: `type`, `reason` for people, its particulars, and `until_ms` where time alone
cures it."""


def spelled(policy: Policy) -> dict[str, Any]:
    """A policy as plain data, its defaults included: what an audit entry quotes."""
    plain: dict[str, Any] = msgspec.to_builtins(policy)
    return plain


# ── is it a policy? ─────────────────────────────────────────────────────────────────────────────────────────


def wrong(policy: Policy) -> str | None:
    """Why this is no policy that could be kept, as a fixed text; None when it is one."""
    if len(policy.conditions) > CONDITIONS_MOST:
        return f"policy.conditions has more than {CONDITIONS_MOST}"
    for value, least, most, what in (
        (policy.concurrent, 1, CONCURRENT_MOST, "concurrent"),
        (policy.open_seconds, 1, SECONDS_MOST, "open_seconds"),
        (policy.request_seconds, 1, SECONDS_MOST, "request_seconds"),
        (policy.queue_seconds, 1, SECONDS_MOST, "queue_seconds"),
        *(() if policy.override is None else _override_bounds(policy.override)),
    ):
        if not least <= value <= most:
            return f"policy.{what} is not between {least} and {most}"
    return next((text for text in map(_wrong_condition, policy.conditions) if text is not None), None)


def _override_bounds(override: Override) -> tuple[tuple[int, int, int, str], ...]:
    return (
        (override.people, 2, PEOPLE_MOST, "override.people"),
        (override.seconds, 1, SECONDS_MOST, "override.seconds"),
    )


def _wrong_condition(condition: Condition) -> str | None:
    match condition:
        case Check(name, max_age):
            return wrong_name(name, "check") or _wrong_seconds(
                0 if max_age is None else max_age, "check.max_age_seconds"
            )
        case Approval(least, groups):
            named = next((text for text in (wrong_name(group, "approval.groups") for group in groups) if text), None)
            if len(groups) > GROUPS_MOST:
                return f"approval.groups are more than {GROUPS_MOST}"
            return named or (
                None if 1 <= least <= PEOPLE_MOST else f"approval.min is not between 1 and {PEOPLE_MOST}"
            )
        case Wait(seconds):
            return _wrong_seconds(seconds, "wait.seconds")
        case Window(start, end, days, offset):
            if _minutes(start) is None or _minutes(end) is None:
                return "window.start and window.end are times like 09:30"
            if start == end:
                return "window.start and window.end are the same"
            if not days or len(days) > len(DAYS) or any(day not in DAYS for day in days):
                return f"window.days are some of {', '.join(DAYS)}"
            return None if -1440 < offset < 1440 else "window.utc_offset_minutes is not within a day"
        case Frozen(starts, ends, reason):
            if not 0 <= starts < ends <= limits.NUMBER:
                return "freeze: its end is not after its start"
            return limits.reason(reason)
        case Hold(name):
            return wrong_name(name, "hold")


def wrong_name(name: str, what: str) -> str | None:
    """Why a check, group or hold cannot be named so."""
    return (
        None
        if 0 < len(name.encode()) <= 64 and "\0" not in name
        else f"{what}: a name has 1 to 64 bytes, none of them NUL"
    )


def _wrong_seconds(seconds: int, what: str) -> str | None:
    return None if 0 <= seconds <= SECONDS_MOST else f"{what} is not between 0 and {SECONDS_MOST}"


def _minutes(text: str) -> int | None:
    """Minutes since midnight of `HH:MM`; 24:00 is the end of the day."""
    hours, colon, minutes = text.partition(":")
    if not (colon and len(hours) == len(minutes) == 2 and hours.isascii() and minutes.isascii()):
        return None
    if not (hours.isdigit() and minutes.isdigit()):
        return None
    total = int(hours) * 60 + int(minutes)
    return total if int(minutes) < 60 and total <= 1440 else None


# ── is it met? ──────────────────────────────────────────────────────────────────────────────────────────────


def unmet(policy: Policy, facts: Facts, now_ms: int) -> list[Unmet]:
    """The conditions that keep the gate closed for this request at this time, in the policy's order."""
    found = (_unmet(condition, facts, now_ms) for condition in policy.conditions)
    return [one for one in found if one is not None]


def ripens_at(closed: Iterable[Unmet]) -> int | None:
    """When time alone may have changed the verdict: the earliest of what heals by itself."""
    return min((one["until_ms"] for one in closed if "until_ms" in one), default=None)


def _unmet(condition: Condition, facts: Facts, now_ms: int) -> Unmet | None:
    match condition:
        case Check(name, max_age):
            return _check(name, max_age, facts.checks.get(name), now_ms)
        case Approval():
            return _approval(condition, facts)
        case Wait(seconds):
            until = facts.requested_at_ms + seconds * 1000
            return _told("wait", f"{seconds} s after the request", until_ms=until) if now_ms < until else None
        case Window():
            opens = opens_at(condition, now_ms)
            if opens == now_ms:
                return None
            return _told(
                "window", f"open {condition.start}–{condition.end} on {', '.join(condition.days)}", until_ms=opens
            )
        case Frozen(starts, ends, reason):
            return _told("freeze", reason or "a planned freeze", until_ms=ends) if starts <= now_ms < ends else None
        case Hold(name):
            return None if name in facts.lifted else _told("hold", f"the hold {name} is not lifted", name=name)


def _check(name: str, max_age: int | None, report: Reported | None, now_ms: int) -> Unmet | None:
    if report is None:
        return _told("check", f"nobody has reported {name}", name=name)
    if not report.ok:
        return _told("check", f"{name} failed", name=name)
    if max_age is not None and now_ms - report.at_ms > max_age * 1000:
        return _told("check", f"the report of {name} is older than {max_age} s", name=name)
    return None


def _approval(condition: Approval, facts: Facts) -> Unmet | None:
    people = {
        given.by
        for given in facts.approvals
        if not (condition.distinct_from_requester and given.by == facts.requester)
        and (not condition.groups or any(group in condition.groups for group in given.groups))
    }
    if len(people) >= condition.min:
        return None
    of = f" of {', '.join(condition.groups)}" if condition.groups else ""
    return _told("approval", f"{len(people)} of {condition.min} approvals{of}", given=len(people), min=condition.min)


def opens_at(window: Window, now_ms: int) -> int:
    """The first time from `now_ms` on at which the window is open."""
    start, end = _minutes(window.start) or 0, _minutes(window.end) or 0
    length = (end - start) % 1440 or 1440
    local = now_ms + window.utc_offset_minutes * MINUTE_MS
    today = local // DAY_MS
    for day in range(today - 1, today + 9):
        opens = day * DAY_MS + start * MINUTE_MS
        if DAYS[(day + _THURSDAY) % 7] in window.days and local < opens + length * MINUTE_MS:
            return max(now_ms, opens - window.utc_offset_minutes * MINUTE_MS)
    raise AssertionError("a week has passed without one of its days")


def _told(kind: str, reason: str, **more: Any) -> Unmet:
    return {"type": kind, "reason": reason, **more}
