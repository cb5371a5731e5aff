"""The commands on tasks, simple gates and transactions, as they stand in a shard group's log.

As in lock_commands.py: chance before the log, `request`, `fingerprint` and `agent` last, fields append only.
"""

from typing import Any

from msgspec import Struct

from raftspine.core.ledger.gate_policy import Policy
from raftspine.core.ledger.memory_commands import Guard, PutMemory, TxnOp
from raftspine.model import RingRecord


class EnqueueTask(Struct, frozen=True, array_like=True, tag="task-enqueue"):
    """Put a task into a queue. `id` is unique in its queue while the task is remembered; with a `dedupe` key
    that an unfinished task carries, that task is the answer. max_attempts 0: no limit. backoff_ms: pause
    after the first failed attempt, doubled with each further one. then: memories of this group that are
    written in the moment of completion."""

    queue: str
    id: str
    payload: Any = None
    priority: int = 0
    not_before_ms: int = 0
    max_attempts: int = 0
    backoff_ms: int = 0
    dedupe: str = ""
    then: tuple[PutMemory, ...] = ()
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ClaimTasks(Struct, frozen=True, array_like=True, tag="task-claim"):
    """Take up to `count` tasks. `claim` names this claim; without a session each task's claim is a session of
    its own with `ttl_ms`."""

    queue: str
    claim: str
    count: int = 1
    owner: str = ""
    ttl_ms: int = 0
    session: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class ExtendTask(Struct, frozen=True, array_like=True, tag="task-extend"):
    """Renew a claim, with another TTL (0: the same)."""

    queue: str
    id: str
    token: int
    ttl_ms: int = 0
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class Picture(Struct, frozen=True, array_like=True):
    """What the ring held of an id that a completion writes; as in PutMemory."""

    id: str
    ring: RingRecord | None = None
    log_seen: int = 0


class CompleteTask(Struct, frozen=True, array_like=True, tag="task-complete"):
    """Finish a task and write what its `then` says, in one step. `then` adds to the task's own."""

    queue: str
    id: str
    token: int
    result: Any = None
    then: tuple[PutMemory, ...] = ()
    pictures: tuple[Picture, ...] = ()
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class FailTask(Struct, frozen=True, array_like=True, tag="task-fail"):
    """Give a task back. retry False: to the dead letters at once. delay_ms: pause before the next attempt
    (None: the task's backoff)."""

    queue: str
    id: str
    token: int
    error: str = ""
    retry: bool = True
    delay_ms: int | None = None
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class RequeueTask(Struct, frozen=True, array_like=True, tag="task-requeue"):
    """Give a dead task its attempts back."""

    queue: str
    id: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class RemoveTask(Struct, frozen=True, array_like=True, tag="task-remove"):
    """Forget a task that nobody has claimed."""

    queue: str
    id: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class PutGate(Struct, frozen=True, array_like=True, tag="gate-put"):
    """Set a gate. uses None: no limit; expires_at_ms 0: never; policy None: a simple gate."""

    name: str
    state: str
    uses: int | None = None
    expires_at_ms: int = 0
    reason: str = ""
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""
    policy: Policy | None = None


class PassGate(Struct, frozen=True, array_like=True, tag="gate-pass"):
    """Pass a gate, consuming one use. `pass_id` names the passage."""

    name: str
    pass_id: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class DeleteGate(Struct, frozen=True, array_like=True, tag="gate-delete"):
    """Remove a gate; from then on it is closed."""

    name: str
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""


class Compare(Struct, frozen=True, array_like=True):
    """One condition of a transaction; what is left at its default is not asked.

    memory: an id of this group, with `version` (its text) or `exists`. lock: a name, with the `token` that must
    be current (0: nobody may hold it)."""

    memory: str = ""
    version: str | None = None
    exists: bool | None = None
    lock: str = ""
    token: int = 0


class Txn(Struct, frozen=True, array_like=True, tag="txn"):
    """`then` when all of `compare` holds, else `otherwise`; all of the branch or nothing. Conditions, guards
    and request fields of the single operations count, but for their requests."""

    compare: tuple[Compare, ...] = ()
    then: tuple[TxnOp, ...] = ()
    otherwise: tuple[TxnOp, ...] = ()
    guards: tuple[Guard, ...] = ()
    request: bytes = b""
    fingerprint: bytes = b""
    agent: str = ""
