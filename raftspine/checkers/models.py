"""What a correct object answers, as tables: kind of operation -> the state after it, or IMPOSSIBLE.

A model is the whole specification of one key when operations come one at a time; `linear` decides whether a
concurrent history can be put into such an order. States are hashable and small, because the search remembers
thousands of them. A rule sees `op.output` only where `op.ok`; of an unknown outcome it must say what the state would
be had it taken effect.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from raftspine.checkers.history import Operation

State = Hashable


class _Impossible:
    def __repr__(self) -> str:
        return "IMPOSSIBLE"


IMPOSSIBLE: Final = _Impossible()
"""The answer that this operation gave cannot be given in this state."""

Rule = Callable[[Any, Operation], Any]
Rules = Mapping[str, Rule]


class Model(NamedTuple):
    """`rules` may look at the whole history of the key first. `pure` names the operations that, in whatever state
    they are possible, change nothing. `needless` says whether an operation can be left out of any history without
    making a possible one impossible: then leaving it out proves as much and costs less. Pure ones always can."""

    name: str
    initial: State
    rules: Callable[[Sequence[Operation]], Rules]
    pure: Callable[[Operation], bool]
    shown: Callable[[Any], str] = str
    unseen: Callable[[Operation, Sequence[Operation]], bool] = lambda op, others: False

    def needless(self, op: Operation, others: Sequence[Operation]) -> bool:
        return self.pure(op) or self.unseen(op, others)


def frozen(value: Any) -> Hashable:
    """A JSON value as something hashable: scalars as they are, with true kept apart from 1; the rest as text."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return msgspec.json.encode(value)


def _reads(*kinds: str) -> Callable[[Operation], bool]:
    """Operations of these kinds, and whatever was refused: a refusal changes nothing."""
    return lambda op: op.kind in kinds or not applied(op)


def applied(op: Operation) -> bool:
    """Whether it did, or may have done, what it was asked to; a decided refusal did not."""
    return not (op.ok and isinstance(op.output, dict) and op.output.get("refused", False))


# ── register: write, delete, read ──────────────────────────────────────────────────────────────────────────────

_REGISTER: Rules = {
    "write": lambda _, op: frozen(op.input),
    "delete": lambda _, op: None,
    "read": lambda state, op: state if not op.ok or frozen(op.output) == state else IMPOSSIBLE,
}


def _unread(op: Operation, others: Sequence[Operation]) -> bool:
    """A write whose value nobody read: in an order that explains the rest, it can be struck out."""
    value = frozen(op.input) if op.kind == "write" else None
    return not any(other.kind == "read" and other.ok and frozen(other.output) == value for other in others)


def _value(state: Any) -> str:
    if state is None:
        return "nothing"
    return state.decode() if isinstance(state, bytes) else repr(state)


REGISTER = Model("register", None, lambda _: _REGISTER, _reads("read"), _value, _unread)
"""`write` (input: the value), `delete`, `read` (output: the value, None for nothing)."""


# ── compare-and-set register, by version ───────────────────────────────────────────────────────────────────────


class _Cell(NamedTuple):
    """`version` None: present, under a version that nobody has been told yet."""

    value: Hashable = None
    version: str | None = None
    present: bool = False


def _cas_rules(operations: Sequence[Operation]) -> Rules:
    """A version told in the answer of a write is that write's alone: a write of unknown outcome has another."""
    claimed = {op.output["version"] for op in operations if op.ok and op.kind in ("write", "cas") and applied(op)}

    def matches(cell: _Cell, version: str) -> bool:
        return cell.present and (cell.version == version or (cell.version is None and version not in claimed))

    def stored(op: Operation) -> _Cell:
        value = op.input["value"]
        return _Cell() if value is None else _Cell(frozen(value), op.output["version"] if op.ok else None, True)

    def read(cell: _Cell, op: Operation) -> Any:
        if not op.ok:
            return cell
        if op.output is None:
            return cell if not cell.present else IMPOSSIBLE
        fits = frozen(op.output["value"]) == cell.value and matches(cell, op.output["version"])
        return cell._replace(version=op.output["version"]) if fits else IMPOSSIBLE

    def cas(cell: _Cell, op: Operation) -> Any:
        expected = op.input["expected"]
        holds = not cell.present if expected is None else matches(cell, expected)
        if applied(op):
            return stored(op) if holds else IMPOSSIBLE if op.ok else cell
        surely = cell.version is not None or not cell.present or expected is None
        return IMPOSSIBLE if holds and surely else cell

    return {"write": lambda _, op: stored(op), "delete": lambda _, op: _Cell(), "read": read, "cas": cas}


CAS_REGISTER = Model("cas-register", _Cell(), _cas_rules, _reads("read"), lambda cell: _value(cell.value))
"""`write` (input: value; output: version), `delete`, `read` (output: value and version, or None), `cas` (input:
expected version, None for absent, and value; output: version, or `{"refused": true}`, which is a decision too)."""


# ── counter ────────────────────────────────────────────────────────────────────────────────────────────────────


def _add(state: int, op: Operation) -> Any:
    if not applied(op):
        return state
    total = state + op.input
    return total if not op.ok or op.output is None or op.output == total else IMPOSSIBLE


_COUNTER: Rules = {
    "add": _add,
    "read": lambda state, op: state if not op.ok or (op.output or 0) == state else IMPOSSIBLE,
}

COUNTER = Model("counter", 0, lambda _: _COUNTER, _reads("read"))
"""`add` (input: a number; output: the new total, None when it is not told, or refused), `read` (output: the total,
or None where nothing was ever added)."""


# ── lock with fencing tokens ───────────────────────────────────────────────────────────────────────────────────


class _Lock(NamedTuple):
    """Who holds it, under which lease and token (None: not told to anyone), and the highest token so far."""

    lease: str | None = None
    term: int = 0
    token: int | None = None
    highest: int = 0


def _acquire(lock: _Lock, op: Operation) -> Any:
    if not applied(op):
        return lock if lock.lease is not None else IMPOSSIBLE
    if lock.lease is not None:
        return IMPOSSIBLE if op.ok else lock
    token = op.output["token"] if op.ok else None
    if token is not None and token <= lock.highest:
        return IMPOSSIBLE
    return _Lock(op.input["lease"], 0, token, lock.highest + 1 if token is None else token)


def _release(lock: _Lock, op: Operation) -> Any:
    current = lock.lease == op.input["lease"]
    if not applied(op):
        return IMPOSSIBLE if current else lock
    if not current:
        return IMPOSSIBLE if op.ok else lock
    return _Lock(highest=lock.highest)


def _renew(lock: _Lock, op: Operation) -> Any:
    current = lock.lease == op.input["lease"]
    if not applied(op):
        return IMPOSSIBLE if current else lock
    if not current:
        return IMPOSSIBLE if op.ok else lock
    return lock._replace(term=op.input.get("term", 0))


def _expire(lock: _Lock, op: Operation) -> Any:
    current = lock.lease == op.input["lease"] and lock.term == op.input.get("term", 0)
    return _Lock(highest=lock.highest) if current else lock


def _check(lock: _Lock, op: Operation) -> Any:
    if not op.ok:
        return lock
    token = op.input["token"]
    if not op.output["valid"]:
        return IMPOSSIBLE if lock.lease is not None and lock.token == token else lock
    if lock.lease is None:
        return IMPOSSIBLE
    if lock.token is None and token >= lock.highest:
        return lock._replace(token=token, highest=token)
    return lock if lock.token == token else IMPOSSIBLE


_LOCK: Rules = {"acquire": _acquire, "release": _release, "renew": _renew, "check": _check, "expire": _expire}


def _held(lock: _Lock) -> str:
    return "free" if lock.lease is None else f"held by {lock.lease}"


LOCK = Model("lock", _Lock(), lambda _: _LOCK, _reads("check"), _held)
"""`acquire` (input: lease, a name unique to the call, and ttl_ns; output: token, or refused), `release` and `renew`
(input: lease; renewals count `term` up and may carry ttl_ns; output None, or refused), `check` (input: token;
output: valid). `with_expiries` adds what clients cannot see."""


def with_expiries(operations: Sequence[Operation]) -> list[Operation]:
    """The history with the end of each lease as an event of its own: one that may come at any time from
    the earliest moment the lease could run out, or never. That is exactly an operation of unknown outcome."""
    expiries = [
        Operation(
            process=f"{op.process}'s lease",
            key=op.key,
            kind="expire",
            input={"lease": op.input["lease"], "term": op.input.get("term", 0)},
            invoked_at=op.invoked_at + op.input["ttl_ns"],
        )
        for op in operations
        if op.kind in ("acquire", "renew") and op.maybe and op.input.get("ttl_ns") is not None
    ]
    return sorted([*operations, *expiries], key=lambda op: op.invoked_at)


# ── first in, first out ────────────────────────────────────────────────────────────────────────────────────────


def _pop(state: tuple[Hashable, ...], op: Operation) -> Any:
    if not op.ok:
        return state[1:]
    if op.output is None:
        return IMPOSSIBLE if state else state
    return state[1:] if state and state[0] == frozen(op.output) else IMPOSSIBLE


def _queue_rules(operations: Sequence[Operation]) -> Rules:
    """A push may not put an item behind one that certainly leaves later. The pop would find that out as well, but
    only after the search has tried every order of all pushes in between."""
    leaves: dict[Hashable, tuple[float, float] | None] = {}
    for op in operations:
        if op.kind == "pop" and op.ok and op.output is not None:
            item = frozen(op.output)
            leaves[item] = None if item in leaves else (op.invoked_at, op.ends_at)
    never = (float("inf"), float("inf"))
    unsure = any(op.kind == "pop" and op.outcome == "unknown" for op in operations)

    def push(state: tuple[Hashable, ...], op: Operation) -> Any:
        item = frozen(op.input)
        leaving = leaves.get(item)
        for ahead in state if leaving is not None else ():
            other = leaves.get(ahead, None if unsure else never)
            if other is not None and leaving is not None and leaving[1] < other[0]:
                return IMPOSSIBLE
        return (*state, item)

    return {"push": push, "pop": _pop}


def _unpopped(op: Operation, others: Sequence[Operation]) -> bool:
    """A push whose item nobody was given: strike it out together with the unknown pop, if any, that took it."""
    item = frozen(op.input)
    return op.kind == "push" and not any(other.kind == "pop" and frozen(other.output) == item for other in others)


QUEUE = Model("queue", (), _queue_rules, lambda op: op.kind == "pop" and op.ok and op.output is None, str, _unpopped)
"""`push` (input: an item, each pushed once), `pop` (output: the item, None when empty). Many pops of unknown outcome
leave so many orders open that the verdict may be unknown."""

MODELS: Mapping[str, Model] = {model.name: model for model in (REGISTER, CAS_REGISTER, COUNTER, LOCK, QUEUE)}
