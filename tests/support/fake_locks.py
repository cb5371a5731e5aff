"""Locks for the fake server: one holder each, no queue and no time of its own, so that a test decides what
expires."""

import itertools
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.support.fake_server import Seen


@dataclass
class FakeLocks:
    """`held`: lease id and token by name. `ttl_ms`: of every grant. `silent`: renewals answer 503, as without a
    quorum. `waits`: how often an acquisition that waits is told `lock_held` before it is granted."""

    ttl_ms: int = 600
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    silent: bool = False
    waits: int = 0
    renewals: int = 0
    tickets: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = itertools.count(1)

    def __call__(self, seen: Seen) -> tuple[int, Any]:
        match [unquote(part) for part in seen.path.strip("/").split("/")]:
            case ["v1", "locks", name, "acquire"]:
                return self._acquire(name, seen.body)
            case ["v1", "locks", name, "renew"]:
                self.renewals += 1
                if self.silent:
                    return 503, _error("no_quorum")
                return self._of(name, seen.body) or (200, self._life(*self.held[name]))
            case ["v1", "locks", name, "release"]:
                if seen.body["fencing_token"] == 0:
                    self.withdrawn.append(seen.body["lease_id"])
                    return 200, {"released": True, "hold": 0}
                wrong = self._of(name, seen.body)
                if wrong is None:
                    del self.held[name]
                return wrong or (200, {"released": True, "hold": 0})
            case ["v1", "locks", name, "check"]:
                valid = self.held.get(name, ("", 0))[1] == seen.body["fencing_token"]
                return 200, {"valid": valid, "remaining_ms": self.ttl_ms if valid else 0}
        return 404, _error("not_found")

    def lose(self, name: str) -> None:
        """Somebody broke it."""
        del self.held[name]

    def _acquire(self, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        if "ticket" in body:
            self.tickets.append(body["ticket"])
        if name in self.held or self.waits > 0:
            self.waits -= 1
            return 409, _error("lock_held", holder="another", position=1, ticket=body.get("ticket"))
        self.held[name] = (body.get("ticket") or f"lease-{name}", next(self._tokens))
        return 200, self._life(*self.held[name])

    def _of(self, name: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if self.held.get(name) != (body["lease_id"], body["fencing_token"]):
            return 409, _error("lease_not_current")
        return None

    def _life(self, lease: str, token: int) -> dict[str, Any]:
        return {"lease_id": lease, "fencing_token": token, "hold": 1, "mode": "exclusive", "ttl_ms": self.ttl_ms,
                "ttl_remaining_ms": self.ttl_ms, "renew_after_ms": self.ttl_ms // 3}  # fmt: skip


def _error(code: str, **details: Any) -> dict[str, Any]:
    told = {"code": code, "message": f"the fake says {code}", "details": details, "requestId": "r"}
    return {**told, "retryable": False, "retry_after_ms": None}
