"""What the log must do at a later time, as rows in order of that time.

The rule: the machine has no timers. It writes down what comes due and when; the leader looks at the first row
(`next_due`) and, when its clock has passed that, proposes a `Wake`, which does what is due by the *entry's* time.
A new leader needs to know nothing but the rows. These times are the log's, which follow wall clocks: they serve
delays and retention, not the validity of leases (that is sessions.py's).
"""

from msgspec import Struct

from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack, unpack
from raftspine.core.ledger.work import Work


class Due(Struct, frozen=True, array_like=True):
    """`number` ties the row to what it is about: whoever comes to do it finds another number and leaves it."""

    number: int = 0


DUE = Table("due", Due)


def note(work: Work, at_ms: int, kind: str, place: str, name: str, number: int = 0) -> None:
    """Have `kind`'s handler called (wake.py) once the log's time reaches `at_ms`."""
    work.put(DUE, at_ms, kind, place, name, value=Due(number))


def cancel(work: Work, at_ms: int, kind: str, place: str, name: str) -> None:
    work.remove(DUE, at_ms, kind, place, name)


def next_due(view: LedgerView) -> int | None:
    """The log time at which a Wake has something to do, None when there is nothing."""
    rows = DUE.page(view, b"", limit=1)
    return None if not rows else int(unpack(rows[0][0], int)[0])


def ripe(work: Work, limit: int) -> list[tuple[int, str, str, str, Due]]:
    """(at_ms, kind, place, name, row) of what is due, oldest first, at most `limit`."""
    rows = work.rows(DUE.name, b"", pack(work.time_ms + 1), limit=limit)
    return [(*unpack(key, int, str, str, str), DUE.decode(data)) for key, data in rows]
