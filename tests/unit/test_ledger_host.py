"""Entries become rows: all of an entry or nothing, the same on every replica, and all of it in a snapshot."""

import asyncio
from typing import Any

import pytest

from raftspine import codec
from raftspine.core.ledger import cluster
from raftspine.core.ledger.commands import Condition, DeleteMemory, PutMemory, VoidRequest, encode
from raftspine.core.ledger.outcomes import Status
from raftspine.core.version_text import strong_version_text
from raftspine.errors import Corrupt, NoSpace, Unavailable, Unknown
from raftspine.model import META_GROUP, GroupId, Memory, NodeId, RingRecord, StrongRecord, Table, Version
from raftspine.ports import Position
from raftspine.services.ledger_host import LedgerHost, load_request
from raftspine.services.ledger_snapshot import CHUNK_BYTES, Stream
from raftspine.storage import keys, memories
from tests.support.fake_engine import DictEngine

GROUP = GroupId(3)


class FakeRing:
    """Remembers what it was given, and stages one row for it as the real one would."""

    def __init__(self, engine: DictEngine) -> None:
        self._engine = engine
        self.adopted: list[tuple[GroupId, Version]] = []
        self.shadowed: list[str] = []

    def adopt(self, group: GroupId, version: Version) -> None:
        self.adopted.append((group, version))
        record = RingRecord((version,), {version.origin: version.seq})
        self._engine.stage(memories.ring_rows(group, version.id, None, record))

    def shadow(self, group: GroupId, strong: StrongRecord) -> None:
        self.shadowed.append(strong.id)


class Replica:
    """A ledger host over an engine, fed entry by entry."""

    def __init__(self, engine: DictEngine | None = None) -> None:
        self.engine = engine or DictEngine()
        self.ring = FakeRing(self.engine)
        self.tables: list[Table] = []
        self.host = LedgerHost(self.engine, self.ring, on_table=self.tables.append)

    def entry(self, *commands: Any, time_ms: int = 1000, group: GroupId = GROUP) -> list[Any]:
        at = Position(self.host.position(group).index + 1, 1)
        results = self.host.apply(group, at, time_ms, [encode(c) for c in commands])
        assert all(index == at.index for _, index in results)
        return [outcome for outcome, _ in results]


def put(id: str, content: Any = "x", **fields: Any) -> PutMemory:
    return PutMemory(id, Memory(content, tags=("critical",)), **fields)


def digest(n: int) -> bytes:
    return bytes([n]) * 16


def state(engine: DictEngine, group: GroupId = GROUP) -> dict[bytes, bytes]:
    """All rows of a group that must be equal on all replicas."""
    kinds = (keys.STRONG, keys.STRONG_REQUEST, keys.LEDGER, keys.APPLIED, keys.INDEX)
    prefixes = tuple(keys.kind_of_group(kind, group) for kind in kinds)
    return {k: v for k, v in engine.rows.items() if k.startswith(prefixes)}


# ── applying ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_entry_is_one_batch_that_holds_its_position() -> None:
    replica = Replica()
    outcomes = replica.entry(put("a"), put("b"))
    assert [o.status for o in outcomes] == [Status.CREATED, Status.CREATED]
    assert len(replica.engine.batches) == 1
    assert keys.applied(GROUP) in [key for key, _ in replica.engine.batches[0]]
    assert replica.host.position(GROUP) == Position(1, 1)


def test_a_command_sees_what_the_one_before_it_in_its_entry_did() -> None:
    replica = Replica()
    version = strong_version_text(GROUP, 1, 0)
    outcomes = replica.entry(
        put("a", 1),
        put("a", 2, expected=Condition(version)),
        put("a", 3, expected=Condition(version)),
        DeleteMemory("a"),
    )
    expected = [Status.CREATED, Status.CHANGED, Status.VERSION_CONFLICT, Status.DELETED]
    assert [o.status for o in outcomes] == expected
    record = memories.strong(replica.engine, GROUP, "a")
    assert record is not None and record.memory is None and (record.index, record.sub) == (1, 3)


def test_a_request_sent_twice_applies_once_within_an_entry_and_across() -> None:
    replica = Replica()
    once = put("a", 1, request=digest(1), fingerprint=digest(9))
    first, second = replica.entry(once, once)
    (third,) = replica.entry(once)
    assert first == second == third and first.status is Status.CREATED
    record = memories.strong(replica.engine, GROUP, "a")
    assert record is not None and (record.index, record.sub) == (1, 0)


def test_a_position_outlives_a_restart_and_an_entry_never_applies_twice() -> None:
    replica = Replica()
    replica.entry(put("a"))
    again = Replica(replica.engine)
    assert again.host.position(GROUP) == Position(1, 1)
    with pytest.raises(Corrupt, match="entry 1 came after entry 1"):
        again.host.apply(GROUP, Position(1, 1), 5, [encode(put("a"))])


def test_an_entry_without_commands_moves_the_position() -> None:
    replica = Replica()
    assert replica.entry() == [] and replica.host.position(GROUP) == Position(1, 1)


def test_a_newer_command_stops_the_entry_before_anything_is_staged() -> None:
    replica = Replica()
    with pytest.raises(Corrupt):
        replica.host.apply(GROUP, Position(1, 1), 5, [encode(put("a")), b"\x03\x90"])
    assert replica.engine.batches == [] and replica.host.position(GROUP) == Position(0, 0)


def test_bytes_that_are_no_command_are_a_result() -> None:
    replica = Replica()
    results = replica.host.apply(GROUP, Position(1, 1), 5, [b"\x01\xc1", encode(put("a"))])
    assert [outcome.status for outcome, _ in results] == [Status.MALFORMED, Status.CREATED]


def test_time_does_not_run_backwards_between_leaders() -> None:
    replica = Replica()
    replica.entry(put("a"), time_ms=5000)
    (outcome,) = replica.entry(put("b"), time_ms=3000)
    assert outcome.memory.created_at_ms == 5000
    (outcome,) = Replica(replica.engine).entry(put("c"), time_ms=1)
    assert outcome.memory.created_at_ms == 5000


def test_a_full_store_changes_nothing_and_the_entry_can_come_again() -> None:
    replica = Replica()
    replica.engine.full = True
    with pytest.raises(NoSpace):
        replica.entry(put("a"))
    assert replica.host.position(GROUP) == Position(0, 0)
    replica.engine.full = False
    assert replica.entry(put("a"))[0].status is Status.CREATED


def test_a_demotion_goes_through_the_ring_and_leaves_no_strong_rows() -> None:
    replica = Replica()
    replica.entry(put("a"))
    (outcome,) = replica.entry(PutMemory("a", Memory("x"), demote=True))
    assert outcome.status is Status.DEMOTED
    assert [v.dot for _, v in replica.ring.adopted] == [outcome.ring.dot]
    assert memories.strong(replica.engine, GROUP, "a") is None
    assert not [k for k in state(replica.engine) if k.endswith(keys.STRONG_PATH)]


def test_a_promotion_keeps_the_ring_versions_it_did_not_see() -> None:
    replica = Replica()
    unseen = Version("a", "n~1", 1, 7 << 16, {}, Memory("from the ring"))
    replica.engine.stage(memories.ring_rows(GROUP, "a", None, RingRecord((unseen,), {"n~1": 1})))
    replica.entry(put("a"))
    (lost,) = memories.conflicts(replica.engine, GROUP, "a")
    assert lost.memory == unseen.memory and lost.winner == strong_version_text(GROUP, 1, 0)


def test_expired_requests_are_swept_a_page_at_a_time() -> None:
    replica = Replica()
    for n in range(5):
        replica.entry(put(f"a{n}", request=digest(n), fingerprint=digest(9)), time_ms=1000)
    assert sum(replica.host.sweep(GROUP, 2) for _ in range(4)) == 0
    replica.entry(put("late", request=digest(99), fingerprint=digest(9)), time_ms=1000 + 24 * 3600 * 1000)
    assert sum(replica.host.sweep(GROUP, 2) for _ in range(4)) == 5
    assert load_request(replica.engine, GROUP, digest(99)) is not None
    assert load_request(replica.engine, GROUP, digest(0)) is None


# ── the meta group ──────────────────────────────────────────────────────────────────────────────────────────


def plan() -> Table:
    a = NodeId("a")
    return Table(0, "", "id", (), ((a,),), (a,))


def test_the_meta_group_tells_of_its_table_and_keeps_it() -> None:
    replica = Replica()
    commands = [cluster.encode(cluster.first_table(plan(), name)) for name in ("one", "two")]
    results = replica.host.apply(META_GROUP, Position(1, 1), 5, commands)
    assert [outcome.changed for outcome, _ in results] == [True, False]
    assert [table.cluster_id for table in replica.tables] == ["one"]
    again = Replica(replica.engine)
    (result,) = again.host.apply(META_GROUP, Position(2, 1), 5, commands[1:])
    assert result[0].table.cluster_id == "one" and not result[0].changed


# ── snapshots ───────────────────────────────────────────────────────────────────────────────────────────────


async def taken(replica: Replica, group: GroupId = GROUP) -> tuple[Position, list[bytes]]:
    at, stream = await replica.host.snapshot(group)
    return at, [chunk async for chunk in stream]


def lived_in() -> Replica:
    """A replica with a bit of everything: live, deleted, demoted, remembered, voided, large."""
    replica = Replica()
    replica.entry(put("a", "first"), put("b", ["deep", {"er": 1}], request=digest(1), fingerprint=digest(9)))
    replica.entry(DeleteMemory("a"), put("huge", "y" * (CHUNK_BYTES + 1000)))
    replica.entry(put("c"), PutMemory("c", Memory("x"), demote=True), VoidRequest(digest(2)), time_ms=9000)
    return replica


def test_a_snapshot_installs_to_the_same_state_in_one_durable_batch() -> None:
    async def story() -> None:
        source, target = lived_in(), Replica()
        at, chunks = await taken(source)
        assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks) and len(chunks) > 1
        assert [view.closed for view in source.engine.frozen] == [True]
        await target.host.install(GROUP, at, chunks)
        assert state(target.engine) == {
            k: v for k, v in state(source.engine).items() if not k.endswith(keys.RING_PATH)
        }
        assert len(target.engine.batches) == 1 and target.engine.durable == target.engine.rows
        assert target.host.position(GROUP) == at == source.host.position(GROUP)
        (outcome,) = target.entry(put("d"), time_ms=1)
        assert outcome.memory.created_at_ms == 9000, "the leader time came along"

    asyncio.run(story())


def test_an_install_replaces_what_was_there_and_leaves_the_ring_alone() -> None:
    async def story() -> None:
        source, target = lived_in(), Replica()
        ring = Version("b", "n~1", 1, 7 << 16, {}, Memory("from the ring"))
        target.engine.stage(memories.ring_rows(GROUP, "b", None, RingRecord((ring,), {"n~1": 1})))
        target.entry(put("gone"), put("a", "older"), put("z", request=digest(7), fingerprint=digest(9)))
        target.entry(put("other"), group=GroupId(4))
        other = state(target.engine, GroupId(4))
        at, chunks = await taken(source)
        await target.host.install(GROUP, at, chunks)
        assert {k: v for k, v in state(target.engine).items() if not k.endswith(keys.RING_PATH)} == {
            k: v for k, v in state(source.engine).items() if not k.endswith(keys.RING_PATH)
        }
        assert memories.ring(target.engine, GROUP, "b") == RingRecord((ring,), {"n~1": 1})
        (lost,) = memories.conflicts(target.engine, GROUP, "b")
        assert lost.memory == ring.memory and lost.winner == strong_version_text(GROUP, 1, 1)
        assert state(target.engine, GroupId(4)) == other

    asyncio.run(story())


def test_installing_the_state_one_has_changes_nothing() -> None:
    async def story() -> None:
        replica = lived_in()
        before = dict(replica.engine.rows)
        at, chunks = await taken(replica)
        await replica.host.install(GROUP, at, chunks)
        assert replica.engine.rows == before and replica.engine.batches[-1] == []

    asyncio.run(story())


def test_a_snapshot_is_of_the_moment_it_was_taken() -> None:
    async def story() -> None:
        source, target = Replica(), Replica()
        source.entry(put("a", 1))
        at, stream = await source.host.snapshot(GROUP)
        source.entry(put("a", 2))
        await target.host.install(GROUP, at, [chunk async for chunk in stream])
        record = memories.strong(target.engine, GROUP, "a")
        assert record is not None and record.memory is not None and record.memory.content == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"\x02" + data[1:],
        lambda data: data[:-1],
        lambda data: data[:-200],
        lambda data: data[:1] + b"\0\0\0",
        lambda data: b"",
        lambda data: data.replace(keys.kind_of_group(keys.STRONG, GROUP), b"s\0\4"),
    ],
)
def test_a_damaged_snapshot_is_refused_whole(damage: Any) -> None:
    async def story() -> None:
        source, target = lived_in(), Replica()
        target.entry(put("kept"))
        before = dict(target.engine.rows)
        at, chunks = await taken(source)
        with pytest.raises(Corrupt):
            await target.host.install(GROUP, at, [damage(b"".join(chunks))])
        assert target.engine.rows == before

    asyncio.run(story())


def test_a_snapshot_of_another_position_is_refused() -> None:
    async def story() -> None:
        _, chunks = await taken(lived_in())
        with pytest.raises(Corrupt, match="not of"):
            await Replica().host.install(GROUP, Position(99, 1), chunks)

    asyncio.run(story())


def test_a_stream_given_up_early_lets_go_of_its_view() -> None:
    async def story() -> None:
        replica = lived_in()
        _, stream = await replica.host.snapshot(GROUP)
        assert isinstance(stream, Stream)
        await anext(stream)
        await stream.aclose()
        assert replica.engine.frozen[0].closed
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(story())


def test_the_meta_groups_snapshot_brings_the_table() -> None:
    async def story() -> None:
        source, target = Replica(), Replica()
        command = cluster.encode(cluster.first_table(plan(), "one"))
        source.host.apply(META_GROUP, Position(1, 1), 5, [command])
        at, chunks = await taken(source, META_GROUP)
        await target.host.install(META_GROUP, at, chunks)
        assert target.tables == source.tables

    asyncio.run(story())


def test_flush_makes_what_was_applied_durable() -> None:
    async def story() -> None:
        replica = Replica()
        replica.entry(put("a"))
        assert replica.engine.durable == {}
        await replica.host.flush()
        assert replica.engine.durable == replica.engine.rows
        assert codec.decode_any(replica.engine.rows[keys.applied(GROUP)])[:2] == [1, 1]

    asyncio.run(story())


def test_a_stream_that_is_dropped_lets_go_of_its_view() -> None:
    async def story() -> None:
        replica = lived_in()
        _, stream = await replica.host.snapshot(GROUP)
        await anext(stream)
        del stream
        assert replica.engine.frozen[0].closed

    asyncio.run(story())


def test_a_store_that_is_behind_is_to_the_log_as_a_full_one() -> None:
    class Behind(DictEngine):
        def stage(self, rows: Any) -> None:
            raise Unavailable("too far behind", code="overloaded")

    replica = Replica(Behind())
    with pytest.raises(NoSpace, match="too far behind"):
        replica.entry(put("a"))
    assert replica.host.position(GROUP) == Position(0, 0)


def test_a_snapshot_that_may_not_be_on_disk_is_no_refusal() -> None:
    class Failing(DictEngine):
        def commit(self, *, durable: bool | None = None) -> "asyncio.Future[None]":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(Unknown("the disk failed"))
            return future

    async def story() -> None:
        at, chunks = await taken(lived_in())
        with pytest.raises(OSError, match="may not be on disk"):
            await Replica(Failing()).host.install(GROUP, at, chunks)

    asyncio.run(story())
