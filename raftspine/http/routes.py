"""All routes, in one table that drives dispatch, decoding of query and body, access, and /openapi.json.

The rule: a route that is not here does not exist, and what is said of it here is what happens. With paths
in one place, models in another and documentation in a third, the three drift apart at the first change.

`errors` lists the codes a client has to expect of a route beyond those every route may answer (COMMON).
"""

from msgspec import Struct

from raftspine.http.auth import Access
from raftspine.http.bodies import (
    BatchBody,
    BatchResults,
    DeleteQuery,
    Health,
    ListParams,
    LostWrites,
    ModelQuery,
    PatchBody,
    Ready,
    Record,
    RecordList,
    RecordPage,
    RouteQuery,
    StoreBody,
)
from raftspine.http.cluster import ClusterHandlers
from raftspine.http.memories import MemoryHandlers
from raftspine.http.route import Handler, Route
from raftspine.model import Table
from raftspine.services.values import Explained, RequestStatus

READ = (404, 503)
LOOK = (503,)
WRITE = (409, 412, 413, 415, 421, 429, 503, 504, 507)


def table(memories: MemoryHandlers, cluster: ClusterHandlers) -> tuple[Route, ...]:
    """The routes of this node, the busiest first."""
    return (*_memories(memories), *_cluster(cluster), *_aliases(memories, cluster))


def _memories(on: MemoryHandlers) -> tuple[Route, ...]:
    one = "/v1/memories/{id}"
    return (
        Route(
            method="GET",
            path=one,
            handler=on.get,
            access=Access.READ,
            summary="Read a memory",
            query=ModelQuery,
            replies={200: Record, 304: None},
            errors=READ,
        ),
        Route(
            method="PUT",
            path=one,
            handler=on.put,
            access=Access.WRITE,
            summary="Store a memory under an id of your choice",
            query=ModelQuery,
            body=StoreBody,
            replies={200: Record, 201: Record},
            errors=WRITE,
            conditional=True,
        ),
        Route(
            method="PATCH",
            path=one,
            handler=on.patch,
            access=Access.WRITE,
            summary="Change some fields of a memory",
            query=ModelQuery,
            body=PatchBody,
            replies={200: Record},
            errors=(404, *WRITE),
            conditional=True,
        ),
        Route(
            method="DELETE",
            path=one,
            handler=on.delete,
            access=Access.WRITE,
            summary="Delete a memory; deleting what is absent succeeds",
            query=DeleteQuery,
            replies={204: None},
            errors=WRITE,
            conditional=True,
        ),
        Route(
            method="POST",
            path="/v1/memories",
            handler=on.post,
            access=Access.WRITE,
            summary="Store a memory; the node makes the id unless the body brings one",
            query=ModelQuery,
            body=StoreBody,
            replies={200: Record, 201: Record},
            errors=WRITE,
            conditional=True,
        ),
        Route(
            method="GET",
            path="/v1/memories",
            handler=on.list,
            access=Access.READ,
            summary="List memories that match all given filters",
            query=ListParams,
            replies={200: RecordPage},
            errors=LOOK,
        ),
        Route(
            method="POST",
            path="/v1/memories/batch",
            handler=on.batch,
            access=Access.WRITE,
            summary="Up to 1000 operations, one result each, in order",
            query=ModelQuery,
            body=BatchBody,
            large=True,
            replies={200: BatchResults},
            errors=(413, 415, 429, 503, 504, 507),
        ),
        Route(
            method="GET",
            path=f"{one}/versions",
            handler=on.versions,
            access=Access.READ,
            summary="The kept history of a memory",
            query=ModelQuery,
            replies={200: RecordList},
            errors=READ,
        ),
        Route(
            method="GET",
            path=f"{one}/conflicts",
            handler=on.conflicts,
            access=Access.READ,
            summary="Writes to this id that lost against concurrent ones",
            query=ModelQuery,
            replies={200: LostWrites},
            errors=READ,
        ),
    )


def _cluster(on: ClusterHandlers) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/route",
            handler=on.route,
            access=Access.READ,
            summary="Explain where tags and an id lead: model, path, shard group, leader, replicas",
            query=RouteQuery,
            replies={200: Explained},
            errors=LOOK,
        ),
        Route(
            method="GET",
            path="/v1/requests/{key}",
            handler=on.request_status,
            access=Access.READ,
            summary="What became of the write with this Idempotency-Key",
            replies={200: RequestStatus},
            errors=READ,
        ),
        Route(
            method="POST",
            path="/v1/requests/{key}/void",
            handler=on.void_request,
            access=Access.WRITE,
            summary="Make sure that the write with this Idempotency-Key never happens, or learn that it did",
            replies={200: RequestStatus},
            errors=(404, 409, 503, 504, 507),
        ),
        _plain("/v1/topology", on.topology, "Who keeps which shard group", Table),
        _plain("/v1/cluster/status", on.status, "Every node, group and link in one answer", dict),
        _plain("/v1/stats", on.stats, "Counts and sizes on this node", dict),
        _plain("/healthz", on.healthz, "The process is alive", Health, access=Access.OPEN),
        _plain("/readyz", on.readyz, "The node may take traffic", Ready, access=Access.OPEN),
        _plain("/metrics", on.metrics, "Prometheus metrics", "text/plain"),
        _plain("/openapi.json", on.openapi, "This document", dict, access=Access.OPEN),
    )


def _aliases(memories: MemoryHandlers, cluster: ClusterHandlers) -> tuple[Route, ...]:
    """The product's public paths."""
    return (
        _plain("/api/v1/memory/health", cluster.healthz, "Alias of /healthz", Health, access=Access.OPEN),
        _plain("/api/v1/memory/stats", cluster.stats, "Alias of /v1/stats", dict),
        Route(
            method="POST",
            path="/api/v1/memory/store",
            handler=memories.post,
            access=Access.WRITE,
            summary="Alias of POST /v1/memories",
            query=ModelQuery,
            body=StoreBody,
            replies={200: Record, 201: Record},
            errors=WRITE,
            conditional=True,
        ),
    )


def _plain(
    path: str,
    handler: Handler,
    summary: str,
    reply: type[Struct] | type[dict] | str,  # type: ignore[type-arg]
    access: Access = Access.READ,
) -> Route:
    return Route(
        method="GET",
        path=path,
        handler=handler,
        access=access,
        summary=summary,
        replies={200: reply},
        errors=LOOK,
    )
