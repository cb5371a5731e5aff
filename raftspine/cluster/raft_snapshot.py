"""Bringing a follower up to date with the whole state, when the log no longer reaches back far enough.

The engine's own transfer answers "success" for a snapshot that failed to load, and a leader believes it. Here
a follower collects the chunks, compares their SHA-256, lets the state machine install them atomically and
durably, moves its log's base, and answers only when that is in its journal too. Until then nothing of the old
state is touched; a chunk that comes twice or too late changes nothing; entries above the snapshot stay unless
they contradict it.

The sender goes chunk by chunk over the bulk lane, each a call that answers which chunk is wanted next, so a
broken link costs one chunk, not the transfer. Bodies are ``[group, term, transfer, number, data, final]``,
where `final` is None, or in the last ``[index, term, time_ms, voters, sha256]`` with no data.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from raftspine.cluster.raft_group import RaftGroup
from raftspine.errors import InvalidRequest, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId
from raftspine.ports import Position, Rpc, StateMachine

METHOD = "raft.snapshot"

CHUNK_TIMEOUT_MS = 2_000
ATTEMPTS = 20
"""Tries for one chunk before the transfer is given up; the flow asks for a new one when it is still needed.
The last chunk's answer comes only after the installation, so these also bound how long that is waited for;
should it take longer, the next probe finds it done."""

RETRY_SECONDS = 0.25

MAX_SNAPSHOT_BYTES = 4 << 30


class SnapshotSender:
    """Sends one group's state to one follower, in a task of its own."""

    def __init__(self, rpc: Rpc, machine: StateMachine, transfer: bytes) -> None:
        self._rpc = rpc
        self._machine = machine
        self._transfer = transfer

    async def send(self, group: RaftGroup, peer: NodeId) -> int:
        """The snapshot's index, once the follower has installed it. Raises Unavailable or Unknown when the
        transfer failed or leadership was lost; the follower's state is then untouched, or has been replaced
        entirely."""
        term, digest, number = group.engine.term, hashlib.sha256(), 0
        at, chunks = await self._machine.snapshot(group.group)
        group.sending[peer] = at.index
        async for data in chunks:
            digest.update(data)
            await self._deliver(group, peer, term, number, data, None)
            number += 1
        final = [at.index, at.term, group.applied_ms, group.log.voters, digest.digest()]
        await self._deliver(group, peer, term, number, b"", final)
        return at.index

    async def _deliver(
        self, group: RaftGroup, peer: NodeId, term: int, number: int, data: bytes, final: list[Any] | None
    ) -> None:
        body = [group.group, term, self._transfer, number, data, final]
        for _ in range(ATTEMPTS):
            if not group.engine.leads or group.engine.term != term:
                raise Unavailable("leadership was lost during a snapshot", code="no_leader")
            try:
                wanted = await self._rpc.call(peer, METHOD, body, timeout_ms=CHUNK_TIMEOUT_MS, bulk=True)
            except (Unavailable, Unknown):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if wanted != number + 1:
                raise Unavailable(f"{peer} wants chunk {wanted} after {number}: the transfer starts over")
            return
        raise Unavailable(f"{peer} took no snapshot chunk in {ATTEMPTS} attempts", code="peer_down")


class _Incoming:
    """The chunks of one transfer so far. `outcome`: the installation, once it has begun."""

    def __init__(self, source: NodeId, transfer: bytes) -> None:
        self.source = source
        self.transfer = transfer
        self.chunks: list[bytes] = []
        self.size = 0
        self.digest = hashlib.sha256()
        self.outcome: asyncio.Task[int] | None = None


class _Final(NamedTuple):
    at: Position
    time_ms: int
    voters: tuple[NodeId, ...]
    sha256: bytes


class SnapshotReceiver:
    """Takes snapshots for all groups of this node, one transfer per group at a time."""

    def __init__(
        self,
        machine: StateMachine,
        groups: dict[GroupId, RaftGroup],
        flushed: Callable[[], "asyncio.Future[None]"],
        changed: Callable[[RaftGroup], None],
    ) -> None:
        self._machine = machine
        self._groups = groups
        self._flushed = flushed
        self._changed = changed
        self._incoming: dict[GroupId, _Incoming] = {}
        self._finished: dict[GroupId, tuple[bytes, int]] = {}
        """Last transfer installed, and its answer: the sender repeats the last chunk when the answer was lost."""

    def tasks(self) -> list["asyncio.Task[int]"]:
        """Installations under way."""
        return [held.outcome for held in self._incoming.values() if held.outcome is not None]

    def receive(self, source: NodeId, body: Any) -> Any:
        """One chunk: the number wanted next, at once, or for the last chunk when the state is installed."""
        group, term, transfer, number, data, final = _parse(body)
        held = self._groups.get(group)
        if held is None or not held.leader_spoke(source, term):
            raise Unavailable(f"group {group} takes no snapshot of term {term} here", code="no_leader")
        self._changed(held)
        if (done := self._finished.get(group)) is not None and done[0] == transfer:
            return done[1]
        incoming = self._incoming.get(group)
        if incoming is None or (incoming.source, incoming.transfer) != (source, transfer):
            if incoming is not None and incoming.outcome is not None and not incoming.outcome.done():
                raise Unavailable("another snapshot is being installed", code="overloaded", retry_after_ms=500)
            incoming = self._incoming[group] = _Incoming(source, transfer)
        if number != len(incoming.chunks):
            return len(incoming.chunks)
        if final is None:
            return self._keep(group, incoming, data)
        if incoming.outcome is None:
            incoming.outcome = asyncio.get_running_loop().create_task(self._install(held, incoming, final))
        return asyncio.shield(incoming.outcome)

    def _keep(self, group: GroupId, incoming: _Incoming, data: bytes) -> int:
        incoming.size += len(data)
        if incoming.size > MAX_SNAPSHOT_BYTES:
            del self._incoming[group]
            raise InvalidRequest("the snapshot is larger than any group may be")
        incoming.chunks.append(data)
        incoming.digest.update(data)
        return len(incoming.chunks)

    async def _install(self, group: RaftGroup, incoming: _Incoming, final: _Final) -> int:
        """Verify, install, move the log, wait for the journal. Returns the number of chunks plus one."""
        answer = len(incoming.chunks) + 1
        try:
            if incoming.digest.digest() != final.sha256:
                raise Unavailable("the snapshot's checksum does not match; nothing was installed")
            if not group.holds(final.at):
                await self._replace(group, incoming, final)
            await self._flushed()
            self._finished[group.group] = (incoming.transfer, answer)
        finally:
            del self._incoming[group.group]
        return answer

    async def _replace(self, group: RaftGroup, incoming: _Incoming, final: _Final) -> None:
        group.installing = True
        try:
            await self._machine.install(group.group, final.at, incoming.chunks)
            group.installed(final.at, final.time_ms, final.voters)
        except SpineError:
            raise  # refused with the old state intact: the sender tries again
        except Exception as error:
            group.halt(f"a snapshot could not be installed: {type(error).__name__}: {error}")
            raise Unavailable(f"group {group.group} is halted", code="no_leader") from error
        finally:
            group.installing = False
            self._changed(group)


def _parse(body: Any) -> tuple[GroupId, int, bytes, int, bytes, _Final | None]:
    """Raises InvalidRequest for anything but the body described above."""
    try:
        group, term, transfer, number, data, final = body
        if final is not None:
            index, last_term, time_ms, voters, sha256 = final
            final = _Final(Position(int(index), int(last_term)), int(time_ms), tuple(voters), bytes(sha256))
        return GroupId(int(group)), int(term), bytes(transfer), int(number), bytes(data), final
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"malformed snapshot chunk: {error}") from error
