"""Who takes part in a group, as its log says, and which change may come next.

A group that counts its majority over the wrong members has two leaders. So the members are not a setting: they are
an entry of the log, in force **from the moment it is appended** (not when it is committed: by then both the old
and the new majority may have decided something), undone when it is cut, and part of what is stored where the log
begins. The rules for a change (single-server changes, Raft thesis §4.1, and the erratum of 2015):

* one voter more or less at a time, so that any two successive majorities share a member;
* none while the one before is uncommitted, and none before the leader has committed an entry of its own term:
  otherwise two leaders may each start from the same members and arrive at disjoint majorities;
* none after which a majority of the voters could not be asked: it would stop the group;
* a learner votes only once it has about all of the log, or it would hold up what it is counted for;
* a leader does not remove itself, it gives leadership away first.

Source of the states: etcd's learners; source of the order of preference: the table (core/placement.py).
"""

from bisect import bisect_right
from collections.abc import Callable

from raftspine.cluster import raft_envelope
from raftspine.cluster.raft_engine import MEMBERS
from raftspine.cluster.raft_types import GroupLog
from raftspine.errors import Rejected
from raftspine.model import MemberId
from raftspine.ports import AddLearner, Change, Members, Promote

REMEMBERED = 64
"""Former members a group remembers by name: far more than ever come back late."""


class Configurations:
    """The members of one group at each place of its log."""

    def __init__(self, log: GroupLog) -> None:
        self._log = log
        self._known: list[tuple[int, Members]] = []
        self.reload()

    def reload(self) -> None:
        """Read the log again: it has another beginning."""
        self._known = [(self._log.base, self._log.members)]
        for command, index, _ in self._log.rows[1:]:
            if command[:1] == MEMBERS:
                self._known.append((index, raft_envelope.unpack_members(command[1:])))

    @property
    def current(self) -> Members:
        """Those in force: the newest, committed or not."""
        return self._known[-1][1]

    @property
    def index(self) -> int:
        """Where they came into force."""
        return self._known[-1][0]

    def at(self, index: int) -> Members:
        """Who took part once the entry at `index` was in force; at or above the log's base."""
        return self._known[max(bisect_right(self._known, index, key=lambda each: each[0]) - 1, 0)][1]

    def grown(self, command: bytes, index: int) -> None:
        self._known.append((index, raft_envelope.unpack_members(command[1:])))

    def shortened(self, index: int) -> None:
        """Entries from `index` on are gone, and with them what they said."""
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()


def after(members: Members, change: Change) -> Members:
    """The members after a change. Rejected when it makes no sense of those before."""
    member = change.member
    voters, learners, removed = members
    if isinstance(change, AddLearner):
        if member in voters or member in learners:
            raise _refused(f"{member} takes part already")
        return Members(voters, (*learners, member), _without(removed, member))
    if isinstance(change, Promote):
        if member not in learners:
            raise _refused(f"{member} is no learner")
        place = max(0, min(change.place, len(voters)))
        return Members((*voters[:place], member, *voters[place:]), _without(learners, member), removed)
    if member not in voters and member not in learners:
        raise _refused(f"{member} does not take part")
    if voters == (member,):
        raise _refused(f"{member} is the only voter")
    gone = (*_without(removed, member), member)[-REMEMBERED:]
    return Members(_without(voters, member), _without(learners, member), gone)


def decides(members: Members, able: Callable[[MemberId], bool]) -> bool:
    """Whether those of the voters who are able make a majority."""
    return sum(1 for voter in members.voters if able(voter)) > len(members.voters) // 2


def _without(members: tuple[MemberId, ...], gone: MemberId) -> tuple[MemberId, ...]:
    return tuple(member for member in members if member != gone)


def _refused(reason: str) -> Rejected:
    return Rejected(f"the change of members makes no sense: {reason}", code="wrong_members")
