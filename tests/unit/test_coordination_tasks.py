"""Tasks and transactions through the front doors of a simulated cluster."""

import asyncio
from typing import Any

from raftspine.services.requests import digest_of
from tests.support.coordination_site import Said, Site, play


async def enqueue(site: Site, queue: str = "q", via: str = "a", **body: Any) -> Said:
    return await site.post(f"/v1/tasks/{queue}", body, via=via)


async def claim(site: Site, queue: str = "q", via: str = "a", **body: Any) -> list[Any]:
    said = await site.post(f"/v1/tasks/{queue}/claim", {"owner": "w", **body}, via=via)
    assert said.status == 200, said
    return list(said.json["tasks"])


def test_a_task_from_its_queue_to_its_end() -> None:
    async def story(site: Site) -> None:
        made = await enqueue(site, payload={"n": 1}, id="t1")
        assert (made.status, made.json["id"], made.json["state"]) == (201, "t1", "ready")
        twin = await enqueue(site, payload=2, id="t1", via="b")
        assert (twin.status, twin.code) == (409, "version_conflict")
        (task,) = await claim(site, via="c", n=5)
        assert (task["payload"], task["attempt"]) == ({"n": 1}, 1)
        assert await claim(site) == []
        token = {"claim_token": task["claim_token"]}
        extended = await site.post("/v1/tasks/q/t1/extend", token, via="b")
        assert (extended.status, extended.json["ttl_ms"]) == (200, 60_000)
        longer = await site.post("/v1/tasks/q/t1/extend", {**token, "lease_seconds": 90})
        assert 89_000 < longer.json["ttl_remaining_ms"] <= 90_000
        done = await site.post("/v1/tasks/q/t1/complete", {**token, "result": "first"}, via="b")
        assert (done.json["first"], done.json["result"]) == (True, "first")
        late = await site.post("/v1/tasks/q/t1/complete", {**token, "result": "second"})
        assert (late.status, late.json["first"], late.json["result"]) == (200, False, "first")
        shown = (await site.get("/v1/tasks/q/t1", via="c")).json
        assert (shown["state"], shown["result"]) == ("done", "first")
        assert (await site.post("/v1/tasks/q/t1/extend", token)).code == "lease_not_current"
        assert (await site.get("/v1/tasks/q/t2")).status == 404
        assert (await site.post("/v1/tasks/q/t2/extend", token)).status == 404
        assert (await site.ask("DELETE", "/v1/tasks/q/t1")).status == 204

    play(story)


def test_a_waiting_worker_gets_the_task_at_once() -> None:
    async def story(site: Site) -> None:
        for via in "abcd":
            waiting = site.background(claim(site, via=via, wait_seconds=30))
            await asyncio.sleep(1)
            assert not waiting.done()
            await enqueue(site, payload=via)
            now = site.now()
            (task,) = await waiting
            assert task["payload"] == via and site.now() - now < 0.1
        soon = site.cluster.hosts[next(iter(site.cluster.hosts))].clock.wall_ms() + 3000
        await enqueue(site, payload="later", not_before=soon)
        assert await claim(site) == []
        (task,) = await claim(site, wait_seconds=10)
        assert task["payload"] == "later"

    play(story, nodes=4, gateways=1)


def test_a_lost_claim_goes_to_another_and_the_last_attempt_to_the_dead() -> None:
    async def story(site: Site) -> None:
        await enqueue(site, id="t", max_attempts=2, dedupe_key="k")
        same = await enqueue(site, dedupe_key="k")
        assert (same.status, same.json["id"], same.json["deduplicated"]) == (200, "t", True)
        (first,) = await claim(site, lease_seconds=2)
        (second,) = await claim(site, wait_seconds=10)
        assert second["attempt"] == 2
        stale = await site.post("/v1/tasks/q/t/complete", {"claim_token": first["claim_token"]})
        assert (stale.status, stale.code) == (409, "lease_not_current")
        failed = await site.post("/v1/tasks/q/t/fail", {"claim_token": second["claim_token"], "error": "boom"})
        assert failed.json["state"] == "dead"
        dead = (await site.get("/v1/tasks/q?state=dead")).json
        assert [(item["id"], item["error"]) for item in dead["items"]] == [("t", "boom")]
        assert dead["counts"]["dead"] == 1
        assert (await site.post("/v1/tasks/q/t/requeue")).json["state"] == "ready"
        assert (await site.get("/v1/tasks/q?state=ready")).json["items"][0]["id"] == "t"
        (third,) = await claim(site)
        back = {"claim_token": third["claim_token"], "delay_seconds": 1}
        assert (await site.post("/v1/tasks/q/t/fail", back)).json["state"] == "delayed"
        assert (await site.get("/v1/tasks")).json["items"] == [
            {"queue": "q", "ready": 0, "delayed": 1, "claimed": 0, "done": 0, "dead": 0}
        ]

    play(story)


def test_completion_writes_memories_in_the_same_step() -> None:
    async def story(site: Site) -> None:
        queue = "{report}/work"
        path = "/v1/tasks/%7Breport%7D%2Fwork"
        await site.put("/v1/memories/report", {"content": "on the ring"})
        assert (
            await site.post(path, {"id": "t", "then": [{"op": "put", "id": "report", "content": 1}]})
        ).status == 201
        for via in "abcd":
            assert (await site.get("/v1/memories/report", via=via)).json["content"] == "on the ring"
        tasks = (await site.post(f"{path}/claim", {}, via="d")).json["tasks"]
        body = {"claim_token": tasks[0]["claim_token"], "result": "ok"}
        done = await site.post(f"{path}/t/complete", body, via="d")
        assert done.status == 200 and done.json["written"][0]["id"] == "report"
        for via in "abcd":
            found = await site.get("/v1/memories/report?consistency=strong", via=via)
            assert (found.json["content"], found.json["consistency"]) == (1, "strong")
        assert site.group(queue) == site.group("{report}")
        stray = next(name for name in "abcdefgh" if site.group("{" + name + "}") != site.group(queue))
        elsewhere = {"then": [{"op": "put", "id": stray, "content": 1}]}
        assert (await site.post(path, elsewhere)).code == "cross_group"
        await site.post(path, {"id": "u"})
        (task,) = (await site.post(f"{path}/claim", {})).json["tasks"]
        crossed = await site.post(f"{path}/u/complete", {"claim_token": task["claim_token"], **elsewhere})
        assert (crossed.status, crossed.code) == (422, "cross_group")
        assert (await site.get(f"{path}/u")).json["state"] == "claimed"

    play(story, nodes=4, gateways=1)


def test_bad_tasks() -> None:
    async def story(site: Site) -> None:
        for body in (
            {"priority": 1000},
            {"id": ""},
            {"id": "x" * 101},
            {"max_attempts": -1},
            {"not_before": "tomorrow"},
            {"payload": "x" * 70_000},
            {"then": [{"op": "put", "id": "", "content": 1}]},
            {"nonsense": 1},
        ):
            bad = await site.post("/v1/tasks/q", body)
            assert bad.status == 422, (body, bad)
        assert (await site.post("/v1/tasks/q/claim", {"n": 65})).status == 422
        assert (await site.post("/v1/tasks/q/claim", {"lease_seconds": 0})).status == 422
        assert (await site.post("/v1/tasks/q/t/fail", {"claim_token": 0})).status == 422
        far = "x" * (3 << 20)
        assert (await site.post("/v1/tasks/q", {"payload": far})).status == 413

    play(story)


# ── transactions and guards ─────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_takes_one_branch_whole() -> None:
    async def story(site: Site) -> None:
        ids = [f"m{n}" for n in range(40)]
        x = "x"
        y = next(id for id in ids if site.node().topology.group_of(id) == site.node().topology.group_of(x))
        z = next(id for id in ids if site.node().topology.group_of(id) != site.node().topology.group_of(x))
        await site.put(f"/v1/memories/{y}", {"content": "from the ring"}, via="b")
        made = {
            "compare": [{"id": x, "exists": False}],
            "then": [
                {"op": "put", "id": x, "content": 1},
                {"op": "get", "id": y},
                {"op": "put", "id": y, "content": 2},
            ],
            "else": [{"op": "get", "id": x}],
        }
        first = await site.post("/v1/txn", made, via="d")
        assert first.status == 200 and first.json["succeeded"] is True, first
        second = await site.post("/v1/txn", made, via="b")
        assert (second.json["succeeded"], second.json["results"][0]["memory"]["content"]) == (False, 1)
        assert (await site.get(f"/v1/memories/{y}?consistency=strong", via="c")).json["content"] == 2
        version = second.json["results"][0]["version"]
        swap = {"compare": [{"id": x, "version": version}], "then": [{"op": "patch", "id": x, "content": 3}]}
        assert (await site.post("/v1/txn", swap)).json["succeeded"] is True
        assert (await site.post("/v1/txn", swap)).json["succeeded"] is False
        crossed = await site.post("/v1/txn", {"then": [{"op": "get", "id": x}, {"op": "get", "id": z}]})
        assert (crossed.status, crossed.code) == (422, "cross_group")
        for bad in ({"compare": [{}]}, {"compare": [{"id": x}]}, {"then": [{"op": "take"}]}, {"else": 3}):
            assert (await site.post("/v1/txn", bad)).status == 422, bad
        failed = {
            "then": [{"op": "put", "id": y, "content": 9}, {"op": "delete", "id": x, "expected_version": "s-0-0-0"}]
        }
        assert (await site.post("/v1/txn", failed)).code == "version_conflict"
        assert (await site.get(f"/v1/memories/{y}?consistency=strong")).json["content"] == 2, "nothing of it"

    play(story, nodes=4, gateways=1)


def test_a_write_with_a_guard_happens_only_under_the_lock() -> None:
    async def story(site: Site) -> None:
        lock, path = "{dep}/deploy", "/v1/locks/%7Bdep%7D%2Fdeploy"
        got = (await site.post(f"{path}/acquire", {"owner": "o"})).json
        token = got["fencing_token"]
        strong = {"content": 1, "tags": ["critical"]}
        header = {"x-spine-fencing": f"{lock}={token}"}
        for via in "abcd":
            assert (await site.put("/v1/memories/dep", strong, header, via=via)).status in (200, 201)
        body = {**strong, "content": 2, "guard": [{"lock": lock, "token": token}]}
        assert (await site.put("/v1/memories/dep", body, via="d")).status == 200
        change = {"content": 3, "guard": [{"lock": lock, "token": token}]}
        assert (await site.ask("PATCH", "/v1/memories/dep", change, via="c")).status == 200
        await site.post(f"{path}/release", {"lease_id": got["lease_id"], "fencing_token": token})
        refused = await site.put("/v1/memories/dep", {**strong, "content": 4}, header, via="d")
        assert (refused.status, refused.code) == (409, "fenced")
        assert (await site.ask("DELETE", "/v1/memories/dep", None, header)).code == "fenced"
        assert (await site.get("/v1/memories/dep")).json["content"] == 3
        other = next(f"l{n}" for n in range(99) if site.group(f"l{n}") != site.group(lock))
        crossed = await site.put("/v1/memories/dep", strong, {"x-spine-fencing": f"{other}=5"})
        assert (crossed.status, crossed.code) == (422, "cross_group")
        ring = await site.put("/v1/memories/dep2", {"content": 1}, {"x-spine-fencing": "{dep2}/l=5"})
        assert ring.status == 422 and "ring" in ring.json["error"]["message"]
        for bad in ("nonsense", "a=x", "=5", "a=0"):
            assert (await site.put("/v1/memories/dep", strong, {"x-spine-fencing": bad})).status == 422
        txn = {"then": [{"op": "put", "id": "dep", "content": 9}], "guard": [{"lock": lock, "token": token}]}
        assert (await site.post("/v1/txn", txn)).code == "fenced"

    play(story, nodes=4, gateways=1)


def test_what_became_of_an_acquire_is_found_by_its_key() -> None:
    async def story(site: Site) -> None:
        await site.post("/v1/locks/x/acquire", {"owner": "o"}, {"idempotency-key": "k9"})
        assert (await site.get("/v1/requests/k9", via="b")).json["state"] == "done"
        assert digest_of("k9")

    play(story)
