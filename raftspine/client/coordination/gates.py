"""Gates: who may go through, when, and the record of it.

    gate = spine.gate("prod/api")
    request = await gate.request("sha256:…", subject="api")        # somebody else approves, checks report
    admission = await gate.admit(request["id"], "sha256:…", wait=600)
    await gate.verify(request["id"], admission["fencing_token"])   # before each step that cannot be undone
    await gate.complete(request["id"], admission["fencing_token"], ok=True)

The rules: everything an act is about is named by the artifact's digest, so that what was approved is what is
deployed. `verify` fails closed: a store that cannot be asked is a no (`Unavailable`), and so is everything but a
plain yes (`GateClosed` with `unmet` or the reasons). Requests are shown as the API has them: `state`, `unmet`,
`approvals`, `checks`, `fencing_token` once admitted.

Who acts is the client's agent, or `by`; with API keys it is the key, whatever is said here.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.paging import pages
from raftspine.client.operations import quoted
from raftspine.core.ledger.audit import START, Entry, broken
from raftspine.errors import Corrupt, GateClosed, Unavailable, Unknown

OPEN, CLOSED = "open", "closed"


class Passage(NamedTuple):
    """One use of a simple gate. `uses_left` None: no limit."""

    id: str
    token: int
    uses_left: int | None


class Gate:
    """One gate."""

    def __init__(self, on: Channel, name: str) -> None:
        self.name = name
        self._on = on
        self._path = f"/v1/gates/{quoted(name)}"

    # ── the gate itself ─────────────────────────────────────────────────────────────────────────────────────

    async def open(
        self,
        *,
        uses: int | None = None,
        expires_at: str | None = None,
        policy: Mapping[str, Any] | None = None,
        reason: str = "",
        by: str | None = None,
    ) -> dict[str, Any]:
        """Open it: for so many passages, until then (RFC 3339), or under a policy whose requests go through it."""
        return await self._set(OPEN, uses, expires_at, policy, reason, by)

    async def close(
        self, *, policy: Mapping[str, Any] | None = None, reason: str = "", by: str | None = None
    ) -> dict[str, Any]:
        """Close it. A gate with a policy keeps it only if it is given again."""
        return await self._set(CLOSED, None, None, policy, reason, by)

    async def _set(
        self,
        state: str,
        uses: int | None,
        expires_at: str | None,
        policy: Mapping[str, Any] | None,
        reason: str,
        by: str | None,
    ) -> dict[str, Any]:
        given = {"uses": uses, "expires_at": expires_at, "policy": policy, "reason": reason or None}
        body = {"state": state, **{name: value for name, value in given.items() if value is not None}}
        return await self._on.change(self._path, body, method="PUT", agent=by)

    async def show(self) -> dict[str, Any]:
        """The gate as it is. Raises NotFound."""
        return await self._on.look(self._path)

    async def delete(self, *, by: str | None = None) -> None:
        """Remove it; from then on it is closed."""
        await self._on.change(self._path, method="DELETE", agent=by)

    async def pass_(self, *, by: str | None = None) -> Passage:
        """Go through a simple gate; one use is gone. Raises GateClosed."""
        answer = await self._on.change(f"{self._path}/pass", {}, agent=by or self._someone())
        return Passage(answer["pass_id"], answer["fencing_token"], answer["uses_left"])

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    async def request(
        self,
        artifact_digest: str,
        *,
        subject: str = "",
        id: str | None = None,
        metadata: Any = None,
        by: str | None = None,
    ) -> dict[str, Any]:
        """Ask to take an artifact through. Of one subject one request waits: a newer one ends those before."""
        given = {"subject": subject or None, "id": id, "metadata": metadata}
        body = {"artifact_digest": artifact_digest, **{k: v for k, v in given.items() if v is not None}}
        return await self._on.change(f"{self._path}/requests", body, agent=by)

    async def show_request(self, id: str) -> dict[str, Any]:
        """A request, judged now. Raises NotFound."""
        return await self._on.look(self._of(id))

    async def requests(self) -> AsyncIterator[dict[str, Any]]:
        """Its requests, newest first."""
        async for found in pages(self._on, f"{self._path}/requests", {}):
            yield found

    async def approve(
        self,
        id: str,
        artifact_digest: str,
        *,
        comment: str = "",
        groups: Sequence[str] = (),
        by: str | None = None,
    ) -> dict[str, Any]:
        """Approve the artifact for this request. `groups` count only where there are no API keys to say them."""
        body: dict[str, Any] = {"artifact_digest": artifact_digest, "comment": comment}
        if groups:
            body["groups"] = list(groups)
        return await self._act(id, "approve", body, by)

    async def reject(self, id: str, *, reason: str = "", by: str | None = None) -> dict[str, Any]:
        """End a request that waits, as an approver."""
        return await self._act(id, "reject", {"reason": reason}, by)

    async def cancel(self, id: str, *, reason: str = "", by: str | None = None) -> dict[str, Any]:
        """End one's own request that waits."""
        return await self._act(id, "cancel", {"reason": reason}, by)

    async def report(
        self, id: str, artifact_digest: str, check: str, ok: bool, *, details: str = "", by: str | None = None
    ) -> dict[str, Any]:
        """What a check found of the artifact; a later report of the same name replaces it."""
        body = {"artifact_digest": artifact_digest, "check": check, "ok": ok, "details": details}
        return await self._act(id, "report", body, by)

    async def lift_hold(self, id: str, hold: str, *, lifted: bool = True, by: str | None = None) -> dict[str, Any]:
        """Lift a hold of the policy from a request, or put it back."""
        return await self._act(id, "lift" if lifted else "hold", {"hold": hold}, by)

    async def override(self, id: str, artifact_digest: str, reason: str, *, by: str | None = None) -> dict[str, Any]:
        """One person's word that the conditions be set aside; the policy says how many it takes, and for how long."""
        return await self._act(id, "override", {"artifact_digest": artifact_digest, "reason": reason}, by)

    async def admit(
        self, id: str, artifact_digest: str, *, wait: float | None = 0.0, by: str | None = None
    ) -> dict[str, Any]:
        """Go through: the request, OPEN, with its `fencing_token`. While it is not ready, or as many are through as
        may be, ask again for up to `wait` seconds (None: as long as it takes). Raises GateClosed with `unmet`,
        Conflict when the request has ended."""
        ends = None if wait is None else obtain.now() + wait
        while True:
            left = obtain.PIECE_S if ends is None else max(0.0, min(obtain.PIECE_S, ends - obtain.now()))
            body = {"artifact_digest": artifact_digest, "wait_seconds": left}
            key = self._on.new_key()
            try:
                return await self._on.ask(f"{self._of(id)}/admit", body, key=key, hold_s=left, agent=by)
            except (GateClosed, Unavailable, Unknown) as error:
                if ends is not None and obtain.now() >= ends:
                    raise
                await obtain.before_asking_again(error)

    async def verify(self, id: str, token: int, artifact_digest: str | None = None) -> dict[str, Any]:
        """May the next irreversible step be taken? The answer, `valid`; everything else raises: GateClosed with the
        reasons, Unavailable when the store could not be asked."""
        body: dict[str, Any] = {"fencing_token": token}
        if artifact_digest is not None:
            body["artifact_digest"] = artifact_digest
        answer = await self._on.ask(f"{self._of(id)}/verify", body)
        if answer.get("valid") is not True:
            raise GateClosed("the gate does not say yes", details=answer)
        return answer

    async def complete(
        self, id: str, token: int, *, ok: bool, details: str = "", by: str | None = None
    ) -> dict[str, Any]:
        """The deployment has ended. Repeated, or late, it gets the end that was recorded. Raises LeaseLost when the
        token is not this request's."""
        return await self._act(id, "complete", {"fencing_token": token, "ok": ok, "details": details}, by)

    # ── the record ──────────────────────────────────────────────────────────────────────────────────────────

    async def audit(self) -> list[dict[str, Any]]:
        """The whole audit chain, verified. Raises Corrupt when it does not hold."""
        return await chain(self._on, f"{self._path}/audit")

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _act(self, id: str, verb: str, body: dict[str, Any], by: str | None) -> dict[str, Any]:
        return await self._on.change(f"{self._of(id)}/{verb}", body, agent=by)

    def _of(self, id: str) -> str:
        return f"{self._path}/requests/{quoted(id)}"

    def _someone(self) -> str:
        return obtain.default_owner(self._on.agent_id)


class Freezes:
    """Freezes: nothing goes through the gates of a scope, whatever was agreed before."""

    def __init__(self, on: Channel) -> None:
        self._on = on

    async def freeze(
        self,
        reason: str,
        *,
        scope: str = "",
        id: str | None = None,
        until: str | None = None,
        overridable: bool = True,
        by: str | None = None,
    ) -> dict[str, Any]:
        """Close all gates whose names begin with `scope`, until then (RFC 3339) or until it is lifted. Raises Unknown
        when not every shard group could be told: repeat it with the same `id`."""
        given = {"prefix": scope or None, "until": until}
        body: dict[str, Any] = {"reason": reason, "overridable": overridable, "freeze_id": id or self._on.new_key()}
        body |= {name: value for name, value in given.items() if value is not None}
        return await self._on.change("/v1/gates:freeze", body, agent=by)

    async def lift(self, id: str, *, reason: str = "", by: str | None = None) -> dict[str, Any]:
        """End a freeze. Raises NotFound."""
        return await self._on.change("/v1/gates:unfreeze", {"freeze_id": id, "reason": reason}, agent=by)

    async def list(self) -> list[dict[str, Any]]:
        """Those in force."""
        found: list[dict[str, Any]] = (await self._on.look("/v1/gates:freezes"))["items"]
        return found


async def chain(on: Channel, path: str) -> list[dict[str, Any]]:
    """All entries of an audit chain, verified. Raises Corrupt."""
    entries: list[dict[str, Any]] = []
    after = 0
    while True:
        page = await on.look(path, {"after": str(after), "limit": "500"})
        entries += page["entries"]
        after = page.get("next") or 0
        if not after:
            break
    wrong = verify_chain(entries)
    if wrong is None and page["head"] is not None and (not entries or entries[-1]["hash"] != page["head"]["hash"]):
        wrong = "it does not end where the store says it does"
    if wrong is not None:
        raise Corrupt(f"the audit chain does not hold: {wrong}")
    return entries


def verify_chain(entries: Iterable[Mapping[str, Any]], previous: str = START, seq: int = 0) -> str | None:
    """Where an exported chain, or the part of one behind entry `seq` with the hash `previous`, does not hold; None
    when it does. Needs no store: the entries prove each other, and a hash known from elsewhere proves the last."""
    return broken((Entry(*(entry[field] for field in Entry.__struct_fields__)) for entry in entries), previous, seq)
