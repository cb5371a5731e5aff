"""Lists against a twin that reads every record: the same memories in the same order, whatever the page size."""

import asyncio
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.errors import InvalidRequest
from raftspine.model import Memory, RingRecord, StrongRecord, Version
from raftspine.storage import memories as rows
from raftspine.storage.engine import Engine
from tests.support.memory_disk import MemoryDisk
from tests.support.storage import new_tree, open_engine

GROUPS = (0, 1, 2)
NOW_MS = 100
LONG = "long" * 30

ID = st.sampled_from(["a", "aa", "a-b", "ab", "b", "ü", "b/c"])
FEW = st.sampled_from(["", "x", "xy", LONG])
MEMORY = st.builds(
    Memory,
    content=st.integers(0, 3),
    agent_id=FEW,
    namespace=FEW,
    tags=st.lists(st.sampled_from(["t", "tt", LONG]), max_size=2, unique=True).map(tuple),
    expires_at_ms=st.sampled_from([None, NOW_MS, NOW_MS + 1]),
    updated_at_ms=st.integers(0, 4),
)
CHANGE = st.tuples(st.sampled_from(["ring", "strong"]), ID, st.none() | MEMORY, st.booleans())


class Asked(NamedTuple):
    tag: str | None = None
    namespace: str | None = None
    agent_id: str | None = None
    prefix: str | None = None
    updated_since_ms: int | None = None
    limit: int = 100
    after: str | None = None


QUERY = st.builds(
    Asked,
    tag=st.none() | st.sampled_from(["t", LONG]),
    namespace=st.none() | FEW,
    agent_id=st.none() | FEW,
    prefix=st.none() | st.sampled_from(["", "a", "b", "ü"]),
    updated_since_ms=st.none() | st.integers(0, 4),
    limit=st.integers(1, 4),
    after=st.none(),
)


def group_of(id: str) -> int:
    return len(id) % len(GROUPS)


def change(engine: Engine, seq: int, path: str, id: str, memory: Memory | None, absorb: bool) -> None:
    group = group_of(id)
    if path == "ring":
        version = Version(id, "n~0", seq, seq, {}, memory)
        engine.stage(rows.ring_rows(group, id, rows.ring(engine, group, id), RingRecord((version,), {"n~0": seq})))
    else:
        shadow = {"n~0": seq} if absorb else {}
        record = StrongRecord(id, seq, 0, memory, shadow)
        engine.stage(rows.strong_rows(group, id, rows.strong(engine, group, id), record))


def expected(engine: Engine, query: Asked) -> list[str]:
    found = []
    for id in ["a", "aa", "a-b", "ab", "b", "ü", "b/c"]:
        shown = rows.resolve(engine, group_of(id), id)
        if shown is None or (shown.memory.expires_at_ms or NOW_MS + 1) <= NOW_MS:
            continue
        memory = shown.memory
        if (
            (query.tag is None or query.tag in memory.tags)
            and query.namespace in (None, memory.namespace)
            and query.agent_id in (None, memory.agent_id)
            and id.startswith(query.prefix or "")
            and memory.updated_at_ms >= (query.updated_since_ms or 0)
        ):
            found.append((memory.updated_at_ms if query.updated_since_ms is not None else 0, id))
    return [id for _, id in sorted(found)]


def read_all(engine: Engine, query: Asked) -> list[str]:
    ids: list[str] = []
    while True:
        page = rows.page(engine, GROUPS, query, NOW_MS)
        assert len(page.items) <= query.limit
        assert (page.next is None) or len(page.items) == query.limit, "only the last page may be short"
        ids += [item.id for item in page.items]
        if page.next is None:
            return ids
        query = query._replace(after=page.next)


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGE, max_size=25), st.lists(QUERY, min_size=1, max_size=6), st.booleans())
def test_pages_equal_a_scan_of_everything(changes: list[Any], queries: list[Asked], settle: bool) -> None:
    async def run() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        for seq, (path, id, memory, absorb) in enumerate(changes, 1):
            change(engine, seq, path, id, memory, absorb)
            if settle and seq == len(changes) // 2:
                await engine.checkpoint()
        for query in queries:
            assert read_all(engine, query) == expected(engine, query)

    asyncio.run(run())


def test_a_cursor_neither_repeats_nor_skips_while_others_come_and_go() -> None:
    async def run() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        for seq, id in enumerate(["b", "d", "f", "h"], 1):
            change(engine, seq, "ring", id, Memory("x", updated_at_ms=seq), False)
        first = rows.page(engine, GROUPS, Asked(limit=2), NOW_MS)
        assert [item.id for item in first.items] == ["b", "d"]
        change(engine, 5, "ring", "d", None, False)
        change(engine, 6, "ring", "a", Memory("x"), False)
        change(engine, 7, "ring", "e", Memory("x"), False)
        rest = rows.page(engine, GROUPS, Asked(after=first.next), NOW_MS)
        assert [item.id for item in rest.items] == ["e", "f", "h"]

    asyncio.run(run())


@pytest.mark.parametrize("after", ["", "%", "é", "AAAA", "wA", "kaF", rows.cursor("id", 5), "kcQBYQ"])
def test_a_cursor_of_another_kind_names_the_field(after: str) -> None:
    async def run() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        with pytest.raises(InvalidRequest) as caught:
            rows.page(engine, GROUPS, Asked(after=after), NOW_MS)
        assert caught.value.details["field"] == "cursor"

    asyncio.run(run())


def test_expired_ids_come_oldest_first() -> None:
    async def run() -> None:
        engine = open_engine(MemoryDisk(), new_tree())
        for seq, (id, at) in enumerate([("a", 30), ("b", 10), ("c", 20), ("d", 21), ("e", None)], 1):
            version = Version(id, "n~0", seq, seq, {}, Memory("x", expires_at_ms=at))
            engine.stage(rows.ring_rows(0, id, None, RingRecord((version,), {"n~0": seq})))
        assert rows.expired(engine, 0, 20, 10) == ["b", "c"]
        assert rows.expired(engine, 0, 99, 1) == ["b"]

    asyncio.run(run())
