"""How a route of coordination is written down: the two kinds there are, with the errors each may answer."""

from typing import Any

from msgspec import Struct

from raftspine.http.auth import Access
from raftspine.http.bodies import NoQuery
from raftspine.http.coordination.common import Handler, telling
from raftspine.http.route import Route

CHANGE = (404, 409, 413, 415, 503, 504, 507)
LOOK = (404, 503)


def post(
    path: str,
    handler: Handler,
    summary: str,
    body: type[Struct] | None,
    reply: Any,
    status: int = 200,
    *,
    access: Access = Access.WRITE,
    method: str = "POST",
) -> Route:
    return Route(
        method=method,
        path=path,
        handler=telling(handler),
        access=access,
        summary=summary,
        body=body,
        headers=("X-Agent-Id", "Idempotency-Key"),
        replies=reply if isinstance(reply, dict) else {status: reply},
        errors=CHANGE,
    )


def get(
    path: str,
    handler: Handler,
    summary: str,
    reply: Any,
    query: type[Struct] = NoQuery,
    *,
    errors: tuple[int, ...] = LOOK,
    headers: tuple[str, ...] = (),
) -> Route:
    return Route(
        method="GET",
        path=path,
        handler=telling(handler),
        access=Access.READ,
        summary=summary,
        query=query,
        replies={200: reply},
        errors=errors,
        headers=headers,
    )
