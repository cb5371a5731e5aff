"""All routes of coordination."""

from raftspine.core.limits import Limits
from raftspine.http.auth import Auth
from raftspine.http.coordination.gate_routes import gate_routes
from raftspine.http.coordination.lock_routes import lock_routes
from raftspine.http.coordination.tasks import task_routes
from raftspine.http.coordination.terraform_routes import terraform_routes
from raftspine.http.coordination.watch import watch_routes
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination


def coordination_routes(on: Coordination, limits: Limits, auth: Auth) -> tuple[Route, ...]:
    return (
        *lock_routes(on, limits),
        *task_routes(on, limits),
        *gate_routes(on, limits),
        *watch_routes(on, limits),
        *terraform_routes(on, limits, auth),
    )
