"""Getting a lease, and giving it back, whatever the network does meanwhile.

The rules: a request that waits names its place in the queue itself (the ticket), before it asks for the first time;
so an answer that was lost, or a node that died, costs a repeated question and never the place, and whoever gives up
while nobody knows what became of the question can take it back by that name. Waiting is done in pieces, because a
node that stopped without closing its connections would otherwise be believed for as long as the whole wait.
"""

import asyncio
import logging
import os
import socket
from typing import Any, NamedTuple

from raftspine.client.coordination.channel import Channel
from raftspine.client.operations import quoted
from raftspine.errors import LeaseLost, LockHeld, SpineError, Unavailable, Unknown

PIECE_S = 10.0
"""How long one question waits at a node."""
PAUSE_S = 0.5
"""Between questions that failed, each of which has been to every node with pauses of its own."""
HELD_PAUSE_S = 0.05
"""Between the pieces of a wait: the ticket keeps the place meanwhile, and a grant."""
GIVE_BACK_S = 5.0
"""Giving back is a courtesy to those who wait: past this, the TTL does it."""

log = logging.getLogger("raftspine.client")


class Ways(NamedTuple):
    """The paths on which one kind of lease of one name is taken, renewed and given back."""

    name: str
    take: str
    renew: str
    give_back: str


class Obtained(NamedTuple):
    """A grant: when it was asked for (loop time), and the store's answer."""

    sent_at: float
    answer: dict[str, Any]


def lock_ways(name: str) -> Ways:
    base = f"/v1/locks/{quoted(name)}"
    return Ways(name, f"{base}/acquire", f"{base}/renew", f"{base}/release")


def election_ways(name: str) -> Ways:
    base = f"/v1/elections/{quoted(name)}"
    return Ways(name, f"{base}/campaign", f"{base}/renew", f"{base}/resign")


def now() -> float:
    """The event loop's time: monotonic, and what all beliefs are counted in."""
    return asyncio.get_running_loop().time()


def default_owner(agent_id: str | None) -> str:
    """Who holds it, for people who look: the agent, else this process."""
    return agent_id or f"{socket.gethostname()}:{os.getpid()}"


async def once(on: Channel, ways: Ways, body: dict[str, Any]) -> Obtained:
    """Take it now or not at all. Raises LockHeld."""
    sent_at = asyncio.get_running_loop().time()
    return Obtained(sent_at, await on.ask(ways.take, body, key=on.new_key()))


async def obtain(on: Channel, ways: Ways, body: dict[str, Any], wait_s: float | None) -> Obtained:
    """Take it, waiting up to `wait_s` seconds (None: as long as it takes). Raises LockHeld when the time is up,
    Deadlock when the wait would never end, Unavailable or Unknown when the store could not be asked: once there is a
    place in the queue, only when the time is up."""
    if wait_s is not None and wait_s <= 0:
        return await once(on, ways, body)
    loop = asyncio.get_running_loop()
    ends = None if wait_s is None else loop.time() + wait_s
    ticket = on.new_key()
    placed = False
    try:
        while True:
            piece = PIECE_S if ends is None else max(0.0, min(PIECE_S, ends - loop.time()))
            try:
                return await _piece(on, ways, {**body, "ticket": ticket}, piece)
            except LeaseLost as error:
                ticket = on.new_key()  # the place lapsed: take another
                await _pause(error, ends)
            except LockHeld as error:
                placed = True
                await _pause(error, ends)
            except (Unavailable, Unknown) as error:
                if not placed:
                    raise
                await _pause(error, ends)
    except BaseException:
        on.later(withdraw(on, ways, ticket, body))
        raise


async def together(on: Channel, ways: Ways, body: dict[str, Any], wait_s: float | None) -> Obtained:
    """Take several locks or none. Such a request has no place in a queue, so it names no ticket: one whose answer was
    lost is asked again under the same Idempotency-Key, and one of unknown end is left to its TTL."""
    loop = asyncio.get_running_loop()
    ends = None if wait_s is None else loop.time() + wait_s
    while True:
        piece = PIECE_S if ends is None else max(0.0, min(PIECE_S, ends - loop.time()))
        try:
            sent_at = loop.time()
            asked = {**body, "wait_seconds": piece}
            answer = await on.ask(ways.take, asked, key=on.new_key(), hold_s=piece)
        except LockHeld as error:
            await _pause(error, ends)
        else:
            return Obtained(sent_at, answer)


async def before_asking_again(error: SpineError) -> None:
    """Pause, for those who ask without end. Raises the error when the client is closed."""
    if error.code == "closed":
        raise error
    await asyncio.sleep(PAUSE_S)


async def _pause(error: SpineError, ends: float | None) -> None:
    """Before the next piece of a wait; raises the error when there is none. A node that is stopping answers at once,
    and a client that is closed always does: without a pause both would be asked without one."""
    left = PAUSE_S if ends is None else ends - now()
    if left <= 0 or error.code == "closed":
        raise error
    await asyncio.sleep(min(PAUSE_S, left) if not isinstance(error, LockHeld) else HELD_PAUSE_S)


async def _piece(on: Channel, ways: Ways, body: dict[str, Any], wait_s: float) -> Obtained:
    sent_at = asyncio.get_running_loop().time()
    answer = await on.ask(ways.take, {**body, "wait_seconds": wait_s}, key=on.new_key(), hold_s=wait_s)
    return Obtained(sent_at, answer)


async def renew(on: Channel, ways: Ways, lease: str, token: int, within_s: float | None) -> dict[str, Any]:
    """Another TTL. Raises LeaseLost."""
    return await on.ask(ways.renew, {"lease_id": lease, "fencing_token": token}, within_s=within_s)


async def give_back(on: Channel, ways: Ways, lease: str, token: int, *, every: bool = True) -> dict[str, Any]:
    """Give one hold back, or every one; with token 0 a place in the queue. Raises LeaseLost."""
    body = {"lease_id": lease, "fencing_token": token, "all": every}
    return await on.ask(ways.give_back, body, key=on.new_key(), within_s=GIVE_BACK_S)


async def withdraw(on: Channel, ways: Ways, ticket: str, body: dict[str, Any]) -> None:
    """Take back a question of unknown end: the place, or the lease it has become."""
    try:
        try:
            await give_back(on, ways, ticket, 0)
        except LeaseLost:
            # Not a place: gone, or granted by now. Asking again under its name tells which, and gives the token.
            got = await once(on, ways, {**body, "ticket": ticket, "wait_seconds": 0})
            await give_back(on, ways, ticket, got.answer["fencing_token"])
    except LockHeld:
        await give_back(on, ways, ticket, 0)
    except SpineError as error:
        log.info("could not withdraw from %s, its TTL will: %s", ways.name, error.message)
