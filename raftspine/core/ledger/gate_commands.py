"""The commands on gates with a policy, as they stand in a shard group's log.

As in lock_commands.py: chance before the log, `request`, `fingerprint` and `agent` last, fields append only. Who
acts is `agent`: the front end has proved it, and settled which groups and roles it has, before it proposed.
"""

from typing import Any

from msgspec import Struct


class RequestGate(Struct, frozen=True, array_like=True, tag="gate-request"):
    """Ask to take an artifact through a gate. `subject`: what is deployed where; of one subject one request
    waits."""

    gate: str
    id: str
    digest: str
    subject: str = ""
    metadata: Any = None
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ApproveRequest(Struct, frozen=True, array_like=True, tag="gate-approve"):
    """Approve the artifact `digest` for a request. `groups`: those the approver belongs to."""

    gate: str
    id: str
    digest: str
    groups: tuple[str, ...] = ()
    comment: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class EndRequest(Struct, frozen=True, array_like=True, tag="gate-end"):
    """Reject a request (an approver's act) or cancel it (its requester's)."""

    gate: str
    id: str
    rejected: bool
    reason: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ReportCheck(Struct, frozen=True, array_like=True, tag="gate-report"):
    """What a check found of the artifact `digest`; a later report of the same name replaces it."""

    gate: str
    id: str
    digest: str
    check: str
    ok: bool
    details: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class LiftHold(Struct, frozen=True, array_like=True, tag="gate-hold"):
    """Lift a hold from a request, or put it back."""

    gate: str
    id: str
    hold: str
    lifted: bool = True
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class AdmitRequest(Struct, frozen=True, array_like=True, tag="gate-admit"):
    """Open the gate for a request, or keep its place. queue: take a place when as many are through as may be."""

    gate: str
    id: str
    digest: str
    queue: bool = False
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class CompleteRequest(Struct, frozen=True, array_like=True, tag="gate-complete"):
    """The deployment has ended, well or not: `token` is the admission's."""

    gate: str
    id: str
    token: int
    ok: bool
    details: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class OverrideRequest(Struct, frozen=True, array_like=True, tag="gate-override"):
    """One person's word that the policy's conditions be set aside; as many as the policy says make it so."""

    gate: str
    id: str
    digest: str
    reason: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class PutFreeze(Struct, frozen=True, array_like=True, tag="freeze-put"):
    """Close all gates of this group whose names begin with `scope`. until_ms 0: until it is lifted. overridable: an
    override of a request reaches through it."""

    id: str
    scope: str = ""
    reason: str = ""
    until_ms: int = 0
    overridable: bool = True
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class LiftFreeze(Struct, frozen=True, array_like=True, tag="freeze-lift"):
    id: str
    reason: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""
