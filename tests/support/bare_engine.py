"""The Raft engine as it is shipped, played by hand: no guard, no journal, no driver of ours.

A guard that closes nothing looks exactly like one that works, so each defect is first shown here, on the
unmodified package. Nothing of the package is changed: a private copy of it is loaded under another name, and
what its modules look up as globals (clock, chance, poller) is pointed at this file. Its messages go through
`BareNet`, which holds everything until the test says what arrives, in which order, and how often::

    a, b, c = net.nodes("abc")
    net.elect(a)                 # by the votes of all the others
    answer = a.put("x")          # what the client hears is in `answer`
    net.settle()                 # time passes, everything held is delivered
    net.take(a, b)               # … or is lost …
    net.deliver(a, b, 1)         # … or arrives one at a time …
    net.inject(a, b, messages)   # … or once more

Time stands still but for `net.wait` and for ten microseconds a look at the clock: the engine has loops that
only the clock ends.
"""

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

_COPY = "bare_pysyncobj"

LOOK_SECONDS = 1e-5
HEARTBEAT_SECONDS = 0.1
"""The engine's default."""

FOREVER_SECONDS = 1e6


def _private_copy() -> Any:
    """The package under another name, so that its globals can be set without touching the real one."""
    real = importlib.util.find_spec("pysyncobj")
    assert real is not None and real.origin is not None
    folder = str(Path(real.origin).parent)
    spec = importlib.util.spec_from_file_location(_COPY, real.origin, submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_COPY] = package  # its modules import each other by this name
    spec.loader.exec_module(package)
    return package


bare: Any = _private_copy()
core: Any = bare.syncobj
journals: Any = importlib.import_module(f"{_COPY}.journal")
FAIL_REASON: Any = bare.FAIL_REASON
SUCCESS = FAIL_REASON.SUCCESS


class Killed(BaseException):
    """The process ends here: no handler of the package may catch it."""


class Name(bare.node.Node):  # type: ignore[misc, name-defined]
    """A node's name with the same hash in every run: the engine walks sets of these."""

    def __hash__(self) -> int:
        return crc32(self.id.encode())


class _Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        self.seconds += LOOK_SECONDS
        return self.seconds


class _NoPoller:
    """Stands for the engine's sockets, of which there are none."""

    def subscribe(self, *ignored: Any) -> None:
        pass

    def unsubscribe(self, *ignored: Any) -> None:
        pass

    def poll(self, timeout: float) -> None:
        pass


class _End(bare.transport.Transport):  # type: ignore[misc, name-defined]
    """A node's end of the scripted network."""

    def __init__(self, net: "BareNet", me: str) -> None:
        super().__init__(None, None, None)
        self._net = net
        self._me = me

    def send(self, node: Any, message: Any) -> bool:
        return self._net._sent(self._me, node.id, message)

    def addNode(self, node: Any) -> None:
        if self._net.linked(self._me, node.id):
            self._onNodeConnected(node)

    def dropNode(self, node: Any) -> None:
        self._onNodeDisconnected(node)


class Machine(core.SyncObj):  # type: ignore[misc, name-defined]
    """What is replicated: a list that only grows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.data: list[Any] = []

    @core.replicated
    def add(self, value: Any) -> int:
        """Appends, and then fails for the value "boom"."""
        self.data.append(value)
        if value == "boom":
            raise RuntimeError("boom")
        return len(self.data)


class Answer:
    """What one client heard: nothing yet, or (result, reason) once or more often."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, Any]] = []

    def __call__(self, result: Any, reason: Any) -> None:
        self.heard.append((result, reason))

    @property
    def acknowledged(self) -> bool:
        return any(reason == SUCCESS for _, reason in self.heard)

    @property
    def reasons(self) -> list[Any]:
        return [reason for _, reason in self.heard]


class BareNode:
    """One process of the bare package. `engine` is the package's own object."""

    def __init__(self, net: "BareNet", name: str, members: Sequence[str], options: dict[str, Any]) -> None:
        self.net = net
        self.name = name
        conf = {"autoTick": False, "useFork": False, **options}
        if net.folder is not None:
            conf.setdefault("journalFile", str(self.journal_file))
        if "logCompactionMinEntries" in conf:
            conf.setdefault("fullDumpFile", str(self.dump_file))
        self.end = _End(net, name)
        net._ends[name] = self.end
        others = [Name(member) for member in members if member != name]
        self.engine = Machine(Name(name), others, conf=core.SyncObjConf(**conf), nodeClass=Name, transport=self.end)

    # ── its files ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def journal_file(self) -> Path:
        return self.net.require_folder() / f"{self.name}.journal"

    @property
    def meta_file(self) -> Path:
        return self.net.require_folder() / f"{self.name}.journal.meta"

    @property
    def dump_file(self) -> Path:
        return self.net.require_folder() / f"{self.name}.dump"

    # ── what it holds ──────────────────────────────────────────────────────────────────────────────────────

    def private(self, name: str) -> Any:
        return getattr(self.engine, f"_SyncObj__{name}")

    def set_private(self, name: str, value: Any) -> None:
        assert hasattr(self.engine, f"_SyncObj__{name}"), name
        setattr(self.engine, f"_SyncObj__{name}", value)

    @property
    def log(self) -> Any:
        return self.private("raftLog")

    @property
    def last(self) -> int:
        return int(self.log[-1][1])

    @property
    def terms(self) -> dict[int, int]:
        """Index to term of every entry it holds."""
        return {index: term for _, index, term in self.log[:]}

    @property
    def commit(self) -> int:
        return int(self.engine.raftCommitIndex)

    @property
    def applied(self) -> int:
        return int(self.engine.raftLastApplied)

    @property
    def term(self) -> int:
        return int(self.engine.raftCurrentTerm)

    @property
    def leads(self) -> bool:
        return bool(self.engine._isLeader())

    @property
    def data(self) -> list[Any]:
        return list(self.engine.data)

    @property
    def members(self) -> list[str]:
        """Whom it counts besides itself."""
        return sorted(node.id for node in self.engine.otherNodes)

    # ── what is done to it ─────────────────────────────────────────────────────────────────────────────────

    def put(self, value: Any, callback: Callable[[Any, Any], None] | None = None) -> Answer:
        answer = Answer()
        self.engine.add(value, callback=callback or answer)
        return answer

    def put_all(self, prefix: str, count: int) -> list[Answer]:
        return [self.put(f"{prefix}{number}") for number in range(count)]

    def tick(self) -> None:
        self.engine.doTick(0)

    def beat(self) -> None:
        """Take what was put, then let a heartbeat become due and send it."""
        self.tick()
        self.net.wait(HEARTBEAT_SECONDS * 1.1)
        self.tick()

    def campaign(self) -> None:
        self.set_private("raftElectionDeadline", 0)
        self.tick()

    def never_campaign(self) -> None:
        self.set_private("raftElectionDeadline", self.net.clock.seconds + FOREVER_SECONDS)


class BareNet:
    """The network between bare nodes. With a `folder` every node has a journal file there."""

    def __init__(self, folder: Path | None = None, *, seed: int = 1) -> None:
        self.folder = folder
        self.clock = _Clock()
        self._nodes: dict[str, BareNode] = {}
        self._ends: dict[str, _End] = {}
        self._links: set[tuple[str, str]] = set()
        self._queues: dict[tuple[str, str], list[Any]] = {}
        self._held: set[tuple[str, str]] = set()
        self._options: dict[str, Any] = {}
        self._logs: list[Any] = []
        self.sent = 0
        """Messages handed to the network, also those that found no link."""
        core.monotonicTime = self.clock.now
        core.random = random.Random(seed)
        core.createPoller = lambda kind: _NoPoller()

    def require_folder(self) -> Path:
        assert self.folder is not None, "this net has no disk"
        return self.folder

    # ── nodes ──────────────────────────────────────────────────────────────────────────────────────────────

    def nodes(self, names: str, **options: Any) -> list[BareNode]:
        """Start these nodes, each a member of all and linked to all. `options` are the package's own."""
        self._options = options
        made = [self.start(name, names) for name in names]
        for place, node in enumerate(made):
            for other in made[place + 1 :]:
                self.join(node, other)
        return made

    def start(self, name: str, members: str, **options: Any) -> BareNode:
        """Start one process; it finds the files its predecessor left. It has no links yet."""
        node = self._nodes[name] = BareNode(self, name, members, {**self._options, **options})
        self._logs.append(node.log)
        return node

    def kill(self, node: BareNode) -> None:
        """kill -9: what the process had written stays in its files, its connections break."""
        for other in list(self._nodes.values()):
            if other is not node:
                self.cut(node, other)
        del self._nodes[node.name], self._ends[node.name]

    def close(self) -> None:
        """Give the files back."""
        for log in self._logs:
            log._destroy()
        self._nodes.clear()

    def __iter__(self) -> Iterator[BareNode]:
        return iter(self._nodes.values())

    # ── links ──────────────────────────────────────────────────────────────────────────────────────────────

    def linked(self, a: str, b: str) -> bool:
        return (a, b) in self._links

    def join(self, a: BareNode, b: BareNode) -> None:
        """Both ends have a connection."""
        for one, other in ((a, b), (b, a)):
            self._links.add((one.name, other.name))
            one.end._onNodeConnected(Name(other.name))

    def cut(self, a: BareNode, b: BareNode) -> None:
        """A reset: both ends notice, what was in flight is lost."""
        for one, other in ((a, b), (b, a)):
            self._links.discard((one.name, other.name))
            self._queues.pop((one.name, other.name), None)
            one.end._onNodeDisconnected(Name(other.name))

    def isolate(self, node: BareNode) -> None:
        for other in self:
            if other is not node:
                self.cut(node, other)

    def rejoin(self, node: BareNode) -> None:
        for other in self:
            if other is not node:
                self.join(node, other)

    def hold(self, a: BareNode, b: BareNode) -> None:
        """Messages from `a` to `b` stay in flight while others settle; the connection stays up."""
        self._held.add((a.name, b.name))

    def release(self, a: BareNode, b: BareNode) -> None:
        self._held.discard((a.name, b.name))

    def _sent(self, source: str, target: str, message: Any) -> bool:
        self.sent += 1
        if (source, target) not in self._links:
            return False
        self._queues.setdefault((source, target), []).append(message)
        return True

    # ── messages ───────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, a: BareNode, b: BareNode) -> list[Any]:
        return list(self._queues.get((a.name, b.name), []))

    def take(self, a: BareNode, b: BareNode) -> list[Any]:
        """Remove what is in flight; the test has it now, or it is lost."""
        return self._queues.pop((a.name, b.name), [])

    def inject(self, a: BareNode, b: BareNode, messages: Sequence[Any]) -> None:
        """`b` receives these from `a`."""
        for message in messages:
            self._ends[b.name]._onMessageReceived(Name(a.name), message)

    def deliver(self, a: BareNode, b: BareNode, count: int | None = None) -> int:
        """What is in flight arrives, or the first `count` of it. How many did."""
        queue = self._queues.get((a.name, b.name), [])
        count = len(queue) if count is None else min(count, len(queue))
        for _ in range(count):
            self.inject(a, b, [queue.pop(0)])
        return count

    # ── whole stories ──────────────────────────────────────────────────────────────────────────────────────

    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def elect(self, node: BareNode, *voters: BareNode) -> None:
        """Make a node leader by these votes, or everybody's; others do not campaign from now on."""
        for other in self:
            other.never_campaign()
        for _ in range(3):  # in a term that is new to it the voters may have voted already
            if not node.leads:
                node.campaign()
                for voter in voters or [other for other in self if other is not node]:
                    self.deliver(node, voter)
                    self.deliver(voter, node)
        assert node.leads, f"{node.name} was not elected"

    def settle(self, *among: BareNode, rounds: int = 6) -> None:
        """Heartbeat periods pass; everything that is not held arrives, among all nodes or these."""
        nodes = list(among) or list(self)
        for _ in range(rounds):
            self.wait(HEARTBEAT_SECONDS * 1.1)
            for node in nodes:
                node.tick()
            for a in nodes:
                for b in nodes:
                    if a is not b and (a.name, b.name) not in self._held:
                        self.deliver(a, b)

    def lead(self, names: str = "abc", **options: Any) -> list[BareNode]:
        """The usual beginning: these nodes, the first of which leads a settled cluster."""
        nodes = self.nodes(names, **options)
        self.elect(nodes[0])
        self.settle()
        return nodes


def on_disk(file: Path) -> list[tuple[bytes, int, int]]:
    """The entries a journal file holds, read as a new process would."""
    journal = journals.FileJournal(str(file))
    try:
        return list(journal[:])
    finally:
        journal._destroy()


def write_entries(file: Path, count: int, command: bytes = b"x" * 50) -> Any:
    """A journal with entries 1 to `count`; the caller closes it by `_destroy`."""
    journal = journals.FileJournal(str(file))
    for index in range(1, count + 1):
        journal.add(command, index, 1)
    return journal
