"""The ring path: reads and writes that never wait for consensus.

A write is minted here, on a replica of its group, over whatever this replica (or, for a precondition, a quorum)
holds; it succeeds when W replicas hold it and fails with a count otherwise. A read is local when the session's token
says this replica has seen the session's writes; else it waits a little; else it merges N-W+1 replicas, which must
meet every acknowledged write. It is never silently stale: a read that can do none of these is refused.

N=3, W=2, R=1 do not intersect by themselves: without the token, or the merge, an agent whose next request reaches
another node would miss its own write.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from raftspine import codec
from raftspine.core import merge
from raftspine.core.quorum import read_quorum
from raftspine.core.session import Token
from raftspine.core.version_text import ring_version_text
from raftspine.errors import Conflict, SpineError, Unavailable
from raftspine.model import GroupId, Memory, Model, NodeId, RingRecord, Version
from raftspine.ports import Rpc
from raftspine.services.fanout import Fanout, Write
from raftspine.services.replica import RingReplica
from raftspine.services.topology import Topology
from raftspine.storage import memories as rows

Deps = tuple[tuple[int, str, int], ...]

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

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def write(
        self,
        group: GroupId,
        id: str,
        old: RingRecord | None,
        memory: Memory | None,
        *,
        stamp: int,
        model: Model,
        request: bytes = b"",
        deps: Deps = (),
        local: bool = True,
        conditional: bool = False,
    ) -> Version:
        """Write a memory (None: delete it) over `old` and return the version that W replicas hold.

        `stamp` comes from `RingReplica.stamp(old)`; `local` says that `old` is this replica's record as it stands.

        Quorums of two writes meet, so a replica that already held an acknowledged version this node had not seen
        says so in its acknowledgement. By the clocks alone such a write could lose to the older one, and whoever
        made both, through two nodes, would read the first again. It is therefore made once more over what was
        found; only a `conditional` write is not, since what it was conditional on no longer holds.

        Raises Unavailable(`no_quorum`; before anything is stored, when too few replicas have a link), NoSpace,
        Unavailable(`overloaded`), Conflict for a conditional write that lost.
        """
        for _ in range(REWRITES):
            version, write = self._send(group, id, old, memory, stamp, model, request, deps, local)
            await write.future
            if not write.beaten:
                return version
            if conditional:
                raise Conflict(
                    "a concurrent write won; this one is kept in the conflict log",
                    details={"version": version_text(version)},
                )
            old, local = self._replica.record(group, id), False
            for data in write.beaten:
                theirs = codec.decode_ring(data)
                old = theirs if old is None else merge.join(old, theirs).record
            stamp = self._replica.stamp(old)
        return version

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
        version = self._replica.mint(group, id, old, memory, stamp=stamp, request=request, deps=deps)
        self._replica.accept(group, version, known=old if local else None)
        return version, self._fanout.start(group, codec.encode(version), peers, needed)

    def resend(self, group: GroupId, version: Version) -> Write:
        """Push a version again, for a retried request: who has it already answers at once."""
        peers = self.peers(group)
        needed = min(self.write_quorum, len(peers) + 1)
        self._check_reach(peers, needed)
        return self._fanout.start(group, codec.encode(version), peers, needed)

    def _check_reach(self, peers: tuple[NodeId, ...], needed: int) -> None:
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
        """The record as the model demands it. Raises Unavailable(`session_unavailable` or `no_quorum`)."""
        if model is Model.EVENTUAL:
            return self._replica.record(group, id)
        if token is None or model is Model.STRONG or group in token.wide:
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
        """The join of N-W+1 replicas' records, this one's included. Raises Unavailable(`no_quorum`)."""
        mine = self._replica.record(group, id)
        peers = self.peers(group)
        others = read_quorum(len(peers) + 1, min(self.write_quorum, len(peers) + 1)) - 1
        if others == 0:
            return mine
        for data in await self.ask(peers, "ring.get", (group, id), others):
            if data is not None:
                theirs = codec.decode_ring(data)
                mine = theirs if mine is None else merge.join(mine, theirs).record
        return mine

    async def ask(self, peers: Iterable[NodeId], method: str, body: Any, needed: int) -> list[Any]:
        """The first `needed` answers of these peers. Raises Unavailable(`no_quorum`) when there are too few."""
        live = [peer for peer in peers if self._rpc.connected(peer)]
        answers: list[Any] = []
        while live and len(answers) < needed:
            now, live = live[: needed - len(answers)], live[needed - len(answers) :]
            calls = [self._rpc.call(peer, method, body, timeout_ms=self._timeout_ms) for peer in now]
            for result in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(result, BaseException):
                    if not isinstance(result, SpineError):
                        raise result
                else:
                    answers.append(result)
        if len(answers) < needed:
            raise Unavailable(
                f"a read needs {needed + 1} replicas and {len(answers) + 1} answered",
                code="no_quorum",
                details={"answered": len(answers) + 1, "needed": needed + 1},
                retry_after_ms=500,
            )
        return answers

    def others_to_read(self, group: GroupId) -> int:
        """How many other replicas a read must ask to meet every acknowledged write."""
        n = len(self.peers(group)) + 1
        return read_quorum(n, min(self.write_quorum, n)) - 1

    async def find_request(self, group: GroupId, digest: bytes, *, everywhere: bool) -> rows.RingRequest | None:
        """The write an Idempotency-Key already caused, here or, when `everywhere`, at enough peers to know."""
        found = rows.ring_request(self._replica.engine, group, digest)
        if found is not None or not everywhere:
            return found
        needed = self.others_to_read(group)
        for answer in await self.ask(self.peers(group), "ring.request", (group, digest), needed):
            if answer is not None:
                return rows.RingRequest(*answer)
        return None

    # ── serving peers ─────────────────────────────────────────────────────────────────────────────────────────

    def _serve_get(self, peer: NodeId, body: Any) -> bytes | None:
        group, id = body
        return rows.ring_bytes(self._replica.engine, GroupId(group), id)


def shown(record: RingRecord | None, now_ms: int) -> Version | None:
    """What a reader sees of a record: the winner, unless it is a delete or has expired."""
    if record is None:
        return None
    winner = record.versions[0]
    memory = winner.memory
    if memory is None or (memory.expires_at_ms is not None and memory.expires_at_ms <= now_ms):
        return None
    return winner


def version_text(version: Version) -> str:
    return ring_version_text(version.origin, version.seq)
