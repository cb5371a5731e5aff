"""Terraform's HTTP backend through the front doors of a simulated cluster."""

import asyncio
import hashlib
import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest

from raftspine.core.ledger import audit
from raftspine.core.ledger.terraform import STATE_BYTES
from raftspine.core.ledger.terraform_rows import lock_name, memory_id
from raftspine.http.auth import Auth
from raftspine.services.coordination import terraform
from tests.support.coordination_site import Said, Site, play

ODD = "team/{a}}b%7D é?#"
PATH = "/v1/terraform/prod"


def at(name: str, rest: str = "") -> str:
    return f"/v1/terraform/{quote(name, safe='')}{rest}"


def info(lock_id: str, who: str = "ada@here", **more: str) -> dict[str, str]:
    known = {"Operation": "OperationTypeApply", "Info": "", "Version": "1.11.4", "Created": "2026-11-20T15:49:28Z"}
    return {"ID": lock_id, "Who": who, "Path": "", **known, **more}


def state(serial: int, text: str = "") -> bytes:
    """With blanks and an order that no encoder of ours would choose."""
    return f'{{\n  "version": 4,  "serial": {serial},\n\t"lineage": "l-1", "text": "{text} ü"\n}}\n'.encode()


async def post(
    site: Site, data: bytes, lock_id: str = "", *, path: str = PATH, via: str = "a", **headers: str
) -> Said:
    return await site.post(f"{path}?ID={quote(lock_id)}" if lock_id else path, data, headers, via=via)


async def locked(site: Site, lock_id: str, *, path: str = PATH, via: str = "a", **more: str) -> Said:
    return await site.ask("LOCK", path, info(lock_id, **more), via=via)


async def unlocked(site: Site, body: Any, headers: dict[str, str] | None = None, *, path: str = PATH) -> Said:
    return await site.ask("UNLOCK", path, body, headers)


def test_a_run_from_lock_to_unlock_through_several_nodes() -> None:
    async def story(site: Site) -> None:
        assert (await site.get(PATH)).status == 404
        taken = await locked(site, "one", via="b")
        assert taken.status == 200
        assert taken.json["lock"] == info("one")
        assert taken.json["ttl_ms"] == terraform.LEASE_MS and taken.json["expires_at"].endswith("Z")
        first = await post(site, state(1), "one", via="c")
        assert (first.status, first.json) == (201, {"number": 1, "created": True})
        again = await post(site, state(1), "one", via="a")
        assert (again.status, again.json) == (200, {"number": 1, "created": False})
        assert (await post(site, state(2), "one", via="d")).json["number"] == 2
        assert (await unlocked(site, info("one"))).json == {"forced": False, "lock": info("one")}
        for via in ("a", "b", "c", "d"):
            read = await site.get(PATH, via=via)
            assert (read.status, read.body) == (200, state(2)), "byte for byte"
            assert read.headers["content-type"] == "application/json"
            assert read.headers["content-md5"] == b64encode(hashlib.md5(state(2)).digest()).decode()
            assert read.headers["x-spine-state-version"] == "2"

    play(story, nodes=4, gateways=1)


def test_a_conflict_tells_the_holder_as_terraform_reads_it() -> None:
    async def story(site: Site) -> None:
        taken = await locked(site, "one")
        for refused in (
            await locked(site, "two", who="bob@there", via="b"),
            await post(site, state(1)),
            await post(site, state(1), "two"),
            await site.ask("DELETE", PATH),
            await unlocked(site, info("two")),
        ):
            assert refused.status == 409
            assert {name: refused.json[name] for name in info("one")} == info("one")
            assert refused.json["error"]["requestId"]
        assert (await locked(site, "two")).code == "lock_held"
        assert (await post(site, state(1))).code == "lock_held"
        assert (await post(site, state(1), "two")).code == "fenced"
        assert (await unlocked(site, info("two"))).code == "lease_not_current"
        assert (await site.get(PATH)).status == 404, "nothing was written"
        assert (await locked(site, "one")).json["fencing_token"] == taken.json["fencing_token"], "asked again"
        held = await site.get(f"{PATH}/lock", via="c")
        assert (held.json["lock"], held.json["owner"]) == (info("one"), "ada@here")
        assert held.json["fencing_token"] == taken.json["fencing_token"]
        shown = await site.get(f"/v1/locks/{quote(lock_name('prod'), safe='')}")
        assert shown.json["holders"][0]["fencing_token"] == taken.json["fencing_token"], "a lock like any other"
        await unlocked(site, info("one"))
        late = await post(site, state(1), "one")
        assert (late.status, late.code) == (409, "fenced")
        assert "ID" not in late.json
        assert (await site.get(f"{PATH}/lock")).status == 404

    play(story)


def test_a_forced_unlock_needs_an_operator_and_is_written_down() -> None:
    digest = {role: hashlib.sha256(role.encode()).hexdigest() for role in ("reader", "writer", "operator")}

    def basic(key: str, user: str = "ada") -> dict[str, str]:
        return {"authorization": f"Basic {b64encode(f'{user}:{key}'.encode()).decode()}"}

    async def story(site: Site) -> None:
        assert (await site.get(PATH)).status == 401
        assert (await site.get(PATH, basic("nobody's"))).status == 401
        assert (await site.get(PATH, {"authorization": "Basic ???"})).status == 401
        assert (await site.get(PATH, basic("reader"))).status == 404
        assert (await site.ask("LOCK", PATH, info("one"), basic("reader"))).status == 403
        assert (await site.ask("LOCK", PATH, info("one"), basic("writer"))).status == 200
        assert (await site.ask("LOCK", PATH, info("one"), {"authorization": "Bearer writer"})).status == 200
        refused = await unlocked(site, None, basic("writer"))
        assert (refused.status, refused.code) == (403, "forbidden")
        forced = await unlocked(site, None, basic("operator"))
        assert (forced.status, forced.json) == (200, {"forced": True, "lock": info("one")})
        chain = (await site.get(f"{PATH}/audit", basic("reader"), via="b")).json["entries"]
        told = [(entry["action"], entry["subject"], entry["actor"], entry["refused"]) for entry in chain]
        writer, operator = digest["writer"][:8], digest["operator"][:8]
        assert told == [("force-unlock", "one", writer, True), ("force-unlock", "one", operator, False)]
        assert chain[1]["details"]["who"] == "ada@here" and chain[1]["time_ms"] > 0
        assert audit.broken([audit.Entry(**entry) for entry in chain]) is None, "verifiable as it was exported"
        late = await site.post(f"{PATH}?ID=one", state(1), basic("operator"))
        assert (late.status, late.code) == (409, "fenced")
        nobody = await unlocked(site, None, basic("operator"))
        assert (nobody.status, nobody.code) == (409, "lease_not_current")

    play(story, auth=Auth({value: role for role, value in digest.items()}))


def test_history_is_listed_read_and_brought_back() -> None:
    async def story(site: Site) -> None:
        for serial in (1, 2, 3):
            await post(site, state(serial), **{"x-agent-id": "ada"})
        listed = (await site.get(f"{PATH}/versions", via="b")).json["versions"]
        assert [(each["version"], each["serial"], each["current"]) for each in listed] == [
            (3, 3, True),
            (2, 2, False),
            (1, 1, False),
        ]
        assert listed[2]["size"] == len(state(1))
        assert listed[2]["content_sha256"] == hashlib.sha256(state(1)).hexdigest()
        assert (listed[2]["written_by"], listed[2]["lineage"]) == ("ada", "l-1")
        assert listed[2]["written_at"].endswith("Z")
        assert (await site.get(f"{PATH}/versions/1", via="c")).body == state(1)
        assert (await site.get(f"{PATH}/versions/3")).body == state(3)
        await locked(site, "one")
        assert (await site.post(f"{PATH}/versions/1/restore")).code == "lock_held"
        restored = await site.post(f"{PATH}/versions/1/restore?ID=one", via="c")
        assert (restored.status, restored.json["number"]) == (200, 4)
        assert (await site.get(PATH)).body == state(1)
        assert (await site.ask("DELETE", f"{PATH}?ID=one")).json == {"deleted": True}
        assert (await site.get(PATH)).status == 404
        assert (await site.ask("DELETE", f"{PATH}?ID=one")).json == {"deleted": False}
        assert (await site.get(f"{PATH}/versions/4")).body == state(1)
        assert [entry["action"] for entry in (await site.get(f"{PATH}/audit")).json["entries"]] == [
            "restore",
            "delete",
        ]
        assert [entry["seq"] for entry in (await site.get(f"{PATH}/audit?after=1")).json["entries"]] == [2]

    play(story)


def test_a_state_is_a_memory_that_only_this_door_changes() -> None:
    async def story(site: Site) -> None:
        await post(site, state(1), path=at(ODD))
        memory = f"/v1/memories/{quote(memory_id(ODD), safe='')}"
        read = await site.get(memory, via="b")
        assert read.json["content"].encode() == state(1)
        assert (read.json["namespace"], read.json["consistency"]) == ("terraform", "strong")
        assert read.json["metadata"]["serial"] == 1
        assert (await site.put(memory, {"content": "x"})).status == 403
        assert (await site.ask("PATCH", memory, {"content": "x"})).status == 403
        assert (await site.ask("DELETE", memory)).status == 403
        for ops in ([{"op": "put", "id": memory_id(ODD), "content": "x"}], [{"op": "delete", "id": memory_id(ODD)}]):
            batch = await site.post("/v1/memories/batch", {"ops": ops})
            assert batch.json["results"][0]["status"] == 403
            refused = await site.post("/v1/txn", {"then": ops})
            assert (refused.status, refused.details["field"]) == (403, "$.then[0].id")
        assert (await site.get(at(ODD), via="c")).body == state(1)
        assert (await locked(site, "one", path=at(ODD))).status == 200
        assert (await locked(site, "one")).status == 200, "the same ID on another state"

    play(story)


def test_the_user_of_the_backend_block_is_who_acts_where_there_are_no_keys() -> None:
    async def story(site: Site) -> None:
        ada = {"authorization": f"Basic {b64encode(b'ada:ignored').decode()}"}
        await site.post(PATH, state(1), ada)
        assert (await site.get(f"{PATH}/versions")).json["versions"][0]["written_by"] == "ada"
        await locked(site, "one")
        await unlocked(site, {"ID": "one"}, ada)
        entry = (await site.get(f"{PATH}/audit")).json["entries"][0]
        assert (entry["action"], entry["actor"], entry["refused"]) == ("force-unlock", "ada", False)

    play(story)


def test_a_large_state_comes_back_and_a_larger_one_is_refused() -> None:
    async def story(site: Site) -> None:
        large = state(1, "x" * (STATE_BYTES - len(state(1))))
        assert len(large) == STATE_BYTES
        assert (await post(site, large, via="d")).status == 201
        assert (await site.get(PATH, via="d")).body == large
        refused = await post(site, large + b" ")
        assert (refused.status, refused.code) == (413, "too_large")
        assert refused.details["limit"] == STATE_BYTES
        assert (await site.get(PATH)).body == large

    play(story, nodes=4, gateways=1)


def test_a_leader_that_falls_takes_neither_lock_nor_state_along() -> None:
    async def story(site: Site) -> None:
        await locked(site, "one")
        await post(site, state(1), "one")
        leader = site.leader(lock_name("prod"))
        site.crash(leader)
        via = site.other(leader)
        written = await post(site, state(2), "one", via=via)
        while written.status == 503:  # as Terraform's client does
            await asyncio.sleep(1)
            written = await post(site, state(2), "one", via=via)
        assert written.status in (200, 201)
        assert (await locked(site, "two", via=via)).json["ID"] == "one"
        assert (await site.get(PATH, via=via)).body == state(2)

    play(story)


def test_the_minority_says_neither_free_nor_empty() -> None:
    async def story(site: Site) -> None:
        await locked(site, "one")
        await post(site, state(1), "one")
        heal = site.part("c")
        await asyncio.sleep(5)
        for said in (
            await site.get(PATH, via="c"),
            await site.get(at("other"), via="c"),
            await locked(site, "two", via="c"),
            await post(site, state(2), "one", via="c"),
        ):
            assert said.status == 503, said
        heal()
        await site.ready()
        assert (await site.get(PATH, via="c")).body == state(1)

    play(story)


def test_a_lease_outlives_a_long_run_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "LEASE_MS", 20_000)

    async def story(site: Site) -> None:
        await locked(site, "one")
        await asyncio.sleep(15)
        assert (await post(site, state(1), "one")).status == 201, "and is heard of"
        await asyncio.sleep(15)
        assert (await locked(site, "two")).code == "lock_held"
        await asyncio.sleep(20)
        assert (await locked(site, "two")).status == 200
        assert (await post(site, state(2), "one")).code == "fenced"

    play(story)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "field"),
    [
        ("POST", PATH, b"", {}, 400, "$"),
        ("POST", PATH, b"{", {}, 400, "$"),
        ("POST", PATH, b"[]", {}, 422, "$"),
        ("POST", PATH, b'{"a": "\xff"}', {}, 400, "$"),
        ("POST", PATH, b'{"serial": "x"}', {}, 422, "$.serial"),
        ("POST", PATH, b"{}", {"content-md5": "AAAA"}, 400, "Content-MD5"),
        ("POST", PATH, b"{}", {"content-md5": "!"}, 400, "Content-MD5"),
        ("POST", f"{PATH}?id=one", b"{}", {}, 422, "id"),
        ("POST", f"{PATH}?ID=", b"{}", {}, 422, "ID"),
        ("POST", f"{PATH}?ID=a%00", b"{}", {}, 422, None),
        ("POST", "/v1/terraform/", b"{}", {}, 422, "name"),
        ("POST", "/v1/terraform/a%00b", b"{}", {}, 422, "name"),
        ("POST", f"/v1/terraform/{'x' * 250}", b"{}", {}, 422, "name"),
        ("LOCK", PATH, b"", {}, 400, "$"),
        ("LOCK", PATH, {}, {}, 422, "$.ID"),
        ("LOCK", PATH, {"ID": ""}, {}, 422, "$.ID"),
        ("LOCK", PATH, {"ID": "a", "Who": "x" * 256}, {}, 422, "$.Who"),
        ("LOCK", PATH, {"ID": "a", "Info": "x" * 1025}, {}, 422, "$.Info"),
        ("UNLOCK", PATH, b"no JSON", {}, 400, "$"),
        ("UNLOCK", PATH, {"Who": "x"}, {}, 422, "$.ID"),
        ("GET", f"{PATH}/versions/x", None, {}, 422, "version"),
        ("GET", f"{PATH}/versions/1", None, {}, 404, None),
        ("POST", f"{PATH}/versions/1/restore", None, {}, 404, None),
        ("GET", f"{PATH}/audit?after=-1", None, {}, 422, "after"),
        ("PUT", PATH, b"{}", {}, 405, None),
    ],
)
def test_what_is_wrong_is_named(
    method: str, path: str, body: Any, headers: dict[str, str], status: int, field: str | None
) -> None:
    async def story(site: Site) -> None:
        said = await site.ask(method, path, body, headers)
        assert said.status == status, said
        assert said.details.get("field") == field, said

    play(story)


def test_the_document_names_the_methods_openapi_has_no_word_for() -> None:
    async def story(site: Site) -> None:
        item = json.loads((await site.get("/openapi.json")).body)["paths"]["/v1/terraform/{name}"]
        assert sorted(item) == ["delete", "get", "post", "x-lock", "x-unlock"]
        assert "LockInfo" in json.dumps(item["x-lock"])
        assert item["post"]["requestBody"]["content"] == {"application/json": {"schema": {"type": "object"}}}

    play(story)
