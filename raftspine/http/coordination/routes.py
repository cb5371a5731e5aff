"""All routes of coordination."""

from raftspine.core.limits import Limits
from raftspine.http.coordination.gate_routes import gate_routes
from raftspine.http.coordination.lock_routes import lock_routes
from raftspine.http.coordination.tasks import task_routes
from raftspine.http.coordination.watch import watch_routes
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination


def coordination_routes(on: Coordination, limits: Limits) -> tuple[Route, ...]:
    return (*lock_routes(on, limits), *task_routes(on, limits), *gate_routes(on, limits), *watch_routes(on, limits))
