"""One request on its way through a handler, and what every handler may use to answer it.

A handler gets a `Call` whose query and body already have the shape its route declares, and returns a
`Reply`. It never sees aiohttp, so it can neither forget a limit nor invent a header.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from raftspine.errors import SpineError
from raftspine.http import render
from raftspine.http.problems import ErrorBody, Problem, extra_headers, problem_of
from raftspine.http.reply import JSON, MSGPACK, Heads, Reply


class Telemetry(Protocol):
    """Where the figures of the front door go."""

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request answered. `route` is the path template, e.g. ``/v1/memories/{id}``, or ``other`` for
        what matches none, so that the number of labels stays bounded whatever clients send."""
        ...


class Silent:
    """A Telemetry for whoever does not want any."""

    def observe(self, route: str, method: str, status: int, seconds: float) -> None: ...


class Call:
    """One request: decoded path parameters, query and body of the route's types, headers, and how to answer."""

    __slots__ = (
        "body",
        "body_msgpack",
        "headers",
        "heads",
        "key",
        "msgpack",
        "now",
        "params",
        "query",
        "request_id",
    )

    def __init__(self, headers: Mapping[str, str], request_id: str, heads: Heads, now: float) -> None:
        self.headers = headers
        self.request_id = request_id
        self.heads = heads
        self.now = now
        self.key: str | None = None
        """The name of the API key; None where there are none."""
        self.msgpack = False
        self.body_msgpack = False
        self.params: tuple[str, ...] = ()
        self.query: Any = None
        self.body: Any = None

    def reply(self, status: int, value: Any, extra: str = "") -> Reply:
        """`value` in the client's format; `extra` are further header lines, each ended by CRLF."""
        start = self.heads.start(MSGPACK if self.msgpack else JSON, self.now)
        head = f"{start}X-Request-Id: {self.request_id}\r\n{extra}"
        return Reply(status, head, render.body(value, self.msgpack))

    def empty(self, status: int, extra: str = "") -> Reply:
        """A reply without a body."""
        return Reply(status, f"{self.heads.start('', self.now)}X-Request-Id: {self.request_id}\r\n{extra}")

    def raw(self, data: bytes, content_type: str, extra: str = "") -> Reply:
        """A reply whose format does not depend on the client; `extra` as of `reply`."""
        start = self.heads.start(content_type, self.now)
        return Reply(200, f"{start}X-Request-Id: {self.request_id}\r\n{extra}", data)

    def problem(self, error: SpineError) -> Reply:
        """The envelope for a failure."""
        status, body = self.error_body(error)
        return self.reply(status, Problem(body), extra_headers(status, body))

    def error_body(self, error: SpineError) -> tuple[int, ErrorBody]:
        return problem_of(error, self.request_id)
