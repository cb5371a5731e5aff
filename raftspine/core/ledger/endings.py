"""The end of a session: by its holder, or because nobody heard of it.

The rule: a table says which family gives back which kind of holding; a further family is a further row. The
session's row goes first, so that nothing that is passed on during its end can come back to it.
"""

from raftspine.core.ledger import limits, lock_queue, sessions, task_rows, tasks
from raftspine.core.ledger.lock_commands import CloseSession, ExpireSession
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.sessions import SESSIONS, Release
from raftspine.core.ledger.work import Work

ENDINGS: dict[str, Release] = {
    lock_queue.KIND: lock_queue.release_held,
    task_rows.KIND: tasks.release_held,
}


def close(work: Work, command: CloseSession) -> Outcome:
    """`result`: released, how many things it held. A session that is not open has nothing: done."""
    released = 0 if sessions.read(work, command.id) is None else _end(work, command.id, lost=False)
    return Outcome(Status.DONE, command.id, result={"released": released})


def expire(work: Work, command: ExpireSession) -> Outcome:
    """`result`: released. absent: it has ended; overtaken: it has been heard of."""
    row = sessions.read(work, command.id)
    if row is None:
        return Outcome(Status.ABSENT, command.id, reason="there is no such session")
    if sessions.overtaken(work, command, row):
        return Outcome(Status.OVERTAKEN, command.id, reason="the session has been heard of since")
    return Outcome(Status.DONE, command.id, result={"released": _end(work, command.id, lost=True)})


def _end(work: Work, id: str, *, lost: bool) -> int:
    # In any order: a session asks for a lock once, so what is given back here cannot be granted to it again.
    held = sessions.holdings(work, id, limits.HELD_PER_SESSION)
    work.remove(SESSIONS, id)
    for kind, names, row in held:
        ENDINGS[kind](work, names, row, lost)
    return len(held)
