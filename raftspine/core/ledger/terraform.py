"""Terraform states: a strong memory that is written under a lock, and the versions it had.

A state that two runs have written in turn describes neither's resources, and Terraform then destroys or orphans
what is really there. The rules:

* A write names the lock it was made under, and whether that lock is current is decided in the entry that writes. A
  run that was paused, force-unlocked or cut off for longer than its lease cannot write any more, whoever holds the
  lock now; without a name a write passes only while nobody holds the lock.
* What a write replaces goes into the history in the same entry: the last KEPT versions, and no more than KEPT_BYTES.
* What is deleted or brought back stands in the audit chain.
"""

from msgspec.structs import replace

from raftspine.core.ledger import audit, limits, sessions, txn
from raftspine.core.ledger.memory_commands import DeleteMemory, PutMemory
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.terraform_commands import DeleteState, PutState, RestoreState
from raftspine.core.ledger.terraform_rows import (
    CONTENTS,
    KIND,
    STATES,
    Content,
    Kept,
    State,
    current,
    held,
    held_by,
    lease,
    memory_id,
    not_current,
    version,
    wrong_lock_id,
    wrong_name,
)
from raftspine.core.ledger.work import Work, invalid
from raftspine.core.version_text import strong_version_text
from raftspine.model import Memory

STATE_BYTES = (4 << 20) - (64 << 10)
"""A state in UTF-8: a command of the log has at most 4 MiB, its envelope included."""
KEPT = 20
"""Versions of a state before the current one."""
KEPT_BYTES = 32 << 20
_ANY_DEMOTION = limits.NUMBER
"""The log alone decides what a state is, so whatever an id was on the ring before is no reason to wait."""


def put(work: Work, command: PutState) -> Outcome:
    """`result`: number. lock_held, fenced: `result` lock, the holder's info."""
    content = command.memory.content
    wrong = "a state is text" if not isinstance(content, str) else None
    wrong = wrong or limits.data(command.memory.metadata, "metadata", limits.METADATA_BYTES)
    if wrong is None and len(content.encode()) > STATE_BYTES:
        wrong = f"a state has at most {STATE_BYTES} bytes"
    refused = invalid(command.name, wrong) if wrong else _admit(work, command.name, command.lock_id)
    return refused or _write(work, command.name, command.memory, command.lock_id)


def delete(work: Work, command: DeleteState) -> Outcome:
    """`result`: deleted, whether there was one. lock_held, fenced: as of put."""
    name = command.name
    if (refused := _admit(work, name, command.lock_id)) is not None:
        return refused
    found = current(work, name)
    if found.memory is None or found.row.current is None:
        return Outcome(Status.DONE, name, result={"deleted": False})
    txn.write(work, DeleteMemory(memory_id(name)))
    _retire(work, name, found.row, found.memory, None)
    audit.append(work, KIND, name, "delete", str(found.row.current.number))
    return Outcome(Status.DONE, name, result={"deleted": True})


def restore(work: Work, command: RestoreState) -> Outcome:
    """As put. absent: this version is not kept."""
    name = command.name
    if (refused := _admit(work, name, command.lock_id)) is not None:
        return refused
    memory = version(work, name, command.number)
    if memory is None:
        return Outcome(Status.ABSENT, name, reason="this version is not kept")
    audit.append(work, KIND, name, "restore", str(command.number))
    return _write(work, name, memory, command.lock_id)


def _admit(work: Work, name: str, lock_id: str) -> Outcome | None:
    """The refusal of a change that its lock does not allow. A change that is allowed is a sign of life."""
    if wrong := wrong_name(name) or (wrong_lock_id(lock_id) if lock_id else None):
        return invalid(name, wrong)
    if not lock_id:
        return None if held_by(work, name) is None else held(work, name)
    ask = lease(work, name, lock_id)
    if ask is None:
        return not_current(Status.FENCED, name, held_by(work, name))
    sessions.touch(work, ask.session)
    return None


def _write(work: Work, name: str, memory: Memory, lock_id: str) -> Outcome:
    id, before = memory_id(name), current(work, name)
    outcome = txn.write(work, PutMemory(id, memory, agent=work.agent, log_seen=_ANY_DEMOTION))
    if outcome.status not in txn.APPLIED:
        return outcome
    row = before.row
    if outcome.status is not Status.EQUAL or row.current is None:
        kept = Kept(
            row.last + 1,
            len(memory.content.encode()),
            memory.content_sha256,
            work.time_ms,
            work.agent,
            lock_id,
            memory.metadata,
        )
        row = _retire(work, name, row, before.memory, kept)
    assert row.current is not None, "a state that was written has a version"
    text = outcome.version or strong_version_text(work.group, work.at.index, work.at.sub)
    result = {"number": row.current.number}
    return Outcome(outcome.status, name, version=text, created=outcome.created, result=result)


def _retire(work: Work, name: str, row: State, memory: Memory | None, successor: Kept | None) -> State:
    """Put the current version into the history and another, or none, in its place."""
    id, kept = memory_id(name), list(row.kept)
    if row.current is not None and memory is not None:
        work.put(CONTENTS, id, row.current.number, value=Content(memory))
        kept.append(row.current)
    size = sum(version.size for version in kept)
    while len(kept) > KEPT or size > KEPT_BYTES:
        oldest = kept.pop(0)
        size -= oldest.size
        work.remove(CONTENTS, id, oldest.number)
    last = row.last if successor is None else successor.number
    row = replace(row, last=last, current=successor, kept=tuple(kept))
    work.put(STATES, id, value=row)
    return row
