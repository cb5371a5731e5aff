"""What must hold after a window of faults, whatever they were.

The history of the strong path is linearizable, each addition has its one effect, no session missed a write of its
own, no acknowledged write is lost, all replicas hold the same, and no node has a stack trace in its log. A check that
cannot be carried out counts as failed.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from raftspine import AsyncSpine
from raftspine.checkers.history import Operation, Recorder
from raftspine.checkers.linear import linearizable
from raftspine.checkers.models import CAS_REGISTER, REGISTER
from raftspine.checkers.promises import convergence, no_lost_write
from raftspine.checkers.verdict import Verdict, combined, passed, violation
from raftspine.errors import NotFound
from tests.support.lab.load import RING, STRONG, strong_read
from tests.support.lab.nodes import Lab

_DISK = ("the Raft journal cannot be written",)
_ERROR = re.compile(r'"level": "(error|critical)"')


async def judge(lab: Lab, recorder: Recorder) -> list[Verdict]:
    """All verdicts on one window, after the last fault was healed and all nodes agree. Adds what it reads of the
    strong keys to the history: what is there in the end is part of the evidence."""
    client = lab.client(timeout=30)
    at = {node: lab.client(node, timeout=30) for node in lab.ids}
    try:
        operations = recorder.operations()
        strong = sorted({op.key for op in operations if op.info["path"] == STRONG and op.kind != "add"})
        counters = {op.key for op in operations if op.kind == "cas"}
        for node, one in at.items():
            for key in strong:
                pending = recorder.invoke(f"judge-{node}", key, "read", node=node, path=STRONG)
                await strong_read(pending, one, key, versioned=key in counters)
        operations = recorder.operations()
        by_path = {path: [op for op in operations if op.info["path"] == path] for path in (STRONG, RING)}
        ring = [op for op in by_path[RING] if op.kind != "add"]
        finals = await _finals(at, recorder, dict.fromkeys(strong, STRONG) | {op.key: RING for op in ring})
        return [
            linearizable(_of_keys(by_path[STRONG], set(strong) - counters), REGISTER),
            linearizable(_of_keys(by_path[STRONG], counters), CAS_REGISTER),
            counted(_of_keys(by_path[STRONG], counters)),
            await _added(client, [op for op in operations if op.kind == "add"]),
            own_writes_read(ring),
            no_lost_write([*ring, *(op for op in finals if op.info["path"] == RING)]),
            _agreed(finals),
        ]
    finally:
        for each in (client, *at.values()):
            await each.close()


def _of_keys(operations: Iterable[Operation], keys: set[str]) -> list[Operation]:
    return [op for op in operations if op.key in keys]


def _by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for op in operations:
        found.setdefault(op.key, []).append(op)
    return found


def counted(operations: Sequence[Operation]) -> Verdict:
    """A counter is at least what was acknowledged, and at most that and what is in doubt: none lost, none twice."""
    name = "increments applied once"
    parts = []
    for key, ops in _by_key(operations).items():
        increments = [op for op in ops if op.kind == "cas" and not (op.ok and op.output.get("refused"))]
        done = sum(op.ok for op in increments)
        doubtful = sum(op.outcome == "unknown" for op in increments)
        last = [op for op in ops if op.kind == "read" and op.process.startswith("judge-")]
        totals = {0 if op.output is None else op.output["value"] for op in last if op.ok}
        fits = len(totals) == 1 and done <= min(totals) <= done + doubtful
        reason = f"{key} reads {sorted(totals)} in the end, after {done} increments and {doubtful} of unknown outcome"
        parts.append(passed(name, len(ops)) if fits else violation(name, len(ops), reason, last))
    return combined(name, parts)


async def _added(client: AsyncSpine, operations: Sequence[Operation]) -> Verdict:
    """Each addition that was acknowledged is there once; one in doubt at most once; one refused not at all."""
    name = "additions have one effect"
    parts = []
    for namespace, ops in _by_key(operations).items():
        found: dict[str, int] = {}
        async for record in client.list(namespace=namespace, limit=1000):
            found[record.content] = found.get(record.content, 0) + 1
        allowed = {"ok": (1,), "unknown": (0, 1), "fail": (0,)}
        wrong = [op for op in ops if found.get(op.input, 0) not in allowed[op.outcome]]
        if wrong:
            worst = wrong[0]
            times = found.get(worst.input, 0)
            reason = f"{worst.input} was answered {worst.outcome!r} and is there {times} times"
            parts.append(violation(name, len(ops), reason, wrong[:20], len(wrong)))
        else:
            parts.append(passed(name, len(ops)))
    return combined(name, parts)


def own_writes_read(operations: Sequence[Operation]) -> Verdict:
    """Sessions have keys of their own, one call at a time: a read returns the last acknowledged write (or delete),
    or one of unknown outcome. Such a one may come to light at any time, also after later writes: a node that was
    stopped in the middle of it mints its version when it goes on. (`checkers.sessions` holds sessions to the order of
    their calls, which the ring promises for acknowledged ones only.)"""
    name = "sessions read their writes"
    bad: list[Operation] = []
    evidence: list[Operation] = []
    for ops in _by_key(operations).values():
        acknowledged: Operation | None = None
        doubtful: list[Operation] = []
        for op in ops:
            if op.kind != "read":
                if op.ok:
                    acknowledged = op
                elif op.maybe:
                    doubtful.append(op)
            elif op.ok and op.output not in [
                None if acknowledged is None else acknowledged.input,
                *map(_value, doubtful),
            ]:
                bad.append(op)
                evidence = evidence or [*filter(None, [acknowledged]), *doubtful, op]
    if bad:
        reason = f"{bad[0].session} read {bad[0].output!r} of {bad[0].key} through {bad[0].node}"
        return violation(name, len(operations), reason, evidence, len(bad))
    return passed(name, len(operations))


def _value(op: Operation) -> object:
    return op.input


async def _finals(at: dict[str, AsyncSpine], recorder: Recorder, keys: dict[str, str]) -> list[Operation]:
    """What every replica shows of every key (key -> path), asked for its own state."""
    found = []
    for node, client in at.items():
        for key, path in keys.items():
            pending = recorder.invoke(f"final-{node}", key, "final", node=node, path=path)
            try:
                record = await client.get(key, consistency="eventual")
            except NotFound:
                found.append(pending.ok(None, version=None))
            else:
                found.append(pending.ok(record.content, version=record.version))
    return found


def _agreed(finals: Sequence[Operation]) -> Verdict:
    """The same version of the same content: equal contents alone may be two writes that said the same."""
    return convergence(msgspec.structs.replace(op, output=[op.output, op.info["version"]]) for op in finals)


class Logs:
    """The nodes' logs, each line judged once."""

    def __init__(self) -> None:
        self._read: dict[Path, int] = {}

    def judge(self, logs: Iterable[Path], *, breaks_disk: bool = False) -> Verdict:
        """No stack traces, and no errors but that a disk refused where a fault made it refuse."""
        name = "logs without stack traces"
        wrong: list[str] = []
        lines = 0
        for log in logs:
            with log.open("rb") as file:
                file.seek(self._read.get(log, 0))
                for line in file.read().decode("utf-8", "replace").splitlines():
                    lines += 1
                    excused = breaks_disk and any(text in line for text in _DISK) and "Traceback" not in line
                    if ("Traceback" in line or _ERROR.search(line)) and not excused:
                        wrong.append(f"{log.name}: {line[:2000]}")
                self._read[log] = file.tell()
        if wrong:
            return violation(name, lines, wrong[0], (), len(wrong))
        return passed(name, lines)
