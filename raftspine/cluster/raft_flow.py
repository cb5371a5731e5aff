"""How a leader feeds its followers: as fast as they answer, and no faster.

The engine would send everything it has at each heartbeat, walk a divergence back one entry at a time, and
spin while a follower needs a snapshot. Here each follower is in one of three states (etcd's
`tracker.Progress`):

    probing        the shared prefix is unknown: one append at a time, only its own answer counts
    streaming      it is known: up to a window of appends in flight, each sent once
    snapshotting   it needs entries the log no longer has: heartbeats only, until the transfer ended

What is lost on the way is noticed by silence (a few heartbeats) and probed for from the last acknowledged
index. An index counts as acknowledged only by an answer of the present term; the guard has seen to that.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from raftspine.cluster import raft_frames as frames
from raftspine.cluster.raft_engine import Engine
from raftspine.cluster.raft_types import GroupLog, RaftLimits
from raftspine.model import NodeId

_LONG_AGO = float("-inf")

RETRY_HEARTBEATS = 3
"""Silence after which an append counts as lost, in heartbeats: longer than a slow sync, far below an election."""

SNAPSHOT_BACKOFF_SECONDS = 1.0


class _Follower:
    __slots__ = ("flights", "heard_at", "next", "probing", "sent_at", "snapshotting", "told")

    def __init__(self, following: int) -> None:
        self.next = following
        self.probing = True
        self.snapshotting = False
        self.sent_at = _LONG_AGO
        self.heard_at = _LONG_AGO
        self.flights: deque[int] = deque()
        self.told = 0

    def probe(self, following: int, not_before: float = _LONG_AGO) -> None:
        self.next = following
        self.probing = True
        self.sent_at = not_before
        self.flights.clear()


class Flow:
    """The followers of one group while this node leads it."""

    def __init__(
        self,
        engine: Engine,
        log: GroupLog,
        emit: Callable[..., None],
        limits: RaftLimits,
        retry_seconds: float,
    ) -> None:
        self._engine = engine
        self._log = log
        self._peers: tuple[NodeId, ...] = ()
        self._emit = emit
        self._limits = limits
        self._retry_seconds = retry_seconds
        self._followers: dict[NodeId, _Follower] = {}
        self._cut: tuple[int, list[list[Any]]] = (0, [])
        self.snapshots_wanted: list[NodeId] = []
        """Followers for whom a transfer must be started; emptied by the host."""
        self.forgetful: dict[NodeId, int] = {}
        """How often a follower denied what it had acknowledged. It is told (DENIED), and knows what to make of it."""

    def take_members(self, peers: tuple[NodeId, ...]) -> None:
        """The voters and learners but for this node. Who stays goes on as before."""
        self._peers = peers
        following = self._log.last + 1
        self._followers = {peer: self._followers.get(peer) or _Follower(following) for peer in peers}
        self.snapshots_wanted = [peer for peer in self.snapshots_wanted if peer in self._followers]

    def begin(self) -> None:
        """Took office: nothing is known of anybody."""
        following = self._engine.own_term_index
        self._followers = {peer: _Follower(following) for peer in self._peers}
        self.snapshots_wanted = []

    def run(self, now: float, *, beat: bool, context: int) -> None:
        """Send what each follower may get now. `beat`: everybody hears from us; `context`: the read round."""
        engine = self._engine
        commit, term = engine.commit, engine.term
        self._cut = (0, [])
        for peer, follower in self._followers.items():
            sent = self._feed(peer, follower, now)
            known = min(commit, engine.match(peer))
            if beat:
                self._emit(peer, frames.HEARTBEAT, term, known, context)
            elif not sent and known > follower.told:
                self._emit(peer, frames.COMMITTED, term, known)
            else:
                continue
            follower.told = max(follower.told, known)

    def confirm(self, peers: tuple[NodeId, ...], context: int) -> None:
        """Ask these to confirm a read round."""
        engine = self._engine
        commit, term = engine.commit, engine.term
        for peer in peers:
            follower, known = self._followers[peer], min(commit, engine.match(peer))
            follower.told = max(follower.told, known)
            self._emit(peer, frames.HEARTBEAT, term, known, context)

    def _feed(self, peer: NodeId, follower: _Follower, now: float) -> bool:
        if follower.snapshotting:
            return False
        if follower.probing:
            return now - follower.sent_at >= self._retry_seconds and self._send(peer, follower, now)
        if follower.flights and now - max(follower.heard_at, follower.sent_at) >= self._retry_seconds:
            follower.probe(self._engine.match(peer) + 1)
            return self._send(peer, follower, now)
        sent = False
        last, window = self._log.last, self._limits.window
        while follower.next <= last and len(follower.flights) < window:
            if not self._send(peer, follower, now):
                break
            sent = True
        return sent

    def _send(self, peer: NodeId, follower: _Follower, now: float) -> bool:
        previous, log, engine = follower.next - 1, self._log, self._engine
        if previous < log.base:
            self._want_snapshot(peer, follower)
            return False
        entries = self._entries_from(follower.next)
        follower.sent_at = now
        if not follower.probing:
            follower.next += len(entries)
            follower.flights.append(follower.next - 1)
        follower.told = max(follower.told, min(engine.commit, previous + len(entries)))
        self._emit(peer, frames.APPEND, engine.term, previous, log.term_at(previous), engine.commit, entries)
        return True

    def _want_snapshot(self, peer: NodeId, follower: _Follower) -> None:
        follower.snapshotting = True
        self.snapshots_wanted.append(peer)

    def _entries_from(self, index: int) -> list[list[Any]]:
        """A message's worth of entries; the same list again when the next follower wants the same."""
        if self._cut[0] == index:
            return self._cut[1]
        start, size = index - self._log.base, 0
        entries: list[list[Any]] = []
        for command, _, term in self._log.rows[start : start + self._limits.append_entries]:
            size += len(command)
            if entries and size > self._limits.append_bytes:
                break
            entries.append([term, command])
        self._cut = (index, entries)
        return entries

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────

    def stored(self, peer: NodeId, wanted: int, now: float) -> bool:
        """A follower holds everything below `wanted`. Whether something follows from it: more may be
        committed, or more can be sent."""
        follower = self._followers.get(peer)
        index = wanted - 1
        if follower is None or index > self._log.last:
            return False
        follower.heard_at = now
        self._engine.acknowledged(peer, index)
        if follower.snapshotting:
            return False
        flights = follower.flights
        while flights and flights[0] <= index:
            flights.popleft()
        if follower.probing:
            follower.probing = False
            follower.next = index + 1
        else:
            follower.next = max(follower.next, index + 1)
        commit = self._engine.commit
        return index > commit or follower.told < min(commit, index) or follower.next <= self._log.last

    def refused(self, peer: NodeId, previous: int, wanted: int, now: float) -> None:
        """A follower's log does not contain our entry at `previous`; it suggests to go on at `wanted`."""
        follower = self._followers.get(peer)
        if follower is None:
            return
        follower.heard_at = now
        self._engine.heard(peer)
        match = self._engine.match(peer)
        if wanted == 0 and match == 0:  # it is blank: no entry is of use to it before it has a state
            if not follower.snapshotting:
                self._want_snapshot(peer, follower)
            return
        if follower.snapshotting or (follower.probing and previous != follower.next - 1):
            return
        if previous <= match:
            if follower.probing:  # not an old answer: it asked for this very place, which it once acknowledged
                self.forgetful[peer] = self.forgetful.get(peer, 0) + 1
                self._emit(peer, frames.DENIED, self._engine.term, match)
            return
        follower.probe(max(min(wanted, previous), match + 1))

    def reconnected(self, peer: NodeId) -> None:
        """The link is new: what was in flight is lost."""
        follower = self._followers.get(peer)
        if follower is not None and not follower.snapshotting:
            follower.probe(self._engine.match(peer) + 1 if self._engine.match(peer) else follower.next)

    def snapshot_installed(self, peer: NodeId, index: int) -> None:
        follower = self._followers.get(peer)
        if follower is not None and follower.snapshotting:
            follower.snapshotting = False
            self._engine.acknowledged(peer, index)
            follower.probe(self._engine.match(peer) + 1)

    def snapshot_failed(self, peer: NodeId, now: float) -> None:
        follower = self._followers.get(peer)
        if follower is not None and follower.snapshotting:
            follower.snapshotting = False
            # From the base: perhaps it has been installed after all, and only the answer was lost.
            follower.probe(self._log.base + 1, now + SNAPSHOT_BACKOFF_SECONDS - self._retry_seconds)

    def caught_up(self, peer: NodeId) -> bool:
        return self._engine.match(peer) == self._log.last
