"""A lock as tooz wants it: every acquisition is a lease of its own, kept alive by the coordinator's heartbeat.

Two acquisitions of one name exclude each other, whichever objects or threads they come from, because no two share a
session; shared ones stand beside each other. What was taken is given back last first. A lease that the store does not
know any more is not released again: `release` says False, and never touches another holder's.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tooz import locking, utils

from raftspine.client.coordination import obtain
from raftspine.client.coordination.obtain import Obtained
from raftspine.errors import LeaseLost, LockHeld
from raftspine.integrations.tooz_groups import text

if TYPE_CHECKING:
    from raftspine.integrations.tooz import Driver


class Lock(locking.Lock):
    """See tooz.locking.Lock. `blocking` may be a number of seconds, and so may `timeout`."""

    def __init__(self, driver: "Driver", name: bytes) -> None:
        super().__init__(name)
        self._driver = driver
        self._ways = obtain.lock_ways(f"tooz/lock/{text(utils.to_binary(name))}")
        self._leases: list[Obtained] = []
        self._turn = threading.Lock()

    @property
    def acquired(self) -> bool:
        """Whether this object has taken the lock and not given it back. The store may know better: is_still_owner."""
        return bool(self._leases)

    @property
    def token(self) -> int | None:
        """The fencing token of the last acquisition, for resources that check it."""
        with self._turn:
            return self._leases[-1].answer["fencing_token"] if self._leases else None

    def acquire(self, blocking: bool | float = True, shared: bool = False, timeout: float | None = None) -> bool:
        """True when it was taken."""
        wait = float(blocking) if not isinstance(blocking, bool) else None if blocking else 0.0
        if timeout is not None and wait != 0.0:
            wait = float(timeout) if wait is None else min(wait, float(timeout))
        body: dict[str, Any] = {
            "owner": self._driver.member,
            "ttl_seconds": self._driver.lock_timeout,
            "mode": "shared" if shared else "exclusive",
        }
        try:
            got = self._driver.run(lambda: obtain.obtain(self._driver.channel, self._ways, body, wait))
        except LockHeld:
            return False
        with self._turn:
            self._leases.append(got)
        self._driver.taken(self)
        return True

    def release(self) -> bool:
        """True when it was given back; False when there was nothing to give."""
        with self._turn:
            if not self._leases:
                return False
            got = self._leases.pop()
        if not self._leases:
            self._driver.given(self)
        return self._known(got, lambda lease, token: obtain.give_back(self._driver.channel, self._ways, lease, token))

    def break_(self) -> bool:
        """Take it from whoever holds it; the store writes down who did. False when nobody does."""
        path = self._ways.take.rsplit("/", 1)[0] + "/break"
        reason = {"reason": f"broken by the tooz member {self._driver.member}"[:500]}
        try:
            self._driver.run(lambda: self._driver.channel.change(path, reason))
        except LeaseLost:
            return False
        return True

    def is_still_owner(self) -> bool:
        """The store's word, linearizably."""
        with self._turn:
            if not self._leases:
                return False
            token = self._leases[-1].answer["fencing_token"]
        path = self._ways.take.rsplit("/", 1)[0] + "/check"
        answer = self._driver.run(lambda: self._driver.channel.ask(path, {"fencing_token": token}))
        return bool(answer["valid"])

    def heartbeat(self) -> bool:
        """Keep it for another timeout; False when it is not held (any more)."""
        with self._turn:
            held = list(self._leases)
        within = self._driver.lock_timeout
        for got in held:
            if not self._known(
                got, lambda lease, token: obtain.renew(self._driver.channel, self._ways, lease, token, within)
            ):
                with self._turn:
                    if got in self._leases:
                        self._leases.remove(got)
        if held and not self._leases:
            self._driver.given(self)
        return bool(self._leases)

    def _known(self, got: Obtained, act: Callable[[str, int], Any]) -> bool:
        lease, token = got.answer["lease_id"], got.answer["fencing_token"]
        try:
            self._driver.run(lambda: act(lease, token))
        except LeaseLost:
            return False
        return True
