"""Records keep their index rows in step, and the logs beside them stay bounded and in order."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftspine.core.dots import Vector
from raftspine.model import GroupId, Memory, RingRecord, StrongRecord, Version
from raftspine.ports import Position, Row
from raftspine.storage import keys
from raftspine.storage import memories as rows
from raftspine.storage.engine import Engine
from tests.support.memory_disk import MemoryDisk
from tests.support.storage import new_tree, open_engine

G = GroupId(3)


def memory(content: str = "text", **fields: Any) -> Memory:
    return Memory(content, **fields)


def version(id: str, seq: int, kept: Memory | None, *, origin: str = "n1~0", stamp: int = 0, **more: Any) -> Version:
    return Version(id, origin, seq, stamp or seq, more.pop("context", {}), kept, **more)


def ring(*versions: Version) -> RingRecord:
    return RingRecord(versions, {v.origin: v.seq for v in versions})


def with_engine(story: Callable[[Engine], None]) -> None:
    async def run() -> None:
        story(open_engine(MemoryDisk(), new_tree()))

    asyncio.run(run())


def index_rows(engine: Engine) -> set[bytes]:
    return {key for key, _ in engine.scan(*keys.span(keys.INDEX, G), limit=1000)}


def test_an_overwrite_replaces_the_index_rows_and_a_delete_removes_them() -> None:
    def story(engine: Engine) -> None:
        first = ring(version("id", 1, memory(agent_id="a", tags=("t", "u"), expires_at_ms=9, updated_at_ms=1)))
        second = ring(version("id", 2, memory(agent_id="a", namespace="n", tags=("u",), updated_at_ms=2)))
        tombstone = ring(version("id", 3, None))
        engine.stage(rows.ring_rows(G, "id", None, first))
        assert len(index_rows(engine)) == 5
        engine.stage(rows.ring_rows(G, "id", first, second))
        assert rows.ring(engine, G, "id") == second
        fresh: set[bytes] = {key for key, _ in rows.ring_rows(G, "id", None, second)[1:]}
        assert index_rows(engine) == fresh
        engine.stage(rows.ring_rows(G, "id", second, tombstone))
        assert index_rows(engine) == set()
        assert rows.ring(engine, G, "id") == tombstone
        engine.stage(rows.ring_rows(G, "id", tombstone, None))
        assert rows.ring(engine, G, "id") is None

    with_engine(story)


def test_an_unchanged_index_row_is_not_written_again() -> None:
    old = ring(version("id", 1, memory(agent_id="a", updated_at_ms=5)))
    new = ring(version("id", 2, memory("other", agent_id="a", updated_at_ms=5)))
    assert [key for key, _ in rows.ring_rows(G, "id", old, new)] == [keys.ring(G, "id")]


def test_ring_and_strong_index_rows_of_one_id_do_not_disturb_each_other() -> None:
    def story(engine: Engine) -> None:
        kept = memory(tags=("t",), updated_at_ms=4)
        strong = StrongRecord("id", 7, 0, kept)
        engine.stage(rows.ring_rows(G, "id", None, ring(version("id", 1, kept))))
        engine.stage(rows.strong_rows(G, "id", None, strong))
        engine.stage(rows.ring_rows(G, "id", ring(version("id", 1, kept)), None))
        assert index_rows(engine) == {key for key, _ in rows.strong_rows(G, "id", None, strong)[1:]}
        found = rows.resolve(engine, G, "id")
        assert found == rows.Found("id", kept, "s-3-7-0", True)

    with_engine(story)


def test_a_deleted_promotion_hides_what_it_had_absorbed_and_nothing_newer() -> None:
    def story(engine: Engine) -> None:
        old, new = version("id", 1, memory("old")), version("id", 2, memory("new"))
        engine.stage(rows.strong_rows(G, "id", None, StrongRecord("id", 7, 0, None, {"n1~0": 1})))
        engine.stage(rows.ring_rows(G, "id", None, ring(old)))
        assert rows.resolve(engine, G, "id") is None
        engine.stage(rows.ring_rows(G, "id", ring(old), ring(new)))
        assert rows.resolve(engine, G, "id") == rows.Found("id", memory("new"), "r-n1~0-2", False)

    with_engine(story)


def test_the_dot_log_and_the_vector_rows_add_up_to_the_vector() -> None:
    def story(engine: Engine) -> None:
        for seq in (1, 2, 3, 5):
            engine.stage([rows.dot_row(G, "n1~0", seq, f"id{seq}")])
        engine.stage([rows.dot_row(G, "n1~01", 1, "other"), rows.dot_row(G + 1, "n1~0", 9, "elsewhere")])
        assert rows.dots(engine, G, "n1~0", 2, 5, 10) == [(2, "id2"), (3, "id3"), (5, "id5")]
        assert rows.dots(engine, G, "n1~0", 1, 5, 2) == [(1, "id1"), (2, "id2")]
        before = rows.load_vector(engine, G)
        assert before == Vector({"n1~0": 3, "n1~01": 1}, {"n1~0": {5}})
        assert rows.floor(engine, G, "n1~0") == 0
        gone = [seq for seq, _ in rows.dots(engine, G, "n1~0", 1, 2, 10)]
        engine.stage([rows.dot_gone(G, "n1~0", seq) for seq in gone] + [rows.vector_row(G, "n1~0", 2, ())])
        assert rows.floor(engine, G, "n1~0") == 2
        assert rows.load_vector(engine, G) == before
        learnt = Vector({"n2~0": 4}, {"n2~0": {6, 8}})
        engine.stage(rows.vector_rows(G, learnt))
        before.join(learnt)
        assert rows.load_vector(engine, G) == before

    with_engine(story)


def test_the_conflict_log_keeps_the_newest_of_each_id() -> None:
    def story(engine: Engine) -> None:
        for seq in range(1, 31):
            loser = version("id", seq, None if seq == 30 else memory(str(seq)))
            engine.stage(rows.conflict_rows(engine, G, loser, winner="r-w-1", now_ms=seq))
        again = version("id", 29, memory("29"))
        engine.stage(rows.conflict_rows(engine, G, again, winner="r-w-1", now_ms=29))
        engine.stage(rows.conflict_rows(engine, G, version("id2", 1, memory()), winner="r-w-1", now_ms=1))
        found = rows.conflicts(engine, G, "id")
        assert [lost.version for lost in found] == [
            f"r-n1~0-{seq}" for seq in range(30, 30 - rows.CONFLICTS_KEPT, -1)
        ]
        assert found[0] == rows.Lost("r-n1~0-30", None, 30, "r-w-1")
        assert len(engine.scan(*keys.span(keys.CONFLICT, G), limit=100)) == rows.CONFLICTS_KEPT + 1

    with_engine(story)


def test_a_request_is_remembered_with_the_write_it_caused() -> None:
    def story(engine: Engine) -> None:
        digest, fingerprint = b"d" * 16, b"finger"
        asked = version("id", 4, memory(), request=digest + fingerprint)
        engine.stage([rows.ring_request_row(G, asked)])
        assert rows.ring_request(engine, G, digest) == rows.RingRequest("n1~0", 4, 4, fingerprint, True, id="id")
        assert rows.ring_request(engine, G, b"e" * 16) is None
        engine.stage([rows.ring_void_row(G, b"e" * 16)])
        voided = rows.ring_request(engine, G, b"e" * 16)
        assert voided is not None
        assert voided.void
        engine.stage([rows.strong_request_row(G, digest, b"result")])
        assert rows.strong_request(engine, G, digest) == b"result"

    with_engine(story)


def test_the_applied_position_is_kept_per_group() -> None:
    def story(engine: Engine) -> None:
        assert rows.applied(engine, G) == (Position(0, 0), None)
        engine.stage([rows.applied_row(G, Position(8, 2), {"voters": ["n1"]})])
        assert rows.applied(engine, G) == (Position(8, 2), {"voters": ["n1"]})
        assert rows.applied(engine, G + 1) == (Position(0, 0), None)

    with_engine(story)


def test_record_pages_go_on_behind_the_last_id() -> None:
    def story(engine: Engine) -> None:
        for id in ("a", "aa", "ab", "b"):
            engine.stage(rows.ring_rows(G, id, None, ring(version(id, 1, memory(id)))))
            engine.stage(rows.strong_rows(G, id, None, StrongRecord(id, 1, 0, memory(id))))
        for page in (rows.ring_page, rows.strong_page):
            assert [id for id, _ in page(engine, G, None, 2)] == ["a", "aa"]
            assert [id for id, _ in page(engine, G, "aa", 9)] == ["ab", "b"]
        assert (rows.count(engine, G, 3), rows.count(engine, G, 99)) == (6, 8)
        assert rows.ring_bytes(engine, G, "ab") == rows.ring_page(engine, G, "aa", 1)[0][1]

    with_engine(story)


@pytest.mark.parametrize("long", ["ü" * 127 + "x", "z" * 255])
def test_no_key_exceeds_what_lmdb_takes(long: str) -> None:
    kept = memory(agent_id=long, namespace=long, tags=(long,), expires_at_ms=1)
    changes: list[Row] = rows.ring_rows(G, long, None, ring(version(long, 1, kept)))
    changes += rows.strong_rows(G, long, None, StrongRecord(long, 1, 0, kept))
    changes.append(rows.dot_row(G, long, 1, long))
    changes.append((keys.conflict(G, long, 1, long, 1), b""))
    assert max(len(key) for key, _ in changes) <= 511
    assert len({key for key, _ in changes}) == len(changes)


def test_a_prefix_ends_where_the_next_one_begins() -> None:
    assert keys.after(b"m\x00\xff") == b"m\x01"
    assert keys.after(b"m\xff\xff") == b"n"
    with pytest.raises(ValueError, match="prefix"):
        keys.after(b"\xff\xff")
