"""What the log does when something it noted comes due.

The rule: a table says which family handles which kind of `due` row; a further family is a further row. A Wake takes
the rows that are due by its entry's time, removes each, and hands it to its family, which looks at the state to
see whether it still means anything. Proposing one too early or twice does nothing.
"""

from collections.abc import Callable

from raftspine.core.ledger import due, gate_steps, gates, lock_queue, task_rows, tasks
from raftspine.core.ledger.lock_commands import Wake
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.work import Work

MOST = 1024

Handler = Callable[[Work, int, str, str, due.Due], None]
"""Called with the row's time, its two names and the row."""

HANDLERS: dict[str, Handler] = {
    lock_queue.KIND: lock_queue.wake,
    task_rows.KIND: tasks.wake,
    gates.KIND: gates.expired,
    gate_steps.DUE: gate_steps.come_due,
}


def wake(work: Work, command: Wake) -> Outcome:
    """`result`: done, how many rows; next_ms, when the next comes due (None: there is none)."""
    rows = due.ripe(work, min(max(command.limit, 1), MOST))
    for at_ms, kind, place, name, row in rows:
        due.cancel(work, at_ms, kind, place, name)
        HANDLERS[kind](work, at_ms, place, name, row)
    return Outcome(Status.DONE, result={"done": len(rows), "next_ms": due.next_due(work)})
