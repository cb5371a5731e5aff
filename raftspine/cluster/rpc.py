"""Calls between nodes: who may conclude what when an answer does not come.

A caller that hears nothing must know whether its request can have taken effect. So the rule: a call that
was never handed to a link fails with Unavailable (try elsewhere), a call that was and then lost its link or
ran past its deadline fails with Unknown (never treat it as a refusal), and an error raised by the handler
arrives as the same error class. Blur the first two and a forwarded write is applied twice; blur the last and
a refusal turns into an endless retry.

Messages are small tuples, so that a cast costs a tuple and one encoding::

    (0, method, body)                                          cast, no answer
    (1, call id, method, body)                                 call
    (2, call id, result)                                       reply
    (3, call id, [code, class, message, details, retry_ms])    error
    (4, call id, method, body)                                 call over the bulk lane, answered there

Call ids start at a random number: a reply that a peer still owes to the process that ran here before this
one must not match a call of ours. Bodies travel through msgpack: tuples arrive as lists. A body that goes to
several peers can be encoded once and handed over as `msgspec.Raw`.
"""

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import structlog

from raftspine import errors
from raftspine.errors import SpineError, TooLarge, Unavailable, Unknown
from raftspine.model import NodeId
from raftspine.ports import Clock, Entropy, Handler, Transport

CAST, CALL, REPLY, ERROR, BULK_CALL = range(5)

SLOT_SECONDS = 0.025
"""Width of one deadline slot. A deadline is noticed at most two slots late, which is small beside the
shortest useful deadline (a loopback election step, some 100 ms) and saves one timer per call."""

MAX_OUTSTANDING = 16_384
"""Calls to one peer that may await their answers: about a second of full load, 10 MB of futures at most."""

MAX_RUNNING = 16_384
"""Unfinished handlers one peer may have here. The caller's own bound does not cover calls it gave up on."""

log = structlog.get_logger(__name__)


class Rpcs:
    """`ports.Rpc` over any `ports.Transport`. Make it before the transport starts."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        entropy: Entropy,
        *,
        max_outstanding: int = MAX_OUTSTANDING,
        max_running: int = MAX_RUNNING,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._send = transport.send
        self._max_outstanding = max_outstanding
        self._max_running = max_running
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[Callable[[NodeId, bool], None]] = []
        self._next_id = int.from_bytes(entropy.token_bytes(6), "big")
        self._waiting: dict[NodeId, dict[int, Future[Any]]] = {}
        self._slots: dict[int, list[tuple[NodeId, int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[NodeId, int] = {}
        self._tasks: set[Future[Any]] = set()
        self._closed = False
        transport.on_message(self._receive)
        transport.on_link(self._link_changed)

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────

    def serve(self, method: str, handler: Handler) -> None:
        """Answer `method` with `handler`. Plain results are sent at once; awaitables when they resolve."""
        if method in self._handlers:
            raise ValueError(f"method {method!r} is served already")
        self._handlers[method] = handler

    def cast(self, peer: NodeId, method: str, body: Any, *, bulk: bool = False) -> bool:
        """Send without an answer; False when the link is down or its queue full. TooLarge for a body above
        the lane's limit."""
        return self._send(peer, (CAST, method, body), bulk=bulk)

    def call(self, peer: NodeId, method: str, body: Any, *, timeout_ms: int, bulk: bool = False) -> Future[Any]:
        """The reply, or the handler's SpineError. Unavailable (`peer_down`, `overloaded`) when nothing was
        sent, Unknown (`outcome_unknown`) when the link broke or `timeout_ms` passed after sending. The
        answer comes by the lane the call went by."""
        future: Future[Any] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(peer)
        if waiting is None:
            waiting = self._waiting[peer] = {}
        if self._closed or len(waiting) >= self._max_outstanding:
            future.set_exception(self._not_sent(peer))
            return future
        call_id = self._next_id
        self._next_id = call_id + 1
        try:
            sent = self._send(peer, (BULK_CALL if bulk else CALL, call_id, method, body), bulk=bulk)
        except TooLarge as error:
            future.set_exception(error)
            return future
        if not sent:
            future.set_exception(self._not_sent(peer))
            return future
        waiting[call_id] = future
        slot = int((self._clock.monotonic() + timeout_ms / 1000) / SLOT_SECONDS) + 1
        entries = self._slots.get(slot)
        if entries is None:
            self._slots[slot] = [(peer, call_id)]
        else:
            entries.append((peer, call_id))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._sweep)
        return future

    def connected(self, peer: NodeId) -> bool:
        return self._transport.connected(peer)

    def on_link(self, changed: Callable[[NodeId, bool], None]) -> None:
        """Tell `changed(peer, up)` of each change; outstanding calls have failed by then."""
        self._listeners.append(changed)

    def outstanding(self, peer: NodeId) -> int:
        """Calls to this peer that await their answers."""
        return len(self._waiting.get(peer, ()))

    async def close(self) -> None:
        """Fail what is outstanding, cancel handlers still running, and wait for them."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for peer in list(self._waiting):
            self._fail_all(peer, "this node is stopping")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _not_sent(self, peer: NodeId) -> Unavailable:
        if self._closed:
            return Unavailable("this node is stopping", code="not_ready")
        if not self._transport.connected(peer):
            return Unavailable(f"no link to {peer}", code="peer_down", details={"peer": peer})
        return Unavailable(
            f"too much is queued for {peer}", code="overloaded", details={"peer": peer}, retry_after_ms=100
        )

    def _sweep(self) -> None:
        """Fail the calls whose deadline lies in a past slot. Runs only while calls are outstanding."""
        self._timer = None
        now = int(self._clock.monotonic() / SLOT_SECONDS)
        for slot in sorted(slot for slot in self._slots if slot <= now):
            for peer, call_id in self._slots.pop(slot):
                future = self._waiting[peer].pop(call_id, None)
                if future is not None and not future.done():
                    future.set_exception(Unknown(f"no answer from {peer} in time", details={"peer": peer}))
        if any(self._waiting.values()):
            self._timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._sweep)
        else:
            self._slots.clear()  # only answered calls are left in it

    def _link_changed(self, peer: NodeId, up: bool) -> None:
        if not up:
            self._fail_all(peer, f"the link to {peer} broke before the answer")
        for changed in self._listeners:
            changed(peer, up)

    def _fail_all(self, peer: NodeId, message: str) -> None:
        waiting = self._waiting.get(peer)
        if not waiting:
            return
        futures = list(waiting.values())
        waiting.clear()
        for future in futures:
            if not future.done():
                future.set_exception(Unknown(message, details={"peer": peer}))

    # ── answering ──────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, peer: NodeId, message: tuple[Any, ...]) -> None:
        try:
            kind = message[0]
            if kind == CAST:
                _, method, body = message
                self._run_cast(peer, method, body)
            elif kind in (CALL, BULK_CALL):
                _, call_id, method, body = message
                self._run_call(Caller(peer, call_id, method, kind == BULK_CALL), body)
            elif kind in (REPLY, ERROR):
                _, call_id, result = message
                self._settle(peer, kind, call_id, result)
            else:
                log.error("rpc message of an unknown kind", peer=peer, kind=repr(kind)[:40])
        except Exception:  # a message must not cost its neighbours in the same frame
            log.exception("rpc message failed", peer=peer)

    def _settle(self, peer: NodeId, kind: int, call_id: int, result: Any) -> None:
        waiting = self._waiting.get(peer)
        future = waiting.pop(call_id, None) if waiting else None
        if future is None or future.done():
            return  # late: the caller has been told Unknown, or has gone away
        if kind == REPLY:
            future.set_result(result)
        else:
            future.set_exception(rebuild(result))

    def _run_cast(self, peer: NodeId, method: str, body: Any) -> None:
        handler = self._handlers.get(method)
        if handler is None:
            log.error("cast to an unknown method", peer=peer, method=method)
            return
        try:
            result = handler(peer, body)
        except Exception:
            log.exception("cast failed", peer=peer, method=method)
            return
        if result is not None and hasattr(type(result), "__await__"):
            self._track(peer, result, lambda done: self._cast_done(peer, method, done))

    def _cast_done(self, peer: NodeId, method: str, done: "Future[Any]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("cast failed", peer=peer, method=method, exc_info=error)

    def _run_call(self, caller: "Caller", body: Any) -> None:
        handler = self._handlers.get(caller.method)
        if handler is None:
            refusal = Unavailable(f"this node does not serve {caller.method}", code="not_ready")
            self._refuse(caller, refusal)
        elif self._closed or self._running.get(caller.peer, 0) >= self._max_running:
            refusal = Unavailable("too many unfinished calls here", code="overloaded", retry_after_ms=100)
            self._refuse(caller, refusal)
        else:
            try:
                result = handler(caller.peer, body)
            except Exception as error:  # noqa: BLE001 (handed on to the caller, and logged if not foreseen)
                self._refuse(caller, error)
                return
            if result is not None and hasattr(type(result), "__await__"):
                self._track(caller.peer, result, lambda done: self._call_done(caller, done))
            else:
                self._answer(caller, result)

    def _track(self, peer: NodeId, result: Awaitable[Any], finish: Callable[["Future[Any]"], None]) -> None:
        """Hold the only strong reference to the work until it is done, then finish it."""
        future = asyncio.ensure_future(result)
        self._running[peer] = self._running.get(peer, 0) + 1
        self._tasks.add(future)

        def ended(done: "Future[Any]") -> None:
            self._tasks.discard(done)
            self._running[peer] -= 1
            finish(done)

        future.add_done_callback(ended)

    def _call_done(self, caller: "Caller", done: "Future[Any]") -> None:
        if done.cancelled():
            self._refuse(caller, Unknown("the node asked is stopping"))
        elif (error := done.exception()) is not None:
            self._refuse(caller, error)
        else:
            self._answer(caller, done.result())

    def _answer(self, caller: "Caller", result: Any) -> None:
        """Reply. An answer that finds no link is dropped: the caller learns Unknown from its own side."""
        try:
            self._send(caller.peer, (REPLY, caller.call_id, result), bulk=caller.bulk)
        except (TooLarge, TypeError, ValueError, OverflowError) as error:
            # The handler has done its work, so this is no refusal, whatever class the transport raised.
            log.error("an answer cannot be sent", peer=caller.peer, method=caller.method, exc_info=error)
            self._refuse(caller, Unknown(f"the answer of {caller.method} cannot be sent: {error}"))

    def _refuse(self, caller: "Caller", error: BaseException) -> None:
        if not isinstance(error, SpineError):
            log.error("call failed", peer=caller.peer, method=caller.method, exc_info=error)
            error = Unknown(f"internal error in {caller.method}; see the log of the node asked")
        self._send(caller.peer, (ERROR, caller.call_id, flatten(error)), bulk=caller.bulk)


class Caller(NamedTuple):
    """Where an answer goes."""

    peer: NodeId
    call_id: int
    method: str
    bulk: bool


def flatten(error: SpineError) -> list[Any]:
    """What travels of an error. A subclass from outside errors.py goes as its nearest ancestor there, because
    the ancestor's name carries the outcome and the receiver may not know the subclass."""
    name = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    return [error.code, name, error.message, _plain(error.details), error.retry_after_ms]


def _plain(value: Any) -> Any:
    """Details as plain data: an error must arrive even when someone put an odd object into it."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


def rebuild(parts: Any) -> SpineError:
    """The error a peer raised. What cannot be understood (a newer peer's class) is Unknown: the one
    conclusion that is never wrong."""
    try:
        code, name, message, details, retry_after_ms = parts
        kind = getattr(errors, name, None)
        if not (isinstance(kind, type) and issubclass(kind, SpineError)):
            return Unknown(str(message), details={"peer_error": name, "peer_code": code})
        error = kind.__new__(kind)
        # Past the subclass's own __init__: its arguments are already folded into code and details.
        SpineError.__init__(error, message, code=code, details=details, retry_after_ms=retry_after_ms)
        return error
    except (TypeError, ValueError) as problem:
        return Unknown(f"an error arrived that cannot be read: {problem}")
