"""Elections: be the leader for as long as the term lasts, or know who is.

    async with spine.election("cron").campaign({"url": mine}) as office:
        ...                                     # office.term is the fencing token

The rules are those of locks (leases.py): the block is cancelled when the office is lost. Whoever observes sees each
leader and each proclamation once, in order, and may miss those that were gone again before the next look.
"""

from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.leases import Checked, Holder, Lease, Told
from raftspine.client.coordination.presence import Presence
from raftspine.errors import LeaseLost, Unavailable

WATCH_S = 20.0
"""How long one look waits for news."""


class Leader(Struct, frozen=True):
    """Who is in office. `term`: their fencing token. `value`: what they proclaim. `since`: RFC 3339, UTC."""

    owner: str
    term: int
    value: Any = None
    since: str | None = None


class Office(Lease):
    """A term of office: a lease whose token is the term."""

    space = "election"

    @property
    def term(self) -> int:
        return self.token

    async def proclaim(self, value: Any) -> None:
        """Say something that observers see. Raises LeaseLost when not in office any more."""
        self.ensure()
        body = {"lease_id": self.lease_id, "fencing_token": self.token, "value": value}
        try:
            await self._on.change(f"{_base(self._ways[self.name])}/proclaim", body)
        except LeaseLost as error:
            if self._upkeep is not None:
                self._upkeep.lose(error)
            raise

    async def _check(self, name: str, token: int) -> Checked:
        """An office is current when it is the one that an election shows."""
        leader = (await self._on.look(_base(self._ways[name])))["leader"] or {}
        if leader.get("fencing_token") == token:
            return Checked(True, (leader.get("remaining_ms") or 0) / 1000)
        if self._upkeep is not None:
            self._upkeep.lose(LeaseLost(f"the term {token} of {name} is over"))
        return Checked(False, 0.0)


class Campaign(Holder):
    """A candidacy, and the office once it is won: `async with campaign as office`."""

    async def acquire(self, wait: float | None = None) -> Office:
        lease = await super().acquire(wait)
        assert isinstance(lease, Office)
        return lease

    async def __aenter__(self) -> Office:
        lease = await super().__aenter__()
        assert isinstance(lease, Office)
        return lease

    async def resign(self) -> None:
        """Leave office; the next candidate follows."""
        await self.release()


class Election:
    """One election, to stand in or to observe."""

    def __init__(self, on: Channel, name: str) -> None:
        self.name = name
        self._on = on
        self._ways = obtain.election_ways(name)

    def campaign(
        self,
        value: Any = None,
        *,
        ttl: float = 30.0,
        wait: float | None = None,
        owner: str | None = None,
        priority: int = 0,
        session: Presence | str | None = None,
        on_jeopardy: Told | None = None,
        on_lost: Told | None = None,
    ) -> Campaign:
        """Stand for it; `wait` in seconds, None for as long as it takes, 0 for now or not at all (LockHeld). `value`
        is proclaimed with the victory."""
        body: dict[str, Any] = {"owner": owner or obtain.default_owner(self._on.agent_id), "value": value}
        body |= {"ttl_seconds": ttl, "priority": priority}
        if session is not None:
            body["session_id"] = str(session)
        return Campaign(
            self._on, {self.name: self._ways}, body, wait, kind=Office, on_jeopardy=on_jeopardy, on_lost=on_lost
        )

    async def leader(self) -> Leader | None:
        """Who is in office now, linearizably; None when nobody is."""
        return _leader(await self._on.look(_base(self._ways)))

    async def observe(self) -> AsyncIterator[Leader | None]:
        """Whoever is in office, at once and after each change of leader or proclamation, without end. None: nobody
        is. Goes on over failures of nodes."""
        revision: int | None = None
        while True:
            query = {} if revision is None else {"revision": str(revision), "wait_seconds": f"{WATCH_S:g}"}
            try:
                found = await self._on.look(_base(self._ways), query, hold_s=WATCH_S if query else 0.0)
            except Unavailable as error:
                await obtain.before_asking_again(error)
                continue
            if found["revision"] != revision:
                revision = found["revision"]
                yield _leader(found)


def _base(ways: obtain.Ways) -> str:
    return ways.take.rsplit("/", 1)[0]


def _leader(answer: dict[str, Any]) -> Leader | None:
    told = answer["leader"]
    return None if told is None else Leader(told["owner"], told["term"], told["value"], told.get("since"))
