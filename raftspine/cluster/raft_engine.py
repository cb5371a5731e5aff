"""PySyncObj, held by the reins: the only module that knows the Raft engine's name.

The engine counts votes, keeps terms, appends and truncates, and decides what is committed. As shipped it also
loses acknowledged writes in some twenty ways (design/strong-path.md §1), so it is driven by hand and gets to
see only messages that raft_guard.py has checked. Taken over here: sending entries (flow control is
raft_flow.py's), applying them (total, and never ahead of the disk), campaigning (PreVote), who takes part
(raft_members.py: the engine is told after each change), its journal, its clock and its dice. Left unused, with no
way in: its sockets, pickle, snapshots, compaction, forwarding and its own membership changes.

Its clock and journal factory are looked up in its module's globals. We load a copy of that module for
ourselves and set them there: a pysyncobj that somebody else imports stays as it is, and each entry into the
engine points the copy at the clock of the node it acts for, so that many nodes can live in one process on
virtual time.

Private names hold for one version only; another one is refused.
"""

import importlib.util
from typing import Any, Final, Protocol
from zlib import crc32

from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_types import GroupLog, RaftTiming, Row
from raftspine.errors import Misuse
from raftspine.model import NodeId
from raftspine.ports import Clock, Entropy, Members

SUPPORTED: Final = "0.3.17"

PRIVATE_NAMES: Final[dict[str, str]] = {
    "_SyncObj__generateRaftTimeout": "overridden: chance comes from the node's Entropy",
    "_SyncObj__connectedToAnyone": "overridden: asked when an election is due, so PreVote decides",
    "_SyncObj__applyLogEntries": "overridden: applies what is committed and on disk, once",
    "_SyncObj__sendAppendEntries": "overridden: notes that followers are to be addressed",
    "_SyncObj__tryLogCompaction": "overridden: compaction is the host's",
    "_SyncObj__onMessageReceived": "called: every message the guard let through",
    "_SyncObj__setState": "called: to give leadership up",
    "_SyncObj__raftState": "read: follower, candidate or leader",
    "_SyncObj__raftLeader": "read and cleared: whom this node follows",
    "_SyncObj__raftCurrentTerm": "read",
    "_SyncObj__raftCommitIndex": "read; set at start and after a snapshot",
    "_SyncObj__raftLastApplied": "read; advanced by the apply loop, at start and after a snapshot",
    "_SyncObj__raftMatchIndex": "read: what each follower has acknowledged",
    "_SyncObj__raftElectionDeadline": "read, and drawn nearer at start",
    "_SyncObj__newAppendEntriesTime": "set: the host decides when heartbeats leave",
    "_SyncObj__noopIDx": "read: the first entry of an own term",
    "_SyncObj__otherNodes": "set: the voters but for this node; votes and acknowledgements are counted over them",
    "_SyncObj__readonlyNodes": "set: the learners, which count for nothing",
    "_SyncObj__raftNextIndex": "kept in step with the members; not otherwise used, flow control is raft_flow.py's",
    "_SyncObj__lastResponseTime": "kept in step with the members; read: who answers",
}
"""Every private name of the engine that is touched, and how. Nothing else may be."""

REGULAR: Final = b"\x00"
NO_OP: Final = b"\x01"
"""First byte of a command, as the engine writes it."""

MEMBERS: Final = b"\x10"
"""First byte of a command that says who takes part: ours, in a place the engine does not use."""

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2


def require_version(version: str = VERSION) -> None:
    """Raises Misuse unless `version` is the one whose internals the table describes."""
    if version != SUPPORTED:
        raise Misuse(
            f"pysyncobj {version} is installed, but the Raft safety rules are proven for {SUPPORTED} only; "
            f"install pysyncobj=={SUPPORTED}"
        )


class _NoPickle:
    """Stands where the engine looks for pickle: nothing here may be pickled, least of all from the wire."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"pickle.{name} was reached inside the Raft engine")


def _private_copy() -> Any:
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    assert spec is not None and spec.loader is not None
    copy: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    copy.createJournal = lambda journal: journal
    copy.pickle = _NoPickle()
    return copy


_core = _private_copy()


class Driver(Protocol):
    """Who drives one engine; asked and told by it."""

    def may_campaign(self) -> bool: ...
    def forced(self) -> bool:
        """Whether the present campaign was asked for by the old leader."""
        ...

    def apply(self, index: int, term: int, command: bytes) -> bool:
        """Apply one entry; False to stop before it."""
        ...

    def emit(self, peer: NodeId, kind: int, term: int, *fields: Any) -> None: ...

    def grown(self, command: bytes, index: int) -> None:
        """An entry that says who takes part was appended."""
        ...

    def shortened(self, index: int) -> None:
        """The log was cut: this entry and all above are gone."""
        ...


class _Peer(Node):  # type: ignore[misc]
    """A node whose hash does not vary from run to run: the engine walks sets of these."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash


class _Gate(Transport):  # type: ignore[misc]
    """The engine's way out: its messages become frames. Answers to appends are raft_guard.py's to give."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(None, None, None)
        self._driver = driver

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        kind, emit = message["type"], self._driver.emit
        if kind == "request_vote":
            last, last_term = message["last_log_index"], message["last_log_term"]
            emit(node.id, frames.VOTE, message["term"], last, last_term, self._driver.forced())
        elif kind == "response_vote":
            emit(node.id, frames.VOTED, message["term"])
        elif kind == "timeout_now":
            emit(node.id, frames.TIMEOUT_NOW, message["term"])
        elif kind != "next_node_idx":
            raise RuntimeError(f"the Raft engine sent {kind!r}, which no path leads to")
        return True


class _NoPoller:
    """The engine polls its sockets at the end of each tick; it has none."""

    def poll(self, timeout: float) -> None:
        pass


class _EngineLog:
    """A GroupLog under the names the engine calls its journal by."""

    def __init__(self, log: GroupLog, driver: Driver) -> None:
        self._log = log
        self._driver = driver
        self.setCurrentTerm = log.set_term

    def add(self, command: bytes, index: int, term: int) -> None:
        self._log.append(command, index, term)
        if command[:1] == MEMBERS:
            self._driver.grown(command, index)

    def __len__(self) -> int:
        return len(self._log.rows)

    def __getitem__(self, item: Any) -> Any:
        return self._log.rows[item]

    def deleteEntriesFrom(self, offset: int) -> None:
        index = self._log.base + offset
        self._log.truncate(index)
        self._driver.shortened(index)

    def getCurrentTerm(self) -> int:
        return self._log.term

    def getVotedForNodeId(self) -> str | None:
        return self._log.vote

    def getRaftCommitIndex(self) -> int:
        return self._log.base

    def setRaftCommitIndex(self, index: int) -> None:
        """The commit index is not stored: it starts at the state machine's position."""

    def onOneSecondTimer(self) -> None:
        """Nothing is written by the clock; the host commits each turn."""


class Engine(_core.SyncObj):  # type: ignore[misc, name-defined]
    """One group's engine. `applied` is where its state machine stands; entries up to there are committed."""

    _SyncObj__raftState: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__raftElectionDeadline: float

    def __init__(
        self,
        me: NodeId,
        log: GroupLog,
        applied: int,
        driver: Driver,
        members: Members,
        *,
        clock: Clock,
        entropy: Entropy,
        timing: RaftTiming,
        apply_entries: int,
    ) -> None:
        self._now = clock.monotonic
        self._chance = entropy.random
        self._timing = timing
        self._log = log
        self._driver = driver
        self._apply_entries = apply_entries
        self._me = me
        self._peers: dict[NodeId, _Peer] = {}
        self._commands_wait = False
        self.wants_beat = False
        """Followers are to be addressed now, not only at the next heartbeat; taken back by the driver."""
        conf = _core.SyncObjConf(
            autoTick=False,
            journalFile=_EngineLog(log, driver),
            raftMinTimeout=timing.election_min_ms / 1000,
            raftMaxTimeout=timing.election_max_ms / 1000,
            connectionTimeout=timing.election_max_ms / 1000,
            appendEntriesPeriod=timing.heartbeat_ms / 1000,
            leaderFallbackTimeout=timing.check_quorum_ms / 1000,
        )
        self._enter()
        super().__init__(_Peer(me), [], conf=conf, nodeClass=_Peer, transport=_Gate(driver))
        self._poller = _NoPoller()
        self._SyncObj__newAppendEntriesTime = float("inf")
        self.take_members(members)
        self._start_at(applied)
        self._first_deadline(members)

    def _start_at(self, applied: int) -> None:
        self._SyncObj__raftCommitIndex = applied
        self._SyncObj__raftLastApplied = applied

    def _first_deadline(self, members: Members) -> None:
        """Spread leadership from the start: the preferred replica campaigns first. A sole voter need not wait."""
        if members.voters == (self._me,):
            self._SyncObj__raftElectionDeadline = self._now()
        elif members.voters[:1] == (self._me,):
            share = 0.1 + 0.3 * self._chance()
            self._SyncObj__raftElectionDeadline = self._now() + share * self._timing.election_min_ms / 1000

    def _enter(self) -> None:
        """Point the engine at this node's clock; first thing at every entry."""
        _core.monotonicTime = self._now

    # ── facts ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def term(self) -> int:
        return self._SyncObj__raftCurrentTerm

    @property
    def commit(self) -> int:
        return self._SyncObj__raftCommitIndex

    @property
    def applied(self) -> int:
        return self._SyncObj__raftLastApplied

    @property
    def leads(self) -> bool:
        return self._SyncObj__raftState == _LEADER

    @property
    def campaigns(self) -> bool:
        return self._SyncObj__raftState == _CANDIDATE

    @property
    def leader(self) -> NodeId | None:
        node = self._SyncObj__raftLeader
        return None if node is None else node.id

    @property
    def own_term_index(self) -> int:
        """Index of the first entry of the term this node leads."""
        return int(self._SyncObj__noopIDx or 0)

    @property
    def election_due(self) -> bool:
        return self._SyncObj__raftElectionDeadline < self._now()

    def match(self, peer: NodeId) -> int:
        """Highest index this follower has acknowledged in the present term."""
        return int(self._SyncObj__raftMatchIndex.get(self._peer(peer), 0))

    def silence(self, peer: NodeId) -> float:
        """At the leader: seconds since a follower last answered in the present term, counted from its beginning."""
        return float(self._now() - self._SyncObj__lastResponseTime.get(self._peer(peer), float("-inf")))

    def _peer(self, name: NodeId) -> _Peer:
        return self._peers.get(name) or _Peer(name)

    # ── who takes part ─────────────────────────────────────────────────────────────────────────────────────

    def take_members(self, members: Members) -> None:
        """Count over these from now on. What a member has acknowledged in this term stays known when a learner
        becomes a voter, and is forgotten when it leaves."""
        names = (*members.voters, *members.learners)
        self._peers = {name: self._peers.get(name) or _Peer(name) for name in names}
        others = {name: peer for name, peer in self._peers.items() if name != self._me}
        # Sets, as the engine wants them; its walks over them are counts, or answered in a fixed order by our hashes.
        self._SyncObj__otherNodes = {others[name] for name in members.voters if name != self._me}
        self._SyncObj__readonlyNodes = {others[name] for name in members.learners if name != self._me}
        if not self.leads:
            return
        following, now = self._log.last + 1, self._now()
        for known, fresh in (
            (self._SyncObj__raftNextIndex, following),
            (self._SyncObj__raftMatchIndex, 0),
            (self._SyncObj__lastResponseTime, now),
        ):
            for peer in [peer for peer in known if peer.id not in others]:
                del known[peer]
            for peer in others.values():
                known.setdefault(peer, fresh)

    def propose_members(self, payload: bytes) -> int:
        """At the leader: append the entry that says who takes part; returns its index."""
        self._enter()
        self._applyCommand(MEMBERS + payload, None)
        self._checkCommandsToApply()
        return self._log.last

    # ── being driven ───────────────────────────────────────────────────────────────────────────────────────

    def turn(self) -> None:
        """Start an election that is due, advance the commit index, check the quorum, apply. To a follower that hears
        its leader the engine's tick comes to the last of these, so it is spared the rest."""
        self._enter()
        if self._SyncObj__raftState == _FOLLOWER and not self.election_due:
            self._SyncObj__applyLogEntries()
        else:
            self.doTick(0)

    def propose(self, payload: bytes) -> int:
        """At the leader: append one entry; returns its index."""
        self._enter()
        self._applyCommand(REGULAR + payload, None)
        self._checkCommandsToApply()
        return self._log.last

    def resign(self) -> None:
        """Stop leading, in the same term. What was appended may still be committed by a successor."""
        self._enter()
        self._SyncObj__setState(_FOLLOWER)
        self._SyncObj__raftLeader = None

    def hand_over(self, peer: NodeId) -> None:
        """Ask a follower that has everything to campaign at once. The engine refuses when it has not."""
        self._enter()
        self.transferLeadership(self._peer(peer))

    def jump(self, index: int) -> None:
        """The state machine was replaced by a snapshot at `index`, and the log's base moved there."""
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.commit, index)

    # ── messages, checked by the guard ─────────────────────────────────────────────────────────────────────

    def adopt(self, term: int, source: NodeId) -> None:
        """Learn of a higher term without voting: told as a candidate whose log is behind every other."""
        self._tell(source, {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1})

    def follow(self, source: NodeId, term: int, commit: int) -> None:
        """Hear the leader; `commit` must be an index this log is proven to share with it."""
        self._tell(source, {"type": "append_entries", "term": term, "commit_index": commit})

    def store(self, source: NodeId, term: int, commit: int, previous: int, entries: list[Row]) -> None:
        """Append entries behind `previous`, cutting what contradicts them."""
        message = {
            "type": "append_entries",
            "term": term,
            "commit_index": commit,
            "prevLogIdx": previous,
            "prevLogTerm": self._log.term_at(previous),
            "entries": entries,
        }
        self._tell(source, message)

    def acknowledged(self, source: NodeId, index: int) -> None:
        """A follower holds everything up to `index`, proven in this term."""
        answer = {"type": "next_node_idx", "reset": False, "success": True, "next_node_idx": index + 1}
        self._tell(source, answer)

    def heard(self, source: NodeId) -> None:
        """A follower is alive and in this term; counts for the quorum check."""
        self._tell(source, {"type": "next_node_idx", "reset": False, "success": False, "next_node_idx": 0})

    def vote_wanted(self, source: NodeId, term: int, last: int, last_term: int) -> None:
        message = {"type": "request_vote", "term": term, "last_log_index": last, "last_log_term": last_term}
        self._tell(source, message)

    def vote_given(self, source: NodeId, term: int) -> None:
        self._tell(source, {"type": "response_vote", "term": term})

    def campaign_now(self, source: NodeId, term: int) -> None:
        self._tell(source, {"type": "timeout_now", "term": term})

    def _tell(self, source: NodeId, message: dict[str, Any]) -> None:
        self._enter()
        self._SyncObj__onMessageReceived(self._peer(source), message)

    # ── taken over from the engine ─────────────────────────────────────────────────────────────────────────

    def _SyncObj__generateRaftTimeout(self) -> float:
        low, high = self._timing.election_min_ms, self._timing.election_max_ms
        return (low + (high - low) * self._chance()) / 1000

    def _SyncObj__connectedToAnyone(self) -> bool:
        return self._driver.may_campaign()

    def _SyncObj__applyLogEntries(self) -> bool:
        """Apply in order, each entry once, none that is not on this disk: a sole voter would otherwise show
        what a power loss takes back, and no state machine may be ahead of its journal."""
        log, applied = self._log, self.applied
        end = min(self.commit, log.durable, applied + self._apply_entries)
        while applied < end:
            command, index, term = log.rows[applied + 1 - log.base]
            if not self._driver.apply(index, term, command):
                break
            applied = self._SyncObj__raftLastApplied = index
        return False

    def _applyCommand(self, *arguments: Any) -> None:
        self._commands_wait = True
        super()._applyCommand(*arguments)

    def _checkCommandsToApply(self) -> None:
        """Each tick would look into the engine's queue, which is empty unless `_applyCommand` was just called."""
        if self._commands_wait:
            self._commands_wait = False
            super()._checkCommandsToApply()

    def _SyncObj__sendAppendEntries(self) -> None:
        self.wants_beat = True
        self._SyncObj__newAppendEntriesTime = float("inf")

    def _SyncObj__tryLogCompaction(self) -> None:
        pass
