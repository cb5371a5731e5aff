"""What Raft nodes say to each other, and which of it may leave before the journal is synced.

A frame is a small array, ``(group, kind, term, …)``, many of them to one message. Each carries the sender's
term, because an answer from an older term that is taken for a current one commits entries nobody else holds.
The table says what follows the term; a frame of another shape is refused before any rule looks at it.

HELD kinds promise something that is in the journal (an entry, a vote): they leave only once it is on disk.
The others promise nothing a crash could take back: a heartbeat and its echo tell what holds at that moment, a
pre-vote binds nobody, and naming a term only makes the receiver cautious.
"""

from typing import Any, Final

HEARTBEAT: Final = 1
HEARTBEAT_ECHO: Final = 2
APPEND: Final = 3
APPENDED: Final = 4
VOTE: Final = 5
VOTED: Final = 6
PREVOTE: Final = 7
PREVOTED: Final = 8
STALE: Final = 9
TIMEOUT_NOW: Final = 10
COMMITTED: Final = 11
REMOVED: Final = 12
DENIED: Final = 13
MARKS: Final = 20
SNAPSHOT_WANTED: Final = 21

SHAPES: Final[dict[int, tuple[type, ...]]] = {
    HEARTBEAT: (int, int),  # commit index the receiver is known to hold, read context
    HEARTBEAT_ECHO: (int,),  # read context
    APPEND: (int, int, int, list),  # previous index, its term, commit index, [[term, command], …]
    APPENDED: (bool, int, int),  # stored?, the previous index asked about, next index wanted
    VOTE: (int, int, bool),  # last index, its term, asked for by the leader (transfer)?
    VOTED: (),
    PREVOTE: (int, int, int),  # ballot, last index, its term
    PREVOTED: (int, bool),  # ballot, granted?
    STALE: (),
    TIMEOUT_NOW: (),
    COMMITTED: (int,),  # commit index the receiver is known to hold; needs no answer
    REMOVED: (int,),  # index of the committed entry that ended the receiver's membership
    DENIED: (int,),  # an index the receiver acknowledged in this term and now says it does not hold
    MARKS: (list, int),  # [[below, since, digest], …] of the sender's state, its standing (raft_audit.py)
    SNAPSHOT_WANTED: (),  # the sender's state is wrong: the leader's may replace it
}

LEADERS: Final = frozenset({HEARTBEAT, APPEND, COMMITTED})
"""Kinds that only a leader sends."""

ANSWERS: Final = frozenset({HEARTBEAT_ECHO, APPENDED, VOTED, PREVOTED, STALE, MARKS, SNAPSHOT_WANTED})
"""Kinds that are counted or believed only when they come from a member. Requests are another matter: a node that is
behind cannot tell a member it has not heard of from a stranger, and must be able to learn (Raft thesis §4.2.2)."""

HELD: Final = frozenset({APPEND, APPENDED, VOTE, VOTED, TIMEOUT_NOW})

_MAX_NUMBER = 1 << 62


def well_formed(frame: Any) -> bool:
    """Whether a frame off the wire has the shape its kind demands."""
    if not isinstance(frame, (list, tuple)) or len(frame) < 3:
        return False
    kind = frame[1]
    shape = SHAPES.get(kind) if type(kind) is int else None
    if shape is None or len(frame) != len(shape) + 3 or type(frame[0]) is not int:
        return False
    if not _number(frame[2]):
        return False
    for wanted, field in zip(shape, frame[3:], strict=True):
        if wanted is int:
            if type(field) is not int or not 0 <= field < _MAX_NUMBER:
                return False
        elif type(field) is not wanted:
            return False
    if kind == MARKS:
        return all(_mark(mark) for mark in frame[3])
    return kind != APPEND or all(_entry(entry) for entry in frame[6])


def _mark(mark: Any) -> bool:
    return (
        isinstance(mark, (list, tuple))
        and len(mark) == 3
        and _number(mark[0])
        and _number(mark[1])
        and type(mark[2]) is bytes
    )


def _entry(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        return False
    return _number(entry[0]) and type(entry[1]) is bytes and len(entry[1]) > 0


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER
