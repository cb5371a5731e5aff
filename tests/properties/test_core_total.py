"""Whatever decodes as a command is decided: by the same bytes on two replicas, without an exception, within bounds.

The builders are made from the types themselves, so a new command or field is tried without anybody thinking of it.
Texts and numbers are extreme; names come from small pools as well, so that commands meet each other's things.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from msgspec import Struct

from raftspine.core.ledger import commands, events, machine, nesting, outcomes
from raftspine.core.ledger.commands import Malformed
from raftspine.core.ledger.gate_commands import AdmitRequest, ApproveRequest, RequestGate
from raftspine.core.ledger.gate_policy import Approval, Check, Frozen, Hold, Override, Policy, Wait, Window
from raftspine.core.ledger.lock_commands import AcquireLock, OpenSession
from raftspine.core.ledger.memory_commands import PutMemory
from raftspine.core.ledger.outcomes import REFUSALS, Status
from raftspine.core.ledger.state import Place, SetRequest, SetRow
from raftspine.core.ledger.tables import TABLES
from raftspine.core.ledger.task_commands import ClaimTasks, EnqueueTask, FailTask, PutGate
from raftspine.core.ledger.terraform_commands import LockState, PutState
from raftspine.model import Memory
from tests.support.ledger_store import GROUP, LedgerStore

NAMES = ("a", "b", "{a}/b", "~a", "a/0")
ODD_NAMES = (
    "",
    "\0",
    "a\0b",
    "ä" * 127 + "x",
    "x" * 255,
    "x" * 256,
    "x" * 70_000,
    "{",
    "}{",
    "a/b//",
    "\U0010ffff" * 60,
)
WORDS = ("exclusive", "shared", "semaphore", "lock", "election", "open", "closed", "09:30", "24:00", "mon", "reason")
WHOLE = (0, 1, 2, -1, 3, 60, 2_000, 30_000, 1 << 10, 1 << 53, (1 << 53) + 1, 1 << 63, (1 << 64) - 1, -(1 << 63))
DIGESTS = (b"", b"", b"", b"k" * 16, b"l" * 16, b"m" * 2000)


def nest(depth: int) -> Any:
    value: Any = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


texts = st.sampled_from(NAMES) | st.sampled_from(NAMES + WORDS) | st.sampled_from(ODD_NAMES) | st.text(max_size=5)
numbers = st.sampled_from(WHOLE) | st.integers(-3, 70) | st.integers(-(1 << 63), (1 << 64) - 1)
anything = st.sampled_from(
    (
        None, 1, "x", True, 1.5, float("nan"), float("-inf"), -0.0, (1 << 64) - 1, -(1 << 63), b"\xff", {}, [],
        {"k": [{"k": None}]}, {1: 2, None: 3}, {"a": float("nan")}, nest(60), nest(126), nest(129), nest(200),
        "x" * 70_000, list(range(10_000)), msgspec.msgpack.Ext(5, b"x"),
    )
)  # fmt: skip


@cache
def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if kind is Any:
        return anything
    if kind is NoneType:
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        return numbers
    if kind is float:
        return st.floats()
    if kind is str:
        return texts
    if kind is bytes:
        return st.sampled_from(DIGESTS)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return built(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return st.one_of([of(arg) for arg in args])
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        some = st.lists(of(args[0]), max_size=3).map(tuple)
        return some | st.sampled_from((("a",) * 10_000,)) if args[0] is str else some
    if origin is tuple:
        return st.tuples(*(of(arg) for arg in args))
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=3)
    raise AssertionError(f"no strategy for {kind}")


@cache
def built(kind: type[Struct]) -> st.SearchStrategy[Any]:
    """A struct whose fields are each plausible, extreme, or left at their default."""
    fields = msgspec.structs.fields(kind)

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        names = [field.name for field in fields]
        odd = draw(st.sampled_from(((), *((name,) for name in names), tuple(names))))
        values = {}
        for field in fields:
            if field.name not in odd and not field.required and draw(st.booleans()):
                continue
            values[field.name] = draw(of(field.type) if field.name in odd else likely(field.name, field.type))
        return kind(**values)

    return build()


def likely(name: str, kind: Any) -> st.SearchStrategy[Any]:
    """Values that are often accepted."""
    if name in ("request", "fingerprint"):
        return st.sampled_from((b"", b"", b"k" * 16))
    if name == "mode":
        return st.sampled_from(("exclusive", "shared", "semaphore"))
    if name == "space":
        return st.sampled_from(("lock", "lock", "election"))
    if name == "state":
        return st.sampled_from(("open", "open", "closed"))
    if name in ("ttl_ms", "ticket_ttl_ms"):
        return st.sampled_from((30_000, 2_000, 0))
    if name in ("token", "number", "renewed", "asked"):
        return st.sampled_from((0, 1)) | st.sampled_from(GIVEN)
    if name.endswith(("_ms", "seconds")):
        return st.sampled_from((0, 5_000, 1_000_500, 60))
    if name == "digest":
        return st.sampled_from(("d", "d", "e"))
    if name == "session":
        return st.sampled_from(("", "", "a", "b"))
    if name in ("start", "end"):
        return st.sampled_from(("09:30", "17:00"))
    if name == "info":
        return st.fixed_dictionaries(
            {"ID": st.sampled_from(("a", "b"))}, optional={"Who": anything, "Created": anything}
        )
    if name == "lock_id":
        return st.sampled_from(("", "a", "b"))
    if kind is str:
        return st.sampled_from(("a", "a", "b"))
    if kind is int:
        return st.integers(0, 3)
    if kind is Any:
        return st.sampled_from((None, {"k": 1}, 5))
    return of(kind)


CONDITIONS = (Approval(), Check("a", 60), Wait(5), Window("09:30", "17:00"), Frozen(0, 1_000_500), Hold("a"))
START_MS = 1_000_000
FURNITURE: tuple[Any, ...] = (
    OpenSession("a", 30_000, agent="a"),
    OpenSession("b", 30_000, agent="b"),
    PutGate("a", "open", policy=Policy((Approval(),), override=Override()), agent="a"),
    PutGate("b", "open", policy=Policy(CONDITIONS), expires_at_ms=START_MS + 60_000, agent="a"),
    PutGate("a/0", "open", uses=3, agent="a"),
    *(RequestGate("a", id, "d", id, agent="a") for id in ("a", "b", "c")),
    *(ApproveRequest("a", id, "d", agent="b") for id in ("a", "b")),
    *(AdmitRequest("a", id, "d", True, agent="a") for id in ("a", "b")),
    RequestGate("b", "a", "d", agent="a"),
    AcquireLock("a", "a", "a", lock_delay_ms=5_000),
    AcquireLock("a", "b", "b", queue=True),
    AcquireLock("b", "a", "a", mode="semaphore", permits=3),
    AcquireLock("a", "a", "a", space="election"),
    *(EnqueueTask("a", id, dedupe=id, max_attempts=2, then=(PutMemory("a", Memory(1)),)) for id in ("a", "b")),
    ClaimTasks("a", "a", session="a"),
    EnqueueTask("a", "c", not_before_ms=START_MS + 5_000),
    EnqueueTask("b", "a", max_attempts=1),
    ClaimTasks("b", "b", session="b"),
    FailTask("b", "a", (23 << 10) + 1, retry=False),
    PutMemory("a", Memory(1, tags=("lock",))),
    LockState("a", {"ID": "a"}, 30_000),
    PutState("a", Memory("one"), "a"),
    PutState("a", Memory("two"), "a"),
    LockState("b", {"ID": "b"}, 30_000),
)
"""Something of everything in every state that commands can meet."""


GIVEN = [(index << 10) + nth for index in range(1, len(FURNITURE) + 1) for nth in range(3)]
"""The numbers that furnishing has given: tokens, sessions, places."""


@cache
def furnished() -> LedgerStore:
    store = LedgerStore()
    for index, command in enumerate(FURNITURE, 1):
        outcome, _ = apply(store, commands.encode(command), index, START_MS)
        assert outcomes.decode(outcome).status not in REFUSALS, command
    return store


every = st.one_of([built(kind) for kind in machine.FAMILIES])


plain = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=40) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=20),
    max_leaves=60,
)


def depth_of(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(depth_of, items), default=0)


@given(plain, st.integers(0, 3))
def test_depth_is_known_before_decoding(value: Any, deeper: int) -> None:
    """With a bound that plain values pass or not, the walk says what recursion says."""
    for _ in range(deeper):
        value = {"a" * 300: [0] * 300, "b": value}
    for bound in (0, 1, 2, max(0, depth_of(value) - 1), depth_of(value)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nesting, "DEEPEST", bound)
            assert nesting.is_too_deep(msgspec.msgpack.encode(value)) is (depth_of(value) > bound)


@pytest.mark.parametrize(("levels", "ok"), [(400, True), (600, False), (800, False), (950, False)])
def test_how_deep_a_command_may_be_does_not_depend_on_the_stack(levels: int, ok: bool) -> None:
    data = commands.encode(EnqueueTask("q", "i", "here")).replace(b"\xa4here", b"\x91" * levels + b"\x01")

    def below(frames: int) -> Any:
        return below(frames - 1) if frames else commands.decode(data)

    assert {isinstance(below(frames), Malformed) for frames in (0, 100, 250)} == {not ok}


@given(every, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_broken_bytes_are_a_command_or_malformed(command: Any, changes: list[tuple[int, int]]) -> None:
    data = bytearray(commands.encode(command)[:100_000])
    for place, byte in changes:
        data[1 + place % (len(data) - 1)] = byte
    outcome, _ = apply(furnished().copy(), bytes(data), 99, START_MS)
    event(outcomes.decode(outcome).status)


@pytest.mark.parametrize(
    "junk", [b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\x81\x80\x01", b"\x91" * 5000 + b"\x01", b"\xc1", b""]
)
def test_rubbish_where_anything_may_stand_is_malformed_in_the_same_words(junk: bytes) -> None:
    """Text that is not UTF-8, a lone surrogate, a map as a key, containers without end, a byte of no meaning."""
    data = commands.encode(EnqueueTask("q", "i", "here"))
    broken = data.replace(b"\xa4here", junk)
    outcome, effects = machine.apply_encoded(LedgerStore(), broken, Place(1, 0, 1), GROUP, 1_000_000)
    assert outcome == outcomes.Outcome(Status.MALFORMED, reason="the bytes are no command of this format")
    assert effects == []


def apply(store: LedgerStore, data: bytes, index: int, time_ms: int) -> tuple[bytes, list[bytes]]:
    outcome, effects = machine.apply_encoded(store, data, Place(index, 0, 1), GROUP, time_ms)
    store.perform(effects)
    told = outcomes.encode(outcome)
    assert outcomes.encode(outcomes.decode(told)) == told, "a replayed outcome has the same bytes"
    for effect in effects:
        if isinstance(effect, SetRow) and effect.value is not None:
            TABLES[effect.table].decode(effect.value)
    if outcome.status in REFUSALS or outcome.status is Status.MALFORMED:
        assert all(isinstance(effect, SetRequest) for effect in effects), "a refusal leaves nothing"
    return told, [msgspec.msgpack.encode(effect) for effect in effects]


@given(st.lists(st.tuples(every, st.sampled_from((0, 0, 1_000, 70_000))), max_size=8))
def test_every_command_is_decided_alike(plan: list[tuple[Any, int]]) -> None:
    one, two = furnished().copy(), furnished().copy()
    time_ms = START_MS
    for index, (command, pause) in enumerate(plan, len(FURNITURE) + 1):
        time_ms += pause
        data = commands.encode(command)
        assert not isinstance(commands.decode(data), Malformed), "what can be said is understood"
        first = apply(one, data, index, time_ms)
        assert first == apply(two, data, index, time_ms)
        event(f"{type(command).__name__} {outcomes.decode(first[0]).status}")
        if getattr(command, "request", b"") and len(command.request) == 16:
            again, _ = apply(two.copy(), data, index + 1, time_ms)
            assert again == first[0] or outcomes.decode(first[0]).status is Status.RING_BEHIND
    assert one.tables == two.tables and one.counters == two.counters and one.requests == two.requests
    assert events.window(one) == events.window(two)
