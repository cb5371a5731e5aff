"""Terraform states as rows: what things are called, what is kept of each version, and how it is read.

The rule: a state, its lock and its history lie in one shard group, because the lock's name carries the memory's id in
{braces}; without that no log entry could decide over all three. In the id a closing brace is escaped, for it would
end the pin.
"""

from hashlib import blake2b
from typing import Any, NamedTuple

from msgspec import Struct

from raftspine.core.ledger import limits, lock_queue
from raftspine.core.ledger.lock_commands import LOCK
from raftspine.core.ledger.lock_queue import ASKS, Ask
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table
from raftspine.core.limits import RESERVED
from raftspine.model import Memory

KIND = "terraform"
"""Of the audit chain."""


class Kept(Struct, frozen=True, array_like=True):
    """One version of a state, without its content. `metadata` is the memory's: serial, lineage and the like."""

    number: int
    size: int
    sha256: bytes
    at_ms: int
    by: str = ""
    lock_id: str = ""
    metadata: dict[str, Any] = {}


class State(Struct, frozen=True, array_like=True):
    """`last`: the newest version's number; the first has 1. `kept`: the versions before, oldest first. `released`:
    the lock that its holder gave back last, so that doing it again is no error."""

    last: int = 0
    current: Kept | None = None
    kept: tuple[Kept, ...] = ()
    released: str = ""


class Content(Struct, frozen=True, array_like=True):
    memory: Memory


STATES = Table("terraform", State)
"""By memory id."""
CONTENTS = Table("terraform-version", Content)
"""By memory id and number; the current version's content is the memory's."""


class Current(NamedTuple):
    """A state as it is read. `memory` None: there is none. `index`, `sub`: where in the log it was written."""

    memory: Memory | None
    index: int  # type: ignore[assignment]  # the field's word; nobody searches a Current
    sub: int
    row: State


def memory_id(name: str) -> str:
    return RESERVED + name.replace("%", "%25").replace("}", "%7D")


def lock_name(name: str) -> str:
    return f"{{{memory_id(name)}}}/lock"


def wrong_name(name: str) -> str | None:
    """Why this cannot be a state's name."""
    return "name is empty" if not name else limits.name(lock_name(name))


def lease_of(name: str, lock_id: str) -> str:
    """Leases without a session of their own are named apart from all others in the group; lock ids need not be."""
    return "tf-" + blake2b(f"{memory_id(name)}\0{lock_id}".encode(), digest_size=16).hexdigest()


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def current(view: LedgerView, name: str) -> Current:
    """The state as it is. What its row and its memory say can differ only when the memory was changed past this
    module; see `lost`."""
    id = memory_id(name)
    record = view.strong(id)
    row = STATES.get(view, id) or State()
    if record is None or record.memory is None:
        return Current(None, 0, 0, row)
    return Current(record.memory, record.index, record.sub, row)


def lost(found: Current) -> bool:
    """There is a version, and no memory that says it: to answer "no state" would have Terraform build everything a
    second time."""
    return found.row.current is not None and (found.memory is None or not isinstance(found.memory.content, str))


def version(view: LedgerView, name: str, number: int) -> Memory | None:
    """What a version said, None when it is not kept."""
    if wrong_name(name) or not 0 < number <= limits.NUMBER:
        return None
    found = current(view, name)
    if found.row.current is not None and found.row.current.number == number:
        return found.memory
    content = CONTENTS.get(view, memory_id(name), number)
    return None if content is None else content.memory


def held_by(view: LedgerView, name: str) -> dict[str, Any] | None:
    """The info of the lock's holder, None when nobody holds it. A holder that came by another door has none, and is
    told in the same words."""
    found = lock_queue.holders(view, LOCK, lock_name(name), 1)
    if not found:
        return None
    other, ask = found[0]
    if isinstance(ask.metadata, dict) and id_of(ask.metadata):
        return ask.metadata
    return {"ID": other, "Operation": "lock", "Info": "", "Who": ask.owner, "Version": "", "Created": "", "Path": ""}


def held_since(view: LedgerView, name: str) -> tuple[dict[str, Any], Ask] | None:
    """The holder's info and lease."""
    info = held_by(view, name)
    return None if info is None else (info, lock_queue.holders(view, LOCK, lock_name(name), 1)[0][1])


def lease(view: LedgerView, name: str, lock_id: str) -> Ask | None:
    """The lease of this lock id, while it is current."""
    ask = ASKS.get(view, LOCK, lock_name(name), lease_of(name, lock_id))
    return None if ask is None or not ask.token else ask


def id_of(info: dict[str, Any]) -> str:
    found = info.get("ID")
    return found if isinstance(found, str) else ""


def wrong_lock_id(lock_id: str) -> str | None:
    return limits.name(lock_id, "ID")


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────


def held(view: LedgerView, name: str) -> Outcome:
    return Outcome(Status.LOCK_HELD, name, reason="the state is locked", result={"lock": held_by(view, name)})


def not_current(status: Status, name: str, info: dict[str, Any] | None) -> Outcome:
    reason = "this lock is not held any more" + ("" if info is None else "; somebody else holds the state's lock")
    return Outcome(status, name, reason=reason, result={"lock": info})
