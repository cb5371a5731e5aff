"""The links of this node to all others: who dials whom, how often, and what the rest of the node sees of it.

The rule: between two nodes there is one connection per lane, dialed by the node with the smaller id and kept
up by it; the newest proven connection replaces an older one. Two lanes, because a snapshot in front of a
heartbeat costs an election. Without a single owner of "which connection counts", messages of an old
connection would mix with those of a new one, and the guarantee everything above builds on (ordered, at most
once, gone when the link went) would be lost.

A peer is *connected* while its main lane is open. Every change is told to `on_link` before any message of the
new link is delivered and after the last one of the old.
"""

import asyncio
import errno
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from raftspine.cluster import frames
from raftspine.cluster.handshake import BULK, MAIN, NONCE_BYTES, Acceptor, Dialer, Identity
from raftspine.cluster.link import SILENT_TICKS, Link
from raftspine.errors import Misuse, TooLarge
from raftspine.model import NodeId
from raftspine.ports import Clock, Entropy

Address = tuple[str, int]

MIN_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 1.0
STEADY_SECONDS = 5.0
"""A link that lived this long was a good one: the next attempt starts again at the shortest delay. A shorter
life keeps the delay growing, so that two processes with one id do not spin."""

PEER_DEAD_MS = 2000
"""Silence after which a link is given up; a quarter of it without traffic makes a keep-alive."""

CONNECT_SECONDS = 2.0
LINGER_SECONDS = 1.0
MAX_PENDING = 128
"""Connections in their handshake; beyond it the oldest goes, as an honest handshake takes a millisecond."""

MAIN_QUEUE_BYTES = 16 * frames.MIB
BULK_QUEUE_BYTES = 48 * frames.MIB
"""Above the largest bulk message, so that an empty queue takes any message that fits a frame."""

LOG_AGAIN_SECONDS = 60.0
MAX_LOG_KEYS = 1024

COUNTERS = (
    "bytes_sent", "bytes_received", "frames_sent", "frames_received", "messages_sent", "messages_received",
    "queue_drops", "links_opened", "links_lost", "dial_failures",
)  # fmt: skip

log = structlog.get_logger(__name__)


class Tls(NamedTuple):
    """Contexts for mutual TLS; the handshake and the frame tags stay in force under it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Peers:
    """`ports.Transport` over TCP. `cluster` is the cluster's name (or id): nodes of another one are refused.

    `peer_dead_ms` bounds how long a half-open link (a pulled cable, a stopped peer) goes unnoticed.
    `counters` is live and only grows: bytes_, frames_ and messages_ sent and received, queue_drops,
    links_opened, links_lost, dial_failures, and `rejected.<reason>`.
    """

    def __init__(
        self,
        self_id: NodeId,
        cluster: str,
        secret: bytes,
        listen: Address,
        peers: Mapping[NodeId, Address],
        clock: Clock,
        entropy: Entropy,
        tls: Tls | None = None,
        *,
        peer_dead_ms: int = PEER_DEAD_MS,
        main_queue_bytes: int = MAIN_QUEUE_BYTES,
        bulk_queue_bytes: int = BULK_QUEUE_BYTES,
    ) -> None:
        self._identity = Identity(self_id, cluster, secret)
        self._listen = listen
        self._addresses = {peer: address for peer, address in peers.items() if peer != self_id}
        self._clock = clock
        self._entropy = entropy
        self._tls = tls
        self._tick_seconds = peer_dead_ms / 1000 / SILENT_TICKS
        self._queue_bytes = (main_queue_bytes, bulk_queue_bytes)
        self._main: dict[NodeId, Link] = {}
        self._bulk: dict[NodeId, Link] = {}
        self._pending: dict[Link, None] = {}
        self._links: set[Link] = set()
        self._dials: dict[tuple[NodeId, int], asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._receive: Callable[[NodeId, tuple[Any, ...]], None] | None = None
        self._listeners: list[Callable[[NodeId, bool], None]] = []
        self._logged: dict[tuple[str, str], float] = {}
        self._running = False
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)

    # ── ports.Transport ────────────────────────────────────────────────────────────────────────────────────

    def send(self, peer: NodeId, message: Sequence[Any], *, bulk: bool = False) -> bool:
        """Queue a message for this loop turn's write; False when the link is down or its queue is full.
        TooLarge above the lane's frame (8 MiB, bulk 40 MiB), TypeError for what msgpack cannot carry."""
        link = (self._bulk if bulk else self._main).get(peer)
        if link is None:
            return False
        data = frames.encode(message)
        if not link.fits(data):
            lane = "bulk" if bulk else "main"
            raise TooLarge(f"a message of {len(data)} bytes does not fit a frame of the {lane} lane")
        return link.send(data)

    def connected(self, peer: NodeId) -> bool:
        return peer in self._main

    def on_message(self, receive: Callable[[NodeId, tuple[Any, ...]], None]) -> None:
        self._receive = receive

    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None:
        self._listeners.append(changed)

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def port(self) -> int:
        """The port listened on; of use when `listen` asked for port 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen and begin to dial. Misuse when the address cannot be had."""
        host, port = self._listen
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._accept, host, port, ssl=self._tls.server if self._tls else None
            )
        except OSError as error:
            raise Misuse(f"cannot listen for peers on {host}:{port}: {_why(error)}") from error
        self._running = True
        self._ticker = loop.call_later(self._tick_seconds, self._tick)
        self._dial_missing()

    async def close(self) -> None:
        """Stop listening and dialing, let what is queued leave (at most a second), close every link."""
        self._running = False
        if self._ticker is not None:
            self._ticker.cancel()
        if self._server is not None:
            self._server.close()
        links = list(self._links)
        for link in links:
            link.finish()
        leaving = [link.gone for link in links if link.has_socket]
        if leaving:
            await asyncio.wait(leaving, timeout=LINGER_SECONDS)
        dials = list(self._dials.values())
        self._dials.clear()
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        for link in links:
            link.abort()
        if self._server is not None:
            await self._server.wait_closed()

    def set_peers(self, peers: Mapping[NodeId, Address]) -> None:
        """The members from now on. Links to others end; links whose address changed are dialed anew."""
        old, me = dict(self._addresses), self._identity.node
        self._addresses.clear()  # in place: handshakes under way look at it
        self._addresses.update((peer, address) for peer, address in peers.items() if peer != me)
        for peer in old:
            if self._addresses.get(peer) != old[peer]:
                for lane in (MAIN, BULK):
                    task = self._dials.pop((peer, lane), None)
                    if task is not None:
                        task.cancel()
                for link in (self._main.get(peer), self._bulk.get(peer)):
                    if link is not None and (peer not in self._addresses or me < peer):
                        link.close("removed" if peer not in self._addresses else "moved")
        if self._running:
            self._dial_missing()

    def queued_bytes(self, peer: NodeId) -> int:
        """Bytes that wait for this peer, both lanes."""
        links = (self._main.get(peer), self._bulk.get(peer))
        return sum(link.queued_bytes for link in links if link is not None)

    # ── dialing and accepting ──────────────────────────────────────────────────────────────────────────────

    def _dial_missing(self) -> None:
        for peer in self._addresses:
            if self._identity.node < peer:
                for lane in (MAIN, BULK):
                    if (peer, lane) not in self._dials:
                        self._dials[peer, lane] = asyncio.create_task(self._keep_dialing(peer, lane))

    async def _keep_dialing(self, peer: NodeId, lane: int) -> None:
        """Hold one lane to one peer up until cancelled."""
        delay = MIN_BACKOFF_SECONDS
        while self._running:
            dialer = Dialer(self._identity, peer, lane, self._entropy.token_bytes(NONCE_BYTES))
            link = Link(self, dialer, self._queue_bytes)
            try:
                lived = await self._dial(peer, link)
            finally:
                link.close("stopping")
            if lived > STEADY_SECONDS:
                delay = MIN_BACKOFF_SECONDS
            await asyncio.sleep(delay * (0.5 + self._entropy.random()))
            delay = min(2 * delay, MAX_BACKOFF_SECONDS)

    async def _dial(self, peer: NodeId, link: Link) -> float:
        """Connect, and return how many seconds the link lived once it has closed."""
        host, port = self._addresses[peer]
        tls: dict[str, Any] = {"ssl": self._tls.client, "server_hostname": host} if self._tls else {}
        self._links.add(link)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: link, host, port, **tls)
                await link.opened
        except (OSError, TimeoutError) as error:  # an ssl.SSLError is an OSError too
            self.counters["dial_failures"] += 1
            self._log_sparingly(peer, "cannot reach peer", address=f"{host}:{port}", why=_why(error))
            return 0.0
        finally:
            if not link.has_socket:
                self._links.discard(link)
        since = self._clock.monotonic()
        await link.gone
        return self._clock.monotonic() - since if link.session is not None else 0.0

    def _accept(self) -> Link:
        acceptor = Acceptor(self._identity, self._addresses, self._entropy.token_bytes(NONCE_BYTES))
        link = Link(self, acceptor, self._queue_bytes)
        self._links.add(link)
        self._pending[link] = None
        if len(self._pending) > MAX_PENDING:
            next(iter(self._pending)).close("crowded", rejected=True)
        return link

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        for link in list(self._links):
            link.tick()

    # ── what links report ──────────────────────────────────────────────────────────────────────────────────

    def link_opened(self, link: Link) -> None:
        self._pending.pop(link, None)
        session = link.session
        assert session is not None
        if session.peer not in self._addresses:  # removed while it proved itself
            link.close("stranger", rejected=True)
            return
        lanes = self._bulk if session.lane == BULK else self._main
        older = lanes.get(session.peer)
        if older is not None:
            older.close("replaced")
        lanes[session.peer] = link
        self.counters["links_opened"] += 1
        if session.lane == MAIN:
            log.info("link up", peer=session.peer, address=link.address)
            self._tell(session.peer, True)

    def link_closed(self, link: Link, reason: str, detail: str, *, rejected: bool) -> None:
        self._pending.pop(link, None)
        session = link.session
        if rejected or (session is None and reason != "stopping"):
            self._log_sparingly(link.claimed_peer, "peer connection refused", reason=reason, detail=detail)
        if session is None:
            return
        lanes = self._bulk if session.lane == BULK else self._main
        if lanes.get(session.peer) is link:
            del lanes[session.peer]
            self.counters["links_lost"] += 1
            if session.lane == MAIN:
                log.info("link down", peer=session.peer, reason=reason, detail=detail)
                self._tell(session.peer, False)

    def link_gone(self, link: Link) -> None:
        self._links.discard(link)

    def deliver(self, link: Link, peer: NodeId, messages: list[tuple[Any, ...]]) -> None:
        receive = self._receive
        for message in messages:
            if receive is None or link.closing:
                return
            try:
                receive(peer, message)
            except Exception:
                log.exception("a message could not be taken", peer=peer)

    def _tell(self, peer: NodeId, up: bool) -> None:
        for changed in self._listeners:
            try:
                changed(peer, up)
            except Exception:
                log.exception("a listener failed", peer=peer, up=up)

    def _log_sparingly(self, who: str, event: str, **fields: Any) -> None:
        """Once per peer and reason per minute: an open port must not fill the disk with log lines."""
        key = (who, str(fields.get("reason", event)))
        now = self._clock.monotonic()
        if now < self._logged.get(key, now):
            return
        if len(self._logged) >= MAX_LOG_KEYS:
            self._logged.clear()
        self._logged[key] = now + LOG_AGAIN_SECONDS
        log.warning(event, peer=who, **fields)


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "the address is in use by another process"
    return str(error) or type(error).__name__
