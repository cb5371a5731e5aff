"""Sessions, locks, elections and fences through the front doors of a simulated cluster."""

import asyncio
from typing import Any

import pytest

from raftspine.core.ledger.lock_commands import CloseSession
from raftspine.services.coordination.door import Caller
from tests.support.coordination_site import Said, Site, play


async def take(site: Site, name: str, owner: str = "x", *, via: str = "a", **body: Any) -> Said:
    return await site.post(f"/v1/locks/{name}/acquire", {"owner": owner, **body}, via=via)


def of(lease: Said) -> dict[str, Any]:
    return {"lease_id": lease.json["lease_id"], "fencing_token": lease.json["fencing_token"]}


def test_a_lock_from_its_taking_to_its_end() -> None:
    async def story(site: Site) -> None:
        path = "/v1/locks/deploy%2Fapi"
        got = await take(site, "deploy%2Fapi", "one", ttl_seconds=30)
        assert got.status == 200
        lease = got.json
        assert (lease["hold"], lease["ttl_ms"], lease["renew_after_ms"]) == (1, 30_000, 10_000)
        assert 29_000 < lease["ttl_remaining_ms"] <= 30_000
        assert lease["expires_at"].endswith("Z")
        held = await take(site, "deploy%2Fapi", "two", via="b")
        assert (held.status, held.code) == (409, "lock_held")
        assert held.details["holder"] == "one" and held.details["expires_at"].endswith("Z")
        assert held.details["retry_after_ms"] > 0 and held.details["position"] == 1 and held.details["ticket"]
        checked = await site.post(f"{path}/check", {"fencing_token": lease["fencing_token"]}, via="c")
        assert checked.json["valid"] is True and 28_000 < checked.json["remaining_ms"] <= 30_000
        assert (await site.post(f"{path}/check", {"fencing_token": 7})).json["valid"] is False
        renewed = await site.post(f"{path}/renew", of(got), via="b")
        assert (renewed.status, renewed.json["fencing_token"]) == (200, lease["fencing_token"])
        shown = (await site.get(path, via="c")).json
        assert shown["held"] is True and shown["holders"][0]["owner"] == "one"
        released = await site.post(f"{path}/release", of(got), via="c")
        assert (released.status, released.json["released"]) == (200, True)
        for act in ("renew", "release"):
            gone = await site.post(f"{path}/{act}", of(got))
            assert (gone.status, gone.code) == (409, "lease_not_current")
        assert (await site.get(path)).json["held"] is False
        again = await take(site, "deploy%2Fapi", "two")
        assert again.json["fencing_token"] > lease["fencing_token"]

    play(story)


def test_a_wait_ends_with_the_release_wherever_it_waits() -> None:
    async def story(site: Site) -> None:
        for via in ("a", "b", "c", "d"):
            first = await take(site, f"w-{via}", "one")
            waiting = site.background(take(site, f"w-{via}", "two", via=via, wait_seconds=30))
            await asyncio.sleep(1)
            assert not waiting.done()
            await site.post(f"/v1/locks/w-{via}/release", of(first))
            now = site.now()
            second = await waiting
            assert second.status == 200 and second.json["fencing_token"] > first.json["fencing_token"]
            assert site.now() - now < 0.05, "one round trip, and no polling"
            checked = await site.post(f"/v1/locks/w-{via}/check", {"fencing_token": second.json["fencing_token"]})
            assert checked.json["valid"] and checked.json["remaining_ms"] >= second.json["ttl_remaining_ms"] - 1000

    play(story, nodes=4, gateways=1)


def test_a_wait_longer_than_the_ttl_keeps_its_place_and_begins_with_a_whole_lease() -> None:
    async def story(site: Site) -> None:
        first = await take(site, "x", "one", ttl_seconds=60)
        waiting = site.background(take(site, "x", "two", wait_seconds=30, ttl_seconds=3))
        await asyncio.sleep(20)
        await site.post("/v1/locks/x/release", of(first))
        second = await waiting
        assert second.status == 200
        await asyncio.sleep(1.5)
        assert (await site.post("/v1/locks/x/renew", of(second))).status == 200

    play(story)


def test_a_ticket_keeps_the_place_for_the_next_call_and_lapses_unasked() -> None:
    async def story(site: Site) -> None:
        first = await take(site, "x", "one")
        late = await take(site, "x", "two", wait_seconds=1)
        assert (late.code, late.details["position"]) == ("lock_held", 1)
        third = await take(site, "x", "three", wait_seconds=1)
        assert third.details["position"] == 2
        back = site.background(take(site, "x", "two", wait_seconds=20, ticket=late.details["ticket"]))
        await asyncio.sleep(0.5)
        await site.post("/v1/locks/x/release", of(first))
        got = await back
        assert got.status == 200 and got.json["lease_id"] == late.details["ticket"]
        await asyncio.sleep(20)
        assert (await site.get("/v1/locks/x")).json["waiting"] == 0, "nobody asked for the third place"

    play(story)


def test_a_lease_nobody_renews_ends_after_its_ttl_and_never_before() -> None:
    async def story(site: Site) -> None:
        first = await take(site, "x", "one", ttl_seconds=2)
        await asyncio.sleep(1.9)
        assert (await take(site, "x", "two")).code == "lock_held"
        await asyncio.sleep(0.7)
        second = await take(site, "x", "two")
        assert second.status == 200
        assert (await site.post("/v1/locks/x/renew", of(first))).code == "lease_not_current"

    play(story)


def test_shared_and_semaphore_and_holds() -> None:
    async def story(site: Site) -> None:
        assert (await take(site, "r", "a", mode="shared")).status == 200
        assert (await take(site, "r", "b", mode="shared")).status == 200
        assert (await take(site, "r", "c")).code == "lock_held"
        for _ in range(2):
            assert (await take(site, "s", "a", mode="semaphore", permits=3, weight=1)).status == 200
        assert (await take(site, "s", "b", mode="semaphore", permits=3, weight=2)).code == "lock_held"
        for bad in ({"permits": 4}, {"permits": 3, "weight": 4}, {"weight": 4}):
            assert (await take(site, "s", "b", mode="semaphore", **bad)).status == 422
        opened = await site.post("/v1/sessions", {"ttl_seconds": 30, "owner": "me"})
        assert opened.status == 201
        session = opened.json["session_id"]
        first = await take(site, "h", "me", session_id=session)
        second = await take(site, "h", "me", session_id=session)
        assert (first.json["hold"], second.json["hold"]) == (1, 2)
        once = (await site.post("/v1/locks/h/release", of(first))).json
        assert (once["released"], once["hold"]) == (False, 1)
        assert (await site.post("/v1/locks/h/release", of(first))).json["released"] is True

    play(story)


def test_a_session_is_one_life_in_several_groups() -> None:
    async def story(site: Site) -> None:
        session = (await site.post("/v1/sessions", {"ttl_seconds": 4, "owner": "me"}, via="b")).json["session_id"]
        names = [f"lock-{n}" for n in range(8)]
        assert len({site.group(name) for name in names}) > 1
        for name in names:
            assert (await take(site, name, session_id=session, via="c")).status == 200
        shown = (await site.get(f"/v1/sessions/{session}", via="c")).json
        assert sorted(hold["name"] for hold in shown["holds"]) == names
        for _ in range(4):
            await asyncio.sleep(2)
            assert (await site.post(f"/v1/sessions/{session}/renew", via="c")).status == 200
        for name in names:
            assert (await take(site, name, "other")).code == "lock_held"
        closed = await site.ask("DELETE", f"/v1/sessions/{session}")
        assert closed.json["released"] == len(names)
        for name in names:
            assert (await take(site, name, "other")).status == 200
        assert (await site.post(f"/v1/sessions/{session}/renew")).code == "lease_not_current"
        assert (await site.get(f"/v1/sessions/{session}")).status == 404
        assert (await take(site, "z", session_id=session)).code == "lease_not_current"

    play(story)


def test_a_session_enters_a_group_once_however_many_need_it_there_at_once() -> None:
    async def story(site: Site) -> None:
        session = (await site.post("/v1/sessions", {"ttl_seconds": 30})).json["session_id"]
        names = [f"lock-{n}" for n in range(24)]
        taken = await asyncio.gather(
            *(take(site, name, session_id=session, via="abcd"[n % 4]) for n, name in enumerate(names))
        )
        assert [lease.status for lease in taken] == [200] * len(names), taken
        assert len((await site.get(f"/v1/sessions/{session}")).json["holds"]) == len(names)

    play(story, nodes=4, gateways=1)


def test_a_session_that_ended_in_one_group_is_over_in_all() -> None:
    async def story(site: Site) -> None:
        session = (await site.post("/v1/sessions", {"ttl_seconds": 30})).json["session_id"]
        names = [f"lock-{n}" for n in range(8)]
        for name in names:
            assert (await take(site, name, session_id=session)).status == 200
        home = site.group(session)
        other = next(name for name in names if site.group(name) != home)
        await site.node().coordination.door.execute(site.group(other), CloseSession(session), Caller())
        assert (await site.post(f"/v1/sessions/{session}/renew")).code == "lease_not_current"
        for name in names:
            assert (await take(site, name)).status == 200

    play(story)


def test_several_locks_or_none() -> None:
    async def story(site: Site) -> None:
        names = ["{p}/a", "{p}/b"]
        both = await site.post("/v1/locks:acquire_all", {"names": names, "owner": "one"})
        assert both.status == 200 and set(both.json["fencing_tokens"]) == set(names)
        held = await site.post("/v1/locks:acquire_all", {"names": names[:1], "owner": "two"})
        assert (held.code, held.details["name"], held.details["holder"]) == ("lock_held", "{p}/a", "one")
        again = {"names": names, "owner": "two", "wait_seconds": 20}
        waiting = site.background(site.post("/v1/locks:acquire_all", again, via="b"))
        await asyncio.sleep(0.5)
        for name, token in both.json["fencing_tokens"].items():
            path = f"/v1/locks/{name.replace('/', '%2F')}/release"
            assert (await site.post(path, {"lease_id": both.json["lease_id"], "fencing_token": token})).status == 200
        assert (await waiting).status == 200
        apart = next(f"q{n}" for n in range(99) if site.group(f"q{n}") != site.group("{p}/a"))
        crossed = await site.post("/v1/locks:acquire_all", {"names": ["{p}/a", apart]})
        assert (crossed.status, crossed.code) == (422, "cross_group")

    play(story)


def test_breaking_lists_and_pages() -> None:
    async def story(site: Site) -> None:
        for n in range(5):
            await take(site, f"list%2F{n}")
        first = (await site.get("/v1/locks?prefix=list/&limit=3")).json
        rest = (await site.get(f"/v1/locks?prefix=list/&limit=3&cursor={first['next_cursor']}")).json
        assert [item["name"] for item in first["items"] + rest["items"]] == [f"list/{n}" for n in range(5)]
        assert rest["next_cursor"] is None
        assert (await site.post("/v1/locks/list%2F1/break", {"reason": ""})).status == 422
        broken = await site.post("/v1/locks/list%2F1/break", {"reason": "stuck"}, {"x-agent-id": "ops"})
        assert broken.status == 200 and broken.json["broken"][0]["owner"] == "x"
        assert (await site.post("/v1/locks/list%2F1/break", {"reason": "stuck"})).code == "lease_not_current"

    play(story)


def test_elections_are_observed_by_long_poll() -> None:
    async def story(site: Site) -> None:
        assert (await site.get("/v1/elections/e")).json["leader"] is None
        first = await site.post("/v1/elections/e/campaign", {"owner": "one", "value": {"url": "u1"}})
        seen = (await site.get("/v1/elections/e", via="b")).json
        assert (seen["leader"]["owner"], seen["value"]) == ("one", {"url": "u1"})
        assert seen["term"] == first.json["term"]
        watching = site.background(site.get(f"/v1/elections/e?wait_seconds=30&revision={seen['revision']}", via="c"))
        await asyncio.sleep(0.3)
        assert not watching.done()
        said = await site.post("/v1/elections/e/proclaim", {**of(first), "value": 2})
        assert said.status == 200 and (await watching).json["value"] == 2
        bid = {"owner": "two", "wait_seconds": 20}
        second = site.background(site.post("/v1/elections/e/campaign", bid, via="b"))
        await asyncio.sleep(0.3)
        assert (await site.post("/v1/elections/e/renew", of(first))).status == 200
        assert (await site.post("/v1/elections/e/resign", of(first))).status == 200
        assert (await second).json["term"] > first.json["term"]
        refused = await site.post("/v1/elections/e/proclaim", {**of(first), "value": 3})
        assert refused.code == "lease_not_current"

    play(story)


def test_fences_only_rise() -> None:
    async def story(site: Site) -> None:
        assert (await site.post("/v1/fence/disk", {"token": 5})).json == {"resource": "disk", "highest": 5}
        assert (await site.post("/v1/fence/disk", {"token": 5}, via="b")).status == 200
        stale = await site.post("/v1/fence/disk", {"token": 4}, via="c")
        assert (stale.status, stale.code, stale.details["highest"]) == (409, "stale_token", 5)
        assert (await site.get("/v1/fence/disk", via="b")).json["highest"] == 5

    play(story)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"ttl_seconds": -1}, "$.ttl_seconds"),
    ({"ttl_seconds": 1}, "$.ttl_seconds"),
    ({"ttl_seconds": 86401}, "$.ttl_seconds"),
    ({"ttl_seconds": 1e300}, "$.ttl_seconds"),
    ({"wait_seconds": 61}, "$.wait_seconds"),
    ({"wait_seconds": -1}, "$.wait_seconds"),
    ({"mode": "greedy"}, "$.mode"),
    ({"priority": 101}, "$.priority"),
    ({"permits": 2}, "$.permits"),
    ({"lock_delay_ms": -5}, "$.lock_delay_ms"),
    ({"owner": "a\u0000"}, "$.owner"),
    ({"nonsense": 1}, "$.nonsense"),
    ({"session_id": ""}, "$.session_id"),
]


def test_bad_requests_name_the_field_and_take_nothing() -> None:
    async def story(site: Site) -> None:
        for body, field in BAD:
            bad = await site.post("/v1/locks/x/acquire", body)
            assert (bad.status, bad.details["field"]) == (422, field), bad
        for path in ("/v1/locks/x/release", "/v1/locks/x/renew", "/v1/elections/x/resign"):
            bad = await site.post(path, {"lease_id": "nobody", "fencing_token": 1})
            assert (bad.status, bad.code) == (409, "lease_not_current")
        assert (await site.post("/v1/locks/x/release", {})).status == 422
        assert (await site.post(f"/v1/locks/{'y' * 256}/acquire", {})).status == 422
        assert (await site.post("/v1/locks/a%00b/acquire", {})).status == 422
        assert (await site.post("/v1/locks/x/acquire", {"metadata": "m" * 5000})).status == 422
        assert (await site.post("/v1/sessions", {"ttl_seconds": 1})).status == 422
        assert (await site.post("/v1/fence/x", {"token": 0})).status == 422
        assert (await site.get("/v1/locks?limit=0")).status == 422
        assert (await site.get("/v1/locks/x")).json["held"] is False

    play(story)


def test_a_repeated_request_takes_once() -> None:
    async def story(site: Site) -> None:
        key = {"idempotency-key": "k1"}
        first = await site.post("/v1/locks/x/acquire", {"owner": "o"}, key)
        second = await site.post("/v1/locks/x/acquire", {"owner": "o"}, key, via="b")
        assert first.json["lease_id"] == second.json["lease_id"] and second.json["hold"] == 1
        other = await site.post("/v1/locks/x/acquire", {"owner": "p"}, key)
        assert (other.status, other.details["field"]) == (422, "Idempotency-Key")

    play(story)


def test_without_a_quorum_everything_is_refused() -> None:
    async def story(site: Site) -> None:
        got = await take(site, "x", ttl_seconds=600)
        site.crash("b")
        site.crash("c")
        token = {"fencing_token": got.json["fencing_token"]}
        questions: list[tuple[str, str, Any]] = [
            ("POST", "/v1/locks/x/check", token),
            ("POST", "/v1/locks/x/renew", of(got)),
            ("GET", "/v1/locks/x", None),
            ("GET", "/v1/locks", None),
            ("GET", "/v1/elections/x", None),
            ("GET", "/v1/fence/x", None),
        ]
        for method, path, body in questions:
            seen = await site.ask(method, path, body)
            assert seen.status == 503, (path, seen)
        for path in ("/v1/locks/y/acquire", "/v1/sessions"):
            assert (await site.post(path, {})).status == 503

    play(story)


@pytest.mark.parametrize("seed", range(3))
def test_leases_outlive_leaders(seed: int) -> None:
    """Whoever renews in time keeps its lease through any number of leaders."""

    async def story(site: Site) -> None:
        leases = {f"l{n}": await take(site, f"l{n}", ttl_seconds=4) for n in range(4)}
        assert all(lease.status == 200 for lease in leases.values())

        async def keep(name: str, lease: Said) -> None:
            for _ in range(20):
                await asyncio.sleep(1)
                for _ in range(60):
                    seen = await site.post(f"/v1/locks/{name}/renew", of(lease), via=site.alive()[0])
                    if seen.status == 200:
                        break
                    assert seen.status == 503, (name, seen)

        keeping = [site.background(keep(name, lease)) for name, lease in leases.items()]
        for n in range(4):
            await asyncio.sleep(2)
            leader = site.leader(f"l{n}")
            site.crash(leader, power=True)
            await asyncio.sleep(3)
            site.restart(leader)
            await site.ready()
        await asyncio.gather(*keeping)
        for name in leases:
            assert (await take(site, name, "thief")).code == "lock_held"

    play(story, seed=seed)


def test_a_leader_that_was_cut_off_expires_nobody() -> None:
    async def story(site: Site) -> None:
        got = await take(site, "x", ttl_seconds=4)
        leader = site.leader("x")
        heal = site.part(leader)
        await asyncio.sleep(3)
        renewed = await site.post("/v1/locks/x/renew", of(got), via=site.other(leader))
        assert renewed.status == 200, "the majority has another leader, whose timers began in full"
        heal()
        await asyncio.sleep(3)
        assert (await take(site, "x", "thief", via=leader)).code == "lock_held"

    play(story)


def test_what_is_held_and_waited_for_is_counted() -> None:
    async def story(site: Site) -> None:
        held = await take(site, "x", ttl_seconds=2)
        waiting = site.background(take(site, "x", "two", wait_seconds=30))
        await site.post("/v1/tasks/q", {"payload": 1})
        await asyncio.sleep(0.5)

        def total(name: str) -> float:
            return sum(site.node(id).coordination.gauges()[name][1] for id in site.alive())

        assert (total("spine_locks_held"), total("spine_lock_waiters"), total("spine_tasks_ready")) == (1, 1, 1)
        assert (total("spine_sessions"), total("spine_waiting_requests")) == (2, 1)
        assert (await waiting).json["fencing_token"] > held.json["fencing_token"]
        assert sum(site.node(id).coordination.counters()["spine_session_expirations"][1] for id in "abc") == 1
        metrics = (await site.get("/metrics")).body.decode()
        assert "spine_session_expirations_total" in metrics and "spine_lock_wait_seconds_count 1.0" in metrics
        assert "spine_watchers 0.0" in metrics
        assert (await site.get("/v1/stats")).json["coordination"]["watchers"] == 0

    play(story)
