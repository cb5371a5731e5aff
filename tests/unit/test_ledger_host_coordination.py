"""Coordination through the ledger host: many commands in an entry, the longest keys, snapshots and restarts."""

import asyncio
import random
from pathlib import Path
from typing import Any

from raftspine import codec
from raftspine.core.ledger import due, events, lock_queue, locks, machine, sessions, task_rows
from raftspine.core.ledger.commands import PutMemory, encode
from raftspine.core.ledger.lock_commands import (
    LOCK,
    AcquireLock,
    CloseSession,
    ExpireSession,
    OpenSession,
    ReleaseLock,
    Wake,
)
from raftspine.core.ledger.state import Place
from raftspine.core.ledger.task_commands import ClaimTasks, CompleteTask, EnqueueTask, PassGate, PutGate
from raftspine.model import GroupId, Memory
from raftspine.ports import Engine as EnginePort
from raftspine.ports import Position
from raftspine.services.ledger_host import COUNTERS, LedgerHost, Stored
from raftspine.sim.tree import SimTree
from raftspine.storage import keys
from raftspine.storage.engine import Engine
from raftspine.storage.files import FileDirectory
from raftspine.system import SystemClock
from tests.support.fake_engine import DictEngine
from tests.support.ledger_store import GROUP, LedgerStore

TTL = 30_000


class NoRing:
    def adopt(self, *_: Any) -> None:
        raise AssertionError("nothing is demoted here")

    def shadow(self, *_: Any) -> None:
        pass


def host_over(engine: EnginePort) -> LedgerHost:
    return LedgerHost(engine, NoRing(), on_table=lambda _: None)


def apply(host: LedgerHost, *commands: Any, time_ms: int = 1000, term: int = 1) -> list[Any]:
    at = Position(host.position(GroupId(GROUP)).index + 1, term)
    return [outcome for outcome, _ in host.apply(GroupId(GROUP), at, time_ms, [encode(c) for c in commands])]


def stored_tables(engine: EnginePort) -> tuple[dict[str, dict[bytes, bytes]], dict[str, int]]:
    """The group's rows by table, and its counters, as the store has them."""
    tables: dict[str, dict[bytes, bytes]] = {}
    for key, value in engine.scan(*keys.span(keys.LEDGER, GROUP), limit=1_000_000):
        table, _, rest = key[3:].partition(b"\0")
        tables.setdefault(table.decode(), {})[rest] = value
    counters = {name.decode(): codec.decode_any(value) for name, value in tables.pop(COUNTERS, {}).items()}
    return tables, counters


def someones_command(chance: random.Random, number: int) -> Any:
    """One of what many clients might send at once, against few names so that they meet."""
    name, lease, session = f"l{chance.randrange(3)}", f"x{chance.randrange(6)}", f"s{chance.randrange(2)}"
    return chance.choice(
        [
            AcquireLock(name, lease, ttl_ms=TTL, queue=True, priority=chance.randrange(2)),
            AcquireLock(name, lease, session, mode="shared", queue=True, lock_delay_ms=500),
            ReleaseLock(name, lease, chance.randrange(number << 10)),
            ReleaseLock(name, lease),
            OpenSession(session, TTL),
            CloseSession(session),
            ExpireSession("~" + lease, chance.randrange(number << 10), chance.randrange(number << 10), 1),
            Wake(),
            EnqueueTask("q", f"t{chance.randrange(9)}", number, not_before_ms=chance.choice([0, 5000])),
            ClaimTasks("q", f"c{number}", 2, ttl_ms=TTL),
            CompleteTask("q", f"t{chance.randrange(9)}", chance.randrange(number << 10)),
            PutGate("g", "open", 3),
            PassGate("g", f"p{number}"),
            PutMemory(f"m{chance.randrange(3)}", Memory(number)),
        ]
    )


def test_many_commands_in_an_entry_come_to_the_same_as_one_after_another() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        engine, plain = DictEngine(), LedgerStore()
        host = host_over(engine)
        for index in range(1, 20):
            time_ms = 1000 * index
            batch = [someones_command(chance, index) for _ in range(chance.randrange(1, 30))]
            expected = []
            for sub, command in enumerate(batch):
                outcome, effects = machine.apply(plain, command, Place(index, sub, 1), GROUP, time_ms)
                plain.perform(effects)
                expected.append(outcome)
            assert apply(host, *batch, time_ms=time_ms) == expected, f"seed {seed}, entry {index}"
            assert stored_tables(engine) == (plain.replicated()[3], plain.counters), f"seed {seed}, entry {index}"


def test_the_longest_names_fit_the_store(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        directory = FileDirectory(tmp_path, loop)
        engine = Engine.open(directory, SimTree(loop, delay_seconds=0), clock=SystemClock())
        host = host_over(engine)
        name, id = "n" * 255, "i" * 100
        outcomes = apply(
            host,
            OpenSession(id, TTL),
            AcquireLock(name, id, id, lock_delay_ms=1000, space="election"),
            AcquireLock(name, "j" * 100, ttl_ms=TTL, queue=True, space="election"),
            EnqueueTask(name, id, dedupe=name),
            EnqueueTask(name, "later", not_before_ms=5000),
            ClaimTasks(name, "c" * 97, 1, session=id),
            PutGate(name, "open", expires_at_ms=5000),
            CloseSession(id),
            time_ms=1000,
        )
        assert [str(outcome.status) for outcome in outcomes] == ["done", "granted", "queued", *["done"] * 5]
        await engine.close()
        directory.close()

    asyncio.run(story())


def test_a_snapshot_carries_coordination_and_both_go_on_alike() -> None:
    async def story() -> None:
        chance = random.Random(7)
        source, target = DictEngine(), DictEngine()
        one, two = host_over(source), host_over(target)
        apply(two, AcquireLock("gone", "with the old state", ttl_ms=TTL))
        for index in range(1, 40):
            apply(one, *(someones_command(chance, index) for _ in range(5)), time_ms=1000 * index)
        at, stream = await one.snapshot(GroupId(GROUP))
        await two.install(GroupId(GROUP), at, [chunk async for chunk in stream])
        assert stored_tables(target) == stored_tables(source)
        for index in range(40, 80):
            batch = [someones_command(chance, index) for _ in range(5)]
            first, second = (apply(host, *batch, time_ms=1000 * index) for host in (one, two))
            assert first == second
        assert stored_tables(target) == stored_tables(source)

    asyncio.run(story())


def test_readers_see_the_store() -> None:
    engine = DictEngine()
    host = host_over(engine)
    view = Stored(engine, GroupId(GROUP))
    granted, _ = apply(
        host,
        AcquireLock("l", "a", owner="ann", ttl_ms=TTL),
        AcquireLock("l", "b", owner="bob", ttl_ms=TTL, queue=True),
    )
    apply(host, EnqueueTask("q", "t", not_before_ms=9000), PutMemory("m", Memory(1)))
    token = granted.result["token"]
    found = locks.check(view, LOCK, "l", token)
    assert found is not None and found.owner == "ann"
    assert [lease for lease, _ in lock_queue.waiting(view, LOCK, "l", 10)] == ["b"]
    assert [id for id, _ in sessions.page(view, "", 10)] == ["~a", "~b"]
    assert due.next_due(view) == 9000 and task_rows.counts(view, "q").delayed == 1
    assert [event.change for _, event in events.read(view, 1, 10)] == ["granted", "delayed", "created"]
    (overtaken,) = apply(host, ExpireSession("~a", 0, 0, 1), term=2)
    assert overtaken.status == "overtaken"
    row = sessions.read(view, "~a")
    assert row is not None
    (stale, expired) = apply(
        host, ExpireSession("~a", row.number, row.renewed, 2), ExpireSession("~a", row.number, row.renewed, 3), term=3
    )
    assert (stale.status, expired.status) == ("overtaken", "done"), "only what this entry's leader knew counts"
    assert [lease for lease, _ in lock_queue.holders(view, LOCK, "l", 10)] == ["b"]
