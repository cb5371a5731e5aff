"""What must hold at every step, checked as it happens: a run ends at the moment its first promise is broken.

A verdict at the end says that something was lost; it cannot say when, and by then ten other things have happened. The
auditor is told, for the life of a run and across all restarts, of each entry applied anywhere, each leader that takes
office and each byte that a Raft journal hands to its disk. Its rules, by the names that a violation carries:

    one leader       a term of a group has one leader
    leader complete  who takes office holds every entry that was ever applied anywhere
    same entry       an index holds the same entry on every node that applies it, for ever
    in order         a node applies entries one by one, none twice and none left out, from where its state ends
    on disk          what is applied anywhere is on the disks of a majority of the group's voters
    same outcome     an entry comes to the same outcome everywhere
    same state       nodes that have applied the same entries hold the same strong state
    once             a request id is decided once; every later answer to it is the first one
    rising versions  the version of a strong memory only rises
    no halt          no group stops by itself on a node whose disk is well
    no crash         no worker and no handler dies of an exception

It listens by standing in front of a few methods of the objects the simulator itself has made; production code knows
nothing of it. Whether a journal tells the truth about its disk is not asked of the journal, but of the disk.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

from raftspine import codec
from raftspine.cluster.raft_group import RaftGroup
from raftspine.core.ledger import commands, outcomes
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.model import META_GROUP, GroupId, NodeId, node_of
from raftspine.node import Node
from raftspine.ports import Members, Position
from raftspine.sim.cluster import SimCluster, SimHost, raft_groups
from raftspine.sim.disk import SimDisk
from raftspine.storage import keys
from raftspine.storage.journal_group import BASE, CUT, ENTRY, STATE
from raftspine.storage.segment import records

Broken = Callable[[str, str], None]
"""Told the rule's name and what broke it; ends the run."""

STATE_EVERY = 32
"""Entries between two comparisons of a group's whole strong state."""

UNDECIDED = frozenset({Status.REQUEST_REUSED, Status.VOIDED, Status.RING_BEHIND, Status.MALFORMED})
"""Outcomes that say nothing about what the request came to."""


class _Stored(NamedTuple):
    """Where an entry lies on a disk. `safe`: an earlier copy of it is known to have been synced."""

    term: int
    file: str
    start: int
    end: int
    safe: bool


class RaftDisk:
    """What of a node's Raft journal its disk would give back after a power loss now: kept by looking at each record
    on its way to the file and, when asked, at how far the disk has synced that file."""

    FOLDER = "raft"

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self._entries: dict[int, dict[int, _Stored]] = {}
        self._bases: dict[int, int] = {}

    def attach(self, node: Node) -> None:
        """A new life begins with what its log holds, which the disk may not have yet."""
        known, self._entries, self._bases = self._entries, {}, {}
        wal: Any = node.raft._journal._log  # type: ignore[attr-defined]
        for segment in wal._segments:
            data = memoryview(wal._directory.read(segment.name))[: wal._sizes[segment.name]]
            start = 0
            for _, payload, end in records(segment, data):
                self._note(payload, segment.name, start, end)
                start = end
        for group, entries in self._entries.items():
            for index, stored in entries.items():
                before = known.get(group, {}).get(index)
                if before is not None and before.term == stored.term and self._is_safe(before):
                    entries[index] = stored._replace(safe=True)
        put = wal._put

        def watched(file: Any, payload: bytes) -> int:
            position: int = put(file, payload)
            name = wal._segments[-1].name
            end = wal._sizes[name]
            self._note(payload, name, end - len(payload), end)
            return position

        wal._put = watched

    def detach(self) -> None:
        """The life ends: what is not on disk now does not count any more, until the next life finds it there."""
        for entries in self._entries.values():
            for index, stored in entries.items():
                entries[index] = stored._replace(safe=self._is_safe(stored), file="")

    def holds(self, group: GroupId, index: int, term: int) -> bool:
        if self._bases.get(group, 0) >= index:
            return True
        stored = self._entries.get(group, {}).get(index)
        return stored is not None and stored.term == term and self._is_safe(stored)

    def _is_safe(self, stored: _Stored) -> bool:
        return stored.safe or self._disk.is_safe(self.FOLDER, stored.file, stored.start, stored.end)

    def _note(self, payload: bytes, file: str, start: int, end: int) -> None:
        for record in codec.decode_any(payload):
            kind, group = record[0], record[1]
            entries = self._entries.setdefault(group, {})
            if kind == ENTRY:
                index, term = record[2], record[3]
                before = entries.get(index)
                safe = before is not None and before.term == term and self._is_safe(before)
                entries[index] = _Stored(term, file, start, end, safe)
            elif kind == CUT:
                for index in [index for index in entries if index >= record[2]]:
                    del entries[index]
            elif kind in (BASE, STATE):
                self._bases[group] = record[2]


class Auditor:
    """Watches every node of a cluster through all its lives."""

    def __init__(self, cluster: SimCluster, broken: Broken) -> None:
        self._cluster = cluster
        self._broken = broken
        self._disks = {id: RaftDisk(host.disk) for id, host in cluster.hosts.items()}
        self._leaders: dict[tuple[GroupId, int], NodeId] = {}
        self._entries: dict[GroupId, dict[int, tuple[int, bytes]]] = {}
        self._committed_by: dict[GroupId, dict[int, int]] = {}
        """The term in which the first to apply an entry was: it was committed in that term or an earlier one."""
        self._outcomes: dict[tuple[GroupId, int], tuple[NodeId, bytes]] = {}
        self._states: dict[tuple[GroupId, int], tuple[NodeId, bytes]] = {}
        self._decided: dict[tuple[GroupId, bytes], tuple[int, Outcome]] = {}
        self._versions: dict[tuple[GroupId, str], tuple[int, int]] = {}
        self.entries = 0
        cluster.on_start.append(self._watch)
        cluster.on_end.append(self._part)

    # ── standing in front ─────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, node: Node) -> None:
        self._disks[node.id].attach(node)
        add_group, apply = node.raft.add_group, node._ledger.apply

        def watched_add(group: GroupId, voters: Any) -> None:
            add_group(group, voters)
            for made in raft_groups(node):
                if made.group == group:
                    self._watch_group(node.id, made)

        def watched_apply(group: GroupId, at: Position, time_ms: int, entry: Any) -> list[Any]:
            results = apply(group, at, time_ms, entry)
            self._decided_entry(node, group, at, entry, results)
            return results

        node.raft.add_group = watched_add  # type: ignore[method-assign]
        node._ledger.apply = watched_apply  # type: ignore[method-assign, assignment]

    def _part(self, host: SimHost, node: Node) -> None:
        self._disks[host.id].detach()

    def _watch_group(self, node: NodeId, group: RaftGroup) -> None:
        apply, begin, installed = group.apply, group.flow.begin, group.installed
        reached = group.engine.applied

        def watched_apply(index: int, term: int, command: bytes) -> bool:
            nonlocal reached
            done = apply(index, term, command)
            if done:
                if index != reached + 1:
                    self._broken("in order", f"{node} applied entry {index} of group {group.group} after {reached}")
                reached = index
                self._applied(node, group, index, term, command)
            return done

        def watched_begin() -> None:
            self._takes_office(node, group)
            begin()

        def watched_installed(at: Position, time_ms: int, members: Members) -> None:
            nonlocal reached
            installed(at, time_ms, members)
            reached = max(reached, at.index)
            self._cluster.narration.tell(node, f"installs a snapshot of group {group.group} at {at.index}")

        group.apply = watched_apply  # type: ignore[method-assign]
        group.flow.begin = watched_begin  # type: ignore[method-assign]
        group.installed = watched_installed  # type: ignore[method-assign]

    # ── Raft's rules ──────────────────────────────────────────────────────────────────────────────────────────

    def _takes_office(self, node: NodeId, group: RaftGroup) -> None:
        id, term, log = group.group, group.engine.term, group.log
        self._cluster.narration.tell(node, f"leads group {id} in term {term}, with entries to {log.last}")
        known = self._leaders.setdefault((id, term), node)
        if known != node:
            self._broken("one leader", f"{node} and {known} both lead term {term} of group {id}")
        committed = self._committed_by.get(id, {})
        for index, (entry_term, _) in self._entries.get(id, {}).items():
            if committed[index] >= term:
                continue  # a vote for an older term may come late; such a leader owes nothing to a newer one
            if index > log.last or (index >= log.base and log.term_at(index) != entry_term):
                what = f"{node} leads term {term} of group {id} without entry {index} of term {entry_term}"
                self._broken("leader complete", f"{what}, which was applied before")
                return

    def _applied(self, node: NodeId, group: RaftGroup, index: int, term: int, command: bytes) -> None:
        entries = self._entries.setdefault(group.group, {})
        mine = (term, blake2b(command, digest_size=16).digest())
        known = entries.get(index)
        if known is None:
            entries[index] = mine
            self._committed_by.setdefault(group.group, {})[index] = group.engine.term
            self.entries += 1
            self._check_disks(node, group, index, term)
        elif known != mine:
            what = f"{node} applied entry {index} of group {group.group} as of term {term}"
            self._broken("same entry", f"{what}; elsewhere it was another, of term {known[0]}")

    def _check_disks(self, node: NodeId, group: RaftGroup, index: int, term: int) -> None:
        """A majority of the members at the entry's place, or of those in force by now: an entry is counted by the
        newest members in the leader's log, which may be younger than it is."""
        for voters in (group.configurations.at(index).voters, group.configurations.current.voters):
            holding = [voter for voter in voters if self._disks[node_of(voter)].holds(group.group, index, term)]
            if len(holding) > len(voters) // 2:
                return
        where = ", ".join(holding) or "none"
        what = f"{node} applied entry {index} of group {group.group}, which is on the disks of {where} only"
        self._broken("on disk", f"{what} (voters {', '.join(voters)})")

    # ── the ledger's rules ────────────────────────────────────────────────────────────────────────────────────

    def _decided_entry(self, node: Node, group: GroupId, at: Position, entry: Any, results: list[Any]) -> None:
        if group == META_GROUP:
            return
        digest = blake2b(digest_size=16)
        for outcome, _ in results:
            digest.update(outcomes.encode(outcome))
        fresh = (
            group,
            at.index,
        ) not in self._outcomes  # else another node has applied it, or this one in another life
        known = self._outcomes.setdefault((group, at.index), (node.id, digest.digest()))
        if known[1] != digest.digest():
            what = f"entry {at.index} of group {group} came to {results} on {node.id}"
            self._broken("same outcome", f"{what}, and to something else on {known[0]}")
        if fresh:
            for sub, (command, (outcome, _)) in enumerate(zip(entry, results, strict=True)):
                self._check_command(group, (at.index, sub), commands.decode(command), outcome)
        if at.index % STATE_EVERY == 0:
            self._check_state(node, group, at.index)

    def _check_command(self, group: GroupId, at: tuple[int, int], command: Any, outcome: Outcome) -> None:
        request: bytes = getattr(command, "request", b"")
        if request and outcome.status not in UNDECIDED:
            first = self._decided.setdefault((group, request), (at[0], outcome))
            if first[1] != outcome:
                what = f"request {request.hex()[:8]} in group {group} was decided as {first[1]} by entry {first[0]}"
                self._broken("once", f"{what} and as {outcome} by entry {at[0]}")
        record = outcome.record
        if record is not None and (record.index, record.sub) == at:
            before = self._versions.get((group, record.id), (0, 0))
            if at < before:
                self._broken("rising versions", f"{record.id} went from version {before} to {at}")
            self._versions[group, record.id] = at

    def _check_state(self, node: Node, group: GroupId, index: int) -> None:
        digest = blake2b(digest_size=16)
        for kind in (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER):
            for key, data in node.engine.scan(*keys.span(kind, group), limit=1_000_000):
                digest.update(len(key).to_bytes(4, "big") + key + data)
        known = self._states.setdefault((group, index), (node.id, digest.digest()))
        if known[1] != digest.digest():
            what = f"{node.id} and {known[0]} hold different strong state of group {group}"
            self._broken("same state", f"{what} after entry {index}")

    # ── now and then ──────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Rules about how nodes are, rather than what they do; to be called often."""
        for host in self._cluster.live():
            if host.node is None or host.disk_failed:
                continue
            for group in raft_groups(host.node):
                if group.halted is not None:
                    self._broken("no halt", f"group {group.group} has halted on {host.id}: {group.halted}")
