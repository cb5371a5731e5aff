"""From a request line to a route: exact paths by dictionary, templates by their segments.

Segments are split before they are decoded, so an id with an encoded slash (%2F) stays one segment and
/v1/memories/{id}/versions can never be taken for an id. The hot route is tried first, by its prefix:
looking at it costs one comparison, a general matcher several allocations.
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from raftspine.errors import NotFound
from raftspine.http.parse import segment
from raftspine.http.problems import MethodNotAllowed
from raftspine.http.route import Route

HOT = "/v1/memories/"


class Bound:
    """A route with everything that can be prepared before the first request."""

    __slots__ = ("access", "body_limit", "handler", "json", "method", "msgpack", "no_query", "path", "query", "raw")

    def __init__(self, route: Route, body_limit: int) -> None:
        self.method = route.method
        self.path = route.path
        self.handler = route.handler
        self.access = route.access
        self.query = route.query
        self.no_query: Struct = route.query()
        self.body_limit = route.raw_bytes or body_limit
        self.raw = route.raw_bytes > 0
        self.json: msgspec.json.Decoder[Any] | None = None
        self.msgpack: msgspec.msgpack.Decoder[Any] | None = None
        if route.body is not None:
            self.json = msgspec.json.Decoder(route.body)
            self.msgpack = msgspec.msgpack.Decoder(route.body)


class Template(NamedTuple):
    """A path with parameters. `literals`: place and text of the other segments, the last first, for there paths of
    one length differ most; `places`: where the parameters are."""

    path: str
    literals: tuple[tuple[int, str], ...]
    places: tuple[int, ...]
    methods: dict[str, Bound]

    def fits(self, parts: list[str]) -> bool:
        for place, text in self.literals:  # noqa: SIM110 - a generator costs more than the comparisons
            if parts[place] != text:
                return False
        return True


class Router:
    """Finds the route of a method and a raw path."""

    def __init__(self, routes: list[Bound]) -> None:
        self._exact: dict[str, dict[str, Bound]] = {}
        self._templates: dict[tuple[int, str], list[Template]] = {}
        """By number of segments and the resource, which is the third of them (the first is empty)."""
        for route in routes:
            self._add(route)
        self._hot = self._methods(f"{HOT}{{id}}")
        hot_get = self._hot.get("GET")
        if hot_get is not None:
            self._hot = {**self._hot, "HEAD": hot_get}

    def _add(self, route: Bound) -> None:
        self._methods(route.path)[route.method] = route

    def _methods(self, path: str) -> dict[str, Bound]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        parts = path.split("/")
        assert "{" not in "".join(parts[:3]), f"{path}: a resource is named before its parameters"
        alike = self._templates.setdefault((len(parts), parts[2]), [])
        for known in alike:
            if known.path == path:
                return known.methods
        places = tuple(at for at, part in enumerate(parts) if part[:1] == "{")
        literals = tuple((at, part) for at, part in reversed(list(enumerate(parts))) if at not in places)
        alike.append(Template(path, literals, places, {}))
        return alike[-1].methods

    def find(self, method: str, path: str) -> tuple[Bound, tuple[str, ...]]:
        """The route and its decoded parameters. NotFound, or MethodNotAllowed when only the method is wrong."""
        if path.startswith(HOT):
            rest = path[len(HOT) :]
            if "/" not in rest:
                route = self._hot.get(method)
                if route is not None:
                    return route, (segment(rest),)
        return self._search(method, path)

    def _search(self, method: str, path: str) -> tuple[Bound, tuple[str, ...]]:
        if method == "HEAD":
            method = "GET"
        methods = self._exact.get(path)
        if methods is not None and method in methods:
            return methods[method], ()
        allowed = dict.fromkeys(methods or ())
        parts = path.split("/")
        for template in self._templates.get((len(parts), parts[2]), ()) if len(parts) > 2 else ():
            if not template.fits(parts):
                continue
            route = template.methods.get(method)
            if route is not None:
                return route, tuple([segment(parts[place]) for place in template.places])
            allowed.update(dict.fromkeys(template.methods))
        if allowed:
            raise _wrong_method(method, sorted(allowed))
        raise _unknown(path)


def _wrong_method(method: str, allowed: list[str]) -> MethodNotAllowed:
    if "GET" in allowed:
        allowed = [*allowed, "HEAD"]
    return MethodNotAllowed(f"{method[:32]} is not possible here; {', '.join(allowed)}", details={"allow": allowed})


def _unknown(path: str) -> NotFound:
    message = "no such path; /openapi.json lists those there are"
    if path.startswith(HOT):
        message += ". A slash within an id is written %2F"
    return NotFound(message)
