"""A network that delays, loses, repeats, cuts and resets, by seed; each node's end of it is a
ports.Transport.

Two manners, because they break different things. *Links* behave as TCP does: in order and complete within one
connection; a cut holds messages back until it heals, or until the connection is given up, which loses what
was in flight and tells both ends. *Datagrams* have no order: messages overtake, vanish and come twice, which
no real link does but which every protocol above must survive.

A message crosses as msgpack, so that nobody shares an object with a peer or sends what cannot be encoded. The
lanes of a pair are independent. Nothing is delivered to a node that left, nor over a connection that was
reset.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from raftspine.model import NodeId
from raftspine.sim.loop import Dice, VirtualLoop

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
        self._dice = dice
        self._nodes: dict[NodeId, SimTransport] = {}
        self._epoch: dict[_Way, int] = {}
        self._up: dict[_Way, None] = {}  # not a set: its order would differ from run to run
        self._cuts: dict[_Way, int] = {}
        self._busy_until: dict[tuple[NodeId, NodeId, bool], float] = {}
        self._stopped: dict[_Way, list[_Sent]] = {}

    # ── coming and going ───────────────────────────────────────────────────────────────────────────────────

    def join(self, node: NodeId) -> "SimTransport":
        """A node starts; links to the others come up one by one."""
        end = SimTransport(self, node)
        self._nodes[node] = end
        for other in self._nodes:
            if other != node:
                self._reconnect_later(_pair(node, other))
        return end

    def leave(self, node: NodeId) -> None:
        """A node's process ends; its peers notice."""
        end = self._nodes.pop(node, None)
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
        self.loop.call_later(self.weather.give_up, self._give_up, way, self._epoch.get(pair, 0))

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
        self.loop.call_later(self._dice.uniform(*self.weather.reconnect), self._reconnect, pair)

    def _reconnect(self, pair: _Way) -> None:
        a, b = pair
        if pair in self._up or a not in self._nodes or b not in self._nodes:
            return
        if (a, b) in self._cuts or (b, a) in self._cuts:
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
        if not self.up(source, target):
            return False
        weather, dice = self.weather, self._dice
        sent = _Sent(source, target, self._epoch.get(_pair(source, target), 0), _encode(message))
        delay = dice.uniform(*weather.delay)
        if weather.stragglers and dice.chance(weather.stragglers):
            delay += dice.random()
        if weather.datagrams:
            if weather.duplicates and dice.chance(weather.duplicates):
                self.loop.call_later(delay + dice.random(), self._arrive, sent)
            if not (weather.loss and dice.chance(weather.loss)):
                self.loop.call_later(delay, self._arrive, sent)
            return True
        lane = (source, target, bulk)
        at = max(self.loop.time() + delay, self._busy_until.get(lane, 0.0) + 1e-7)
        self._busy_until[lane] = at
        self.loop.call_at(at, self._arrive, sent)
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
        self._nodes[sent.target].deliver(sent.source, tuple(_decode(sent.data)))


class SimTransport:
    """One node's end of the network."""

    def __init__(self, network: Network, node: NodeId) -> None:
        self._network = network
        self._node = node
        self._receivers: list[Receive] = []
        self._watchers: list[LinkChanged] = []
        self.gone = False

    def send(self, peer: NodeId, message: Sequence[Any], *, bulk: bool = False) -> bool:
        return not self.gone and self._network.send(self._node, peer, message, bulk=bulk)

    def connected(self, peer: NodeId) -> bool:
        return not self.gone and self._network.up(self._node, peer)

    def on_message(self, receive: Receive) -> None:
        self._receivers.append(receive)

    def on_link(self, changed: LinkChanged) -> None:
        self._watchers.append(changed)

    def deliver(self, source: NodeId, message: tuple[Any, ...]) -> None:
        for receive in self._receivers:
            receive(source, message)

    def link_changed(self, peer: NodeId, *, up: bool) -> None:
        for changed in self._watchers:
            changed(peer, up)


def _pair(a: NodeId, b: NodeId) -> _Way:
    return (a, b) if a < b else (b, a)
