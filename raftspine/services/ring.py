"""The ring path: reads and writes that never wait for consensus.

A write is minted here, on a replica of its group, over whatever this replica (or, for a precondition, a quorum)
holds; it succeeds when W replicas hold it and fails with a count otherwise. A read is local when the session's token
says this replica has seen the session's writes; else it waits a little; else it merges N-W+1 replicas, which must
meet every acknowledged write. It is never silently stale: a read that can do none of these is refused.

N=3, W=2, R=1 do not intersect by themselves: without the token, or the merge, an agent whose next request reaches
another node would miss its own write.

Whoever meets a replica whose log keeps the id, and did not know, gets `Promoted`: the ring has nothing to say then.
"""

from asyncio import Future
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raftspine import codec
from raftspine.core import merge
from raftspine.core.quorum import read_quorum
from raftspine.core.session import Token
from raftspine.errors import Conflict, Unavailable
from raftspine.model import Dot, GroupId, Memory, Model, NodeId, RingRecord, Version
from raftspine.ports import Rpc
from raftspine.services import lineage
from raftspine.services.fanout import Fanout, Write
from raftspine.services.poll import Poll
from raftspine.services.replica import Promoted, RingReplica
from raftspine.services.topology import Topology
from raftspine.storage import memories as rows

Deps = tuple[tuple[int, str, int], ...]

Compose = Callable[[RingRecord | None, int], Memory | None]
"""What is to be written over a record, with a stamp: the memory, or None to delete."""

REWRITES = 4
"""How often a write is made again over concurrent ones before it is left to the clocks who wins."""


class RingPath:
    """Coordinates ring operations for the groups this node holds."""

    def __init__(
        self,
        node: NodeId,
        replica: RingReplica,
        fanout: Fanout,
        rpc: Rpc,
        topology: Topology,
        *,
        write_quorum: int,
        timeout_ms: int,
    ) -> None:
        self._node = node
        self._replica = replica
        self._fanout = fanout
        self._rpc = rpc
        self._topology = topology
        self.write_quorum = write_quorum
        self._timeout_ms = timeout_ms
        rpc.serve("ring.get", self._serve_get)
        rpc.serve("ring.conflicts", self._serve_conflicts)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def write(
        self,
        group: GroupId,
        id: str,
        old: RingRecord | None,
        compose: Compose,
        *,
        model: Model,
        request: bytes = b"",
        deps: Deps = (),
        seen: Mapping[str, int] | None = None,
        local: bool = True,
        conditional: bool = False,
    ) -> Version:
        """Write what `compose` makes of `old` and return the version that W replicas hold.

        `old` must have been read in this very callback (see `RingReplica.write`); `local` says that it is the stored
        record as it stands.

        Quorums of two writes meet, so a replica that already held an acknowledged version this node had not seen
        says so in its acknowledgement. By the clocks alone such a write could lose to the older one, and whoever
        made both, through two nodes, would read the first again; or it would win and drop the tags it was to keep.
        It is therefore composed once more over what was found; only a `conditional` write is not, since what it was
        conditional on no longer holds. What it replaces then was concurrent, unless the session had `seen` it (origin
        to number), and goes to the conflict log: this node had seen it, its writer had not.

        Raises Unavailable (`no_quorum`: with `indeterminate` false when too few replicas have a link and nothing was
        stored; `overloaded`: nothing was stored), NoSpace, Conflict for a conditional write that lost, Promoted.
        """
        base = old
        made: set[Dot] = set()
        for _ in range(REWRITES):
            stamp = self._replica.stamp(old)
            memory = compose(base, stamp)
            try:
                version, write = self._send(group, id, old, memory, stamp, model, request, deps, local)
            except Unavailable as error:
                if made:
                    error.details["indeterminate"] = True  # this attempt did nothing, the one before is out
                raise
            if made and base is not None:
                rivals = [v for v in base.versions if (seen or {}).get(v.origin, 0) < v.seq]
                self._replica.note_losers(group, rivals, version)
            await write.future
            if not write.told:
                return version
            if b"" in write.told:
                raise Promoted
            made.add(version.dot)
            old, local = self._told(group, id, write), False
            base = _without(old, made)
            lost = old.versions[0].dot != version.dot
            if lost and conditional:
                raise Conflict(
                    "a concurrent write won; this one is kept in the conflict log",
                    details={"version": rows.ring_version(version)},
                )
            if base is None or (not lost and (conditional or _tags(compose(base, stamp)) == _tags(memory))):
                return version
        return version

    def _told(self, group: GroupId, id: str, write: Write) -> RingRecord:
        """What this replica holds now, joined with what others said they held."""
        found = [codec.decode_ring(data) for data in write.told]
        joint = self._joined(group, self._replica.record(group, id), found)
        assert joint is not None, "somebody told something"
        return joint

    def _joined(self, group: GroupId, mine: RingRecord | None, found: Iterable[RingRecord]) -> RingRecord | None:
        for theirs in found:
            joint = theirs if mine is None else merge.join(mine, theirs).record
            mine, _ = lineage.settle(group, joint)
        return mine

    def _send(
        self,
        group: GroupId,
        id: str,
        old: RingRecord | None,
        memory: Memory | None,
        stamp: int,
        model: Model,
        request: bytes,
        deps: Deps,
        local: bool,
    ) -> tuple[Version, Write]:
        """Mint a version, stage it here and hand it to the other replicas."""
        peers = self.peers(group)
        needed = 1 if model is Model.EVENTUAL else min(self.write_quorum, len(peers) + 1)
        self._check_reach(peers, needed)
        version, rival = self._replica.write(
            group, id, old, memory, stamp=stamp, request=request, deps=deps, local=local
        )
        write = self._fanout.start(group, codec.encode(version), peers, needed)
        if rival is not None:
            write.told = (codec.encode(rival),)
        return version, write

    def resend(self, group: GroupId, version: Version) -> Write:
        """Push a version again, for a retried request: who has it already answers at once."""
        peers = self.peers(group)
        needed = min(self.write_quorum, len(peers) + 1)
        try:
            self._check_reach(peers, needed)
        except Unavailable as error:
            error.details["indeterminate"] = True  # it was carried out once
            raise
        return self._fanout.start(group, codec.encode(version), peers, needed)

    def _check_reach(self, peers: tuple[NodeId, ...], needed: int) -> None:
        self._fanout.check_room()
        reachable = self._fanout.reachable(peers) + 1
        if reachable < needed:
            self._fanout.on_failure("unreachable")
            raise Unavailable(
                f"a write needs {needed} replicas and {reachable} can be reached",
                code="no_quorum",
                details={"acked": 0, "needed": needed, "indeterminate": False},
                retry_after_ms=500,
            )

    def peers(self, group: GroupId) -> tuple[NodeId, ...]:
        return self._topology.peers(group)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def read(
        self, group: GroupId, id: str, token: Token | None, *, model: Model, wait_ms: int
    ) -> RingRecord | None:
        """The record as the model demands it. Raises Unavailable(`session_unavailable` or `no_quorum`), Promoted."""
        if model is Model.EVENTUAL:
            return self._replica.record(group, id)
        if token is None or group in token.wide or not self._replica.level(group):
            return await self.merged(group, id)
        needs = token.needs(group)
        if not needs or self._replica.has(group, needs):
            return self._replica.record(group, id)
        if await self._replica.covered(group, needs, wait_ms):
            return self._replica.record(group, id)
        try:
            return await self.merged(group, id)
        except Unavailable as error:
            raise Unavailable(
                "this session's writes have not reached enough replicas that can be asked",
                code="session_unavailable",
                details={"group": group},
                retry_after_ms=200,
            ) from error

    async def merged(self, group: GroupId, id: str) -> RingRecord | None:
        """The join of N-W+1 replicas' records, this one's included as it is at the end, so that a write may be minted
        over it at once. Raises Unavailable(`no_quorum`), Promoted."""
        others = self.others_to_read(group)
        if others == 0:
            return self._replica.record(group, id)
        answers = await self.ask(self.peers(group), "ring.get", (group, id), others)
        found = [codec.decode_ring(data) for data, _ in answers if data is not None]
        mine = self._joined(group, self._replica.record(group, id), found)
        strong = self._replica.strong(group, id)
        if strong is not None:  # a peer behind in the log still shows what the promotion took over
            return mine and lineage.outliving(group, mine, strong)
        latest = 0 if mine is None else mine.context.get(lineage.origin_of_log(group), 0)
        if any(past is not None and past >= latest for _, past in answers):
            raise Promoted
        return mine

    def ask(
        self, peers: Iterable[NodeId], method: str, body: Any, needed: int, *, everyone: bool = False
    ) -> "Future[list[Any]]":
        """The first `needed` answers of these peers (`everyone`: all there are), each counted once; poll.py says whom
        it asks when. Fails with Unavailable(`no_quorum`) when there are too few."""
        live = [peer for peer in peers if self._rpc.connected(peer)]
        return Poll(self._rpc, live, method, body, needed, timeout_ms=self._timeout_ms, everyone=everyone).future

    def others_to_read(self, group: GroupId) -> int:
        """How many other replicas a read must ask to meet every acknowledged write."""
        n = len(self.peers(group)) + 1
        return read_quorum(n, min(self.write_quorum, n)) - 1

    async def applied(self, group: GroupId, index: int) -> None:
        """Wait until enough other replicas have applied a log index to make W with this one. Raises
        Unavailable(`no_quorum`)."""
        peers = self.peers(group)
        await self.ask(peers, "ring.applied", (group, index), min(self.write_quorum, len(peers) + 1) - 1)

    async def find_request(self, group: GroupId, digest: bytes, *, everywhere: bool) -> rows.RingRequest | None:
        """The write an Idempotency-Key already caused, here or, when `everywhere`, at enough peers to know."""
        here = rows.ring_request(self._replica.engine, group, digest)
        if not everywhere or (here is not None and not here.void):
            return here
        needed = self.others_to_read(group)
        answers = await self.ask(self.peers(group), "ring.request", (group, digest), needed)
        found = [rows.RingRequest(*answer) for answer in answers if answer is not None]
        if here is not None:
            found.append(here)
        # A write made again over a concurrent one has two dots; a void row is void only when nobody wrote.
        return max(found, key=lambda request: request.stamp, default=None)

    async def conflicts(self, group: GroupId, id: str) -> list[rows.Lost]:
        """What all replicas that answer, N-W+1 at least, remember of an id's losers, newest first: a replica that met
        only the outcome of a conflict has no loser to keep."""
        live = [peer for peer in self.peers(group) if self._rpc.connected(peer)]
        answers = await self.ask(live, "ring.conflicts", (group, id), self.others_to_read(group), everyone=True)
        found = {lost.version: lost for lost in rows.conflicts(self._replica.engine, group, id)}
        for version, memory, lost_at_ms, winner in (row for answer in answers for row in answer):
            lost = rows.Lost(version, None if memory is None else codec.decode_memory(memory), lost_at_ms, winner)
            found.setdefault(version, lost)
        return sorted(found.values(), key=lambda lost: (lost.lost_at_ms, lost.version), reverse=True)

    # ── serving peers ─────────────────────────────────────────────────────────────────────────────────────────

    def _serve_get(self, peer: NodeId, body: Any) -> tuple[bytes | None, int | None]:
        """The ring record, and where the log keeps the id the last demotion its promotion had seen."""
        group, id = GroupId(body[0]), body[1]
        strong = self._replica.strong(group, id)
        past = None if strong is None else strong.shadow.get(lineage.origin_of_log(group), 0)
        return rows.ring_bytes(self._replica.engine, group, id), past

    def _serve_conflicts(self, peer: NodeId, body: Any) -> Any:
        group, id = body
        return [
            (lost.version, None if lost.memory is None else codec.encode(lost.memory), lost.lost_at_ms, lost.winner)
            for lost in rows.conflicts(self._replica.engine, GroupId(group), id)
        ]


def _without(record: RingRecord, dots: set[Dot]) -> RingRecord | None:
    """A record without some versions: what an operation found, and not what it made itself."""
    kept = tuple(version for version in record.versions if version.dot not in dots)
    return RingRecord(kept, record.context) if kept else None


def _tags(memory: Memory | None) -> tuple[str, ...]:
    return () if memory is None else memory.tags
