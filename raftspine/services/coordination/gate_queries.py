"""What gates, their requests, freezes and audit chains look like to who asks: plain data, read at the leader."""

from typing import Any

from raftspine.core.ledger import audit, freezes, gate_policy, gate_requests
from raftspine.core.ledger import gates as rows
from raftspine.core.ledger.gate_requests import QUEUED
from raftspine.core.ledger.tables import pack, unpack
from raftspine.services.coordination.door import Moment, Query


def _gate(moment: Moment, name: str, gate: rows.Gate) -> dict[str, Any]:
    frozen = [freezes.told(id, freeze) for id, freeze in freezes.in_force(moment.view, name, moment.now_ms)]
    why = rows.closed_because(gate, moment.now_ms) or (f"frozen: {frozen[0]['reason']}" if frozen else None)
    return {
        "name": name,
        "state": gate.state,
        "open": why is None,
        "closed_because": why,
        "uses_left": gate.uses,
        "expires_at_ms": gate.expires_at_ms,
        "policy": None if gate.policy is None else gate_policy.spelled(gate.policy),
        "set_by": gate.set_by,
        "set_at_ms": gate.set_at_ms,
        "reason": gate.reason,
        "passes": gate.passes,
        "revision": gate.revision,
        "freezes": frozen,
        "queue_seconds": None if gate.policy is None else gate.policy.queue_seconds,
    }


def _show(moment: Moment, name: str) -> dict[str, Any] | None:
    gate = rows.show(moment.view, name)
    return None if gate is None else _gate(moment, name, gate)


def _page(moment: Moment, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
    return [_gate(moment, name, gate) for name, gate in rows.page(moment.view, prefix, after, limit)]


def _request(moment: Moment, gate: str, id: str) -> dict[str, Any] | None:
    row = gate_requests.read(moment.view, gate, id)
    if row is None:
        return None
    return {"id": id, **gate_requests.told(moment.view, gate, id, row, moment.now_ms)}


def _requests(moment: Moment, gate: str, before: int, limit: int) -> dict[str, Any]:
    found = gate_requests.page(moment.view, gate, limit, before)
    items = [{"id": id, **gate_requests.told(moment.view, gate, id, row, moment.now_ms)} for id, row in found]
    return {"items": items, "next_cursor": str(found[-1][1].number) if len(found) == limit else None}


def _verify(moment: Moment, gate: str, id: str, token: int, digest: str | None) -> dict[str, Any]:
    verdict = gate_requests.verify(moment.view, gate, id, token, digest, moment.now_ms)
    told: dict[str, Any] = {"valid": verdict.valid, "reasons": list(verdict.reasons)}
    if verdict.valid and verdict.request is not None:
        told |= {
            "artifact_digest": verdict.request.digest,
            "open_until_ms": verdict.request.open_until_ms,
            "remaining_ms": max(0, verdict.request.open_until_ms - moment.now_ms),
        }
    return told


def _left(moment: Moment, gate: str, id: str) -> bool | None:
    """Whether a request does not wait in the queue any more."""
    row = gate_requests.read(moment.view, gate, id)
    return True if row is None or row.state != QUEUED else None


def _freezes(moment: Moment) -> list[dict[str, Any]]:
    return [
        freezes.told(id, freeze)
        for id, freeze in freezes.page(moment.view)
        if not freeze.until_ms or moment.now_ms < freeze.until_ms
    ]


def _entries(moment: Moment, kind: str, name: str, after: int, limit: int) -> dict[str, Any]:
    found = audit.read(moment.view, kind, name, after, limit)
    head = audit.head(moment.view, kind, name)
    entries = [{field: getattr(entry, field) for field in entry.__struct_fields__} for entry in found]
    return {
        "kind": kind,
        "name": name,
        "head": None if head is None else {"seq": head.seq, "hash": head.hash},
        "entries": entries,
        "next": found[-1].seq if head is not None and found and found[-1].seq < head.seq else None,
    }


CHAINS_MOST = 1000


def _chains(moment: Moment, kind: str | None) -> list[dict[str, Any]]:
    prefix = b"" if kind is None else pack(kind)
    found = []
    for key, head in audit.HEADS.page(moment.view, prefix, limit=CHAINS_MOST):
        named = unpack(key, str, str)
        found.append({"kind": named[0], "name": named[1], "seq": head.seq, "hash": head.hash})
    return found


QUERIES: dict[str, Query] = {
    "gate.show": _show,
    "gate.page": _page,
    "gate.request": _request,
    "gate.requests": _requests,
    "gate.verify": _verify,
    "gate.left": _left,
    "gate.freezes": _freezes,
    "audit.entries": _entries,
    "audit.chains": _chains,
}
