"""The routes of sessions, locks, elections and fences."""

from raftspine.core.limits import Limits
from raftspine.http.auth import Access
from raftspine.http.coordination import lock_bodies as bodies
from raftspine.http.coordination.common import telling
from raftspine.http.coordination.locks import ElectionHandlers, FenceHandlers, LockHandlers, SessionHandlers
from raftspine.http.coordination.making import get, post
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination


def lock_routes(on: Coordination, limits: Limits) -> tuple[Route, ...]:
    return (*_locks(LockHandlers(on, limits)), *_sessions(SessionHandlers(on, limits)),
            *_elections(ElectionHandlers(on, limits)), *_fences(FenceHandlers(on, limits)))  # fmt: skip


def _locks(on: LockHandlers) -> tuple[Route, ...]:
    one = "/v1/locks/{name}"
    return (
        post(f"{one}/acquire", on.acquire, "Take a lock, or wait for it", bodies.AcquireBody, bodies.Lease),
        post(f"{one}/renew", on.renew, "Keep a lease for another TTL", bodies.LeaseBody, bodies.Lease),
        post(f"{one}/release", on.release, "Give a lease or a ticket back", bodies.ReleaseBody, bodies.Released),
        post(
            f"{one}/check",
            on.check,
            "Whether a fencing token is current now",
            bodies.CheckBody,
            bodies.Checked,
            access=Access.READ,
        ),
        post(
            f"{one}/break",
            on.break_,
            "Take a lock from its holders; audited",
            bodies.BreakBody,
            dict,
            access=Access.OPERATE,
        ),
        get(one, on.show, "A lock, its holders and its queue", dict),
        get("/v1/locks", on.page, "Locks that are held or waited for, by name", dict, bodies.PrefixQuery),
        post(
            "/v1/locks:acquire_all",
            on.acquire_all,
            "Take several locks of one shard group, or none",
            bodies.AcquireAllBody,
            bodies.Leases,
        ),
    )


def _sessions(on: SessionHandlers) -> tuple[Route, ...]:
    one = "/v1/sessions/{id}"
    return (
        post("/v1/sessions", on.open, "Open a session that leases can belong to", bodies.OpenBody, bodies.Life, 201),
        post(f"{one}/renew", on.renew, "Keep a session for another TTL", None, bodies.Life),
        post(f"{one}/close", on.close, "End a session and give back all it holds", None, dict),
        Route(
            method="DELETE",
            path=one,
            handler=telling(on.close),
            access=Access.WRITE,
            summary="End a session and give back all it holds",
            replies={200: dict},
            errors=(503, 504, 507),
        ),
        get(one, on.show, "A session and what it holds", dict, errors=(404, 503)),
    )


def _elections(on: ElectionHandlers) -> tuple[Route, ...]:
    one = "/v1/elections/{name}"
    return (
        post(f"{one}/campaign", on.campaign, "Stand for an election", bodies.CampaignBody, dict),
        post(f"{one}/renew", on.renew, "Stay in office", bodies.LeaseBody, dict),
        post(f"{one}/proclaim", on.proclaim, "Say something in office", bodies.ProclaimBody, dict),
        post(f"{one}/resign", on.resign, "Leave office, or withdraw", bodies.ReleaseBody, bodies.Released),
        get(one, on.observe, "Who leads, and what they proclaim", dict, bodies.ObserveQuery),
    )


def _fences(on: FenceHandlers) -> tuple[Route, ...]:
    one = "/v1/fence/{resource}"
    return (
        post(one, on.advance, "Show a token to a resource's fence", bodies.FenceBody, bodies.Fenced),
        get(one, on.show, "The highest token a resource has seen", bodies.Fenced),
    )
