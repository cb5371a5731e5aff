"""The watch route: server-sent events for who asks for them, a long poll for everybody else.

The rule: one event is encoded once, however many watch (the last ones are remembered); what differs between watchers
is the resume token, which is the id of each server-sent event, so that a browser's EventSource goes on by itself
where it left off (`Last-Event-ID`). Bookmarks come when nothing else does: they move the token on past events that
the watcher did not ask for, and show that the connection lives.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from raftspine.core.limits import Limits, check_id
from raftspine.errors import InvalidRequest, SpineError
from raftspine.http.call import Call
from raftspine.http.coordination.common import ms, shown
from raftspine.http.coordination.making import get
from raftspine.http.problems import Problem
from raftspine.http.render import rfc3339
from raftspine.http.reply import Reply, Sink, Stream
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination
from raftspine.services.coordination.watch import Filter, Seen, Watcher

KINDS = ("memory", "lock", "election", "gate", "task", "freeze")
SSE = "text/event-stream"
LAST_EVENT_ID = "last-event-id"
BOOKMARK_SECONDS = 10.0
BATCH = 128
REMEMBERED = 4096
PRIVATE = frozenset({"lease", "session"})
"""Who knows a lease or a session may end it: that is its holder's business."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class WatchQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """`kinds`: some of memory, lock, election, gate, task, freeze, separated by commas. `prefix`, `key`: of names.
    `tag`: of memories on the strong path. `since`: the last token; without it from now on."""

    kinds: str = ""
    prefix: str = ""
    key: str = ""
    tag: str = ""
    since: str | None = None
    wait_seconds: Annotated[float, Meta(ge=0, le=60)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Changes(Struct, frozen=True):
    """Events in order, and the token to go on from."""

    events: list[dict[str, Any]]
    next: str


class WatchHandlers:
    def __init__(self, on: Coordination, limits: Limits) -> None:
        self._watch = on.watch
        self._limits = limits
        self._encoded: dict[tuple[int, int], bytes] = {}

    async def watch(self, call: Call) -> Reply:
        query: WatchQuery = call.query
        since = query.since or call.headers.get(LAST_EVENT_ID) or None
        watcher = await self._watch.join(self._filter(query), since)
        if SSE in call.headers.get("accept", ""):
            return self._streamed(call, watcher)
        try:
            found = await watcher.next(query.limit, ms(query.wait_seconds) / 1000)
            events = [msgspec.Raw(self._event(seen)) for seen, _ in found]
            if call.msgpack:
                return call.reply(200, {"events": [msgspec.json.decode(raw) for raw in events],
                                        "next": watcher.token()})  # fmt: skip
            return call.reply(200, {"events": events, "next": watcher.token()})
        finally:
            watcher.close()

    def _filter(self, query: WatchQuery) -> Filter:
        kinds = [kind.strip() for kind in query.kinds.split(",") if kind.strip()]
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise InvalidRequest(f"kinds: no such kind {unknown[0]!r}; some of {', '.join(KINDS)}", field="kinds")
        if query.key:
            check_id(query.key, Limits(id_bytes=400), "key")
        return Filter(frozenset(kinds), query.prefix, query.key, query.tag)

    def _streamed(self, call: Call, watcher: Watcher) -> Reply:
        head = f"{call.heads.start(SSE, call.now)}X-Request-Id: {call.request_id}\r\nCache-Control: no-store\r\n"

        async def send(sink: Sink) -> None:
            try:
                await self._send(call, watcher, sink)
            finally:
                watcher.close()

        return Stream(200, head, send)

    async def _send(self, call: Call, watcher: Watcher, sink: Sink) -> None:
        sink.write(_bookmark(watcher))
        while not self._watch.draining:
            try:
                found = await watcher.next(BATCH, BOOKMARK_SECONDS)
            except SpineError as error:
                _, body = call.error_body(error)
                sink.write(b"event: error\ndata: " + _encode(Problem(body)) + b"\n\n")
                return
            for seen, token in found:
                kind = seen.event.kind
                sink.write(f"id: {token}\nevent: {kind}\ndata: ".encode() + self._event(seen) + b"\n\n")
            if not found:
                sink.write(_bookmark(watcher))
            await sink.drain()

    def _event(self, seen: Seen) -> bytes:
        place = (seen.group, seen.number)
        data = self._encoded.get(place)
        if data is None:
            if len(self._encoded) >= REMEMBERED:
                del self._encoded[next(iter(self._encoded))]
            data = self._encoded[place] = _encode(_told(seen))
            self._watch.encodings += 1

        return data


def _bookmark(watcher: Watcher) -> bytes:
    token = watcher.token()
    return f'id: {token}\nevent: bookmark\ndata: {{"next":"{token}"}}\n\n'.encode()


def _told(seen: Seen) -> dict[str, Any]:
    event = seen.event
    return {
        "kind": event.kind,
        "key": event.key,
        "change": event.change,
        "revision": event.revision,
        "at": rfc3339(event.time_ms),
        "group": seen.group,
        "number": seen.number,
        "index": event.index,
        "data": shown({name: value for name, value in event.data.items() if name not in PRIVATE}),
    }


def watch_routes(on: Coordination, limits: Limits) -> tuple[Route, ...]:
    summary = "What changes, resumable: server-sent events, or a long poll"
    return (
        get(
            "/v1/watch",
            WatchHandlers(on, limits).watch,
            summary,
            Changes,
            WatchQuery,
            errors=(410, 503),
            headers=("Last-Event-ID",),
        ),
    )
