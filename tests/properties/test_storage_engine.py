"""The engine is an ordered map: whatever happens between and beneath, it answers like a dict that was sorted."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.sim.tree import SimTree
from raftspine.storage import keys
from raftspine.storage.engine import Engine
from tests.support.memory_disk import MemoryDisk
from tests.support.storage import new_tree, open_engine

KEY = st.sampled_from([b"%s%c%s" % (kind, group, id) for kind in (b"m", b"i") for group in (0, 1, 255)
                       for id in (b"", b"a", b"ab", b"b\xff", b"c")] + [b"A", b"n", b"nnnn"])  # fmt: skip
VALUE = st.one_of(st.none(), st.binary(max_size=3))
STEP = st.one_of(
    st.tuples(st.just("stage"), st.lists(st.tuples(KEY, VALUE), min_size=1, max_size=6)),
    st.tuples(st.just("scan"), st.tuples(KEY, KEY, st.integers(0, 6), st.booleans())),
    st.tuples(st.sampled_from(["commit", "sync", "checkpoint", "let it run", "kill", "power cut"]), st.none()),
)


class Twin:
    """The engine, and the dict it must equal."""

    def __init__(self) -> None:
        self.disk, self.tree = MemoryDisk(), new_tree()
        self.tree.delay_seconds = 0.0005
        self.engine = self.open()
        self.rows: dict[bytes, bytes] = {}
        self.history: list[dict[bytes, bytes]] = [{}]  # what the log has held since the last sync, newest last

    def open(self) -> Engine:
        return open_engine(
            self.disk, self.tree, sync_interval_ms=10**9, checkpoint_interval_ms=10**9,
            segment_bytes=100, checkpoint_bytes=300,
        )  # fmt: skip

    async def step(self, name: str, argument: Any) -> None:
        match name:
            case "stage":
                self.engine.stage(argument)
                for key, value in argument:
                    if value is None:
                        self.rows.pop(key, None)
                    else:
                        self.rows[key] = value
            case "scan":
                self.check_scan(*argument)
            case "commit":
                await self.engine.commit()
                self.history.append(dict(self.rows))
            case "sync":
                await self.engine.commit(durable=True)
                self.history = [dict(self.rows)]
            case "checkpoint":
                await self.engine.checkpoint()
                self.history = [dict(self.rows)]
            case "let it run":
                await asyncio.sleep(0.001)
                self.history.append(dict(self.rows))
            case "kill":
                self.reborn(self.disk.copy())
                assert self.rows == self.history[-1]
            case "power cut":
                self.reborn(self.disk.power_cut())
                assert self.rows in self.history
                self.history = [dict(self.rows)]

    def reborn(self, disk: MemoryDisk) -> None:
        self.tree.crash()
        self.disk = disk
        self.engine = self.open()
        self.rows = {k: v for k, v in self.all() if not k.startswith(keys.META)}

    def all(self) -> list[tuple[bytes, bytes]]:
        return self.engine.scan(b"", b"\xff" * 9, limit=10**6)

    def check_scan(self, lo: bytes, hi: bytes, limit: int, reverse: bool) -> None:
        expected = sorted((item for item in self.rows.items() if lo <= item[0] < hi), reverse=reverse)
        assert self.engine.scan(lo, hi, limit=limit, reverse=reverse) == expected[:limit]

    def check(self) -> None:
        for key in {*self.rows, b"m\x00a", b"nothing"}:
            assert self.engine.get(key) == self.rows.get(key)
        assert [row for row in self.all() if not row[0].startswith(keys.META)] == sorted(self.rows.items())


@settings(max_examples=120, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_the_engine_equals_a_dict_through_checkpoints_kills_and_power_cuts(steps: list[Any]) -> None:
    async def run() -> None:
        twin = Twin()
        for name, argument in steps:
            await twin.step(name, argument)
            twin.check()

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.binary(max_size=5), VALUE), max_size=120), max_size=3), st.data())
def test_scans_over_layers_equal_scans_over_their_sum(layers: list[Any], data: st.DataObject) -> None:
    """Long layers and short limits: the window in which layers are merged has to move."""
    from raftspine.storage.memtable import Memtable, scan

    async def run() -> None:
        tree = SimTree(asyncio.get_running_loop(), delay_seconds=0)
        total: dict[bytes, bytes | None] = {}
        tables = []
        for place, rows in enumerate(layers):
            total.update(rows)
            if place == 0:
                await tree.apply(dict(rows))
                continue
            tables.append(Memtable())
            tables[-1].rows.update(rows)
        live = sorted((key, value) for key, value in total.items() if value is not None)
        for _ in range(5):
            lo, hi = data.draw(st.binary(max_size=4)), data.draw(st.binary(max_size=4))
            limit, reverse = data.draw(st.integers(0, 40)), data.draw(st.booleans())
            expected = sorted((item for item in live if lo <= item[0] < hi), reverse=reverse)[:limit]
            assert scan(tables, tree, lo, hi, limit=limit, reverse=reverse) == expected

    asyncio.run(run())
