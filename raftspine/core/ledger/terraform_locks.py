"""The lock of a Terraform state: taken and given back as Terraform does, or taken away by an operator.

The rules:

* Terraform names its lock and never renews it, so the lease is named after that id and lives for long; every state
  written under it is a sign of life (terraform.py).
* A lock is given back by whoever can show what it was taken with. Everything else that ends one is an act of an
  operator, and stands in the audit chain, as does one that was refused.
"""

from typing import Any

from msgspec.structs import replace

from raftspine.core.ledger import audit, limits, locks
from raftspine.core.ledger.lock_commands import AcquireLock, BreakLock, ReleaseLock
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.terraform_commands import LockState, UnlockState
from raftspine.core.ledger.terraform_rows import (
    KIND,
    STATES,
    State,
    held,
    held_by,
    id_of,
    lease,
    lease_of,
    lock_name,
    memory_id,
    not_current,
    wrong_lock_id,
    wrong_name,
)
from raftspine.core.ledger.work import Work, invalid

FORCED = "terraform force-unlock"


def lock(work: Work, command: LockState) -> Outcome:
    """granted: `result` as of a lock. lock_held: `result` lock, the holder's info."""
    name, lock_id = command.name, id_of(command.info)
    if wrong := wrong_name(name) or wrong_lock_id(lock_id):
        return invalid(name, wrong)
    who = command.info.get("Who")
    outcome = locks.acquire(
        work,
        AcquireLock(
            lock_name(name),
            lease_of(name, lock_id),
            owner=who if isinstance(who, str) and limits.name(who) is None else "",
            ttl_ms=command.ttl_ms,
            metadata=command.info,
        ),
    )
    if outcome.status is Status.LOCK_HELD:
        return held(work, name)
    return replace(outcome, id=name)


def unlock(work: Work, command: UnlockState) -> Outcome:
    """`result`: forced, lock (the info of the one that ended). not_current: `result` lock, the holder's info.
    forbidden: this ends another's lock, and `may_break` is not set."""
    name, lock_id = command.name, id_of(command.info)
    if wrong := wrong_name(name) or (wrong_lock_id(lock_id) if command.info else None):
        return invalid(name, wrong)
    row, info = STATES.get(work, memory_id(name)) or State(), held_by(work, name)
    ask = lease(work, name, lock_id) if lock_id else None
    if lock_id and ask is None:
        if lock_id == row.released:
            return Outcome(Status.DONE, name, result={"forced": False, "lock": command.info})
        return not_current(Status.NOT_CURRENT, name, info)
    if info is None:
        return not_current(Status.NOT_CURRENT, name, info)
    if ask is None or command.info != ask.metadata:
        return _break(work, command, info)
    locks.release(work, ReleaseLock(lock_name(name), lease_of(name, lock_id), ask.token, all=True))
    work.put(STATES, memory_id(name), value=replace(row, released=lock_id))
    return Outcome(Status.DONE, name, result={"forced": False, "lock": command.info})


def _break(work: Work, command: UnlockState, info: dict[str, Any]) -> Outcome:
    name = command.name
    words = {"who": info.get("Who"), "operation": info.get("Operation"), "created": info.get("Created")}
    told = {name: word for name, word in words.items() if isinstance(word, str)}
    audit.append(work, KIND, name, "force-unlock", str(info["ID"]), refused=not command.may_break, details=told)
    if not command.may_break:
        return Outcome(Status.FORBIDDEN, name, reason="only an operator may take a lock from its holder")
    broken = locks.break_lock(work, BreakLock(lock_name(name), FORCED))
    if broken.status is not Status.DONE:
        return broken
    return Outcome(Status.DONE, name, result={"forced": True, "lock": info})
