"""Locks, shared locks, semaphores and several locks at once, as context managers.

    async with spine.lock("deploy/api", ttl=30, wait=60) as lease:
        await spine.put("dep-42", state, guard=lease)

The rules: inside the block the lease is renewed in the background; when it is lost the task that entered is
cancelled, and the block ends with LeaseLost (upkeep.py). At the end of the block it is given back, within a bounded
time. A lock protects what checks its token: writes with `guard=lease`, and resources that show it to a fence.
Anything else relies on the block being stopped in time, which nobody can promise of a process that is itself stopped.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.obtain import Obtained, Ways
from raftspine.client.coordination.upkeep import Body, Grant, Upkeep, again, grant
from raftspine.errors import LeaseLost, Misuse, SpineError

log = logging.getLogger("raftspine.client")


class Checked(NamedTuple):
    """Whether a token is current, by the store's word, and for how many seconds at least."""

    valid: bool
    remaining: float


class Lease:
    """Something that is held by lease: one lock, or several at once. Its methods that do not wait may be called from
    any thread."""

    def __init__(self, on: Channel, ways: Mapping[str, Ways], got: Obtained) -> None:
        answer = got.answer
        self.lease_id: str = answer["lease_id"]
        self.tokens: dict[str, int] = answer.get("fencing_tokens") or {next(iter(ways)): answer["fencing_token"]}
        """The fencing token of each lock: higher than that of every holder before."""
        self.mode: str = answer.get("mode") or "exclusive"
        self.hold: int = answer["hold"]
        """How often its session holds it."""
        self._on = on
        self._ways = ways
        self._upkeep: Upkeep | None = None

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={token}" for name, token in self.tokens.items())
        return f"<{type(self).__name__} {held}, {self.remaining():.1f} s left>"

    @property
    def name(self) -> str:
        """The lock; the first of several."""
        return next(iter(self._ways))

    @property
    def token(self) -> int:
        """The fencing token, for what checks it. Misuse where there are several: see `tokens`."""
        if len(self.tokens) != 1:
            raise Misuse("several locks have a token each: see Lease.tokens")
        return next(iter(self.tokens.values()))

    space = "lock"
    """Where its names belong; offices have names of their own."""

    @property
    def guards(self) -> list[dict[str, Any]]:
        """As conditions on a write: `put(…, guard=lease)` asks for them."""
        return [{"lock": name, "token": token, "space": self.space} for name, token in self.tokens.items()]

    def remaining(self) -> float:
        """Seconds for which the lease can be believed in; 0 once it is lost or given back."""
        return 0.0 if self._upkeep is None else self._upkeep.remaining()

    @property
    def error(self) -> LeaseLost | None:
        """Why it was lost; None while it is not."""
        return None if self._upkeep is None else self._upkeep.error

    def ensure(self) -> None:
        """Raises LeaseLost unless the lease can be believed in now. Costs nothing: call it before each step that
        cannot be undone."""
        if self._upkeep is None:
            raise LeaseLost(f"{self.name} is not held")
        self._upkeep.ensure()

    async def check(self) -> Checked:
        """Ask the store whether every token is current now, linearizably. A token that is not ends the lease."""
        found = [await self._check(name, token) for name, token in self.tokens.items()]
        return Checked(all(one.valid for one in found), min(one.remaining for one in found))

    async def _check(self, name: str, token: int) -> Checked:
        ways = self._ways[name]
        answer = await self._on.ask(ways.renew.rsplit("/", 1)[0] + "/check", {"fencing_token": token})
        if not answer["valid"] and self._upkeep is not None:
            self._upkeep.lose(LeaseLost(f"the token of {name} is not current"))
        return Checked(answer["valid"], answer["remaining_ms"] / 1000)

    # ── upkeep ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _renew(self, within_s: float) -> Grant:
        """Each lock of several has a lease of its own: all of them must be current."""
        answers = await asyncio.gather(
            *(
                obtain.renew(self._on, self._ways[name], self.lease_id, token, within_s)
                for name, token in self.tokens.items()
            )
        )
        given = [grant(answer) for answer in answers]
        return Grant(min(one.ttl_s for one in given), min(one.renew_after_s for one in given))

    async def keep(
        self, got: Obtained, jeopardy: Callable[[], None] | None, lost: Callable[[LeaseLost], None] | None
    ) -> None:
        """Begin to renew in the background. A grant that was waited for is renewed before it is believed in, because
        its time counts from before the wait. Raises LeaseLost."""
        sent_at, given = got.sent_at, grant(got.answer)
        now = asyncio.get_running_loop().time()
        if now - sent_at >= given.renew_after_s:
            sent_at, given = now, await self._renew(given.ttl_s)
        what = ", ".join(f"{name} (token {token})" for name, token in self.tokens.items())
        self._upkeep = Upkeep(what, self._renew, jeopardy=jeopardy, lost=lost)
        self._upkeep.begin(sent_at, given)

    async def drop(self) -> None:
        """Give it back without a word about what becomes of that."""
        await self.end()

    async def end(self, *, every: bool = False) -> LeaseLost | None:
        """Stop renewing and give back; the reason, when it was found to be lost. What cannot be given back now ends
        with its TTL."""
        if self._upkeep is not None:
            await self._upkeep.end()
        found = self.error
        for name, token in self.tokens.items():
            try:
                await obtain.give_back(self._on, self._ways[name], self.lease_id, token, every=every)
            except LeaseLost as error:
                found = found or LeaseLost(f"{name}: {error.message}", details=error.details)
            except SpineError as error:
                log.warning("could not give %s back, its TTL will: %s", name, error.message)
        return found


Told = Callable[[Lease], None]
"""A callback of the user's, on the event loop; it must not block."""


class Holder:
    """Takes a lease, keeps it, gives it back: `async with holder as lease`, or `acquire` and `release`.

    Entering again inside the block, in the same task, is one hold more and no new request. A holder belongs to one
    task at a time; what the store lets several do at once, each does with a holder of its own.
    """

    def __init__(
        self,
        on: Channel,
        ways: Mapping[str, Ways],
        body: Mapping[str, Any],
        wait: float | None,
        *,
        take: str = "",
        kind: type[Lease] = Lease,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> None:
        self._on = on
        self._ways = ways
        self._request = dict(body)
        self._wait = wait
        self._take = take
        self._kind = kind
        self._on_jeopardy = on_jeopardy
        self._on_lost = on_lost
        self._lease: Lease | None = None
        self._body: Body | None = None
        self._depth = 0

    async def acquire(self, wait: float | None = None) -> Lease:
        """Take it, or one hold more of it. `wait` in seconds, where it is not the holder's own. Nobody is cancelled
        at a loss: watch `on_lost`, or call `Lease.ensure`."""
        if self._lease is not None:
            self._depth += 1
            return self._lease
        got = await self._obtain(self._wait if wait is None else wait)
        lease = self._kind(self._on, self._ways, got)
        try:
            await lease.keep(got, self._jeopardy, self._lost)
        except BaseException:
            self._on.later(lease.drop())
            raise
        self._lease, self._depth = lease, 1
        return lease

    async def release(self) -> None:
        """Give one hold back; with the last one the lease. Raises LeaseLost when it had been lost."""
        if self._lease is None:
            raise Misuse("this is not held")
        self._depth -= 1
        if self._depth == 0:
            lease, self._lease = self._lease, None
            lost = await lease.end()
            if lost is not None:
                raise again(lost)

    async def _obtain(self, wait_s: float | None) -> Obtained:
        ways = next(iter(self._ways.values()))
        if self._take:
            ways = ways._replace(take=self._take)
            return await obtain.together(self._on, ways, self._request, wait_s)
        return await obtain.obtain(self._on, ways, self._request, wait_s)

    def _jeopardy(self) -> None:
        if self._on_jeopardy is not None and self._lease is not None:
            self._on_jeopardy(self._lease)

    def _lost(self, error: LeaseLost) -> None:
        if self._body is not None:
            self._body.stop()
        if self._on_lost is not None and self._lease is not None:
            self._on_lost(self._lease)

    # ── as a context manager ────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Lease:
        if self._lease is not None:
            if self._body is None or not self._body.mine:
                raise Misuse("this holder is in use by another task: make one for each")
            return await self.acquire()
        body = Body()
        lease = await self.acquire()
        self._body = body
        if lease.error is not None:  # lost before the body was there to be stopped
            self._body, self._lease = None, None
            raise again(lease.error)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, lease = self._body, self._lease
        if body is None or lease is None:
            raise Misuse("this is not held")
        if self._depth > 1:
            self._depth -= 1
            return
        self._body, self._lease, self._depth = None, None, 0
        lost: LeaseLost | None = lease.error
        try:
            lost = await lease.end()
        finally:
            body.leave(lost, raised)
