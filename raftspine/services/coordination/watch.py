"""Watching: what has changed, in order, without gaps, from any node, across reconnects.

The ledger numbers the events of each shard group without gaps (core/ledger/events.py), and they are rows like any
other. So a watcher is nothing but a number per group: it reads on from there in this node's replica, is woken by the
rows that entries write, and goes to sleep when it has all. The rule: a watcher *pulls*. Nothing is ever queued for
it, so a slow one costs no memory and one that lost its connection has lost nothing, as long as the window holds what
follows its numbers; else it is told `compacted`, and must look at the state itself.

A node without a replica of a group pulls from one that has it, a page at a time; one pump per such group, for all
watchers of this node together, waits there for news.
"""

import asyncio
from asyncio import Future, Task, get_running_loop
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from raftspine.core.ledger import events
from raftspine.core.ledger.events import Event
from raftspine.core.ledger.state import SetRow
from raftspine.errors import Gone, Malformed, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, Engine, Rpc
from raftspine.services.coordination import tokens
from raftspine.services.coordination.door import Door, Moment
from raftspine.services.deadlines import Late, within
from raftspine.services.ledger_host import Stored
from raftspine.services.topology import Topology

EVENTS = "coordination.events"
NEWS = "coordination.news"
NEWS_SECONDS = 10.0
AGAIN_SECONDS = 0.5
PAGE = 256
MOST = 20_000
"""Watchers of one node: each holds a connection."""

ONE_GROUP = {"memory": "memory", "lock": "name", "election": "name"}
"""Kinds whose key alone tells the group."""

log = structlog.get_logger(__name__)
_events = msgspec.msgpack.Decoder(list[tuple[int, Event]])
_encode = msgspec.msgpack.Encoder().encode


class Filter(NamedTuple):
    """What a watcher wants to hear of; conjunctive, empty: everything."""

    kinds: frozenset[str] = frozenset()
    prefix: str = ""
    key: str = ""
    tag: str = ""

    def wants(self, event: Event) -> bool:
        return (
            (not self.kinds or event.kind in self.kinds)
            and event.key.startswith(self.prefix)
            and (not self.key or event.key == self.key)
            and (not self.tag or self.tag in event.data.get("tags", ()))
        )


class Seen(NamedTuple):
    """An event and its place."""

    group: GroupId
    number: int
    event: Event


class Watcher:
    """One watcher: where it stands in each group, and in which of them there may be more. Nobody knows of it before
    its first `next`, so one that is dropped unused leaves nothing behind; after that it is to be closed."""

    def __init__(self, hub: "Watch", wanted: Filter, at: dict[GroupId, int]) -> None:
        self._hub = hub
        self._wanted = wanted
        self.at = at
        self._dirty = dict.fromkeys(at)
        self._news: Future[None] | None = None
        self._entered = False

    def token(self) -> str:
        """Where it stands, to go on from elsewhere."""
        return self._hub.seal(self.at)

    async def next(self, limit: int, seconds: float) -> list[tuple[Seen, str]]:
        """Up to `limit` further events, each with the token of having seen it; none when there were none in time, or
        the node is stopping. Raises Gone(`compacted`), Unavailable."""
        if not self._entered:
            self._entered = True
            self._hub.enter(self)
        loop = get_running_loop()
        ends = loop.time() + seconds
        found: list[tuple[Seen, str]] = []
        while True:
            await self._read(found, limit)
            left = ends - loop.time()
            if found or left <= 0 or self._hub.draining:
                return found
            if self._dirty:
                await asyncio.sleep(0)  # much that nobody wants may lie between: let others have a turn
                continue
            self._news = loop.create_future()
            try:
                await within(self._news, left, loop)
            except Late:
                return found
            finally:
                self._news = None

    async def _read(self, found: list[tuple[Seen, str]], limit: int) -> None:
        for group in list(self._dirty):
            del self._dirty[group]
            page, more = await self._hub.page(group, self.at[group], PAGE)
            for number, event in page:
                if len(found) >= limit:
                    more = True
                    break
                self.at[group] = number
                if self._wanted.wants(event):
                    found.append((Seen(group, number, event), self.token()))
            if more:
                self._dirty[group] = None

    def wake(self, group: GroupId) -> None:
        self._dirty[group] = None
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def close(self) -> None:
        if self._entered:
            self._entered = False
            self._hub.leave(self)


class Watch:
    """The watchers of one node. `watchers`: how many there are; `encodings`: events that the front end has encoded,
    which must grow with the events and not with the watchers."""

    def __init__(self, door: Door, rpc: Rpc, topology: Topology, engine: Engine, clock: Clock) -> None:
        self._door = door
        self._rpc = rpc
        self._topology = topology
        self._engine = engine
        self._clock = clock
        self._by_group: dict[GroupId, dict[Watcher, None]] = {}
        self._pumps: dict[GroupId, Task[None]] = {}
        self._news: dict[GroupId, list[Future[None]]] = {}
        self._pages: dict[GroupId, tuple[tuple[int, int, int, int], list[tuple[int, Event]]]] = {}
        """The last page read of each group: who is woken by one event asks for the same page."""
        self._sealed: tuple[dict[GroupId, int], str] = ({}, "")
        """The last token made, likewise."""
        self.watchers = 0
        self.encodings = 0
        self.draining = False
        door.answers("events.window", _window)
        rpc.serve(EVENTS, self._serve_events)
        rpc.serve(NEWS, self._serve_news)

    # ── beginning and ending ────────────────────────────────────────────────────────────────────────────────

    async def join(self, wanted: Filter, since: str | None) -> Watcher:
        """A watcher from a token on, or from now on. Malformed for a token that is foreign or from the future; Gone
        when what follows it is no longer kept; Unavailable."""
        if self.watchers >= MOST or self.draining:
            raise Unavailable("this node takes no more watchers", code="overloaded", retry_after_ms=1000)
        groups = self._groups(wanted)
        if since is None:
            windows = await asyncio.gather(*(self._door.read(group, "events.window") for group in groups))
            at = {group: window[1] for group, window in zip(groups, windows, strict=True)}
        else:
            at = tokens.unseal(self._topology.table.cluster_id, since)
            if set(at) != set(groups):
                raise Malformed("since: the token is of another watch", field="since")
            await asyncio.gather(*(self._check(group, number) for group, number in at.items()))
        return Watcher(self, wanted, at)

    def enter(self, watcher: Watcher) -> None:
        self.watchers += 1
        for group in watcher.at:
            self._by_group.setdefault(group, {})[watcher] = None
            if not self._topology.serves(group) and group not in self._pumps:
                self._pumps[group] = get_running_loop().create_task(self._pump(group))

    def leave(self, watcher: Watcher) -> None:
        self.watchers -= 1
        for group in watcher.at:
            watching = self._by_group[group]
            del watching[watcher]
            if not watching:
                del self._by_group[group]
                pump = self._pumps.pop(group, None)
                if pump is not None:
                    pump.cancel()

    def seal(self, at: dict[GroupId, int]) -> str:
        if self._sealed[0] != at:
            self._sealed = dict(at), tokens.seal(self._topology.table.cluster_id, at)
        return self._sealed[1]

    def drain(self) -> None:
        """This node is stopping: every watcher ends, and goes on elsewhere."""
        self.draining = True
        for group in list(self._by_group):
            self._wake(group)

    def stop(self) -> None:
        for pump in self._pumps.values():
            pump.cancel()

    def _groups(self, wanted: Filter) -> tuple[GroupId, ...]:
        """Where what is wanted can happen."""
        if wanted.key and wanted.kinds and wanted.kinds <= ONE_GROUP.keys():
            groups = {
                self._topology.group_of(wanted.key) if kind == "memory" else self._door.group(wanted.key)
                for kind in wanted.kinds
            }
            if self._topology.strategy == "id" or "memory" not in wanted.kinds:
                return tuple(sorted(groups))
        return self._door.groups()

    async def _check(self, group: GroupId, number: int) -> None:
        """Whether a token's number may be gone on from. Only one beyond what this node knows is asked about."""
        first, last = (0, -1) if not self._topology.serves(group) else self._window_here(group)
        if number > last:
            first, last = await self._door.read(group, "events.window")
        if number > last:
            raise Malformed("since: the token is from the future", field="since", group=group)
        if number + 1 < first:
            raise compacted(group, number, first)

    def _window_here(self, group: GroupId) -> tuple[int, int]:
        window = events.window(Stored(self._engine, group))
        return window.first, window.last

    # ── being woken ─────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, group: GroupId, rows: Sequence[SetRow]) -> None:
        """Rows an entry has just written here."""
        if (group in self._by_group or group in self._news) and any(row.table == events.EVENTS.name for row in rows):
            self._wake(group)

    def replaced(self, group: GroupId) -> None:
        """The state of a group came from elsewhere."""
        self._pages.pop(group, None)
        self._wake(group)

    def _wake(self, group: GroupId) -> None:
        for watcher in list(self._by_group.get(group, ())):
            watcher.wake(group)
        for waiter in self._news.pop(group, ()):
            if not waiter.done():
                waiter.set_result(None)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    async def page(self, group: GroupId, after: int, limit: int) -> tuple[list[tuple[int, Event]], bool]:
        """Events behind a number, and whether there may be more. Raises Gone, Unavailable."""
        if self._topology.serves(group):
            return self._page_here(group, after, limit)
        refused: SpineError | None = None
        for peer in self._topology.replicas(group):
            try:
                data, more = await self._rpc.call(peer, EVENTS, (group, after, limit), timeout_ms=5000)
            except (Unavailable, Unknown) as error:
                refused = error
            else:
                return _events.decode(data), more
        raise Unavailable(
            f"no replica of shard group {group} can be reached",
            code="no_quorum",
            details={"cause": None if refused is None else refused.code},
            retry_after_ms=500,
        )

    def _page_here(self, group: GroupId, after: int, limit: int) -> tuple[list[tuple[int, Event]], bool]:
        view = Stored(self._engine, group)
        window = events.window(view)
        if after + 1 < window.first:
            raise compacted(group, after, window.first)
        if after >= window.last:
            return [], False
        asked = (after, limit, *window)
        known = self._pages.get(group)
        if known is None or known[0] != asked:  # an event never changes, so the same window is the same page
            known = self._pages[group] = asked, events.read(view, after + 1, limit)
        found = known[1]
        return found, len(found) == limit

    def _serve_events(self, peer: NodeId, body: Any) -> tuple[bytes, bool]:
        group, after, limit = body
        self._must_hold(group)
        page, more = self._page_here(GroupId(group), after, min(limit, PAGE))
        return _encode(page), more

    # ── groups kept elsewhere ───────────────────────────────────────────────────────────────────────────────

    async def _pump(self, group: GroupId) -> None:
        """Wait at a replica for news, again and again, and wake who watches here."""
        known = -1
        while True:
            for peer in self._topology.replicas(group):
                try:
                    last = await self._rpc.call(
                        peer, NEWS, (group, known), timeout_ms=int(NEWS_SECONDS * 1000) + 2000
                    )
                except (Unavailable, Unknown) as error:
                    log.debug("no news from a replica", group=group, peer=peer, reason=error.message)
                    continue
                if last > known:
                    known = last
                    self._wake(group)
                break
            else:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _serve_news(self, peer: NodeId, body: Any) -> int:
        group, known = GroupId(body[0]), int(body[1])
        self._must_hold(group)
        loop = get_running_loop()
        waiter: Future[None] = loop.create_future()
        self._news.setdefault(group, []).append(waiter)
        last = self._window_here(group)[1]
        if last != known:
            return last
        try:
            await within(waiter, NEWS_SECONDS, loop)
        except Late:
            return known
        return self._window_here(group)[1]

    def _must_hold(self, group: int) -> None:
        if self.draining or not self._topology.serves(GroupId(group)):
            raise Unavailable(f"shard group {group} cannot be watched here", code="not_ready")


def compacted(group: GroupId, number: int, first: int) -> Gone:
    return Gone(
        "what followed this token is no longer kept; read the state, then watch from now on",
        details={"group": group, "since": number, "first": first},
    )


def _window(moment: Moment) -> list[int]:
    window = events.window(moment.view)
    return [window.first, window.last]
