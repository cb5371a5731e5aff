"""What is asked of coordination: locks, gates and tasks, as operations of one or several requests.

A lock that is taken and given back is one operation of two requests, the second made from the reply to the first
(the lease and its fencing token), so that latency is what an agent waits for the pair. What each client needs before
the measurement (a lease to renew, a gate to verify) is made through its own connection, in `first`.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from raftspine.bench.workloads import READ, WRITE, Asking, common_headers, entity
from raftspine.errors import Misuse, SpineError

TTL_SECONDS = 60
WAIT_SECONDS = 30
DIGEST = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

_TOKEN = re.compile(rb'"(?:fencing|claim)_token": ?(\d+)')
_LEASE = re.compile(rb'"lease_id": ?"([^"]+)"')
_ID = re.compile(rb'"id": ?"([^"]+)"')


class Requests:
    """HTTP requests as bytes."""

    def __init__(self, api_key: str | None = None) -> None:
        self._headers = common_headers(api_key)

    def get(self, path: str) -> bytes:
        return f"GET /v1/{path} HTTP/1.1\r\n".encode() + self._headers + b"\r\n"

    def post(self, path: str, body: object, method: str = "POST") -> bytes:
        line = f"{method} /v1/{path} HTTP/1.1\r\n".encode()
        return line + self._headers + entity(msgspec.json.encode(body))

    def acquire(self, name: str, wait_seconds: float, ttl_seconds: float = TTL_SECONDS) -> bytes:
        return self.post(f"locks/{name}/acquire", {"ttl_seconds": ttl_seconds, "wait_seconds": wait_seconds})

    def release(self, name: str, lease: str, token: int) -> bytes:
        return self.post(f"locks/{name}/release", {"lease_id": lease, "fencing_token": token})


class Act(NamedTuple):
    """`make` returns the first request of an operation and sets what follows it. `prepare` does the same before the
    measurement, once for each client; without it a client begins with one operation."""

    text: str
    make: "Callable[[Coordinated, Asking], bytes]"
    prepare: "Callable[[Coordinated, Asking], bytes] | None" = None
    kind: int = WRITE


class Coordinated:
    """One kind of operation, each client on a name of its own unless the kind says otherwise."""

    weight = 1

    def __init__(self, name: str, api_key: str | None = None) -> None:
        """Raises Misuse for a name that is not in ACTS."""
        if name not in ACTS:
            raise Misuse(f"no workload {name!r}; there are {', '.join(ACTS)}")
        self.name = name
        self._act = ACTS[name]
        self._ask = Requests(api_key)
        self._asked: dict[int, bytes] = {}
        """What a client repeats, by its number: made when it was prepared."""

    def next(self, connection: Asking, /) -> bytes:
        connection.kind = self._act.kind
        return self._act.make(self, connection)

    def first(self, connection: Asking, /) -> bytes:
        connection.kind = WRITE
        return (self._act.prepare or self._act.make)(self, connection)

    def failed_in(self, body: bytes, /) -> int:
        return 0

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    def _again(self, connection: Asking) -> bytes:
        return self._asked[connection.number]

    def lock(self, connection: Asking) -> bytes:
        return self._held(connection, f"bench-lock-{connection.number}", 0)

    def lock_one(self, connection: Asking) -> bytes:
        return self._held(connection, "bench-lock", WAIT_SECONDS)

    def _held(self, connection: Asking, name: str, wait_seconds: float) -> bytes:
        connection.follow = lambda done: self._ask.release(name, lease_in(done.body), token_in(done.body))
        return self._ask.acquire(name, wait_seconds)

    def renew_prepared(self, connection: Asking) -> bytes:
        name = f"bench-renew-{connection.number}"

        def renewed(done: Asking) -> bytes:
            body = {"lease_id": lease_in(done.body), "fencing_token": token_in(done.body)}
            request = self._asked[done.number] = self._ask.post(f"locks/{name}/renew", body)
            return request

        connection.follow = renewed
        return self._ask.acquire(name, 0)

    def verify_prepared(self, connection: Asking) -> bytes:
        """A gate with a policy, a request, its admission; what is repeated is the check of the admission."""
        gate = f"gates/bench-gate-{connection.number}"
        request = {"artifact_digest": DIGEST, "requester": "bench"}
        admission = {"artifact_digest": DIGEST, "agent_id": "bench"}
        policy = {"concurrent": 64}  # what an earlier run left open must not be in the way

        def ask(done: Asking) -> bytes:
            done.follow = admit
            return self._ask.post(f"{gate}/requests", request)

        def admit(done: Asking) -> bytes:
            place = f"{gate}/requests/{_found(_ID, done.body)}"
            done.follow = lambda admitted: verify(admitted, place)
            return self._ask.post(f"{place}/admit", admission)

        def verify(done: Asking, place: str) -> bytes:
            body = {"fencing_token": token_in(done.body), "artifact_digest": DIGEST}
            made = self._asked[done.number] = self._ask.post(f"{place}/verify", body)
            return made

        connection.follow = ask
        return self._ask.post(gate, {"state": "open", "policy": policy, "agent_id": "bench"}, "PUT")

    def pass_prepared(self, connection: Asking) -> bytes:
        gate = f"gates/bench-pass-{connection.number}"
        self._asked[connection.number] = self._ask.post(f"{gate}/pass", {"agent_id": "bench"})
        connection.follow = self._again
        return self._ask.post(gate, {"state": "open", "agent_id": "bench"}, "PUT")

    def task(self, connection: Asking) -> bytes:
        queue = f"tasks/bench-{connection.number}"

        def claim(done: Asking) -> bytes:
            done.follow = complete
            return self._ask.post(f"{queue}/claim", {"owner": "bench"})

        def complete(done: Asking) -> bytes:
            return self._ask.post(f"{queue}/{_found(_ID, done.body)}/complete", {"claim_token": token_in(done.body)})

        connection.follow = claim
        return self._ask.post(queue, {"payload": {"n": connection.number}})


ACTS: Mapping[str, Act] = {
    "lock": Act("lock acquire + release, a name for each client", Coordinated.lock),
    "lock-one": Act("lock acquire + release, one name for all, waiting", Coordinated.lock_one),
    "renew": Act("lock renew", Coordinated._again, Coordinated.renew_prepared),
    "gate-verify": Act("gate verify", Coordinated._again, Coordinated.verify_prepared, READ),
    "gate-pass": Act("gate pass", Coordinated._again, Coordinated.pass_prepared),
    "task": Act("task enqueue + claim + complete, a queue for each client", Coordinated.task),
}


def lease_in(body: bytes) -> str:
    """The lease of a reply. Raises SpineError."""
    return _found(_LEASE, body)


def token_in(body: bytes) -> int:
    """The fencing or claim token of a reply. Raises SpineError."""
    return int(_found(_TOKEN, body))


def _found(pattern: re.Pattern[bytes], body: bytes) -> str:
    found = pattern.search(body)
    if found is None:
        raise SpineError(f"the reply has no {pattern.pattern.decode()}: {body[:200].decode(errors='replace')}")
    return found.group(1).decode()
