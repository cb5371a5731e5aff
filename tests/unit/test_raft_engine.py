"""The engine's reins: the right version, a closed list of private names, one clock per node, nothing
global."""

import re
from pathlib import Path

import pysyncobj.syncobj
import pytest

from raftspine.cluster import raft_engine
from raftspine.cluster.raft_engine import PRIVATE_NAMES, Engine, require_version
from raftspine.errors import Misuse
from raftspine.model import NodeId
from raftspine.sim.loop import run
from tests.support.raft_puppet import Puppet

CLUSTER = Path(raft_engine.__file__).parent


def test_only_the_proven_version_is_accepted():
    require_version("0.3.17")
    with pytest.raises(Misuse, match=r"0\.3\.18"):
        require_version("0.3.18")


def test_the_table_names_every_private_name_that_is_touched_and_no_other():
    source = (CLUSTER / "raft_engine.py").read_text()
    assert set(re.findall(r"_SyncObj__\w+", source)) == set(PRIVATE_NAMES)
    for other in CLUSTER.glob("*.py"):
        if other.name != "raft_engine.py":
            assert "_SyncObj__" not in other.read_text(), other.name
            assert not re.search(r"^\s*(import|from) pysyncobj", other.read_text(), re.MULTILINE), other.name


def test_every_name_in_the_table_exists_in_the_engine():
    async def main(loop):
        engine = Puppet(loop).engine
        for name, use in PRIVATE_NAMES.items():
            assert hasattr(engine, name), name
            if use.startswith("overridden"):
                assert name in vars(Engine)
                assert hasattr(pysyncobj.syncobj.SyncObj, name)

    run(main)


def test_a_pysyncobj_imported_by_somebody_else_is_left_alone():
    async def main(loop):
        Puppet(loop)
        assert pysyncobj.syncobj.createJournal.__module__ == "pysyncobj.journal"
        assert pysyncobj.syncobj.pickle.__name__ == "pysyncobj.pickle"
        assert pysyncobj.syncobj.monotonicTime is pysyncobj.monotonic.monotonic

    run(main)


def test_each_node_lives_by_its_own_clock():
    async def main(loop):
        early, late = Puppet(loop), Puppet(loop)
        late.engine._now = lambda: loop.time() - 100.0
        late.engine._SyncObj__raftElectionDeadline = -90.0
        await early.pause(5.0)
        await early.turn()
        assert early.engine.election_due
        assert not late.engine.election_due
        await late.turn()
        assert raft_engine._core.monotonicTime() == pytest.approx(loop.time() - 100.0)
        await early.turn()
        assert raft_engine._core.monotonicTime() == pytest.approx(loop.time())

    run(main)


def test_pickle_is_out_of_reach():
    async def main(loop):
        engine = Puppet(loop).engine
        with pytest.raises(RuntimeError, match="pickle"):
            engine.setCodeVersion(0)

    run(main)


def test_nothing_leaves_by_a_path_nobody_planned():
    async def main(loop):
        puppet = Puppet(loop)
        puppet.engine.follow(NodeId("b"), 1, 0)
        with pytest.raises(RuntimeError, match="apply_command"):
            puppet.engine._SyncObj__transport.send(puppet.engine._peers[NodeId("b")], {"type": "apply_command"})

    run(main)
