"""The routes of gates, freezes and audits."""

from raftspine.core.limits import Limits
from raftspine.http.auth import Access
from raftspine.http.coordination import gate_bodies as bodies
from raftspine.http.coordination.common import telling
from raftspine.http.coordination.gates import AuditHandlers, FreezeHandlers, GateHandlers, RequestHandlers
from raftspine.http.coordination.lock_bodies import PrefixQuery
from raftspine.http.coordination.making import CHANGE, get, post
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination

APPROVE, OPERATE = Access.APPROVE, Access.OPERATE


def gate_routes(on: Coordination, limits: Limits) -> tuple[Route, ...]:
    return (
        *_gates(GateHandlers(on, limits)),
        *_requests(RequestHandlers(on, limits)),
        *_freezes(FreezeHandlers(on, limits), AuditHandlers(on)),
    )


def _gates(on: GateHandlers) -> tuple[Route, ...]:
    one = "/v1/gates/{name}"
    return (
        post(one, on.put, "Set a gate", bodies.GateBody, {200: dict, 201: dict}, access=APPROVE, method="PUT"),
        get(one, on.show, "A gate, and why it is closed", dict),
        Route(
            method="DELETE",
            path=one,
            handler=telling(on.delete),
            access=APPROVE,
            summary="Remove a gate; from then on it is closed",
            replies={204: None},
            errors=CHANGE,
        ),
        get("/v1/gates", on.page, "Gates by name", dict, PrefixQuery),
        post(f"{one}/pass", on.pass_, "Pass a simple gate; one use is gone", bodies.PassBody, bodies.Passed),
    )


def _requests(on: RequestHandlers) -> tuple[Route, ...]:
    every = "/v1/gates/{name}/requests"
    one = f"{every}/{{id}}"
    return (
        post(every, on.request, "Ask to take an artifact through", bodies.RequestBody, {201: dict}),
        get(every, on.page, "Requests of a gate, newest first", dict, bodies.RequestsQuery),
        get(one, on.show, "A request, and what it still lacks", dict),
        post(f"{one}/approve", on.approve, "Approve the artifact", bodies.ApproveBody, dict, access=APPROVE),
        post(f"{one}/reject", on.reject, "Reject a request", bodies.EndBody, dict, access=APPROVE),
        post(f"{one}/cancel", on.cancel, "Cancel one's own request", bodies.EndBody, dict),
        post(f"{one}/report", on.report, "Say what a check found", bodies.ReportBody, dict),
        post(f"{one}/hold", on.hold, "Put a hold back", bodies.HoldBody, dict, access=APPROVE),
        post(f"{one}/lift", on.lift, "Lift a hold", bodies.HoldBody, dict, access=APPROVE),
        post(f"{one}/override", on.override, "Set the conditions aside", bodies.OverrideBody, dict, access=APPROVE),
        post(f"{one}/admit", on.admit, "Go through, or wait for a slot", bodies.AdmitBody, dict),
        post(
            f"{one}/verify",
            on.verify,
            "Whether the next irreversible step may be taken; 409 when not",
            bodies.VerifyBody,
            bodies.Verified,
            access=Access.READ,
        ),
        post(f"{one}/complete", on.complete, "Say how the deployment ended", bodies.DoneBody, dict),
    )


def _freezes(on: FreezeHandlers, audits: AuditHandlers) -> tuple[Route, ...]:
    return (
        post("/v1/gates:freeze", on.freeze, "Let nothing through", bodies.FreezeBody, dict, access=OPERATE),
        post("/v1/gates:unfreeze", on.unfreeze, "Lift a freeze", bodies.UnfreezeBody, dict, access=OPERATE),
        get("/v1/gates:freezes", on.page, "Freezes in force, and in which shard groups", dict),
        get("/v1/gates/{name}/audit", audits.gate, "A gate's audit chain", bodies.AuditPage, bodies.AuditQuery),
        get("/v1/audit", audits.chains, "Audit chains: broken locks, freezes, gates", dict, bodies.ChainsQuery),
    )
