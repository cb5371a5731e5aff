"""What a policy asks, condition by condition, and which policies are none."""

from datetime import UTC, datetime

import msgspec
import pytest

from raftspine.core.ledger.gate_policy import (
    Approval,
    Approved,
    Check,
    Condition,
    Facts,
    Frozen,
    Hold,
    Override,
    Policy,
    Reported,
    Wait,
    Window,
    opens_at,
    ripens_at,
    unmet,
    wrong,
)


def at(text: str) -> int:
    """Milliseconds of `2026-11-20 09:00` in UTC, a Friday."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOON = at("2026-11-20 12:00")


def facts(
    approvals: tuple[Approved, ...] = (), checks: dict[str, Reported] | None = None, lifted: tuple[str, ...] = ()
) -> Facts:
    return Facts("ann", NOON, approvals, checks or {}, lifted)


def said(by: str, *groups: str) -> Approved:
    return Approved(by, groups, NOON)


def met(condition: Condition, known: Facts, now_ms: int = NOON) -> bool:
    return not unmet(Policy((condition,)), known, now_ms)


def test_a_policy_without_conditions_is_met() -> None:
    assert unmet(Policy(), facts(), NOON) == []


def test_a_check_must_be_reported_ok_and_fresh() -> None:
    ok = Reported(True, NOON, "ci")
    assert not met(Check("tests"), facts())
    assert not met(Check("tests"), facts(checks={"tests": Reported(False, NOON, "ci")}))
    assert not met(Check("tests"), facts(checks={"lint": ok}))
    assert met(Check("tests"), facts(checks={"tests": ok}), NOON + 10**12)
    assert met(Check("tests", max_age_seconds=60), facts(checks={"tests": ok}), NOON + 60_000)
    assert not met(Check("tests", max_age_seconds=60), facts(checks={"tests": ok}), NOON + 60_001)


def test_approvals_count_people_of_the_groups_and_not_the_requester() -> None:
    two = Approval(min=2, groups=("sre", "leads"))
    assert not met(two, facts((said("bob", "sre"),)))
    assert not met(two, facts((said("bob", "sre"), said("cid", "dev"))))
    assert not met(two, facts((said("bob", "sre"), said("ann", "leads"))))
    assert not met(two, facts((said("bob", "sre"), said("bob", "leads"))))
    assert met(two, facts((said("bob", "sre"), said("cid", "dev", "leads"))))
    assert met(Approval(distinct_from_requester=False), facts((said("ann"),)))


def test_a_wait_counts_from_the_request() -> None:
    assert not met(Wait(60), facts(), NOON + 59_999)
    assert met(Wait(60), facts(), NOON + 60_000)


def test_a_hold_is_lifted_by_name() -> None:
    assert not met(Hold("db"), facts(lifted=("cache",)))
    assert met(Hold("db"), facts(lifted=("db",)))


def test_a_planned_freeze_closes_between_its_ends() -> None:
    freeze = Frozen(NOON, NOON + 1000, "holidays")
    assert met(freeze, facts(), NOON - 1)
    assert [one["reason"] for one in unmet(Policy((freeze,)), facts(), NOON)] == ["holidays"]
    assert met(freeze, facts(), NOON + 1000)


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        (Window("09:00", "17:00"), "2026-11-20 12:00", "2026-11-20 12:00"),
        (Window("09:00", "17:00"), "2026-11-20 08:59", "2026-11-20 09:00"),
        (Window("09:00", "17:00"), "2026-11-20 17:00", "2026-11-21 09:00"),
        (Window("09:00", "17:00", days=("mon", "fri")), "2026-11-20 18:00", "2026-11-23 09:00"),
        (Window("22:00", "02:00", days=("fri",)), "2026-11-21 01:59", "2026-11-21 01:59"),
        (Window("22:00", "02:00", days=("fri",)), "2026-11-21 02:00", "2026-11-27 22:00"),
        (Window("00:00", "24:00", days=("sun",)), "2026-11-20 12:00", "2026-11-22 00:00"),
        (Window("09:00", "17:00", utc_offset_minutes=120), "2026-11-20 06:59", "2026-11-20 07:00"),
        (Window("09:00", "17:00", utc_offset_minutes=-300), "2026-11-20 13:00", "2026-11-20 14:00"),
        (Window("01:00", "02:00", days=("sat",), utc_offset_minutes=600), "2026-11-20 15:30", "2026-11-20 15:30"),
    ],
)
def test_windows_open_when_they_say(window: Window, now: str, opens: str) -> None:
    assert opens_at(window, at(now)) == at(opens)
    assert met(window, facts(), at(now)) == (now == opens)


def test_every_unmet_condition_is_named_and_time_says_when_to_look_again() -> None:
    policy = Policy((Check("tests"), Wait(60), Frozen(NOON, NOON + 5000), Approval()))
    closed = unmet(policy, facts(), NOON)
    assert [one["type"] for one in closed] == ["check", "wait", "freeze", "approval"]
    assert ripens_at(closed) == NOON + 5000
    assert ripens_at(unmet(Policy((Check("tests"),)), facts(), NOON)) is None


@pytest.mark.parametrize(
    "policy",
    [
        Policy((Approval(min=0),)),
        Policy((Approval(groups=("",)),)),
        Policy((Check(""),)),
        Policy((Check("a", max_age_seconds=-1),)),
        Policy((Wait(-1),)),
        Policy((Window("9:00", "17:00"),)),
        Policy((Window("09:00", "25:00"),)),
        Policy((Window("09:60", "17:00"),)),
        Policy((Window("09:00", "09:00"),)),
        Policy((Window("09:00", "17:00", days=()),)),
        Policy((Window("09:00", "17:00", days=("friday",)),)),
        Policy((Window("٠٩:00", "17:00"),)),
        Policy((Frozen(5, 5),)),
        Policy((Frozen(5, 1 << 60),)),
        Policy((Frozen(5, 6, "x" * 1025),)),
        Policy((Window("09:00", "17:00", days=("mon",) * 8),)),
        Policy((Approval(groups=("g",) * 65),)),
        Policy((Hold("x" * 65),)),
        Policy((Wait(1),) * 33),
        Policy(concurrent=0),
        Policy(open_seconds=0),
        Policy(override=Override(people=1)),
        Policy(override=Override(seconds=0)),
    ],
)
def test_what_is_no_policy_is_refused(policy: Policy) -> None:
    assert wrong(policy) is not None


def test_a_policy_survives_its_spelling() -> None:
    policy = Policy(
        (Check("t"), Approval(2, ("sre",)), Wait(5), Window("09:00", "17:00"), Hold("x")), override=Override()
    )
    assert wrong(policy) is None
    assert msgspec.convert(msgspec.to_builtins(policy), Policy) == policy
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=Policy) == policy
