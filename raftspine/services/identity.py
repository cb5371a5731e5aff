"""As whom this node speaks in Raft groups: the one question on which "no two leaders in a term" hangs after a disk
was lost.

A vote or an acknowledgement binds the member that gave it. A node whose Raft journal is gone, or was rolled back,
remembers neither, and if it went on under its old name it would vote twice in one term, or help elect a leader that
lacks what it helped to commit. So a member is a *life* of a node: one journal, from its first record to its end. The
node's own id belongs to the life that helped to found the cluster; each later life gets `node~hex8`, takes the old
one's places in the groups (replacement.py does that), and starts with nothing.

How a node without a journal tells a new cluster from a lost disk: it asks, and takes no part until it knows.

    blank ──ask all──► the founder heard every voter be blank ──► it founds: writes down whose lives it heard
      │                somebody has founded, and heard this life ──► founded too
      └── lived before, or somebody has founded without this life ──► recorded by the meta group ──► rejoins

* One node alone decides that a cluster is founded: the first meta voter of the cluster file. Were each to decide by
  itself, one could found with the life of a peer whose disk is lost a moment later, another with the peer's next.
* An identity is written before it is used, in the journal it belongs to, so both are lost together. The store
  (`data/`) remembers which life it belongs to and whether that one may have spoken: a journal without its store, or a
  store without its journal, is recognised, and so is a journal that contradicts the store.
* What is found void is said so in the journal, moved aside and never deleted.

docs/decisions/0008-raft-identity.md weighs the alternatives.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import structlog
from msgspec import Struct, structs

from raftspine import codec
from raftspine.core.ledger import cluster
from raftspine.core.repeats import Repeats
from raftspine.errors import Corrupt, Misuse, SpineError, Unavailable
from raftspine.model import META_GROUP, GroupId, MemberId, NodeId, Table, node_of
from raftspine.ports import Directory, Engine, Entropy, Position, ReplicatedLog, Rpc
from raftspine.services.deadlines import Bell
from raftspine.services.topology import Topology
from raftspine.storage import keys
from raftspine.storage.journal import Journal

ASK = "identity.ask"
JOIN = "identity.join"
LIFE_ROW = "raft-life"

ASK_MS = 2_000
GRACE_SECONDS = 10.0
"""How long the founder, with all voters heard, waits for the nodes that only hold data. Who is not heard by then
joins later, as a node that lost its disk would."""

TELL_SECONDS = 10.0
"""How often the operator is told for whom this node waits."""

log = structlog.get_logger(__name__)


class Life(Struct, frozen=True):
    """What the journal says of the life it belongs to. `member` is empty until the node may speak; `roster` names
    the founding lives, `meta` the founding voters of the meta group; `epoch` is that of the table which recorded a
    later life; `void` says why nothing may be said any more."""

    life: str
    member: str = ""
    roster: dict[str, str] = {}
    meta: tuple[NodeId, ...] = ()
    epoch: int = 0
    void: str = ""


class Recorder(Protocol):
    """The Raft driver, as far as an identity needs it."""

    member: MemberId

    def flushed(self) -> "asyncio.Future[None]": ...


# ── at start, before any network ────────────────────────────────────────────────────────────────────────────────


def open_journal(
    directory: Directory,
    load: Callable[[], Journal],
    engine: Engine,
    fault: Callable[[Journal], str | None],
    known: str | None = None,
    *,
    alone: bool = False,
) -> tuple[Journal, str | None]:
    """The journal, and why the one that was here is void: found to be so in this very process (`known`), damaged,
    said to be void by itself, of another store, or contradicted by the store (`fault`). It has been moved aside then,
    and the journal returned is empty. A node that is the whole cluster (`alone`) has nobody to get its state from:
    nothing is moved, and Corrupt says what is wrong."""
    try:
        journal = load()
        reason = known or _void(journal, engine) or fault(journal)
    except Corrupt as error:
        if alone:
            raise
        reason = f"the Raft journal is damaged: {error.message}"
    if reason is None:
        return journal, None
    if alone:
        raise Corrupt(
            f"{reason}; this node is the whole cluster, so no other can give back what is missing: put back a copy "
            "of its whole data folder from one moment (docs/operations.md)"
        )
    aside = directory.set_aside()
    log.error(
        "the Raft journal is void and was moved aside; this node rejoins as another member", reason=reason, to=aside
    )
    return load(), reason


def read_life(journal: Journal) -> Life | None:
    """What a journal says of its life; None for a new one, and for those of versions before lives were told apart."""
    return codec.decode_as(journal.identity, Life, "Raft identity") if journal.identity else None


def _void(journal: Journal, engine: Engine) -> str | None:
    mine, store = read_life(journal), _store_life(engine)
    if mine is None:
        lost = store is not None and store["settled"] and journal.groups()
        return "the Raft journal is of before this node's present life" if lost else None
    if mine.void:
        return mine.void
    if store is None:
        return "the data folder's store was lost, and the Raft journal beside it speaks of what was in it"
    if store["life"] != mine.life:
        return "the Raft journal belongs to another life of this node than the store beside it"
    return None


def _store_life(engine: Engine) -> Any:
    data = engine.get(keys.meta(LIFE_ROW))
    return None if data is None else codec.decode_any(data)


class Identity:
    """Finds out as whom this node speaks, and keeps to it. `plan` is the table computed from the cluster file; `void`
    why the last journal was moved aside, if it was; `on_void` is told when the present one turns out to be."""

    def __init__(
        self,
        node: NodeId,
        cluster_name: str,
        plan: Table,
        *,
        journal: Journal,
        engine: Engine,
        topology: Topology,
        entropy: Entropy,
        position: Callable[[GroupId], Position],
        void: str | None,
        on_void: Callable[[str], None],
    ) -> None:
        self._node = node
        self._cluster = cluster_name
        self._plan = plan
        self._journal = journal
        self._engine = engine
        self._topology = topology
        self._entropy = entropy
        self._on_void = on_void
        self._life = read_life(journal)
        store = _store_life(engine)
        groups = (META_GROUP, *topology.held())
        self._lived = (
            void is not None
            or (self._life is None and store is not None and store["settled"])
            or (not journal.groups() and any(position(group).index for group in groups))
        )
        self._next_member = ""
        """As whom this node asks to rejoin: the same name however often it asks."""
        self._repeats = Repeats()
        self.waits_for = ""
        """Why this node does not speak yet, for the operator; empty once it does."""

    @property
    def member(self) -> MemberId | None:
        """As whom this node speaks; None while it does not, or not any more."""
        if not self._keeps_data:
            return MemberId(self._node)
        if self._life is None or self._life.void or not self._life.member:
            return None
        return MemberId(NodeId(self._life.member))

    @property
    def founding(self) -> bool:
        """Whether this life was there when the cluster was founded, so that it knows its groups' first voters."""
        return self.member == self._node

    @property
    def meta_founders(self) -> tuple[MemberId, ...]:
        """The first voters of the meta group."""
        return self._life.meta if self._life is not None and self._life.meta else self._plan.meta

    @property
    def _keeps_data(self) -> bool:
        """Gateways take part in no group and need no identity."""
        return self._node in _holders(self._plan) or bool(self._topology.held())

    # ── finding out ─────────────────────────────────────────────────────────────────────────────────────────

    async def settle(self, recorder: Recorder, rpc: Rpc, *, news: Bell, retry_ms: int = 500) -> None:
        """Return once this node may speak, `recorder.member` being set. Waits for as long as it takes, also for a
        disk that refuses to note who it is. Returns without a member when the life turned out to be void."""
        loop = asyncio.get_running_loop()
        while self.member is None and not (self._life is not None and self._life.void):
            waiting = news.next(loop)
            try:
                await self._find_out(recorder, rpc, news, retry_ms)
            except SpineError as error:
                self.waits_for = f"what this node found out about itself cannot be written down: {error.message}"
                if self._repeats.due("disk", error.code, loop.time()):
                    log.warning("this node does not know yet as whom it speaks", reason=self.waits_for)
                await news.heard(retry_ms / 1000, loop, waiting)
        self.waits_for = ""

    async def _find_out(self, recorder: Recorder, rpc: Rpc, news: Bell, retry_ms: int) -> None:
        await self._begin_life(recorder)
        if self.member is None and not self._lived:
            await self._found(recorder, rpc, news, retry_ms)
        if self.member is None:
            await self._rejoin(recorder, rpc, news, retry_ms)

    async def _begin_life(self, recorder: Recorder) -> None:
        """Give the journal a life, and let the store know which."""
        if self._life is not None:
            return
        adopted = bool(self._journal.groups())  # from before lives were told apart: it is the founding one
        life = self._entropy.token_bytes(8).hex()
        await self._write_store(life, settled=self._lived)
        await self._write(recorder, Life(life, self._node if adopted else ""))
        if adopted:
            await self._write_store(life, settled=True)

    async def _write_store(self, life: str, *, settled: bool) -> None:
        row = codec.encode({"life": life, "settled": settled})
        self._engine.stage([(keys.meta(LIFE_ROW), row)])
        await self._engine.commit(durable=True)

    async def _write(self, recorder: Recorder, life: Life) -> None:
        """On disk before it is used: what is said under a name that is forgotten was said by nobody."""
        self._journal.identify(codec.encode(life))
        await recorder.flushed()
        self._life = life
        if life.member:  # in the same step: from here on a table that arrives makes this node take up its groups
            recorder.member = MemberId(NodeId(life.member))

    async def _speak_as(self, recorder: Recorder, life: Life) -> None:
        await self._write_store(life.life, settled=True)
        await self._write(recorder, life)
        log.info("this node takes part in the Raft groups", member=life.member)

    async def _found(self, recorder: Recorder, rpc: Rpc, news: Bell, retry_ms: int) -> None:
        """Help to found the cluster; to no effect when it exists already, or was founded with another life of this
        node."""
        assert self._life is not None, "a life was begun"
        loop = asyncio.get_running_loop()
        heard: dict[NodeId, str] = {self._node: self._life.life}
        began = told = loop.time()
        while True:
            waiting = news.next(loop)
            for peer, answer in await self._ask(rpc):
                if answer["state"] == "blank" and tuple(answer["meta"]) == self._plan.meta:
                    heard[peer] = answer["life"]
                elif answer["state"] == "blank":
                    if self._repeats.due(peer, "voters", loop.time()):
                        log.error("a peer's cluster file names other voters", peer=peer, theirs=answer["meta"])
                elif answer["roster"].get(self._node) == self._life.life:
                    roster, meta = answer["roster"], tuple(answer["meta"])
                    founded = structs.replace(self._life, member=self._node, roster=roster, meta=meta)
                    await self._speak_as(recorder, founded)
                    return
                else:
                    if self._repeats.due((peer, "exists"), answer["state"], loop.time()):
                        log.warning("the cluster exists and does not know this life of this node", peer=peer)
                    return
            missing = [node for node in _holders(self._plan) if node not in heard]
            voters_heard = not any(node in self._plan.meta for node in missing)
            patient = loop.time() - began < GRACE_SECONDS
            if self._node == self._plan.meta[0] and voters_heard and not (missing and patient):
                roster = {str(node): life for node, life in heard.items()}
                founded = structs.replace(self._life, member=self._node, roster=roster, meta=self._plan.meta)
                await self._speak_as(recorder, founded)
                return
            self.waits_for = _waiting(missing or [self._plan.meta[0]])
            if loop.time() - told >= TELL_SECONDS:
                told = loop.time()
                log.info("this node has no Raft journal and does not vote yet", reason=self.waits_for)
            await news.heard(retry_ms / 1000, loop, waiting)

    async def _ask(self, rpc: Rpc) -> list[tuple[NodeId, Any]]:
        """What each peer that can be reached says of itself."""
        peers = [node for node in _holders(self._plan) if node != self._node and rpc.connected(node)]
        calls = [rpc.call(peer, ASK, self._cluster, timeout_ms=ASK_MS) for peer in peers]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [pair for pair in zip(peers, answers, strict=True) if not self._failed(*pair)]

    def _failed(self, peer: NodeId, answer: Any) -> bool:
        if isinstance(answer, Misuse):
            if self._repeats.due(peer, "cluster", asyncio.get_running_loop().time()):
                log.error("a peer is of another cluster", peer=peer, reason=answer.message)
        elif isinstance(answer, BaseException) and not isinstance(answer, SpineError):
            raise answer
        return isinstance(answer, SpineError)

    async def _rejoin(self, recorder: Recorder, rpc: Rpc, news: Bell, retry_ms: int) -> None:
        """Ask every peer once to have the meta group record another member for this node. Whether there is a cluster
        to join is asked anew each time: the peer that said so may have had the data of another one."""
        assert self._life is not None, "a life was begun"
        loop = asyncio.get_running_loop()
        member = self._next_member = self._next_member or f"{self._node}~{self._entropy.token_bytes(4).hex()}"
        self.waits_for = f"rejoining as {member}: the meta group has not recorded it yet"
        if self._repeats.due("rejoin", member, loop.time()):
            log.warning("this node lost its Raft journal; it asks to rejoin", member=member)
        waiting = news.next(loop)
        for peer in [m.id for m in self._plan.members if m.id != self._node and rpc.connected(m.id)]:
            try:
                answer = await rpc.call(peer, JOIN, (self._cluster, member), timeout_ms=ASK_MS)
            except SpineError as error:
                if self._repeats.due((peer, "join"), error.code, loop.time()):
                    log.info("not recorded as another member yet", peer=peer, reason=error.message)
                continue
            table = codec.decode_table(answer)
            mine = table.member(self._node)
            if mine is not None and mine.raft_id == member:
                await self._speak_as(recorder, structs.replace(self._life, member=member, epoch=table.epoch))
                self._topology.adopt(table)
                return
        await news.heard(retry_ms / 1000, loop, waiting)

    # ── being asked ─────────────────────────────────────────────────────────────────────────────────────────

    def serve(self, rpc: Rpc, replicated_log: ReplicatedLog) -> None:
        """Answer peers that do not know yet who they are; watch what the table says of this node."""

        async def join(peer: NodeId, body: Any) -> bytes:
            name, member = body
            self._require_cluster(peer, name)
            return codec.encode(await self._record(peer, member, replicated_log))

        rpc.serve(ASK, self._answer)
        rpc.serve(JOIN, join)
        self._topology.on_change(self._compare)

    def _require_cluster(self, peer: NodeId, name: Any) -> None:
        if name != self._cluster:
            raise Misuse(f"node {peer} is configured for cluster {name!r}; this is cluster {self._cluster!r}")

    def _answer(self, peer: NodeId, name: Any) -> Any:
        self._require_cluster(peer, name)
        mine = self._life
        if mine is not None and mine.member:
            roster = mine.roster or {self._node: mine.life}  # a life of before rosters, or a later one: it exists
            return {"state": "founded", "roster": roster, "meta": self.meta_founders}
        if self._lived:
            return {"state": "lived", "roster": {}, "meta": ()}
        if mine is None:
            raise Unavailable("this node is about to find out who it is", code="not_ready")
        return {"state": "blank", "life": mine.life, "meta": self._plan.meta}

    async def _record(self, peer: NodeId, raft_id: str, replicated_log: ReplicatedLog) -> Table:
        """At the meta leader: let the table say as whom a peer speaks."""
        if node_of(MemberId(NodeId(raft_id))) != peer or raft_id == peer:
            raise Misuse(f"{raft_id!r} is no later life of node {peer}")
        known = self._topology.known
        member = None if known is None else known.member(peer)
        if replicated_log.leader(META_GROUP) != self._node or known is None or member is None:
            details = {"leader": replicated_log.leader(META_GROUP)}
            raise Unavailable("this node does not lead the meta group", code="no_leader", details=details)
        if member.raft_id == raft_id:
            return known
        log.warning("a node lost its Raft journal and rejoins", node=peer, was=member.speaks_as, now=raft_id)
        command = cluster.SetRaftId(peer, raft_id, member.raft_id)
        outcome, _ = await replicated_log.propose(META_GROUP, cluster.encode(command))
        if outcome.table is None:
            raise Unavailable("the cluster has no table yet", code="not_ready")
        table: Table = outcome.table
        return table

    # ── turning out to be void ──────────────────────────────────────────────────────────────────────────────

    def _compare(self, table: Table) -> None:
        """The table knows a later life of this node: this one is a disk that was rolled back."""
        member, mine = self.member, table.member(self._node)
        if member is None or mine is None or self._life is None or table.epoch <= self._life.epoch:
            return
        if mine.speaks_as != member:
            self.void(f"the cluster knows this node as {mine.speaks_as} now, and the journal is {member}'s")

    def void(self, reason: str) -> None:
        """The journal does not hold what was promised from it: say so in it, and have the node begin anew. Nothing
        of its promises is needed for that, so it happens even when the disk does not take the word."""
        if self._life is None or self._life.void:
            return
        self._life = structs.replace(self._life, void=reason)
        self._journal.identify(codec.encode(self._life))
        self._on_void(reason)


def _holders(plan: Table) -> list[NodeId]:
    """The nodes that keep data, the meta voters first."""
    others = {node: None for group in plan.groups for node in group if node not in plan.meta}
    return [*plan.meta, *sorted(others)]


def _waiting(missing: Iterable[NodeId]) -> str:
    return f"a cluster is founded once all its nodes have been heard: waiting for {', '.join(missing)}"
