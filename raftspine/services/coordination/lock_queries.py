"""What locks and elections look like to who asks: plain data, read at the leader behind a barrier.

The rule: nothing here tells a lease's or a session's id of its own to others; whoever knows one may end it.
"""

from typing import Any

from raftspine.core.ledger import elections, lock_queue
from raftspine.core.ledger import locks as rows
from raftspine.core.ledger import sessions as session_rows
from raftspine.core.ledger.lock_commands import ELECTION
from raftspine.core.ledger.lock_queue import ASKS, LOCKS
from raftspine.services.coordination.door import Moment, Query

SHOWN = 100
"""Holders and places in a queue that are listed."""


def _asked(moment: Moment, space: str, name: str, lease: str) -> dict[str, Any] | None:
    """None while a ticket waits; token 0: it is gone."""
    ask = ASKS.get(moment.view, space, name, lease)
    if ask is None:
        return {"token": 0}
    if not ask.token:
        return None
    session = session_rows.read(moment.view, ask.session)
    ttl_ms = 0 if session is None else session.ttl_ms
    return {"token": ask.token, "hold": ask.hold, "mode": ask.mode, "session": ask.session, "ttl_ms": ttl_ms}


def _free(moment: Moment, space: str, name: str) -> bool | None:
    lock = LOCKS.get(moment.view, space, name)
    if lock is None:
        return True
    return None if lock.holders or lock.waiting or lock.free_at_ms > moment.now_ms else True


def _renewable(moment: Moment, space: str, name: str, lease: str, token: int) -> dict[str, Any] | None:
    ask = rows.lease(moment.view, space, name, lease, token)
    return None if ask is None else {"session": ask.session, "hold": ask.hold, "mode": ask.mode}


def _check(moment: Moment, space: str, name: str, token: int) -> dict[str, Any] | None:
    found = rows.check(moment.view, space, name, token)
    if found is None:
        return None
    left = moment.remaining(found.session)
    if left is None:
        session = session_rows.read(moment.view, found.session)
        left = 0 if session is None else session.ttl_ms
    return {"remaining_ms": left, "owner": found.owner, "hold": found.hold, "since_ms": found.since_ms}


def _holder(moment: Moment, ask: lock_queue.Ask) -> dict[str, Any]:
    return {
        "owner": ask.owner,
        "fencing_token": ask.token,
        "hold": ask.hold,
        "permits": ask.weight,
        "since_ms": ask.since_ms,
        "remaining_ms": moment.remaining(ask.session),
        "metadata": ask.metadata,
    }


def _shown(moment: Moment, space: str, name: str) -> dict[str, Any]:
    found = rows.show(moment.view, space, name, SHOWN)
    if found is None:
        return {"name": name, "held": False, "mode": None, "holders": [], "waiting": 0, "queue": [], "revision": 0}
    queue = [
        {"owner": ask.owner, "mode": ask.mode, "priority": ask.priority, "since_ms": ask.since_ms}
        for _, ask in found.waiting
    ]
    return {
        "name": name,
        **_row(found.lock, moment.now_ms),
        "holders": [_holder(moment, ask) for _, ask in found.holders],
        "queue": queue,
    }


def _row(lock: lock_queue.Lock, now_ms: int) -> dict[str, Any]:
    return {
        "held": lock.holders > 0,
        "mode": lock.mode or None,
        "permits": lock.permits or None,
        "permits_used": lock.used if lock.permits else None,
        "waiting": lock.waiting,
        "fencing_token": lock.token or None,
        "free_at_ms": lock.free_at_ms if lock.free_at_ms > now_ms else None,
        "revision": lock.revision,
    }


def _page(moment: Moment, space: str, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
    found = []
    for name, lock in rows.page(moment.view, space, prefix, after, limit):
        held = lock_queue.holders(moment.view, space, name, 1)
        holder = held[0][1].owner if held else None
        found.append({"name": name, "holders": lock.holders, "holder": holder, **_row(lock, moment.now_ms)})
    return found


def _office(moment: Moment, name: str) -> dict[str, Any]:
    lock = LOCKS.get(moment.view, ELECTION, name)
    office = elections.leader(moment.view, name)
    shown = {"name": name, "revision": 0 if lock is None else lock.revision, "candidates": 0, "leader": None}
    if lock is not None:
        shown["candidates"] = lock.waiting + lock.holders
    if office is None:
        return {**shown, "term": None, "value": None}
    leader = {
        "owner": office.owner,
        "term": office.term,
        "fencing_token": office.term,
        "value": office.value,
        "since_ms": office.since_ms,
        "remaining_ms": moment.remaining(office.session),
    }
    return {**shown, "leader": leader, "term": office.term, "value": office.value}


def _news(moment: Moment, name: str, known: int) -> int | None:
    lock = LOCKS.get(moment.view, ELECTION, name)
    revision = 0 if lock is None else lock.revision
    return None if revision == known else revision


QUERIES: dict[str, Query] = {
    "lock.shown": _shown,
    "lock.page": _page,
    "lock.check": _check,
    "lock.asked": _asked,
    "lock.free": _free,
    "lock.renewable": _renewable,
    "election.office": _office,
    "election.news": _news,
}
