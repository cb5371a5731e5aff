"""Bringing a follower up to date with the whole state, when the log no longer reaches back far enough.

The engine's own transfer answers "success" for a snapshot that failed to load, and a leader believes it. Here a
follower stages the chunks on disk (raft_staging.py), compares checksums, lets the state machine switch atomically and
durably, moves its log's base, and answers only when that is in its journal too. Until the switch nothing of the old
state is touched; a chunk that comes twice or too late changes nothing; entries above the snapshot stay unless they
contradict it.

    offer    [to, group, term, index, at term, time_ms, members, anew]  -> [chunks held, on disk, their SHA-256], None
    chunk    [to, group, term, index, at term, number, SHA-256, data]   -> [chunk wanted next, chunks on disk]
    install  [to, group, term, index, at term, chunks, SHA-256 of all]  -> True, once all of the above has happened

`to` is the member it is for: a transfer that was meant for an earlier life of the node would push aside, again and
again, what its present one has staged.
A snapshot is named by its place in the log, not by who sends it. So whoever offers the same one again (after a lost
link, a restart of the receiver, a change of leader in a group at rest) learns how much of it is there and goes on
behind it, provided the prefix has the checksum of its own copy. Calls go over the bulk lane, a connection of its own,
one at a time, at a bounded number of bytes a second for the whole node.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any, NamedTuple

import structlog

from raftspine.cluster.raft_envelope import members_of
from raftspine.cluster.raft_group import RaftGroup
from raftspine.cluster.raft_staging import Staged, Staging, Target
from raftspine.errors import Corrupt, InvalidRequest, NoSpace, SpineError, Unavailable, Unknown
from raftspine.model import GroupId, NodeId, node_of
from raftspine.ports import Clock, CrashPoint, Position, Rpc, SnapshotProgress, StateMachine

OFFER = "raft.snapshot.offer"
CHUNK = "raft.snapshot.chunk"
INSTALL = "raft.snapshot.install"

CALL_TIMEOUT_MS = 5_000
RETRY_SECONDS = 0.25

PATIENCE_SECONDS = 60.0
"""How long a transfer that makes no progress is kept up: long enough for the receiver's node to be restarted. The log
is not shortened beyond the snapshot meanwhile."""

SYNC_BYTES = 4 << 20
"""Chunks are on the receiver's disk in steps of this size: the most that a power loss there costs the transfer, and
the most that the sender keeps to send again."""

MAX_SNAPSHOT_BYTES = 4 << 30

log = structlog.get_logger(__name__)


class Traffic:
    """What snapshots have cost this node since it started."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.resumed_bytes = 0
        """Bytes that a resumed transfer did not send again."""
        self.installed = 0
        self.failed = 0


class Pace:
    """Bytes per second, shared by all transfers of a node: each takes its turn, none gets a burst."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        self._now = clock.monotonic
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def take(self, size_bytes: int) -> None:
        """Return when this many bytes may leave."""
        now = self._now()
        begin = max(now, self._free_at)
        self._free_at = begin + size_bytes / self._rate
        if begin > now:
            await asyncio.sleep(begin - now)


class _Chunk(NamedTuple):
    data: bytes
    before: bytes
    """SHA-256 of all chunks before this one."""


class SnapshotSender:
    """Sends one group's state to one follower, in a task of its own."""

    def __init__(self, rpc: Rpc, machine: StateMachine, clock: Clock, pace: Pace, traffic: Traffic) -> None:
        self._rpc = rpc
        self._machine = machine
        self._now = clock.monotonic
        self._pace = pace
        self._traffic = traffic

    async def send(self, group: RaftGroup, peer: NodeId) -> int:
        """The snapshot's index, once the follower has installed it. Raises Unavailable or Unknown when the transfer
        failed or leadership was lost; the follower's state is then untouched, or has been replaced entirely."""
        term = group.engine.term
        at, stream = await self._machine.snapshot(group.group)
        group.sending[peer] = SnapshotProgress(peer, at.index, 0)
        try:
            transfer = _Transfer(
                self, group, peer, term, Target(at, group.applied_ms, group.configurations.at(at.index))
            )
            await transfer.run(stream)
        finally:
            with suppress(AttributeError):  # any async iterator will do; those of generators and of the ledger close
                await stream.aclose()  # type: ignore[attr-defined]
        return at.index


class _Transfer:
    """One snapshot on its way to one follower. `_ahead` holds what was read from the stream and may still be lost by
    the receiver, `_first` is the number of its first chunk."""

    def __init__(self, sender: SnapshotSender, group: RaftGroup, peer: NodeId, term: int, target: Target) -> None:
        self._rpc, self._now, self._pace, self._traffic = sender._rpc, sender._now, sender._pace, sender._traffic
        self._group = group
        self._peer = peer
        self._term = term
        self._target = target
        self._head = [group.group, term, *target.at]
        self._ahead: deque[_Chunk] = deque()
        self._first = 0
        self._digest = sha256()
        self._moved_at = self._now()

    async def run(self, stream: AsyncIterator[bytes]) -> None:
        offered = await self._insist(OFFER, self._offer(anew=False))
        if offered is None:
            return
        number = await self._skip(stream, *offered)
        while (chunk := await self._chunk(number, stream)) is not None:
            number = await self._deliver(number, chunk)
        body = [*self._head, number, self._digest.digest()]
        await self._insist(INSTALL, body)
        log.info("a snapshot was sent", group=self._group.group, peer=self._peer, index=self._target.at.index)

    async def _skip(self, stream: AsyncIterator[bytes], held: int, synced: int, prefix: bytes) -> int:
        """Pass over what the follower holds already; the number of the first chunk it lacks."""
        while self._first < held and (data := await anext(stream, None)) is not None:
            self._note(data)
            self._first += 1
            self._traffic.resumed_bytes += len(data)
        if (self._first, self._digest.digest() if held else prefix) != (held, prefix):
            await self._insist(OFFER, self._offer(anew=True))
            raise Unavailable(f"{self._peer} held another snapshot of this place; it is sent anew")
        return self._first

    async def _chunk(self, number: int, stream: AsyncIterator[bytes]) -> _Chunk | None:
        """The chunk of this number, from what is kept or else from the stream; None behind the last."""
        if number < self._first + len(self._ahead):
            return self._ahead[number - self._first]
        before = self._digest.digest()
        data = await anext(stream, None)
        if data is None:
            return None
        self._note(data)
        self._ahead.append(_Chunk(data, before))
        return self._ahead[-1]

    async def _deliver(self, number: int, chunk: _Chunk) -> int:
        """Send one chunk; the number wanted next."""
        await self._pace.take(len(chunk.data))
        body = [*self._head, number, sha256(chunk.data).digest(), chunk.data]
        self._check_office()
        self._traffic.sent_bytes += len(chunk.data)
        try:
            wanted, safe = await self._call(CHUNK, body)
        except (Unavailable, Unknown):
            await asyncio.sleep(RETRY_SECONDS)
            offered = await self._insist(OFFER, self._offer(anew=False))
            if offered is None:
                raise Unavailable(f"{self._peer} no longer needs the snapshot") from None
            wanted, safe, prefix = offered
            at = wanted - self._first
            known = self._ahead[at].before if 0 <= at < len(self._ahead) else self._digest.digest()
            if wanted and prefix != known:
                raise Unavailable(f"{self._peer} no longer holds what was sent; the transfer starts over") from None
        if not self._first <= wanted <= self._first + len(self._ahead):
            raise Unavailable(f"{self._peer} wants chunk {wanted} after {number}: the transfer starts over")
        if wanted > number:
            self._moved_at = self._now()
        while self._first < min(safe, wanted):
            self._first += 1
            self._ahead.popleft()
        return int(wanted)

    def _note(self, data: bytes) -> None:
        self._digest.update(data)
        shown = self._group.sending[self._peer]
        self._group.sending[self._peer] = shown._replace(size_bytes=shown.size_bytes + len(data))

    def _offer(self, *, anew: bool) -> list[Any]:
        return [*self._head, self._target.time_ms, self._target.members, anew]

    async def _insist(self, method: str, body: list[Any]) -> Any:
        """The answer to a call that may be repeated. Raises Unavailable or Unknown when patience has run out."""
        while True:
            self._check_office()
            try:
                return await self._call(method, body)
            except (Unavailable, Unknown) as error:
                if error.code == "snapshot_refused" or self._now() - self._moved_at > PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    def _call(self, method: str, body: list[Any]) -> "asyncio.Future[Any]":
        peer = self._peer
        return self._rpc.call(node_of(peer), method, [peer, *body], timeout_ms=CALL_TIMEOUT_MS, bulk=True)

    def _check_office(self) -> None:
        engine = self._group.engine
        if not engine.leads or engine.term != self._term or self._group.doubt is not None:
            raise Unavailable("leadership was lost during a snapshot", code="no_leader")
        if self._peer not in self._group.peers:
            raise Unavailable(f"{self._peer} has left the group", code="snapshot_refused")


class SnapshotReceiver:
    """Takes snapshots for all groups of this node, one per group at a time."""

    def __init__(
        self,
        machine: StateMachine,
        groups: dict[GroupId, RaftGroup],
        staging: Staging,
        *,
        flushed: Callable[[], "asyncio.Future[None]"],
        changed: Callable[[RaftGroup], None],
        passed: CrashPoint,
        traffic: Traffic,
    ) -> None:
        self._machine = machine
        self._groups = groups
        self._staging = staging
        self._flushed = flushed
        self._changed = changed
        self._passed = passed
        self._traffic = traffic
        self._installing: dict[GroupId, asyncio.Task[bool]] = {}
        self._finished: dict[GroupId, Position] = {}
        """Last snapshot installed: the sender asks again when the answer was lost."""

    def tasks(self) -> list["asyncio.Task[bool]"]:
        """Installations under way."""
        return list(self._installing.values())

    def progress(self, group: GroupId) -> SnapshotProgress | None:
        staged = self._staging.get(group)
        return None if staged is None else SnapshotProgress(None, staged.target.at.index, staged.size_bytes)

    @property
    def untidy(self) -> bool:
        """Whether anything is staged that no installation is at work on."""
        return any(group not in self._installing for group in self._staging.groups())

    async def tidy(self) -> None:
        """Let go of what the log has made superfluous, or what a crash left of an installation. Not before the
        journal is on disk: until then the file is the proof of what the journal lacks."""
        with suppress(SpineError):  # the journal cannot be written now
            await self._flushed()
            self._tidied()

    def _tidied(self) -> None:
        for group in self._staging.groups():
            held, staged = self._groups.get(group), self._staging.get(group)
            if held is None or staged is None or group in self._installing:
                continue
            if self._covered(held, staged.target.at):
                self._drop(group)

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, source: NodeId, body: Any) -> Any:
        """How much of the offered snapshot is here; None when it is not needed."""
        group, term, at, rest = _parse(body, 3)
        time_ms, members, anew = _checked(lambda: (int(rest[0]), members_of(rest[1]), bool(rest[2])))
        held = self._heard(source, group, term)
        staged = self._staging.get(group)
        if self._covered(held, at):
            return None
        if staged is None or staged.target.at != at or anew:
            self._free(group)
            staged = self._guarded(group, lambda: self._staging.begin(group, Target(at, time_ms, members)))
            log.info("receiving a snapshot", group=group, source=source, index=at.index)
        return [staged.chunks, staged.synced, staged.digest.digest()]

    def chunk(self, source: NodeId, body: Any) -> Any:
        """One chunk: which is wanted next."""
        group, term, at, (number, check, data) = _parse(body, 3)
        held = self._heard(source, group, term)
        if self._covered(held, at):
            raise self._refusal("the snapshot is not needed any more")
        staged = self._expected(group, at)
        if type(number) is not int or number != staged.chunks or staged.complete:
            return [staged.chunks, staged.synced]
        if type(data) is not bytes or sha256(data).digest() != check:
            raise Unavailable(f"chunk {number} of a snapshot arrived damaged")
        if staged.size_bytes + len(data) > MAX_SNAPSHOT_BYTES:
            self._drop(group)
            raise InvalidRequest("the snapshot is larger than any group may be")
        self._guarded(group, lambda: self._staging.add(staged, data))
        self._traffic.received_bytes += len(data)
        self._passed("snapshot:chunk")
        if staged.unsynced_bytes >= SYNC_BYTES:
            return self._synced(group, staged)
        return [staged.chunks, staged.synced]

    def install(self, source: NodeId, body: Any) -> Any:
        """True once the snapshot is in force and in the journal."""
        group, term, at, (count, digest) = _parse(body, 2)
        held = self._heard(source, group, term)
        if group not in self._installing and (self._covered(held, at) or self._repeated(held, at)):
            return True
        if group not in self._installing:
            staged = self._expected(group, at)
            if (staged.chunks, staged.digest.digest()) != (count, digest):
                self._drop(group)
                raise self._refusal("the snapshot's checksum does not match; nothing was installed")
            task = asyncio.get_running_loop().create_task(self._install(held, staged))
            self._installing[group] = task
        return asyncio.shield(self._installing[group])

    def _heard(self, source: NodeId, group: GroupId, term: int) -> RaftGroup:
        """The group, when the sender leads it now; this counts as a heartbeat."""
        held = self._groups.get(group)
        if held is None or not held.leader_spoke(source, term):
            raise Unavailable(f"group {group} takes no snapshot of term {term} here", code="no_leader")
        self._changed(held)
        return held

    def _covered(self, held: RaftGroup, at: Position) -> bool:
        """Whether a snapshot at this place would add nothing. To a doubtful state it does, unless it is older."""
        if held.doubt is not None:
            return at.index < self._machine.position(held.group).index
        return held.holds(at)

    def _repeated(self, held: RaftGroup, at: Position) -> bool:
        """Whether the sender asks again for what it has not heard the end of. A state that is in doubt again since is
        replaced again, also by a snapshot of the same place."""
        return held.doubt is None and self._finished.get(held.group) == at

    def _expected(self, group: GroupId, at: Position) -> Staged:
        staged = self._staging.get(group)
        if staged is None or staged.target.at != at:
            raise Unavailable(f"no snapshot of this place was offered to group {group}")
        return staged

    def _free(self, group: GroupId) -> None:
        if group in self._installing:
            raise Unavailable("another snapshot is being installed", code="overloaded", retry_after_ms=500)

    def _refusal(self, text: str) -> Unavailable:
        self._traffic.failed += 1
        return Unavailable(text, code="snapshot_refused")

    # ── the disk ───────────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, group: GroupId, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except OSError as error:
            raise self._unstaged(group, error) from error

    def _unstaged(self, group: GroupId, error: OSError) -> SpineError:
        """The disk refused a part of a snapshot: what it holds of it counts for nothing."""
        self._drop(group)
        return NoSpace(f"a snapshot cannot be staged: {error}")

    def _drop(self, group: GroupId) -> None:
        with suppress(OSError):  # what stays behind is taken up or removed by the next start
            self._staging.drop(group)

    async def _synced(self, group: GroupId, staged: Staged) -> list[int]:
        try:
            await self._staging.sync(staged)
        except OSError as error:
            raise self._unstaged(group, error) from error
        return [staged.chunks, staged.synced]

    # ── installing ─────────────────────────────────────────────────────────────────────────────────────────

    async def _install(self, group: RaftGroup, staged: Staged) -> bool:
        """Finish the stage, switch, move the log, wait for the journal, clear the stage."""
        try:
            self._guarded(group.group, lambda: self._staging.finish(staged))
            await self._synced(group.group, staged)
            self._passed("snapshot:staged")
            if not self._covered(group, staged.target.at):  # the log may have caught up meanwhile
                await self._replace(group, staged.target)
            self._passed("snapshot:reset")
            await self._flushed()
            self._passed("snapshot:journalled")
            self._drop(group.group)
            self._passed("snapshot:cleared")
            self._finished[group.group] = staged.target.at
            self._traffic.installed += 1
            log.info("a snapshot is in force", group=group.group, index=staged.target.at.index)
            return True
        finally:
            self._installing.pop(group.group, None)

    async def _replace(self, group: RaftGroup, target: Target) -> None:
        group.installing = True
        try:
            # Behind the state machine's back the log would not know who takes part at the snapshot.
            group.log.expect(*target)
            await self._flushed()
            await self._machine.install(group.group, target.at, self._verified(group.group))
            group.installed(target.at, target.time_ms, target.members)
        except SpineError as error:  # refused with the old state intact: the sender tries again
            if isinstance(error, Corrupt):
                self._drop(group.group)
            raise self._refusal(error.message) from error
        except Exception as error:
            group.halt(f"a snapshot could not be installed: {type(error).__name__}: {error}")
            raise Unavailable(f"group {group.group} is halted", code="no_leader") from error
        finally:
            group.installing = False
            self._changed(group)

    def _verified(self, group: GroupId) -> Iterator[bytes]:
        """The staged chunks, read back and proven. What cannot be read is as good as damaged."""
        try:
            yield from self._staging.chunks(group)
        except OSError as error:
            raise Corrupt(f"the staged snapshot cannot be read: {error}") from error


def _parse(body: Any, more: int) -> tuple[GroupId, int, Position, list[Any]]:
    """The fields all calls begin with, and the rest. Raises InvalidRequest for anything else."""
    if not isinstance(body, (list, tuple)) or len(body) != 4 + more:
        raise InvalidRequest("malformed snapshot call")
    if not all(type(field) is int and field >= 0 for field in body[:4]):
        raise InvalidRequest("malformed snapshot call: numbers expected")
    return GroupId(body[0]), body[1], Position(body[2], body[3]), list(body[4:])


def _checked(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"malformed snapshot call: {error}") from error
