"""One connection to one peer: handshake, then frames both ways, until something is wrong with it.

The rule: what is sent within one turn of the event loop leaves in one write, and what cannot leave is bounded
and refused, never piled up. Without the first, a Raft turn over sixteen groups would cost hundreds of system
calls; without the second, a peer that stops reading would take this node's memory with it.

A link judges and reports; it never reconnects, and it knows nothing of the other links (see peers.py).
"""

import asyncio
import socket
from collections import deque
from typing import Any, Protocol, cast

from raftspine.cluster import frames
from raftspine.cluster.frames import BadFrame, Opener, Sealer
from raftspine.cluster.handshake import BULK, Acceptor, Dialer, Handshake, Refused, Session
from raftspine.model import NodeId

FRAME_TARGET_BYTES = 256 * 1024
"""Messages are gathered into frames of about this size, so that the receiver's loop gets to breathe."""

WRITE_BUFFER_BYTES = 1024 * 1024
"""Bytes left to asyncio before it asks us to pause; the rest waits here, where it can be counted."""

SILENT_TICKS = 4
"""A link that was silent for this many ticks is dead; each end sends a keep-alive per silent tick. Counting
ticks instead of reading a clock also excuses a process that was stopped or starved itself: it comes back to
one late tick, not to four."""


class Owner(Protocol):
    """What a link reports to."""

    counters: dict[str, int]

    def link_opened(self, link: "Link") -> None: ...
    def link_closed(self, link: "Link", reason: str, detail: str, *, rejected: bool) -> None: ...
    def link_gone(self, link: "Link") -> None: ...
    def deliver(self, link: "Link", peer: NodeId, messages: list[tuple[Any, ...]]) -> None: ...


class Link(asyncio.Protocol):
    """`handshake` decides which end this is. `session` is set while and after the link is open."""

    _sealer: Sealer
    _opener: Opener

    def __init__(self, owner: Owner, handshake: Handshake, queue_bytes: tuple[int, int]) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._owner = owner
        self._handshake: Handshake | None = handshake
        self._queue_limits = queue_bytes
        self._queue_limit = 0
        self._max_message = 0
        self._transport: asyncio.Transport | None = None
        self._queue: deque[bytes] = deque()
        self._flush_due = False
        self._paused = False
        self._sent_in_tick = False
        self._silent_ticks = 0
        self._counters = owner.counters
        self.closing = False
        """True from the moment the link counts for nothing any more, also while its socket lingers."""
        self.session: Session | None = None
        self.queued_bytes = 0
        self.address = "?"
        self.opened: asyncio.Future[None] = loop.create_future()
        """Resolves, without error, when the link is open or has closed before."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Resolves when the socket is released."""

    # ── sending ────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, message: bytes) -> bool:
        """Queue one encoded message; False when the queue is full or the link closes."""
        size = len(message)
        if self.closing:
            return False
        if self.queued_bytes + size > self._queue_limit:
            self._counters["queue_drops"] += 1
            return False
        self._queue.append(message)
        self.queued_bytes += size
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return True

    @property
    def has_socket(self) -> bool:
        """Whether a connection was ever made; only then does `gone` resolve."""
        return self._transport is not None

    def fits(self, message: bytes) -> bool:
        """Whether this lane carries messages of this size at all."""
        return len(message) <= self._max_message

    def _flush(self) -> None:
        self._flush_due = False
        while self._queue and not self._paused and not self.closing:
            self._write_frame(self._take())

    def _take(self) -> list[bytes]:
        if self.queued_bytes <= FRAME_TARGET_BYTES:
            messages = list(self._queue)
            self._queue.clear()
            self.queued_bytes = 0
            return messages
        messages, size = [], 0
        while self._queue and (not messages or size + len(self._queue[0]) <= FRAME_TARGET_BYTES):
            message = self._queue.popleft()
            messages.append(message)
            size += len(message)
        self.queued_bytes -= size
        return messages

    def _write_frame(self, messages: list[bytes]) -> None:
        assert self._transport is not None
        frame = self._sealer.seal(messages)
        self._sent_in_tick = True
        counters = self._counters
        counters["frames_sent"] += 1
        counters["messages_sent"] += len(messages)
        counters["bytes_sent"] += len(frame)
        self._transport.write(frame)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # ── receiving ──────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if name else "?"
        if self.closing:
            transport.abort()
        elif isinstance(self._handshake, Dialer):
            transport.write(self._handshake.hello)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self._counters["bytes_received"] += len(data)
        if self._handshake is None:
            self._silent_ticks = 0  # a handshake has no right to more time by dripping bytes
        else:
            data = self._shake(self._handshake, data)
            if not data:
                return
        session = self.session
        if session is None:
            return
        try:
            for messages in self._opener.feed(data):
                self._counters["frames_received"] += 1
                if messages:
                    self._counters["messages_received"] += len(messages)
                    self._owner.deliver(self, session.peer, messages)
                if self._transport is None or self._transport.is_closing():
                    return  # what was delivered made someone end this link
        except BadFrame as error:
            self.close(error.reason, rejected=True)

    def _shake(self, handshake: Handshake, data: bytes) -> bytes:
        """Take the handshake further; what is left over once it is done."""
        assert self._transport is not None
        try:
            answer = handshake.feed(data)
        except Refused as refusal:
            if refusal.tell:
                self._transport.write(refusal.tell)
            self.close(refusal.reason, refusal.detail, rejected=True, linger=bool(refusal.tell))
            return b""
        if answer:
            self._transport.write(answer)
        if handshake.session is None:
            return b""
        self._open(handshake.session)
        rest, self._handshake = handshake.rest, None
        return rest

    def _open(self, session: Session) -> None:
        self.session = session
        bulk = session.lane == BULK
        frame = frames.MAX_BULK_FRAME_BYTES if bulk else frames.MAX_FRAME_BYTES
        self._max_message = frame - frames.OVERHEAD_BYTES
        self._queue_limit = self._queue_limits[session.lane]
        self._sealer = Sealer(session.send_key)
        self._opener = Opener(session.receive_key, frame)
        if not self.opened.done():
            self.opened.set_result(None)
        self._owner.link_opened(self)

    # ── ending ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def claimed_peer(self) -> str:
        """Who this is as far as it is known, for logs: proven, else claimed, else the address."""
        if self.session is not None:
            return self.session.peer
        if isinstance(self._handshake, Acceptor) and self._handshake.peer is not None:
            return f"{self._handshake.peer}? at {self.address.rpartition(':')[0]}"
        return self.address.rpartition(":")[0]

    def tick(self) -> None:
        """Once per tick: keep the link warm, and end it when the other side has fallen silent."""
        self._silent_ticks += 1
        if self.closing:
            self.abort()
        elif self._silent_ticks > SILENT_TICKS:
            self.close("silent" if self.session else "handshake_timeout", rejected=self.session is None)
        elif self.session is not None and not self._sent_in_tick and not self._paused:
            self._write_frame([])
        self._sent_in_tick = False

    def close(self, reason: str, detail: str = "", *, rejected: bool = False, linger: bool = False) -> None:
        """End the link now: nothing is delivered or sent any more. `linger` lets what is written already
        leave. `rejected` counts it among the refused."""
        if self.closing:
            return
        self.closing = True
        self._queue.clear()
        self.queued_bytes = 0
        if rejected:
            self._counters[f"rejected.{reason}"] = self._counters.get(f"rejected.{reason}", 0) + 1
        if self._transport is not None:
            if linger:
                self._transport.close()
            else:
                self._transport.abort()
        if not self.opened.done():
            self.opened.set_result(None)
        self._owner.link_closed(self, reason, detail, rejected=rejected)

    def finish(self) -> None:
        """End the link in order: what is queued leaves first, as far as the peer reads it."""
        while self._queue and not self.closing:
            self._write_frame(self._take())
        self.close("stopping", linger=True)

    def abort(self) -> None:
        """Drop the socket, also while it lingers."""
        self.close("stopping")
        if self._transport is not None and not self.gone.done():
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close("lost", str(exc) if exc else "the peer closed it")
        self._owner.link_gone(self)
        if not self.gone.done():
            self.gone.set_result(None)
