"""One seed in, one run out: whatever the process's hash seed, its clock and its random numbers."""

import os
import random
import subprocess
import sys
from pathlib import Path

from raftspine.sim.loop import Dice, VirtualLoop, run
from tests.support.bare_engine import BareNet, core
from tests.support.bare_engine import bare as package
from tests.support.defects import bare, ours
from tests.support.raft_puppet import Puppet

_BARE = """
from tests.support.bare_engine import BareNet, bare
import tests.support.bare_engine as harness
harness.Name = bare.node.Node  # as shipped: hashes of names differ from process to process
net = BareNet()
sent = net._sent
order = []
net._sent = lambda source, target, message: (order.append(target), sent(source, target, message))[1]
net.nodes("abcdefgh")[0].campaign()
print("".join(order))
"""

_OURS = """
from raftspine.sim.loop import run
from tests.support.raft_puppet import Puppet
from tests.support.raft_story import tell

async def campaign(loop):
    puppet = Puppet(loop, 5)
    sent = []
    while not puppet.engine.campaigns:
        await puppet.pause(0.1)
        sent += await puppet.turn()
        for out in [out for out in sent if out[1] == 7]:
            sent += await puppet.hear(out[0], 8, out[2], out[3], True)
    return sent

print(run(campaign))
print(sorted(tell(7, seconds=1.0).items()))
"""


def _runs(script: str, repository: Path, seeds: int) -> set[str]:
    """What a script prints under different hash seeds."""
    printed = set()
    for seed in range(1, seeds + 1):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(repository)}
        command = [sys.executable, "-c", script]
        printed.add(subprocess.check_output(command, cwd=repository, env=environment, text=True))
    return printed


@bare(19, "order of nodes", "differs from process to process")
def test_bare_order_of_nodes(repository: Path) -> None:
    """Messages are sent in the order of a set of objects whose hashes are salted."""
    assert len(_runs(_BARE, repository, 4)) > 1


@ours(19, "order of nodes", "is fixed", "cluster.raft_engine._Peer")
def test_ours_order_of_nodes(repository: Path) -> None:
    """Nodes are kept in order, and where the engine keeps a set their hashes do not vary."""
    assert len(_runs(_OURS, repository, 3)) == 1


@bare(19, "chance and clock", "belong to the process")
def test_bare_chance_and_clock(net: BareNet) -> None:
    """Timeouts come from the module `random` and one clock for all nodes of a process; neither can be handed in, and
    whoever draws in between changes the run."""
    core.random = random

    def deadline(drawn: int) -> float:
        random.seed(5)
        for _ in range(drawn):
            random.random()
        now = net.clock.seconds
        return round(float(net.start("a", "abc").private("raftElectionDeadline")) - now, 4)

    assert deadline(0) == deadline(0) != deadline(1)
    options = vars(package.SyncObjConf())
    assert not any("clock" in name.lower() or "random" in name.lower() for name in options)


@ours(19, "chance and clock", "are handed in for each node", "cluster.raft_engine.Engine")
def test_ours_chance_and_clock() -> None:
    """The same dice give the same run, whatever else the process draws."""

    def deadlines(drawn: int) -> list[float]:
        random.seed(drawn)

        async def main(loop: VirtualLoop) -> list[float]:
            first, second = Puppet(loop), Puppet(loop)
            second.engine._chance = Dice(99).random
            second.engine._SyncObj__raftElectionDeadline = second.engine._SyncObj__generateRaftTimeout()
            return [puppet.engine._SyncObj__raftElectionDeadline for puppet in (first, second)]

        return run(main)

    assert deadlines(1) == deadlines(2)
    assert deadlines(1)[0] != deadlines(1)[1]
