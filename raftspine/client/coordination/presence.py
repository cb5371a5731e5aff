"""Sessions: one life for everything its owner holds.

    async with spine.presence(ttl=30) as me:
        async with spine.lock("a", session=me), spine.lock("b", session=me):
            ...

What belongs to a session ends with it: in the block's end, or a TTL after its owner was last heard of. Locks of one
session are re-entrant: who asks again has one hold more. (Not to be confused with `spine.session()`, which holds what
its owner has read and written.)
"""

from types import TracebackType
from typing import Any

from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.upkeep import Body, Grant, Upkeep, again, grant
from raftspine.client.operations import quoted
from raftspine.errors import LeaseLost, Misuse, SpineError


class Presence:
    """A session of the store, kept alive. `async with`, or `open` and `close`."""

    def __init__(self, on: Channel, ttl: float, owner: str | None, metadata: dict[str, Any]) -> None:
        self.id = on.new_key()
        """Drawn here, so that opening it again after a lost answer opens no other."""
        self._on = on
        self._request = {
            "session_id": self.id,
            "ttl_seconds": ttl,
            "owner": owner or obtain.default_owner(on.agent_id),
            "metadata": metadata,
        }
        self._upkeep: Upkeep | None = None
        self._body: Body | None = None

    def __str__(self) -> str:
        return self.id

    def remaining(self) -> float:
        """Seconds for which it can be believed in."""
        return 0.0 if self._upkeep is None else self._upkeep.remaining()

    def ensure(self) -> None:
        """Raises LeaseLost unless it can be believed in now."""
        if self._upkeep is None:
            raise LeaseLost("this session is not open")
        self._upkeep.ensure()

    async def open(self) -> None:
        """Open it and renew it in the background."""
        if self._upkeep is not None:
            raise Misuse("this session has been opened before")
        sent_at, answer = await register(self._on, self._request)
        self._upkeep = Upkeep(f"session {self.id}", self._renew, lost=self._lost)
        self._upkeep.begin(sent_at, grant(answer))

    async def close(self) -> None:
        """Give back all it holds. Raises LeaseLost when it had been lost."""
        if self._upkeep is None:
            raise Misuse("this session is not open")
        await self._upkeep.end()
        try:
            await self._on.ask(f"{_base(self.id)}/close", key=self._on.new_key(), within_s=obtain.GIVE_BACK_S)
        except SpineError as error:
            obtain.log.warning("could not close session %s, its TTL will: %s", self.id, error.message)
        if self._upkeep.error is not None:
            raise again(self._upkeep.error)

    async def _renew(self, within_s: float) -> Grant:
        return grant(await renew(self._on, self.id, within_s))

    def _lost(self, error: LeaseLost) -> None:
        if self._body is not None:
            self._body.stop()

    async def __aenter__(self) -> "Presence":
        body = Body()
        await self.open()
        self._body = body
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, lost = self._body, None
        assert body is not None
        try:
            await self.close()
        except LeaseLost as error:
            lost = error
        finally:
            body.leave(lost, raised)


async def register(on: Channel, request: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Open a session: when that was asked (loop time), and the answer."""
    sent_at = obtain.now()
    return sent_at, await on.change("/v1/sessions", request)


async def renew(on: Channel, id: str, within_s: float | None = None) -> dict[str, Any]:
    """Another TTL. Raises LeaseLost."""
    return await on.ask(f"{_base(id)}/renew", within_s=within_s)


async def show(on: Channel, id: str) -> dict[str, Any]:
    """A session and what it holds. Raises NotFound."""
    return await on.look(_base(id))


async def close(on: Channel, id: str) -> dict[str, Any]:
    """End anybody's session, and give back what it holds."""
    return await on.change(f"{_base(id)}/close")


def _base(id: str) -> str:
    return f"/v1/sessions/{quoted(id)}"
