"""A network that delays, loses, repeats, cuts and resets, by seed; each node's end of it is a
ports.Transport.

Two manners, because they break different things. *Links* behave as TCP does: in order and complete within one
connection; a cut holds messages back until it heals, or until the connection is given up, which loses what
was in flight and tells both ends. *Datagrams* have no order: messages overtake, vanish and come twice, which
no real link does but which every protocol above must survive.

So the whole-node simulation, whose transport promises authenticated links, knows loss only as a retransmission (a
message that comes late and holds up all behind it) or as a connection that breaks, and knows duplication not at all;
lanes overtake one another freely. The Raft-only simulation has datagrams.

A message crosses as msgpack, so that nobody shares an object with a peer or sends what cannot be encoded. Nothing is
delivered to a node that left, nor over a connection that was reset. A stopped process still receives: the kernel
keeps what comes until it runs again, or until its peers have heard nothing for `give_up` and close the connection.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from raftspine.cluster.rpc import BULK_CALL, CALL, CAST
from raftspine.model import NodeId
from raftspine.sim.loop import Dice, Killed, Owner, VirtualLoop

Receive = Callable[[NodeId, tuple[Any, ...]], None]
LinkChanged = Callable[[NodeId, bool], None]
_Way = tuple[NodeId, NodeId]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Weather(NamedTuple):
    """How the network behaves. Times in seconds."""

    delay: tuple[float, float] = (0.0003, 0.003)
    datagrams: bool = False
    loss: float = 0.0
    """Share of messages lost, with datagrams; with links a lost packet is sent again by the kernel."""
    duplicates: float = 0.0
    stragglers: float = 0.0
    """Share of messages that take up to a second longer; with links, all behind them wait too."""
    give_up: float = 3.5
    """How long a cut lasts before the connection over it counts as broken."""
    reconnect: tuple[float, float] = (0.02, 0.5)
    lag: tuple[float, float] = (0.0, 0.0)
    """What the lanes take longer: consensus and small calls, bulk."""


class _Sent(NamedTuple):
    source: NodeId
    target: NodeId
    epoch: int
    data: bytes


class Network:
    """All links of a simulated cluster. `weather` may be replaced at any time."""

    def __init__(self, loop: VirtualLoop, dice: Dice, weather: Weather | None = None) -> None:
        self.loop = loop
        self.weather = weather or Weather()
        self.delivered = 0
        self.traffic = 0
        """A checksum over every message delivered so far, its way and its moment: two runs with the same one were the
        same run."""
        self._dice = dice
        self._nodes: dict[NodeId, SimTransport] = {}
        self._epoch: dict[_Way, int] = {}
        self._up: dict[_Way, None] = {}  # not a set: its order would differ from run to run
        self._cuts: dict[_Way, int] = {}
        self._busy_until: dict[tuple[NodeId, NodeId, bool], float] = {}
        self._stopped: dict[_Way, list[_Sent]] = {}
        self._silent: dict[NodeId, int] = {}
        self._silences = 0
        self._context = copy_context()
        """What is on the wire belongs to no process: it arrives although its sender has stopped."""

    # ── coming and going ───────────────────────────────────────────────────────────────────────────────────

    def join(
        self, node: NodeId, owner: Owner | None = None, at: Callable[[str], None] | None = None
    ) -> "SimTransport":
        """A node starts; links to the others come up one by one. Its code runs as `owner`'s; `at` is told each
        message it sends and receives, before and after."""
        end = SimTransport(self, node, owner, at)
        self._nodes[node] = end
        for other in self._nodes:
            if other != node:
                self._reconnect_later(_pair(node, other))
        return end

    def leave(self, node: NodeId) -> None:
        """A node's process ends; its peers notice."""
        end = self._nodes.pop(node, None)
        self._silent.pop(node, None)
        if end is not None:
            end.gone = True
            for pair in [pair for pair in self._up if node in pair]:
                self._take_down(pair)

    # ── faults ─────────────────────────────────────────────────────────────────────────────────────────────

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Messages from `source` no longer reach `target`; the other way is another cut. Cuts are counted."""
        way = (source, target)
        self._cuts[way] = self._cuts.get(way, 0) + 1
        pair = _pair(source, target)
        self._later(self.weather.give_up, self._give_up, way, self._epoch.get(pair, 0))

    def heal(self, source: NodeId, target: NodeId) -> None:
        way = (source, target)
        left = self._cuts.get(way, 0) - 1
        if left > 0:
            self._cuts[way] = left
            return
        self._cuts.pop(way, None)
        for sent in self._stopped.pop(way, []):
            self._arrive(sent)

    def partition(self, *sides: Sequence[NodeId]) -> Callable[[], None]:
        """Cut every way between different sides; returns what heals these cuts again."""
        ways = [(a, b) for side in sides for other in sides if side is not other for a in side for b in other]
        for way in ways:
            self.cut(*way)

        def heal() -> None:
            for way in ways:
                self.heal(*way)

        return heal

    def reset(self, a: NodeId, b: NodeId) -> None:
        """Break the connection: what is in flight is lost, both ends notice, and it is made again later."""
        pair = _pair(a, b)
        if pair in self._up:
            self._take_down(pair)
            self._reconnect_later(pair)

    def silence(self, node: NodeId) -> None:
        """The node's process is stopped: nothing comes from it, and in time its peers close their connections."""
        self._silences += 1
        self._silent[node] = self._silences
        self._later(self.weather.give_up, self._give_up_on, node, self._silences)

    def unsilence(self, node: NodeId) -> None:
        self._silent.pop(node, None)

    def _give_up_on(self, node: NodeId, silence: int) -> None:
        if self._silent.get(node) == silence:
            for pair in [pair for pair in self._up if node in pair]:
                self._take_down(pair)
                self._reconnect_later(pair)

    def _later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.loop.call_later(delay, call, *args, context=self._context)

    def _give_up(self, way: _Way, epoch: int) -> None:
        pair = _pair(*way)
        if way in self._cuts and self._epoch.get(pair, 0) == epoch and pair in self._up:
            self._take_down(pair)
            self._reconnect_later(pair)

    def _take_down(self, pair: _Way) -> None:
        self._up.pop(pair, None)
        self._epoch[pair] = self._epoch.get(pair, 0) + 1
        for way in (pair, pair[::-1]):
            self._stopped.pop(way, None)
            self._busy_until.pop((*way, False), None)
            self._busy_until.pop((*way, True), None)
        self._tell(pair, up=False)

    def _reconnect_later(self, pair: _Way) -> None:
        self._later(self._dice.uniform(*self.weather.reconnect), self._reconnect, pair)

    def _reconnect(self, pair: _Way) -> None:
        a, b = pair
        if pair in self._up or a not in self._nodes or b not in self._nodes:
            return
        if (a, b) in self._cuts or (b, a) in self._cuts or a in self._silent or b in self._silent:
            self._reconnect_later(pair)
            return
        self._up[pair] = None
        self._tell(pair, up=True)

    def _tell(self, pair: _Way, *, up: bool) -> None:
        for node, other in (pair, pair[::-1]):
            if node in self._nodes:
                self._nodes[node].link_changed(other, up=up)

    # ── messages ───────────────────────────────────────────────────────────────────────────────────────────

    def up(self, a: NodeId, b: NodeId) -> bool:
        return _pair(a, b) in self._up

    def send(self, source: NodeId, target: NodeId, message: Sequence[Any], *, bulk: bool) -> bool:
        pair = _pair(source, target)
        if pair not in self._up:
            return False
        weather, dice, loop = self.weather, self._dice, self.loop
        sent = _Sent(source, target, self._epoch.get(pair, 0), _encode(message))
        low, high = weather.delay
        delay = low + (high - low) * dice.random() + weather.lag[bulk]
        if weather.stragglers and dice.random() < weather.stragglers:
            delay += dice.random()
        if weather.datagrams:
            if weather.duplicates and dice.chance(weather.duplicates):
                self._later(delay + dice.random(), self._arrive, sent)
            if not (weather.loss and dice.chance(weather.loss)):
                self._later(delay, self._arrive, sent)
            return True
        lane = (source, target, bulk)
        at = loop.time() + delay
        before = self._busy_until.get(lane)
        if before is not None and at <= before:
            at = before + 1e-7
        self._busy_until[lane] = at
        loop.call_at(at, self._arrive, sent, context=self._context)
        return True

    def _arrive(self, sent: _Sent) -> None:
        way = (sent.source, sent.target)
        if self._epoch.get(_pair(*way), 0) != sent.epoch or sent.target not in self._nodes:
            return
        if way in self._cuts:
            if not self.weather.datagrams:
                self._stopped.setdefault(way, []).append(sent)
            return
        if self._stopped.get(way):
            self._stopped[way].append(sent)
            return
        self.delivered += 1
        self.traffic = crc32(
            sent.data, crc32(f"{sent.source}{sent.target}{self.loop.time()!r}".encode(), self.traffic)
        )
        self._nodes[sent.target].deliver(sent.source, sent.data)


class SimTransport:
    """One node's end of the network."""

    def __init__(
        self, network: Network, node: NodeId, owner: Owner | None = None, at: Callable[[str], None] | None = None
    ) -> None:
        self._network = network
        self._node = node
        self._owner = owner
        self._at = at
        self._receivers: list[Receive] = []
        self._watchers: list[LinkChanged] = []
        self.gone = False

    def send(self, peer: NodeId, message: Sequence[Any], *, bulk: bool = False) -> bool:
        if self.gone:
            return False
        if self._at is None:
            return self._network.send(self._node, peer, message, bulk=bulk)
        name = _name(message)
        self._at(f"before sending {name}")
        sent = self._network.send(self._node, peer, message, bulk=bulk)
        self._at(f"after sending {name}")
        return sent

    def connected(self, peer: NodeId) -> bool:
        return not self.gone and self._network.up(self._node, peer)

    def on_message(self, receive: Receive) -> None:
        self._receivers.append(receive)

    def on_link(self, changed: LinkChanged) -> None:
        self._watchers.append(changed)

    def deliver(self, source: NodeId, data: bytes) -> None:
        self._enter(self._take, source, data)

    def _take(self, source: NodeId, data: bytes) -> None:
        message = tuple(_decode(data))
        for receive in self._receivers:
            receive(source, message)
        if self._at is not None:
            self._at(f"after receiving {_name(message)}")

    def link_changed(self, peer: NodeId, *, up: bool) -> None:
        self._enter(self._tell, peer, up)

    def _tell(self, peer: NodeId, up: bool) -> None:
        for changed in self._watchers:
            changed(peer, up)

    def _enter(self, call: Callable[..., None], *args: Any) -> None:
        """Call as the node's process; when that is stopped, once it runs again."""
        owner = self._owner
        if owner is None:
            call(*args)
        elif owner.paused:
            self._network.loop.call_soon(call, *args, context=owner.context)
        else:
            with suppress(Killed):  # it may die of it; whoever is at the other end goes on
                owner.context.copy().run(call, *args)


def _name(message: Sequence[Any]) -> str:
    """What a message is about, for people: the method of a cast or a call, else that it is an answer."""
    place = _METHOD_AT.get(message[0]) if message else None
    return "an answer" if place is None else str(message[place])


_METHOD_AT = {CAST: 1, CALL: 2, BULK_CALL: 2}


def _pair(a: NodeId, b: NodeId) -> _Way:
    return (a, b) if a < b else (b, a)
