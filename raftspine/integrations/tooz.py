"""A coordination driver for OpenStack tooz: locks, groups, leader election and heartbeat on a raftspine cluster.

    coordinator = tooz.coordination.get_coordinator("raftspine://10.0.0.1:8788,10.0.0.2:8788", b"host-1")

The rules: a member is one session of the store, opened by `start` and kept alive by `heartbeat`
(`start(start_heart=True)` does it in the background); its memberships and offices end with it. Locks have leases of
their own (tooz_lock.py), renewed by the same heartbeat. Whoever stops calling it loses all three after the timeout,
for that is what a timeout is.

Options of the URL: `timeout` (30, seconds: of members, locks and the connection), `lock_timeout`,
`membership_timeout`, `protocol` (http), `api_key`, and tooz's own `executor`.
"""

import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakSet

import tooz
from tooz import coordination, utils

from raftspine.client import AsyncSpine
from raftspine.client.coordination import obtain, presence
from raftspine.client.coordination.channel import Channel
from raftspine.client.coordination.obtain import Obtained
from raftspine.client.threads import LoopThread
from raftspine.errors import LeaseLost, LockHeld, NotFound, SpineError, Unavailable, Unknown
from raftspine.integrations.tooz_groups import Group, Groups, Member, name, text
from raftspine.integrations.tooz_lock import Lock

T = TypeVar("T")

DEFAULT_PORT = 8788
DEFAULT_TIMEOUT_S = 30.0
UNREACHED = frozenset({"unreachable", "no_answer", "closed"})

log = logging.getLogger("raftspine.tooz")

_Characteristics = coordination.Characteristics


class Driver(coordination.CoordinationDriverCachedRunWatchers, coordination.CoordinationDriverWithExecutor):
    """See tooz.coordination.CoordinationDriver."""

    CHARACTERISTICS = (
        _Characteristics.DISTRIBUTED_ACROSS_THREADS,
        _Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        _Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        _Characteristics.LINEARIZABLE,
        _Characteristics.SEQUENTIAL,
        _Characteristics.CAUSAL,
        _Characteristics.SERIALIZABLE,
        _Characteristics.SAME_VIEW_UNDER_PARTITIONS,
        _Characteristics.SAME_VIEW_ACROSS_CLIENTS,
    )

    def __init__(self, member_id: bytes, parsed_url: Any, options: dict[str, Any]) -> None:
        super().__init__(utils.to_binary(member_id), parsed_url, options)
        given = utils.collapse(options)
        timeout = float(given.get("timeout", DEFAULT_TIMEOUT_S))
        self.member = text(member_id)
        """This member's name as the store has it."""
        self.lock_timeout = float(given.get("lock_timeout", timeout))
        self._membership_timeout = float(given.get("membership_timeout", timeout))
        self._call_timeout = timeout
        self._api_key = given.get("api_key")
        self._urls = _urls(parsed_url.netloc, given.get("protocol", "http"))
        self._loop: LoopThread | None = None
        self._spine: AsyncSpine | None = None
        self._session = ""
        self._offices: dict[bytes, Obtained] = {}
        self._held: WeakSet[Lock] = WeakSet()
        self._turn = threading.Lock()

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        super()._start()
        self._loop = LoopThread()
        self._spine = AsyncSpine(self._urls, api_key=self._api_key, agent_id=self.member, timeout=self._call_timeout)
        try:
            self._open_session()
        except BaseException:
            self._disconnect()
            raise

    def _stop(self) -> None:
        with self._turn:
            held = list(self._held)
        for lock in held:
            while lock.acquired:
                _try(lock.release, f"release {lock.name!r}")
        _try(lambda: self.run(lambda: presence.close(self.channel, self._session)), "close the session")
        self._offices.clear()
        self._disconnect()
        super()._stop()

    def _disconnect(self) -> None:
        if self._loop is not None and self._spine is not None:
            self._loop.run(self._spine.close())
            self._loop.stop()
        self._loop = self._spine = None

    def heartbeat(self) -> float:
        """Keep this member and its locks; seconds until the next is due. A member that was away for too long is let
        in anew, without the memberships and offices it has lost."""
        try:
            self.run(lambda: presence.renew(self.channel, self._session, self._membership_timeout))
        except (LeaseLost, NotFound):
            log.warning("the session of member %s was lost; its memberships are gone", self.member)
            self._offices.clear()
            self._open_session()
        with self._turn:
            held = list(self._held)
        for lock in held:
            lock.heartbeat()
        return min(self.lock_timeout, self._membership_timeout)

    def _open_session(self) -> None:
        session = self.channel.new_key()
        request = {"session_id": session, "ttl_seconds": self._membership_timeout, "owner": self.member}
        self.run(lambda: presence.register(self.channel, request))
        self._session = session

    # ── for the lock ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def channel(self) -> Channel:
        if self._spine is None:
            raise tooz.ToozError("this coordinator is not started")
        return self._spine.channel

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of something asynchronous. LockHeld, LeaseLost and NotFound as they are, every other refusal as
        the error of tooz that means the same."""
        loop = self._loop
        if loop is None:
            raise tooz.ToozError("this coordinator is not started")
        try:
            return loop.run(work())
        except (LockHeld, LeaseLost, NotFound):
            raise
        except SpineError as error:
            raise _translated(error) from error

    def taken(self, lock: Lock) -> None:
        """A lock that the heartbeat must keep."""
        with self._turn:
            self._held.add(lock)

    def given(self, lock: Lock) -> None:
        """A lock that it must not keep any more."""
        with self._turn:
            self._held.discard(lock)

    def get_lock(self, name: bytes) -> Lock:
        return Lock(self, name)

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────

    def create_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        return self._later(lambda groups: groups.create(group_id))

    def delete_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        def empty(members: dict[str, Member]) -> None:
            if members:
                raise coordination.GroupNotEmpty(group_id)

        return self._later(lambda groups: groups.change(group_id, empty))

    def get_groups(self) -> coordination.CoordinatorResult[list[bytes]]:
        async def listed(groups: Groups) -> list[bytes]:
            return [name(group) for group in await groups.list()]

        return self._later(listed)

    def join_group(
        self, group_id: bytes, capabilities: coordination.Capabilities | None = None
    ) -> coordination.CoordinatorResult[None]:
        def joined(members: dict[str, Member]) -> dict[str, Member]:
            if self.member in members:
                raise coordination.MemberAlreadyExist(group_id, self._member_id)
            return {**members, self.member: Member.of(self._session, capabilities)}

        async def join(groups: Groups) -> None:
            await groups.change(group_id, joined)
            self._joined_groups.add(group_id)

        return self._later(join)

    def leave_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        def left(members: dict[str, Member]) -> dict[str, Member]:
            self._required(group_id, members, self.member)
            return {each: member for each, member in members.items() if each != self.member}

        async def leave(groups: Groups) -> None:
            await groups.change(group_id, left)
            self._joined_groups.discard(group_id)

        return self._later(leave)

    def update_capabilities(
        self, group_id: bytes, capabilities: coordination.Capabilities
    ) -> coordination.CoordinatorResult[None]:
        def updated(members: dict[str, Member]) -> dict[str, Member]:
            stored = self._required(group_id, members, self.member)
            return {**members, self.member: Member.of(stored.session, capabilities)}

        return self._later(lambda groups: groups.change(group_id, updated))

    def get_members(self, group_id: bytes) -> coordination.CoordinatorResult[set[bytes]]:
        return self._look(group_id, lambda group: {name(member) for member in group.members})

    def get_members_with_capabilities(
        self, group_id: bytes
    ) -> coordination.CoordinatorResult[dict[bytes, coordination.Capabilities | None]]:
        return self._look(
            group_id, lambda group: {name(each): member.told() for each, member in group.members.items()}
        )

    def get_member_capabilities(
        self, group_id: bytes, member_id: bytes
    ) -> coordination.CoordinatorResult[coordination.Capabilities | None]:
        return self._look(group_id, lambda group: self._required(group_id, group.members, text(member_id)).told())

    def get_member_info(self, group_id: bytes, member_id: bytes) -> coordination.CoordinatorResult[dict[str, Any]]:
        async def informed(groups: Groups) -> dict[str, Any]:
            group = await groups.read(group_id)
            member = self._required(group_id, group.members, text(member_id))
            session = await presence.show(self.channel, member.session)
            return {
                "capabilities": member.told(),
                "created_at": session["opened_at"],
                "expires_at": session["expires_at"],
            }

        return self._later(informed)

    def _required(self, group_id: bytes, members: dict[str, Member], member: str) -> Member:
        found = members.get(member)
        if found is None:
            raise coordination.MemberNotJoined(group_id, name(member))
        return found

    def _look(self, group_id: bytes, told: Callable[[Group], T]) -> coordination.CoordinatorResult[T]:
        async def looked(groups: Groups) -> T:
            return told(await groups.read(group_id))

        return self._later(looked)

    def _later(self, work: Callable[[Groups], Awaitable[T]]) -> coordination.CoordinatorResult[T]:
        """Do it on the executor, one after the other: who joins and then asks is in the group."""

        async def working() -> T:
            assert self._spine is not None
            return await work(Groups(self._spine))

        def worked() -> T:
            try:
                return self.run(working)
            except (LockHeld, LeaseLost, NotFound) as error:
                raise _translated(error) from error

        return coordination.CoordinatorResult(self._executor.submit(worked))

    # ── elections ───────────────────────────────────────────────────────────────────────────────────────────

    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        result = super().run_watchers(timeout=timeout)
        self.run_elect_coordinator()
        return result

    def run_elect_coordinator(self) -> None:
        for group_id in list(self._hooks_elected_leader):
            if not self._leads(group_id) and self._campaign(group_id):
                event = coordination.LeaderElected(group_id, self._member_id)
                self._hooks_elected_leader[group_id].run(event)

    def stand_down_group_leader(self, group_id: bytes) -> bool:
        office = self._offices.pop(utils.to_binary(group_id), None)
        if office is None:
            return False
        lease, term = office.answer["lease_id"], office.answer["fencing_token"]
        try:
            self.run(lambda: obtain.give_back(self.channel, _election(group_id), lease, term))
        except LeaseLost:
            return False
        return True

    def get_leader(self, group_id: bytes) -> coordination.CoordinatorResult[bytes | None]:  # type: ignore[override]
        async def leader(groups: Groups) -> bytes | None:
            assert self._spine is not None
            found = await self._spine.election(_election(group_id).name).leader()
            return None if found is None else name(found.owner)

        return self._later(leader)

    def _leads(self, group_id: bytes) -> bool:
        """Whether this member is in office, by the store's word."""
        office = self._offices.get(utils.to_binary(group_id))
        if office is None:
            return False
        lease, term = office.answer["lease_id"], office.answer["fencing_token"]
        try:
            self.run(lambda: obtain.renew(self.channel, _election(group_id), lease, term, self._call_timeout))
        except LeaseLost:
            self._offices.pop(utils.to_binary(group_id), None)
            return False
        return True

    def _campaign(self, group_id: bytes) -> bool:
        body = {"owner": self.member, "session_id": self._session}
        try:
            won = self.run(lambda: obtain.once(self.channel, _election(group_id), body))
        except (LockHeld, LeaseLost):
            return False
        self._offices[utils.to_binary(group_id)] = won
        return True


def _election(group_id: bytes) -> obtain.Ways:
    return obtain.election_ways(f"tooz/leader/{text(group_id)}")


def _urls(netloc: str, protocol: str) -> list[str]:
    """The addresses in `host[:port][,host[:port]…]`."""
    hosts = [part for part in netloc.rpartition("@")[2].split(",") if part] or ["localhost"]
    return [f"{protocol}://{host if _has_port(host) else f'{host}:{DEFAULT_PORT}'}" for host in hosts]


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")


def _translated(error: SpineError) -> Exception:
    if isinstance(error, Unavailable) and error.code in UNREACHED:
        return coordination.ToozConnectionError(error.message)
    if isinstance(error, Unavailable | Unknown):
        return coordination.OperationTimedOut(error.message)
    return tooz.ToozError(f"{error.message} [{error.code}]")


def _try(act: Callable[[], Any], what: str) -> None:
    """At the end, what cannot be given back ends with its timeout."""
    try:
        act()
    except (SpineError, tooz.ToozError) as error:
        log.warning("could not %s: %s", what, error)
