"""The OpenAPI 3.1 document, derived from the table of routes, so that it cannot promise what does not happen.

msgspec turns the wire Structs into JSON Schema 2020-12, which is the dialect of OpenAPI 3.1; what is added
here is paths, headers and the failures of each route, all with the one error envelope.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from raftspine.http.auth import Access
from raftspine.http.bodies import BatchBody, BatchShape
from raftspine.http.problems import RETRY_AFTER_MS, Problem
from raftspine.http.reply import JSON
from raftspine.http.route import COMMON, PROTECTED, Route
from raftspine.model import Model

Json = dict[str, Any]

_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
_MEDIA = ("application/json", "application/msgpack")
_TEXT: Json = {"type": "string"}


def document(routes: Iterable[Route], version: str) -> bytes:
    """The whole document as JSON."""
    routes = tuple(routes)
    shapes = sorted({shape for route in routes for shape in _shapes(route)}, key=lambda shape: shape.__name__)
    refs, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(shapes, refs, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[_method(route.method)] = _operation(route, schemas)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "raftspine",
                "version": version,
                "description": "Memories of agent fleets; their tags decide how strongly each is kept.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": components,
                "headers": _headers(),
                "parameters": _parameters(),
                "responses": {
                    _problem_name(status): _problem(status, schemas[Problem]) for status in _failures(routes)
                },
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _shapes(route: Route) -> Iterable[type[Struct]]:
    yield Problem
    if route.body is not None:
        yield _documented(route.body)
    for shape in route.replies.values():
        if isinstance(shape, type) and issubclass(shape, Struct):
            yield shape


def _documented(body: type[Struct]) -> type[Struct]:
    """A batch is decoded line by line; the document shows the lines."""
    return BatchShape if body is BatchBody else body


def _failures(routes: Iterable[Route]) -> list[int]:
    return sorted({status for route in routes for status in _failures_of(route)})


def _failures_of(route: Route) -> tuple[int, ...]:
    return (*COMMON, *(() if route.access is Access.OPEN else PROTECTED), *route.errors)


def _operation(route: Route, schemas: dict[type[Struct], Json]) -> Json:
    responses = {str(status): _success(status, shape, schemas) for status, shape in route.replies.items()}
    for status in sorted(_failures_of(route)):
        responses[str(status)] = {"$ref": f"#/components/responses/{_problem_name(status)}"}
    operation: Json = {
        "operationId": route.method.lower() + re.sub(r"[^a-z0-9]+", "_", route.path).rstrip("_"),
        "summary": route.summary,
        "parameters": [
            *_path_parameters(route.path),
            *_query_parameters(route.query),
            *_header_parameters(route),
        ],
        "responses": responses,
        "security": [] if route.access is Access.OPEN else [{}, {"key": []}],
    }
    if route.body is not None:
        schema = schemas[_documented(route.body)]
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": schema} for media in _MEDIA},
        }
    elif route.raw_bytes:
        operation["requestBody"] = {"content": {"application/json": {"schema": {"type": "object"}}}}
    return operation


def _method(method: str) -> str:
    """OpenAPI has no word for methods of WebDAV; what it does not know it allows behind `x-`."""
    word = method.lower()
    return word if word in _METHODS else f"x-{word}"


def _success(status: int, shape: Any, schemas: dict[type[Struct], Json]) -> Json:
    reply: Json = {"description": HTTPStatus(status).phrase, "headers": _reply_headers(status)}
    if isinstance(shape, str):
        reply["content"] = {shape: {"schema": {"type": "object"} if shape == JSON else _TEXT}}
    elif shape is dict:
        reply["content"] = {media: {"schema": {"type": "object"}} for media in _MEDIA}
    elif shape is not None:
        reply["content"] = {media: {"schema": schemas[shape]} for media in _MEDIA}
    return reply


def _problem(status: int, schema: Json) -> Json:
    headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if status in RETRY_AFTER_MS:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    return {
        "description": HTTPStatus(status).phrase,
        "headers": headers,
        "content": {media: {"schema": schema} for media in _MEDIA},
    }


def _problem_name(status: int) -> str:
    return HTTPStatus(status).name.title().replace("_", "")


# ── parameters and headers ─────────────────────────────────────────────────────────────────────────────


def _path_parameters(path: str) -> list[Json]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    schema = {"type": "string", "minLength": 1, "maxLength": 255}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _query_parameters(query: type[Struct]) -> list[Json]:
    _, components = msgspec.json.schema_components([query])
    properties = components[query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _header_parameters(route: Route) -> list[Json]:
    if "consistency" not in route.query.__struct_fields__:
        return [{"$ref": f"#/components/parameters/{name}"} for name in route.headers]
    names = ["X-Agent-Id", "X-Spine-Consistency", "X-Spine-Session", "X-Spine-Max-Wait-Ms"]
    if route.access is Access.WRITE:
        names += ["Idempotency-Key", "X-Spine-Attempt"]
    if route.conditional:
        names += ["If-Match", "If-None-Match", "X-Spine-Fencing"]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _parameters() -> Json:
    known: dict[str, tuple[str, Json]] = {
        "X-Agent-Id": ("Who asks.", {"type": "string", "minLength": 1, "maxLength": 128}),
        "X-Spine-Consistency": ("The model asked for.", {"type": "string", "enum": [m.value for m in Model]}),
        "X-Spine-Session": ("The session token of the last reply.", _TEXT),
        "X-Spine-Max-Wait-Ms": (
            "How long a read may wait for what the session has seen.",
            {"type": "integer", "minimum": 0, "maximum": 60_000, "default": 250},
        ),
        "Idempotency-Key": (
            "Names the write for 24 hours; sent again, it yields the first answer.",
            {"type": "string", "pattern": "^[!-~]{1,255}$"},
        ),
        "X-Spine-Attempt": ("1: this Idempotency-Key was never sent before.", _TEXT),
        "X-Spine-Fencing": ("lock=token: locks whose tokens must be current for this write, with commas.", _TEXT),
        "Last-Event-ID": ("Go on behind this token, as `since` says too.", _TEXT),
        "If-Match": ("Only when the stored version is this one; *: only when there is one.", _TEXT),
        "If-None-Match": ("*: only when there is none.", _TEXT),
    }
    return {
        name: {"name": name, "in": "header", "description": text, "schema": schema}
        for name, (text, schema) in known.items()
    }


def _headers() -> Json:
    known = {
        "ETag": "The version, quoted.",
        "X-Spine-Session": "The session token to send with the next request.",
        "X-Spine-Consistency": "The model that served this.",
        "X-Spine-Node": "The node that answered.",
        "X-Spine-Index": "Raft log index, on the strong path.",
        "X-Spine-Staleness-Ms": "Upper estimate of the age of what was read.",
        "X-Request-Id": "The request's id, in the node's logs too.",
        "Retry-After": "Seconds.",
    }
    return {name: {"description": text, "schema": _TEXT} for name, text in known.items()}


def _reply_headers(status: int) -> Json:
    names = ["X-Request-Id", "X-Spine-Node"]
    if status in (200, 201, 204, 304):
        names += ["X-Spine-Session", "X-Spine-Consistency", "X-Spine-Index", "X-Spine-Staleness-Ms"]
    if status in (200, 201, 304):
        names.append("ETag")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
