"""The hash over a group's history: what changes it, where it is compared, where it begins."""

import asyncio

import pytest

from raftspine.core.ledger.commands import DeleteMemory, PatchMemory, PutMemory, encode
from raftspine.errors import Corrupt
from raftspine.model import GroupId, Memory, RingRecord, StrongRecord, Version
from raftspine.ports import Doubt, Mark, Position
from raftspine.services import ledger_chain
from raftspine.services.ledger_chain import EPOCH, INTERVAL, START, Chain, advance
from raftspine.services.ledger_host import LedgerHost
from raftspine.storage import keys, memories
from tests.support.fake_engine import DictEngine

GROUP = GroupId(3)


class NoRing:
    def adopt(self, group: GroupId, version: Version) -> None:
        pass

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        pass


def host(engine: DictEngine | None = None) -> LedgerHost:
    return LedgerHost(engine or DictEngine(), NoRing(), on_table=lambda _: None)


def put(id: str, content: object) -> bytes:
    return encode(PutMemory(id, Memory(content)))


def run(machine: LedgerHost, *entries: list[bytes], first: int = 1) -> Chain:
    for index, commands in enumerate(entries, first):
        machine.apply(GROUP, Position(index, 1), 1000 + index, commands)
    chain = machine.applied(GROUP).chain
    assert chain is not None
    return chain


def test_the_same_history_has_the_same_chain_and_any_other_another() -> None:
    entries = [[put("a", 1)], [put("b", 2), put("c", 3)], [encode(DeleteMemory("a"))]]
    base = run(host(), *entries).digest
    assert run(host(), *entries).digest == base
    others = [
        [[put("a", 2)], *entries[1:]],
        [entries[1], entries[0], entries[2]],
        [[put("a", 1), put("b", 2)], [put("c", 3)], entries[2]],
        [*entries[:2], [encode(DeleteMemory("zz"))]],
        entries[:2],
    ]
    digests = {run(host(), *other).digest for other in others}
    assert len(digests) == len(others) and base not in digests


def test_what_a_replica_has_of_the_ring_does_not_count() -> None:
    """A promotion leaves conflict rows where the ring holds what it did not see, and only there."""
    with_ring = DictEngine()
    version = Version("a", "n~1", 1, 7 << 16, {}, Memory("from the ring"))
    with_ring.stage(memories.ring_rows(GROUP, "a", None, RingRecord((version,), {"n~1": 1})))
    entry = [put("a", 1)]
    assert run(host(with_ring), entry).digest == run(host(), entry).digest
    assert memories.conflicts(with_ring, GROUP, "a")


def test_the_chain_goes_on_after_a_restart() -> None:
    engine = DictEngine()
    run(host(engine), [put("a", 1)], [put("b", 1)])
    assert run(host(engine), [put("c", 1)], first=3) == run(host(), [put("a", 1)], [put("b", 1)], [put("c", 1)])


def test_a_stored_byte_that_flips_shows_in_what_is_built_on_it() -> None:
    sound, rotten = DictEngine(), DictEngine()
    for engine in (sound, rotten):
        run(host(engine), [put("a", "text")])
    key = keys.strong(GROUP, "a")
    rotten.stage([(key, rotten.rows[key].replace(b"text", b"tfxt"))])
    patch = [encode(PatchMemory("a", {"metadata": {"n": 1}}))]
    assert run(host(rotten), patch, first=2).digest != run(host(sound), patch, first=2).digest


def test_marks_are_made_where_the_log_passes_a_boundary_and_the_newest_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_chain, "INTERVAL", 4)
    engine = DictEngine()
    machine = host(engine)
    run(machine, *[[put("a", n)] for n in range(1, 4)])
    assert machine.marks(GROUP) == []
    before = machine.applied(GROUP).chain
    assert before is not None
    machine.apply(GROUP, Position(9, 1), 5000, [put("a", 9)])  # the leader's own entries lie between
    assert machine.marks(GROUP) == [Mark(8, 0, before.digest)]
    run(machine, *[[put("a", n)] for n in range(10, 60)], first=10)
    assert [mark.below for mark in machine.marks(GROUP)] == [28, 32, 36, 40, 44, 48, 52, 56]
    assert host(engine).marks(GROUP) == machine.marks(GROUP)[-1:]


def test_state_of_an_earlier_version_gets_a_chain_at_the_next_boundary() -> None:
    assert advance(None, 5, INTERVAL - 1, [b"x"]) is None
    begun = advance(None, 5, INTERVAL + 3, [b"x"])
    assert begun is not None and begun.since == INTERVAL and begun.mark is None
    engine = DictEngine()
    engine.stage([(keys.applied(GROUP), memories.encode([5, 1, 1000]))])
    old = host(engine)
    assert old.applied(GROUP).chain is None and old.applied(GROUP).time_ms == 1000
    old.apply(GROUP, Position(6, 1), 1001, [put("a", 1)])
    assert old.applied(GROUP).chain is None and old.marks(GROUP) == []


def test_all_chains_begin_anew_at_the_same_place() -> None:
    old, young = Chain(0, b"a" * 16), Chain(7 * INTERVAL, b"b" * 16)
    after = [advance(chain, EPOCH - 1, EPOCH + 2, [b"x"]) for chain in (old, young)]
    assert after[0] is not None and after[1] is not None
    assert after[0].digest == after[1].digest and after[0].since == after[1].since == EPOCH
    assert after[0].mark == Mark(EPOCH, 0, old.digest), "what came before is compared once more"


def test_a_doubt_outlives_the_process_and_ends_with_the_state_it_is_about() -> None:
    async def story() -> None:
        source, target = DictEngine(), DictEngine()
        run(host(source), [put("a", 1)], [put("b", 1)])
        machine = host(target)
        run(machine, [put("a", 2)])
        doubt = Doubt(True, Mark(1024, 0, b"d" * 16), "it differs")
        await machine.set_doubt(GROUP, doubt)
        assert target.durable == target.rows
        assert host(target).doubt(GROUP) == doubt and host(target).doubt(GroupId(4)) is None
        at, stream = await host(source).snapshot(GROUP)
        chunks = [chunk async for chunk in stream]
        with pytest.raises(Corrupt):
            await machine.install(GROUP, at, chunks[:-1])
        assert machine.doubt(GROUP) == doubt
        batches = len(target.batches)
        await machine.install(GROUP, at, chunks)
        assert machine.doubt(GROUP) is None and len(target.batches) == batches + 1
        assert machine.applied(GROUP) == host(source).applied(GROUP)
        await machine.set_doubt(GROUP, None)

    asyncio.run(story())


def test_a_new_group_has_a_chain_from_its_first_entry() -> None:
    assert host().applied(GROUP).chain == START
    assert run(host(), [put("a", 1)]).since == 0
