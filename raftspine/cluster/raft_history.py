"""Questions about a group's log, and making it shorter: plain functions over a GroupLog.

What may leave a log is decided in one place, because each bound on it stands for somebody who still needs the
entries: the state machine that has not stored their effects, the disk that has not got them, the follower
whose snapshot ends before them, and the follower that is only a little behind.
"""

from collections.abc import Callable, Iterable

from raftspine.cluster import raft_envelope
from raftspine.cluster.raft_engine import REGULAR
from raftspine.cluster.raft_types import GroupLog, RaftLimits
from raftspine.model import GroupId
from raftspine.ports import Members, Position


def newest_stamp(log: GroupLog, up_to: int) -> int:
    """The newest leader time (ms) in the log at or below an index; a later leader's must not fall behind it."""
    for command, index, _ in reversed(log.rows[1:]):
        if index <= up_to and command[:1] == REGULAR:
            try:
                return max(log.time_ms, raft_envelope.unpack(command[1:])[0])
            except ValueError:
                break  # of a newer version: applying it will halt the group, with a better message
    return log.time_ms


def contains(log: GroupLog, at: Position) -> bool:
    """Whether the log holds this very entry, or ends its forgotten part with it."""
    return log.base <= at.index <= log.last and log.term_at(at.index) == at.term


def contradiction(group: GroupId, log: GroupLog | None, at: Position) -> str | None:
    """Why a state machine at `at` and a group's journal cannot both be this node's, or None. Entries are applied only
    once they are on disk, and leave the journal only once their effects are: so a state beyond the journal, or before
    its beginning, shows that one of the two was lost or rolled back."""
    if log is None:
        return None if at.index == 0 else f"group {group}: there is state up to entry {at.index} and no Raft journal"
    if not log.members.voters or (log.expected is not None and at == log.expected.at):
        return None  # blank: the state is about to be replaced; or it has just been
    if at.index > log.last:
        return f"group {group}: the state is at entry {at.index}, the Raft journal ends at {log.last}"
    if at.index < log.base:
        return f"group {group}: the state is at entry {at.index}, the Raft journal begins at {log.base}"
    if log.term_at(at.index) != at.term:
        return f"group {group}: entry {at.index} of the state is of term {at.term}, in the Raft journal it is another"
    return None


def oversized(log: GroupLog, limits: RaftLimits) -> bool:
    return len(log.rows) > limits.compact_entries or log.size_bytes > limits.compact_bytes


def compact(
    log: GroupLog,
    limits: RaftLimits,
    *,
    members_at: Callable[[int], Members],
    applied: int,
    applied_ms: int,
    needed: Iterable[int],
) -> bool:
    """Drop entries at or below `applied` and every index in `needed`, but for a tail. Whether any were dropped."""
    keep, size = 0, 0
    for command, _, _ in reversed(log.rows[1:][-limits.keep_entries :]):
        size += len(command)
        if size > limits.compact_bytes // 2:
            break
        keep += 1
    target = min(applied, log.durable, log.last - keep, *needed)
    if target <= log.base:
        return False
    log.rebase(target, log.term_at(target), applied_ms, members_at(target))
    return True
