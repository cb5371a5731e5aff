"""What the clients do: one entry per workload in the table at the end; another kind of object is another entry.

Each `act` does a few recorded operations on the run's own keys and lets no store error out: what is refused or left
unknown is part of the history, not the end of it. Every value is written once, so that a read names its writer.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from raftspine.checkers.history import Pending, Recorder
from raftspine.client import Record
from raftspine.ports import Entropy
from raftspine.verify import attempt
from raftspine.verify.nodes import Line, Node, Nodes

STRONG_TAGS = ("critical",)
NAMESPACE = "verify"

KEYS = 6
"""Shared keys per workload: few enough that clients meet, enough that one hot key does not make the whole history."""

WRITES_PER_SHARED_KEY = 10
"""Below the number of losers that the store keeps of one id."""


class Run:
    """What all clients of one run share."""

    def __init__(self, run_id: str, nodes: Nodes, recorder: Recorder, entropy: Entropy) -> None:
        self.prefix = f"verify/{run_id}/"
        self.nodes = nodes
        self.recorder = recorder
        self.written: set[str] = set()
        """Ids that may exist, for the end and for cleaning up."""
        self.lines: dict[int, Line] = {}
        """Client -> its causal line of work, whose token it may hand over."""
        self.actors: list[Actor] = []
        self._entropy = entropy
        self._count = 0

    def chance(self, probability: float) -> bool:
        return self._entropy.random() < probability

    def below(self, bound: int) -> int:
        return int(self._entropy.random() * bound)

    def fresh(self) -> int:
        """A number that no other call gets."""
        self._count += 1
        return self._count

    def key(self, workload: str, name: object) -> str:
        return f"{self.prefix}{workload}/{name}"


class Actor:
    """One client of the run."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number
        self.name = f"client-{number}"
        self.ring = Line(f"{self.name} ring", run.nodes)
        self.causal = Line(f"{self.name} causal", run.nodes, "causal")
        run.lines[number] = self.causal
        run.actors.append(self)

    def begin(
        self, workload: str, path: str, node: Node, key: str, kind: str, input: Any = None, **more: Any
    ) -> Pending:
        if kind not in ("read", "handover"):
            self.run.written.add(key)
        return self.run.recorder.invoke(
            self.name, key, kind, input, node=node.name, workload=workload, path=path, **more
        )


def content(record: Record) -> Any:
    return record.content


# ── strong memories ────────────────────────────────────────────────────────────────────────────────────────────


async def register(actor: Actor) -> None:
    """Write, delete and read strong memories that all clients share."""
    run, node = actor.run, actor.run.nodes.any()
    key = run.key("register", run.below(KEYS))
    dice = run.below(20)
    if dice < 10:
        await attempt.read(actor.begin("register", "strong", node, key, "read"), node.client.get(key), content)
    elif dice < 18:
        value = run.fresh()
        call = node.client.put(key, value, tags=STRONG_TAGS, namespace=NAMESPACE)
        await attempt.write(actor.begin("register", "strong", node, key, "write", value), call)
    else:
        await attempt.write(actor.begin("register", "strong", node, key, "delete"), node.client.delete(key))


async def versions(actor: Actor) -> None:
    """Read a shared strong memory, then replace, remove or create it on condition of the version read."""
    run, node = actor.run, actor.run.nodes.any()
    key = run.key("versions", run.below(KEYS))
    read = await attempt.read(
        actor.begin("versions", "strong", node, key, "read"), node.client.get(key), _value_and_version
    )
    if not read.ok:
        return
    node = run.nodes.any()
    expected = None if read.output is None else read.output["version"]
    if expected is not None and run.chance(0.1):
        pending = actor.begin("versions", "strong", node, key, "cas", {"expected": expected, "value": None})
        call = node.client.delete(key, expected_version=expected)
        await attempt.write(pending, call, lambda _: {"version": ""}, conditional=True)
        return
    value = run.fresh()
    pending = actor.begin("versions", "strong", node, key, "cas", {"expected": expected, "value": value})
    put = node.client.put(
        key, value, tags=STRONG_TAGS, namespace=NAMESPACE, expected_version=expected, if_absent=expected is None
    )
    await attempt.write(pending, put, lambda record: {"version": record.version}, conditional=True)


def _value_and_version(record: Record) -> Any:
    return {"value": record.content, "version": record.version}


async def counter(actor: Actor) -> None:
    """Raise a shared strong counter by compare-and-set; the add counts when the swap succeeded."""
    run, node = actor.run, actor.run.nodes.any()
    key = run.key("counter", run.below(2))
    pending = actor.begin("counter", "strong", node, key, "read")
    found: list[Record] = []
    read = await attempt.read(pending, _keeping(node.client.get(key), found), content)
    if not read.ok or run.chance(0.3):
        return
    node = run.nodes.any()
    total = (read.output or 0) + 1
    call = node.client.put(
        key,
        total,
        tags=STRONG_TAGS,
        namespace=NAMESPACE,
        expected_version=found[0].version if found else None,
        if_absent=not found,
    )
    await attempt.write(
        actor.begin("counter", "strong", node, key, "add", 1), call, lambda _: total, conditional=True
    )


async def _keeping(call: Awaitable[Record], found: list[Record]) -> Record:
    record = await call
    found.append(record)
    return record


# ── ring memories ──────────────────────────────────────────────────────────────────────────────────────────────


async def session(actor: Actor) -> None:
    """Write, delete and read memories of one's own, on whichever node, with the session's token."""
    run, node = actor.run, actor.run.nodes.any()
    key = run.key("session", f"{actor.number}-{run.below(3)}")
    await _line_act(actor, actor.ring, "session", node, key, deletes=True)


async def causal(actor: Actor) -> None:
    """Write memories of one's own and read everybody's; now and then somebody takes over the token."""
    run, node = actor.run, actor.run.nodes.any()
    owner = actor if run.chance(0.5) else run.actors[run.below(len(run.actors))]
    key = run.key("causal", f"{owner.number}-{run.below(2)}")
    if run.chance(0.1):
        await _hand_over(actor, owner)
    elif owner is actor:
        await _line_act(actor, actor.causal, "causal", node, key, deletes=False)
    else:
        await _line_read(actor, actor.causal, "causal", node, key)


async def _hand_over(actor: Actor, giver: Actor) -> None:
    """A new line of work goes on where the giver's stands, and reads what the giver wrote, from another node."""
    run = actor.run
    given, name = giver.causal, f"{actor.name} follows {run.fresh()}"
    node = run.nodes.any()
    pending = run.recorder.invoke(
        actor.name, "", "handover", given.name, session=name, node=node.name, workload="causal", path="ring"
    )
    line = Line(name, run.nodes, "causal", given.token)
    pending.ok()
    for number in range(2):
        key = run.key("causal", f"{giver.number}-{number}")
        await _line_read(actor, line, "causal", run.nodes.any(), key)


async def _line_act(actor: Actor, line: Line, workload: str, node: Node, key: str, *, deletes: bool) -> None:
    run = actor.run
    if run.chance(0.5):
        await _line_read(actor, line, workload, node, key)
        return
    at = line.at(node)
    if deletes and run.chance(0.15):
        pending = actor.begin(workload, "ring", node, key, "delete", session=line.name)
        await attempt.write(pending, at.delete(key))
    else:
        value = run.fresh()
        pending = actor.begin(workload, "ring", node, key, "write", value, session=line.name)
        await attempt.write(pending, at.put(key, value, namespace=NAMESPACE))
    line.keep(at)


async def _line_read(actor: Actor, line: Line, workload: str, node: Node, key: str) -> None:
    at = line.at(node)
    await attempt.read(actor.begin(workload, "ring", node, key, "read", session=line.name), at.get(key), content)
    line.keep(at)


async def shared(actor: Actor) -> None:
    """Write ring memories that all clients write, without a session, as plain curl would."""
    run, node = actor.run, actor.run.nodes.any()
    key = run.key("shared", run.fresh() // (WRITES_PER_SHARED_KEY * 8))
    value = run.fresh()
    call = node.client.put(key, value, namespace=NAMESPACE)
    await attempt.write(actor.begin("shared", "ring", node, key, "write", value), call)


# ── repeated requests ──────────────────────────────────────────────────────────────────────────────────────────


async def retry(actor: Actor) -> None:
    """Store under an Idempotency-Key, store something else, and repeat the first request through another node."""
    run, first = actor.run, actor.run.nodes.any()
    strong = run.chance(0.5)
    workload = "retry-strong" if strong else "retry-ring"
    path = "strong" if strong else "ring"
    tags = STRONG_TAGS if strong else None
    key, value = run.key(workload, f"{actor.number}-{run.below(2)}"), run.fresh()
    name = f"{run.prefix}{value}"

    async def put(node: Node, value: int, idempotency_key: str | None) -> None:
        more = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
        pending = actor.begin(workload, path, node, key, "write", value, **more)
        call = node.client.put(key, value, tags=tags, namespace=NAMESPACE, idempotency_key=idempotency_key)
        await attempt.write(pending, call, lambda record: record.version)

    await put(first, value, name)
    if run.chance(0.7):
        await put(run.nodes.any(), run.fresh(), None)
    await put(run.nodes.other(first), value, name)
    node = run.nodes.any()
    await attempt.read(actor.begin(workload, path, node, key, "read"), node.client.get(key), content)


class Workload(NamedTuple):
    """`weight`: its share of the clients' time. `finals`: how its keys are read at the end: `strong` once, `ring` on
    every node until all agree, `none` not at all. `shows`: what a read's output is, as its checker wants it."""

    name: str
    act: Callable[[Actor], Awaitable[None]]
    weight: int
    finals: str
    shows: Callable[[Record], Any] = content


WORKLOADS: tuple[Workload, ...] = (
    Workload("register", register, 4, "strong"),
    Workload("versions", versions, 2, "strong", _value_and_version),
    Workload("counter", counter, 2, "strong"),
    Workload("session", session, 4, "ring"),
    Workload("causal", causal, 4, "ring"),
    Workload("shared", shared, 2, "ring"),
    Workload("retry", retry, 2, "none"),
)
