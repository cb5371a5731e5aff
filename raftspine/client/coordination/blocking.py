"""Coordination for programs without an event loop: the same things, kept alive on the client's own loop.

    with spine.lock("deploy/api", ttl=30) as lease:
        for step in steps:
            lease.ensure()                      # raises LeaseLost
            step(lease.token)

The rules: renewals run on the loop's thread, so a body that computes or sleeps does not stop them. A thread cannot be
stopped from outside, so a loss is told in four ways: `lease.lost` (a threading.Event) is set, `on_lost` is called in
a thread of its own, `lease.ensure()` raises, and the end of the block raises LeaseLost.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from raftspine.client.coordination.elections import Campaign, Election, Office
from raftspine.client.coordination.face import TTL_S, Coordination, Fence
from raftspine.client.coordination.gates import Freezes, Gate
from raftspine.client.coordination.leases import Holder, Lease
from raftspine.client.coordination.presence import Presence
from raftspine.client.coordination.tasks import LEASE_S, Claim, Tasks
from raftspine.client.coordination.upkeep import guarded
from raftspine.client.coordination.watch import Event
from raftspine.client.threads import Blocking, LoopThread, iterating, through, waiting
from raftspine.errors import LeaseLost, Misuse


class BlockingLease(Blocking[Lease]):
    """A lease that is renewed in the background; see `Lease`."""

    def __init__(self, inner: Lease, runner: LoopThread, lost: threading.Event) -> None:
        super().__init__(inner, runner)
        self.lost = lost
        """Set at the loss."""

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def lease_id(self) -> str:
        return self._inner.lease_id

    @property
    def token(self) -> int:
        """The fencing token, for what checks it."""
        return self._inner.token

    @property
    def tokens(self) -> dict[str, int]:
        return self._inner.tokens

    @property
    def guards(self) -> list[dict[str, Any]]:
        return self._inner.guards

    @property
    def hold(self) -> int:
        return self._inner.hold

    @property
    def error(self) -> LeaseLost | None:
        return self._inner.error

    def remaining(self) -> float:
        """Seconds for which the lease can be believed in."""
        return self._inner.remaining()

    def ensure(self) -> None:
        """Raises LeaseLost unless the lease can be believed in now. Costs nothing."""
        self._inner.ensure()

    check = waiting(Lease.check)


class BlockingOffice(BlockingLease):
    """A term of office; see `Office`."""

    @property
    def term(self) -> int:
        return self._inner.token

    def proclaim(self, value: Any) -> None:
        """Say something that observers see. Raises LeaseLost."""
        office = self._inner
        assert isinstance(office, Office)
        self._runner.run(office.proclaim(value))


BlockingTold = Callable[[BlockingLease], None]
"""A callback of the user's, in a thread of its own."""


class BlockingHolder:
    """`with holder as lease`, or `acquire` and `release`. Entering again in the same thread is one hold more."""

    def __init__(
        self, make: Callable[..., Holder], runner: LoopThread, on_jeopardy: BlockingTold | None,
        on_lost: BlockingTold | None, kind: type[BlockingLease] = BlockingLease,
    ) -> None:  # fmt: skip
        """`make` is given the callbacks, and makes the holder."""
        self._holder = make(on_jeopardy=self._tell_jeopardy, on_lost=self._tell_lost)
        self._runner = runner
        self._on_jeopardy = on_jeopardy
        self._on_lost = on_lost
        self._kind = kind
        self._lost = threading.Event()
        self._lease: BlockingLease | None = None
        self._depth = 0
        self._thread: int | None = None

    def acquire(self, wait: float | None = None) -> BlockingLease:
        """Take it, or one hold more of it; see `Holder.acquire`."""
        mine = threading.get_ident()
        if self._lease is not None and self._thread != mine:
            raise Misuse("this holder is in use by another thread: make one for each")
        if self._lease is None:
            self._lost = threading.Event()
        inner = self._runner.run(self._holder.acquire(wait))
        if self._lease is None:
            self._lease, self._thread = self._kind(inner, self._runner, self._lost), mine
            if inner.error is not None:  # lost before there was anything to tell of it
                self._lost.set()
        self._depth += 1
        return self._lease

    def release(self) -> None:
        """Give one hold back. Raises LeaseLost when the lease had been lost."""
        if self._depth == 0:
            raise Misuse("this is not held")
        self._depth -= 1
        if self._depth == 0:
            self._lease = self._thread = None
        self._runner.run(self._holder.release())

    def __enter__(self) -> Any:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseLost:
            if raised is None:
                raise

    def _tell_lost(self, inner: Lease) -> None:
        self._lost.set()
        self._tell(self._on_lost)

    def _tell_jeopardy(self, inner: Lease) -> None:
        self._tell(self._on_jeopardy)

    def _tell(self, callback: BlockingTold | None) -> None:
        """Not on the loop: a callback that waited for this client there would wait for itself."""
        lease = self._lease
        if callback is not None and lease is not None:
            threading.Thread(target=guarded, args=(callback, lease), name="raftspine-lease", daemon=True).start()


class BlockingElection(Blocking[Election]):
    """An election; see `Election`."""

    leader = waiting(Election.leader)
    observe = iterating(Election.observe)

    def campaign(
        self,
        value: Any = None,
        *,
        on_jeopardy: BlockingTold | None = None,
        on_lost: BlockingTold | None = None,
        **wanted: Any,
    ) -> BlockingHolder:
        """`with election.campaign(value) as office`; the arguments of `Election.campaign`."""

        def make(**callbacks: Any) -> Campaign:
            return self._inner.campaign(value, **wanted, **callbacks)

        return BlockingHolder(make, self._runner, on_jeopardy, on_lost, BlockingOffice)


class BlockingPresence(Blocking[Presence]):
    """A session; see `Presence`."""

    def __str__(self) -> str:
        return self._inner.id

    @property
    def id(self) -> str:
        return self._inner.id

    def remaining(self) -> float:
        return self._inner.remaining()

    def ensure(self) -> None:
        """Raises LeaseLost unless it can be believed in now."""
        self._inner.ensure()

    open = waiting(Presence.open)
    close = waiting(Presence.close)

    def __enter__(self) -> "BlockingPresence":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LeaseLost:
            if raised is None:
                raise


class BlockingClaim(Blocking[Claim]):
    """A task that is this worker's; see `Claim`."""

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def payload(self) -> Any:
        return self._inner.payload

    @property
    def attempt(self) -> int:
        return self._inner.attempt

    @property
    def token(self) -> int:
        return self._inner.token

    @property
    def error(self) -> LeaseLost | None:
        return self._inner.error

    def remaining(self) -> float:
        return self._inner.remaining()

    def ensure(self) -> None:
        """Raises LeaseLost unless the claim can be believed in now."""
        self._inner.ensure()

    keep = waiting(Claim.keep)
    extend = waiting(Claim.extend)
    complete = waiting(Claim.complete)
    fail = waiting(Claim.fail)


class BlockingTasks(Blocking[Tasks]):
    """A queue of tasks; see `Tasks`."""

    enqueue = waiting(Tasks.enqueue)
    complete = waiting(Tasks.complete)
    fail = waiting(Tasks.fail)
    show = waiting(Tasks.show)
    page = waiting(Tasks.page)
    list = iterating(Tasks.list)
    requeue = waiting(Tasks.requeue)
    remove = waiting(Tasks.remove)

    def claim(self, owner: str | None = None, **wanted: Any) -> "Sequence[BlockingClaim]":
        """The arguments of `Tasks.claim`."""
        return [BlockingClaim(one, self._runner) for one in self._runner.run(self._inner.claim(owner, **wanted))]

    def work(
        self, owner: str | None = None, *, n: int = 1, lease: float = LEASE_S, session: object = None
    ) -> Iterator[BlockingClaim]:
        """Tasks as they come, without end; see `Tasks.work`."""
        for claim in through(self._runner, self._inner.work(owner, n=n, lease=lease, session=session)):
            yield BlockingClaim(claim, self._runner)


class BlockingGate(Blocking[Gate]):
    """A gate; see `Gate`."""

    open = waiting(Gate.open)
    close = waiting(Gate.close)
    show = waiting(Gate.show)
    delete = waiting(Gate.delete)
    pass_ = waiting(Gate.pass_)
    request = waiting(Gate.request)
    show_request = waiting(Gate.show_request)
    requests = iterating(Gate.requests)
    approve = waiting(Gate.approve)
    reject = waiting(Gate.reject)
    cancel = waiting(Gate.cancel)
    report = waiting(Gate.report)
    lift_hold = waiting(Gate.lift_hold)
    override = waiting(Gate.override)
    admit = waiting(Gate.admit)
    verify = waiting(Gate.verify)
    complete = waiting(Gate.complete)
    audit = waiting(Gate.audit)


class BlockingFreezes(Blocking[Freezes]):
    """Freezes of gates; see `Freezes`."""

    freeze = waiting(Freezes.freeze)
    lift = waiting(Freezes.lift)
    list = waiting(Freezes.list)


class BlockingFence(Blocking[Fence]):
    """The fence of a resource outside; see `Fence`."""

    advance = waiting(Fence.advance)
    highest = waiting(Fence.highest)


class BlockingCoordination(Blocking[Any]):
    """Coordination as plain calls; see `Coordination` for what each one does, and for the arguments."""

    def lock(
        self,
        name: str,
        *,
        on_jeopardy: BlockingTold | None = None,
        on_lost: BlockingTold | None = None,
        **wanted: Any,
    ) -> BlockingHolder:
        """`with spine.lock(name) as lease`; the arguments of `Coordination.lock`."""
        return self._hold(self._inner.lock, (name,), wanted, on_jeopardy, on_lost)

    def shared(
        self,
        name: str,
        *,
        on_jeopardy: BlockingTold | None = None,
        on_lost: BlockingTold | None = None,
        **wanted: Any,
    ) -> BlockingHolder:
        """The lock, together with others that have it shared."""
        return self._hold(self._inner.shared, (name,), wanted, on_jeopardy, on_lost)

    def semaphore(
        self,
        name: str,
        permits: int,
        *,
        on_jeopardy: BlockingTold | None = None,
        on_lost: BlockingTold | None = None,
        **wanted: Any,
    ) -> BlockingHolder:
        """`weight` of the `permits` there are."""
        return self._hold(self._inner.semaphore, (name, permits), wanted, on_jeopardy, on_lost)

    def acquire_all(
        self,
        names: Sequence[str],
        *,
        on_jeopardy: BlockingTold | None = None,
        on_lost: BlockingTold | None = None,
        **wanted: Any,
    ) -> BlockingHolder:
        """All of these locks or none."""
        return self._hold(self._inner.acquire_all, (names,), wanted, on_jeopardy, on_lost)

    def _hold(
        self,
        method: Callable[..., Holder],
        positional: tuple[Any, ...],
        wanted: Mapping[str, Any],
        on_jeopardy: BlockingTold | None,
        on_lost: BlockingTold | None,
    ) -> BlockingHolder:
        def make(**callbacks: Any) -> Holder:
            return method(*positional, **wanted, **callbacks)

        return BlockingHolder(make, self._runner, on_jeopardy, on_lost)

    show_lock = waiting(Coordination.show_lock)
    locks = iterating(Coordination.locks)
    break_lock = waiting(Coordination.break_lock)
    show_presence = waiting(Coordination.show_presence)
    close_presence = waiting(Coordination.close_presence)
    gates = iterating(Coordination.gates)
    txn = waiting(Coordination.txn)
    queues = iterating(Coordination.queues)

    def fence(self, resource: str) -> BlockingFence:
        """The fence of a resource that the store does not hold itself."""
        return BlockingFence(self._inner.fence(resource), self._runner)

    def election(self, name: str) -> BlockingElection:
        """An election to stand in, or to observe."""
        return BlockingElection(self._inner.election(name), self._runner)

    def presence(
        self, *, ttl: float = TTL_S, owner: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> BlockingPresence:
        """`with spine.presence() as me`: a session that leases and claims can belong to."""
        return BlockingPresence(self._inner.presence(ttl=ttl, owner=owner, metadata=metadata), self._runner)

    def tasks(self, queue: str) -> BlockingTasks:
        """A queue of tasks."""
        return BlockingTasks(self._inner.tasks(queue), self._runner)

    def gate(self, name: str) -> BlockingGate:
        """A gate."""
        return BlockingGate(self._inner.gate(name), self._runner)

    @property
    def freezes(self) -> BlockingFreezes:
        """Freezes of gates."""
        return BlockingFreezes(self._inner.freezes, self._runner)

    def watch(
        self,
        *,
        prefix: str | None = None,
        kinds: Sequence[str] = (),
        tag: str | None = None,
        since: str | None = None,
    ) -> Iterator[Event]:
        """Changes as they happen, without end."""
        return through(self._runner, self._inner.watch(prefix=prefix, kinds=kinds, tag=tag, since=since))
