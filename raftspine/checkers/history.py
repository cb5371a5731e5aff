"""What clients asked, when, and what they were told: the only evidence a checker gets.

The rule: an operation is written down before it is sent and completed by what its caller could know. An answer
that never came is `unknown`, never `fail`; a history that confuses the two either excuses lost writes or
accuses a store of what it never promised.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import msgspec

from raftspine.errors import Misuse

FORMAT = 1
"""Version of the JSON Lines format; a reader refuses what it does not know."""

Outcome = Literal["ok", "fail", "unknown"]
"""`ok`: it happened and `output` is the answer. `fail`: it did not happen and never will. `unknown`: it may take
effect at any time after it was invoked, or never."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call of one client. Times are nanoseconds of one monotonic clock shared by the whole history.

    `process` does one thing at a time. `kind`, `input` and `output` are plain JSON values whose meaning is that of
    the model the history is judged by. `completed_at` is None when the call never returned; on an unknown outcome
    it is when the caller gave up, which bounds nothing. `session` names the line of work whose token the call
    carried, `node` the server asked. `info` holds what helps a reader: an error's code, a version, a path.
    """

    process: str
    key: str
    kind: str
    input: Any = None
    output: Any = None
    invoked_at: int
    completed_at: int | None = None
    outcome: Outcome = "unknown"
    node: str = ""
    session: str = ""
    info: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.completed_at is None:
            if self.outcome != "unknown":
                raise ValueError(f"an operation that never completed cannot be {self.outcome!r}")
        elif self.completed_at < self.invoked_at:
            raise ValueError(f"completed_at {self.completed_at} is before invoked_at {self.invoked_at}")

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def maybe(self) -> bool:
        """Whether it may have taken effect: all but those that certainly failed."""
        return self.outcome != "fail"

    @property
    def ends_at(self) -> float:
        """When it had certainly taken effect, if it ever did: never, for an unknown outcome."""
        return self.completed_at if self.completed_at is not None and self.outcome == "ok" else float("inf")


class Pending:
    """An operation under way. Exactly one of `ok`, `fail`, `unknown` completes it; one that is never completed
    stays in the history as unknown."""

    __slots__ = ("_done", "_recorder", "operation")

    def __init__(self, recorder: "Recorder", operation: Operation) -> None:
        self.operation = operation
        self._recorder = recorder
        self._done = False

    def ok(self, output: Any = None, *, node: str | None = None, **info: Any) -> Operation:
        """It happened, and this is the answer. `node` replaces the one named at first, when another answered."""
        return self._complete("ok", output, node, info)

    def fail(self, *, node: str | None = None, **info: Any) -> Operation:
        """It certainly did not happen and never will."""
        return self._complete("fail", None, node, info)

    def unknown(self, *, node: str | None = None, **info: Any) -> Operation:
        """It may have happened, or may still."""
        return self._complete("unknown", None, node, info)

    def _complete(self, outcome: Outcome, output: Any, node: str | None, info: dict[str, Any]) -> Operation:
        if self._done:
            raise RuntimeError(f"this operation is already complete: {self.operation}")
        self._done = True
        begun = self.operation
        self.operation = msgspec.structs.replace(
            begun,
            outcome=outcome,
            output=output,
            completed_at=self._recorder.now_ns(),
            node=begun.node if node is None else node,
            info={**begun.info, **info},
        )
        self._recorder.completed(self.operation)
        return self.operation


class Recorder:
    """Collects the operations of many tasks or threads.

    `now_ns` is a monotonic clock in nanoseconds, the same for all. Each call ends in one append to a list, which
    the interpreter does in one step, so no lock is needed and none is held while a clock or a caller runs.
    `on_complete` is told of each finished operation, for live counters.
    """

    def __init__(self, now_ns: Callable[[], int], on_complete: Callable[[Operation], None] | None = None) -> None:
        self.now_ns = now_ns
        self._on_complete = on_complete
        self._begun: list[Pending] = []

    def __len__(self) -> int:
        return len(self._begun)

    def invoke(
        self,
        process: str,
        key: str,
        kind: str,
        input: Any = None,
        *,
        node: str = "",
        session: str = "",
        **info: Any,
    ) -> Pending:
        """Write an operation down; call this before it is sent."""
        operation = Operation(
            process=process,
            key=key,
            kind=kind,
            input=input,
            invoked_at=self.now_ns(),
            node=node,
            session=session,
            info=info,
        )
        pending = Pending(self, operation)
        self._begun.append(pending)
        return pending

    def completed(self, operation: Operation) -> None:
        if self._on_complete is not None:
            self._on_complete(operation)

    def operations(self) -> list[Operation]:
        """All so far, by the time they were invoked; those still under way as unknown."""
        return sorted((pending.operation for pending in tuple(self._begun)), key=lambda op: op.invoked_at)


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    raftspine_history: int
    about: dict[str, Any] = {}


_encoder = msgspec.json.Encoder()
_header = msgspec.json.Decoder(_Header)
_operation = msgspec.json.Decoder(Operation)


def dump(operations: Iterable[Operation], about: dict[str, Any] | None = None) -> Iterator[bytes]:
    """A history as lines of JSON, each with its newline; the first carries the format's version and `about`."""
    yield _encoder.encode(_Header(raftspine_history=FORMAT, about=about or {})) + b"\n"
    for operation in operations:
        yield _encoder.encode(operation) + b"\n"


def load(lines: Iterable[bytes], source: str = "history") -> tuple[dict[str, Any], list[Operation]]:
    """What `dump` wrote: `about` and the operations. Blank lines are skipped. Raises Misuse, naming `source` and
    the line, for anything that is not such a history."""
    about: dict[str, Any] | None = None
    operations: list[Operation] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if about is None:
            about = _first(line, source, number)
            continue
        try:
            operations.append(_operation.decode(line))
        except msgspec.MsgspecError as error:
            raise Misuse(f"{source}, line {number}: not an operation: {error}") from error
    if about is None:
        raise Misuse(f"{source}: empty; its first line should be {{'raftspine_history': {FORMAT}}}")
    return about, operations


def _first(line: bytes, source: str, number: int) -> dict[str, Any]:
    try:
        header = _header.decode(line)
    except msgspec.MsgspecError as error:
        raise Misuse(f"{source}, line {number}: not the head of a history: {error}") from error
    if header.raftspine_history != FORMAT:
        raise Misuse(
            f"{source}, line {number}: format {header.raftspine_history}; this version reads format {FORMAT} only"
        )
    return header.about
