"""Coordination on one node: its parts, made and joined in one place.

The rule: what applied rows wake, what leadership starts and what a stopping node ends is told to all parts from here,
so that none of them can be forgotten.
"""

from asyncio import get_running_loop
from collections.abc import Callable, Sequence

from raftspine.core.ledger.state import SetRow
from raftspine.model import GroupId, NodeId
from raftspine.ports import Clock, Engine, Entropy, ReplicatedLog, Rpc
from raftspine.services.coordination.access import Access
from raftspine.services.coordination.composed import Composed
from raftspine.services.coordination.door import Door
from raftspine.services.coordination.fences import Fences
from raftspine.services.coordination.figures import Figure, Figures
from raftspine.services.coordination.gates import Gates
from raftspine.services.coordination.keeper import Keeper
from raftspine.services.coordination.leader import AtLeader
from raftspine.services.coordination.locks import Locks
from raftspine.services.coordination.sessions import Sessions
from raftspine.services.coordination.tasks import Tasks
from raftspine.services.coordination.terraform import Terraform
from raftspine.services.coordination.txns import Txns
from raftspine.services.coordination.waits import Waits
from raftspine.services.coordination.watch import Watch
from raftspine.services.ledger_host import LedgerHost
from raftspine.services.pictures import Pictures
from raftspine.services.strong import StrongPath
from raftspine.services.topology import Topology


class Coordination:
    """Everything coordination offers to a front end. `waited`: called with the seconds each lock was waited for."""

    def __init__(
        self,
        node: NodeId,
        *,
        strong: StrongPath,
        log: ReplicatedLog,
        host: LedgerHost,
        topology: Topology,
        rpc: Rpc,
        engine: Engine,
        clock: Clock,
        entropy: Entropy,
        pictures: Pictures,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._figures = figures = Figures(node, log, engine, clock)
        self._keeper = keeper = Keeper(node, log, engine, clock, on_expired=figures.count)
        self._leader = leader = AtLeader(
            node, log, rpc, topology, clock, news=strong.news, timeout_ms=strong.timeout_ms
        )
        self.door = door = Door(
            strong=strong,
            leader=leader,
            log=log,
            keeper=keeper,
            host=host,
            topology=topology,
            engine=engine,
            clock=clock,
            entropy=entropy,
        )
        self._waits = waits = Waits(door, log, rpc, topology, clock)
        self.sessions = Sessions(door, waits)
        self.locks = Locks(door, waits, self.sessions, waited=waited)
        self.fences = Fences(door)
        self.access = Access(door)
        composed = Composed(door, pictures, strong, rpc, topology, engine)
        self.tasks = Tasks(door, waits, self.sessions, composed, topology)
        self.gates = Gates(door, waits, counted=figures.count)
        self.txns = Txns(door, composed, topology)
        self.watch = Watch(door, rpc, topology, engine, clock)
        self.terraform = Terraform(door)
        host.on_rows = self._observe
        host.on_install = self._replaced

    def start(self) -> None:
        self._keeper.start()

    def stop(self) -> None:
        """Propose nothing any more."""
        self._keeper.stop()
        self.watch.stop()

    def drain(self) -> None:
        """The node is about to stop: who waits is answered now."""
        self._waits.drain()
        self.watch.drain()

    def leader_changed(self, group: GroupId, leader: NodeId | None) -> None:
        """To be called by whoever learns of a new leader."""
        self._leader.leader_changed(group, leader)
        self._keeper.leader_changed(group, leader)

    def gauges(self) -> dict[str, Figure]:
        """For metrics: text and value by name."""
        return self._figures.gauges(self._keeper, self._waits, self.watch)

    def counters(self) -> dict[str, Figure]:
        return self._figures.counters(self.watch)

    def _observe(self, group: GroupId, rows: Sequence[SetRow]) -> None:
        """Called while an entry is applied, which nothing of ours may disturb: so in a callback of its own, before
        anybody hears of the entry's outcome."""
        get_running_loop().call_soon(self._tell, group, rows)

    def _tell(self, group: GroupId, rows: Sequence[SetRow]) -> None:
        self._keeper.observe(group, rows)
        self._waits.observe(group, rows)
        self.watch.observe(group, rows)

    def _replaced(self, group: GroupId) -> None:
        self._waits.replaced(group)
        self.watch.replaced(group)
