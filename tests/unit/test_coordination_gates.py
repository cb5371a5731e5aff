"""Gates, their requests, freezes and audits through the front doors of a simulated cluster."""

import asyncio
from hashlib import sha256
from typing import Any

import msgspec

from raftspine.config.apikeys import ApiKey, KeyRole
from raftspine.core.ledger import audit
from raftspine.http.auth import Auth
from tests.support.coordination_site import Said, Site, play

DIGEST = "sha256:abc"
POLICY = {
    "conditions": [
        {"type": "check", "name": "tests"},
        {"type": "approval", "min": 1},
    ],
    "concurrent": 1,
    "override": {"people": 2, "seconds": 60},
}


async def policy_gate(site: Site, name: str = "prod", **policy: Any) -> None:
    made = await site.put(f"/v1/gates/{name}", {"state": "open", "policy": {**POLICY, **policy}})
    assert made.status == 201, made


async def request(site: Site, name: str = "prod", via: str = "a", **body: Any) -> str:
    asked = {"artifact_digest": DIGEST, "requester": "dev", **body}
    made = await site.post(f"/v1/gates/{name}/requests", asked, via=via)
    assert made.status == 201, made
    return str(made.json["id"])


async def act(site: Site, id: str, what: str, via: str = "a", name: str = "prod", **body: Any) -> Said:
    return await site.post(f"/v1/gates/{name}/requests/{id}/{what}", body, via=via)


async def make_ready(site: Site, id: str) -> None:
    assert (
        await act(site, id, "report", check="tests", ok=True, artifact_digest=DIGEST, agent_id="ci")
    ).status == 200
    assert (await act(site, id, "approve", approver="boss", artifact_digest=DIGEST)).json["state"] == "READY"


def test_a_simple_gate_lets_as_many_through_as_it_has_uses() -> None:
    async def story(site: Site) -> None:
        assert (await site.post("/v1/gates/g/pass", {"agent_id": "x"})).code == "gate_closed"
        assert (await site.put("/v1/gates/g", {"state": "open", "uses": 3})).status == 201
        passing = [site.post("/v1/gates/g/pass", {"agent_id": f"a{n}"}, via="abc"[n % 3]) for n in range(8)]
        said = await asyncio.gather(*passing)
        through = [one.json for one in said if one.status == 200]
        assert sorted(one["uses_left"] for one in through) == [0, 1, 2]
        assert len({one["fencing_token"] for one in through}) == 3
        assert all(one.code == "gate_closed" for one in said if one.status != 200)
        key = {"idempotency-key": "once"}
        assert (await site.put("/v1/gates/g", {"state": "open", "uses": 2})).status == 200
        first = await site.post("/v1/gates/g/pass", {"agent_id": "x"}, key)
        again = await site.post("/v1/gates/g/pass", {"agent_id": "x"}, key, via="b")
        assert first.json == again.json and first.json["uses_left"] == 1
        shown = (await site.get("/v1/gates/g", via="c")).json
        assert (shown["open"], shown["uses_left"], shown["passes"]) == (True, 1, 4)
        ends = site.node().world.clock.wall_ms() + 2000
        await site.put("/v1/gates/g", {"state": "open", "expires_at": ends})
        await asyncio.sleep(2.5)
        assert (await site.post("/v1/gates/g/pass", {})).code == "gate_closed"
        assert (await site.get("/v1/gates?prefix=g")).json["items"][0]["state"] == "closed"
        assert (await site.ask("DELETE", "/v1/gates/g")).status == 204
        assert (await site.get("/v1/gates/g")).status == 404

    play(story)


def test_a_request_goes_through_when_all_conditions_are_met() -> None:
    async def story(site: Site) -> None:
        await policy_gate(site)
        id = await request(site, via="b")
        early = await act(site, id, "admit", artifact_digest=DIGEST, agent_id="dev")
        assert (early.status, early.code) == (409, "gate_closed")
        assert [one["type"] for one in early.details["unmet"]] == ["check", "approval"]
        own = await act(site, id, "approve", approver="dev", artifact_digest=DIGEST)
        assert (own.status, own.code) == (403, "forbidden")
        wrong = await act(site, id, "approve", approver="boss", artifact_digest="sha256:other")
        assert wrong.status == 409
        await make_ready(site, id)
        admitted = await act(site, id, "admit", via="c", artifact_digest=DIGEST, agent_id="dev")
        assert admitted.status == 200 and admitted.json["state"] == "OPEN"
        token = admitted.json["fencing_token"]
        good = await act(site, id, "verify", via="b", fencing_token=token, artifact_digest=DIGEST)
        assert (good.status, good.json["valid"]) == (200, True) and good.json["remaining_ms"] > 0
        for bad in ({"fencing_token": token + 1}, {"fencing_token": token, "artifact_digest": "sha256:other"}):
            no = await act(site, id, "verify", **bad)
            assert (no.status, no.code, no.details["valid"]) == (409, "gate_closed", False)
        done = await act(site, id, "complete", fencing_token=token, ok=True, agent_id="dev")
        assert done.json["state"] == "PASSED"
        assert (await act(site, id, "verify", fencing_token=token)).code == "gate_closed"
        listed = (await site.get("/v1/gates/prod/requests")).json
        assert [item["id"] for item in listed["items"]] == [id]
        assert (await site.get(f"/v1/gates/prod/requests/{id}", via="c")).json["state"] == "PASSED"
        assert (await site.get("/v1/gates/prod/requests/none")).status == 404

    play(story)


def test_who_waits_for_a_slot_gets_it_when_it_is_free() -> None:
    async def story(site: Site) -> None:
        await policy_gate(site, conditions=[], queue_seconds=2)
        first, second = await request(site), await request(site)
        token = (await act(site, first, "admit", artifact_digest=DIGEST, agent_id="dev")).json["fencing_token"]
        busy = await act(site, second, "admit", artifact_digest=DIGEST, agent_id="dev")
        assert (busy.code, busy.details["unmet"][0]["type"]) == ("gate_closed", "busy")
        short = await act(site, second, "admit", artifact_digest=DIGEST, agent_id="dev", wait_seconds=1)
        assert (short.code, short.details["position"]) == ("gate_closed", 1)
        body = {"artifact_digest": DIGEST, "agent_id": "dev", "wait_seconds": 30}
        waiting = site.background(act(site, second, "admit", via="b", **body))
        await asyncio.sleep(10)
        assert not waiting.done(), "longer than a place is kept unasked"
        await act(site, first, "complete", fencing_token=token, agent_id="dev")
        now = site.now()
        assert (await waiting).json["state"] == "OPEN"
        assert site.now() - now < 0.1

    play(story)


def test_a_freeze_stops_everything_at_once_and_everywhere() -> None:
    async def story(site: Site) -> None:
        names = [f"gate-{n}" for n in range(8)]
        for name in names:
            await site.put(f"/v1/gates/{name}", {"state": "open"})
        await policy_gate(site, conditions=[])
        id = await request(site)
        token = (await act(site, id, "admit", artifact_digest=DIGEST, agent_id="dev")).json["fencing_token"]
        assert (await act(site, id, "verify", fencing_token=token)).status == 200
        frozen = await site.post("/v1/gates:freeze", {"reason": "incident", "agent_id": "ops"}, via="b")
        assert frozen.status == 200 and frozen.json["scope"] == "all" and len(frozen.json["groups"]) == 4
        no = await act(site, id, "verify", via="c", fencing_token=token)
        assert (no.status, no.details["reasons"]) == (409, ["incident"])
        for name in names:
            assert (await site.post(f"/v1/gates/{name}/pass", {}, via="c")).code == "gate_closed"
        assert (await site.get("/v1/gates:freezes")).json["items"][0]["reason"] == "incident"
        freeze = {"freeze_id": frozen.json["freeze_id"], "agent_id": "ops"}
        assert (await site.post("/v1/gates:unfreeze", freeze)).status == 200
        assert (await site.post("/v1/gates:unfreeze", freeze)).status == 404
        assert (await act(site, id, "verify", fencing_token=token)).status == 200
        scoped = {"reason": "r", "scope": "prefix", "prefix": "gate-1", "agent_id": "ops"}
        assert (await site.post("/v1/gates:freeze", scoped)).json["prefix"] == "gate-1"
        assert (await site.post("/v1/gates/gate-1/pass", {})).code == "gate_closed"
        assert (await site.post("/v1/gates/gate-2/pass", {})).status == 200

    play(story)


def test_a_freeze_that_some_groups_could_not_be_told_says_so() -> None:
    async def story(site: Site) -> None:
        # Nodes hold different groups, so that one crash takes the quorum of some of them only.
        site.crash("d")
        site.crash("e")
        await asyncio.sleep(5)
        frozen = await site.post("/v1/gates:freeze", {"reason": "r", "agent_id": "ops", "freeze_id": "f"})
        assert (frozen.status, frozen.code) == (504, "outcome_unknown")
        assert frozen.details["done"] and frozen.details["failed"] and frozen.details["freeze"] == "f"
        site.restart("d")
        site.restart("e")
        await site.ready()
        again = await site.post("/v1/gates:freeze", {"reason": "r", "agent_id": "ops", "freeze_id": "f"})
        assert again.status == 200 and len(again.json["groups"]) == 8

    play(story, nodes=5, groups=8)


def test_an_override_needs_two_people_and_is_audited() -> None:
    async def story(site: Site) -> None:
        await policy_gate(site)
        id = await request(site)
        word = {"artifact_digest": DIGEST, "reason": "outage"}
        assert (await act(site, id, "override", approver="one", **word)).json["state"] == "PENDING"
        assert (await act(site, id, "override", approver="one", **word)).status == 403
        assert (await act(site, id, "override", approver="two", **word)).json["state"] == "READY"
        admitted = await act(site, id, "admit", artifact_digest=DIGEST, agent_id="dev")
        assert admitted.json["overridden"] is True
        page = (await site.get("/v1/gates/prod/audit?limit=3", via="b")).json
        entries = page["entries"]
        while page["next"] is not None:
            page = (await site.get(f"/v1/gates/prod/audit?limit=3&after={page['next']}", via="c")).json
            entries += page["entries"]
        assert "override" in [entry["action"] for entry in entries]
        assert any(entry["refused"] for entry in entries), "the second word of one person"
        assert audit.broken(msgspec.convert(list(entry.values()), audit.Entry) for entry in entries) is None
        assert entries[-1]["hash"] == page["head"]["hash"]
        previous = "0" * 64
        for entry in entries:
            plain = {field: value for field, value in entry.items() if field not in ("previous", "hash")}
            text = msgspec.json.encode(plain, order="sorted").decode()
            assert sha256(f"{previous}\n{text}".encode()).hexdigest() == entry["hash"], "a few lines check it offline"
            previous = entry["hash"]

    play(story)


def test_holds_windows_and_planned_freezes() -> None:
    async def story(site: Site) -> None:
        conditions = [
            {"type": "hold", "name": "manual"},
            {"type": "freeze", "starts_at": "2000-01-01T00:00:00Z", "ends_at": "2100-01-01T00:00:00Z", "reason": "x"},
            {"type": "window", "start": "00:00", "end": "24:00"},
            {"type": "wait", "seconds": 0},
        ]
        await policy_gate(site, conditions=conditions)
        stored = (await site.get("/v1/gates/prod")).json["policy"]["conditions"]
        assert stored[1]["ends_at"] == "2100-01-01T00:00:00.000Z"
        id = await request(site)
        unmet = (await site.get(f"/v1/gates/prod/requests/{id}")).json["unmet"]
        assert [one["type"] for one in unmet] == ["hold", "freeze"]
        assert unmet[1]["until"].startswith("2100")
        lifted = await act(site, id, "lift", hold="manual", agent_id="ops")
        assert [one["type"] for one in lifted.json["unmet"]] == ["freeze"]
        assert len((await act(site, id, "hold", hold="manual", agent_id="ops")).json["unmet"]) == 2
        assert (await act(site, id, "lift", hold="other", agent_id="ops")).status == 404
        assert (await act(site, id, "cancel", agent_id="stranger")).status == 403
        assert (await act(site, id, "cancel", agent_id="dev")).json["state"] == "CANCELLED"
        other = await request(site)
        assert (await act(site, other, "reject", agent_id="boss", reason="no")).json["state"] == "REJECTED"

    play(story)


def test_bad_gates() -> None:
    async def story(site: Site) -> None:
        for body in (
            {"state": "ajar"},
            {"state": "open", "uses": -1},
            {"state": "open", "expires_at": "soon"},
            {"state": "open", "expires_at": 1},
            {"state": "open", "uses": 1, "policy": {}},
            {"state": "open", "policy": {"conditions": [{"type": "luck"}]}},
            {"state": "open", "policy": {"concurrent": 0}},
            {"state": "open", "policy": {"conditions": [{"type": "freeze", "starts_at": "x", "ends_at": "y"}]}},
        ):
            bad = await site.put("/v1/gates/g", body)
            assert bad.status == 422, (body, bad)
        await policy_gate(site)
        nobody = await site.post("/v1/gates/prod/requests", {"artifact_digest": DIGEST})
        assert (nobody.status, nobody.details["field"]) == (422, "$.requester")
        assert (await site.post("/v1/gates/none/requests", {"artifact_digest": "x", "requester": "y"})).status == 404
        assert (await site.post("/v1/gates/prod/pass", {})).code == "gate_closed"
        assert (await site.post("/v1/gates:freeze", {"reason": "", "agent_id": "x"})).status == 422
        assert (await site.post("/v1/gates:freeze", {"reason": "r", "prefix": "p", "scope": "all"})).status == 422

    play(story)


def test_the_document_shows_every_route_with_its_failures() -> None:
    async def story(site: Site) -> None:
        document = (await site.get("/openapi.json")).json
        acquire = document["paths"]["/v1/locks/{name}/acquire"]["post"]
        assert {"200", "409", "413", "422", "503", "504"} <= set(acquire["responses"])
        assert {"$ref": "#/components/parameters/Idempotency-Key"} in acquire["parameters"]
        assert "410" in document["paths"]["/v1/watch"]["get"]["responses"]
        for path in ("/v1/gates:freeze", "/v1/txn", "/v1/tasks/{queue}/claim", "/v1/sessions", "/v1/audit"):
            assert path in document["paths"]
        planned = document["components"]["schemas"]["PlannedFreeze"]["properties"]
        assert planned["starts_at"] == {"type": "string"}

    play(story)


def key(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def test_roles_and_names_come_from_the_keys() -> None:
    auth = Auth(
        {
            key("w"): ApiKey("dev", KeyRole.WRITER),
            key("p"): ApiKey("boss", KeyRole.APPROVER),
            key("o"): ApiKey("ops", KeyRole.OPERATOR),
            key("r"): ApiKey("eye", KeyRole.READER),
        }
    )

    async def story(site: Site) -> None:
        def by(who: str) -> dict[str, str]:
            return {"authorization": f"Bearer {who}"}

        gate = {"state": "open", "policy": {"conditions": [{"type": "approval"}]}}
        assert (await site.put("/v1/gates/g", gate, by("w"))).code == "forbidden"
        assert (await site.put("/v1/gates/g", gate, by("p"))).status == 201
        asked = {"artifact_digest": DIGEST, "requester": "somebody else"}
        made = await site.post("/v1/gates/g/requests", asked, by("w"))
        assert made.json["requester"] == "dev", "a key cannot ask in another's name"
        path = f"/v1/gates/g/requests/{made.json['id']}"
        word = {"artifact_digest": DIGEST, "approver": "boss"}
        assert (await site.post(f"{path}/approve", word, by("w"))).code == "forbidden"
        approved = await site.post(f"{path}/approve", {**word, "approver": "x"}, by("p"))
        assert [one["by"] for one in approved.json["approvals"]] == ["boss"]
        assert (await site.post("/v1/locks/x/acquire", {}, by("r"))).code == "forbidden"
        lock = await site.post("/v1/locks/x/acquire", {"owner": "a"}, by("w"))
        check = {"fencing_token": lock.json["fencing_token"]}
        assert (await site.post("/v1/locks/x/check", check, by("r"))).json["valid"] is True
        for who in ("w", "p"):
            assert (await site.post("/v1/locks/x/break", {"reason": "r"}, by(who))).code == "forbidden"
            assert (await site.post("/v1/gates:freeze", {"reason": "r"}, by(who))).code == "forbidden"
        assert (await site.post("/v1/locks/x/break", {"reason": "r"}, by("o"))).status == 200
        assert (await site.post("/v1/gates:freeze", {"reason": "r"}, by("o"))).json["by"] == "ops"
        chains = (await site.get("/v1/audit", by("r"))).json["chains"]
        assert {("lock", "x"), ("gate", "g"), ("freeze", "")} <= {(one["kind"], one["name"]) for one in chains}
        broken = (await site.get("/v1/audit?kind=lock&name=x", by("r"))).json["entries"]
        assert [(entry["actor"], entry["action"]) for entry in broken] == [("ops", "break")]
        tried = (await site.get("/v1/audit?kind=access&name=boss", by("r"))).json["entries"]
        assert [(entry["refused"], entry["subject"]) for entry in tried] == [(True, "/v1/locks/x/break")]

    play(story, auth=auth)
