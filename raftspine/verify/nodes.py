"""The nodes under test, each asked by itself, so that what one of them says is never taken for another's word.

A client with several addresses would step on to the next node and hide which one failed. Here every node has a
client of its own, short-tempered: a node that is down costs its caller a second or two, not the run.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from raftspine.client import AsyncSession, AsyncSpine
from raftspine.errors import SpineError, Unavailable
from raftspine.ports import Entropy

PROBE_S = 2.0

SPARED = 0.95
"""Share of the requests to a node that is down which are drawn again."""


class Node(NamedTuple):
    name: str
    url: str
    client: AsyncSpine


class Nodes:
    """The clients of all nodes under test."""

    def __init__(self, nodes: Sequence[Node], entropy: Entropy) -> None:
        self.all = tuple(nodes)
        self.down: set[str] = set()
        """Nodes that did not answer the watcher. They are asked less, or all clients would soon wait for them."""
        self._entropy = entropy

    def any(self) -> Node:
        drawn = self._draw()
        return self._draw() if drawn.name in self.down and self._entropy.random() < SPARED else drawn

    def _draw(self) -> Node:
        return self.all[int(self._entropy.random() * len(self.all))]

    def other(self, than: Node) -> Node:
        """Another node, or the same where there is only one."""
        rest = [node for node in self.all if node is not than]
        return rest[int(self._entropy.random() * len(rest))] if rest else than

    async def close(self) -> None:
        await asyncio.gather(*(node.client.close() for node in self.all))


class Line:
    """One line of work whose session token follows it from node to node."""

    def __init__(self, name: str, nodes: Nodes, consistency: str | None = None, token: str | None = None) -> None:
        self.name = name
        self.token = token
        self._sessions = {node.name: node.client.session(consistency=consistency) for node in nodes.all}

    def at(self, node: Node) -> AsyncSession:
        """The session, on this node, with the token so far. Call `keep` when the request is over."""
        session = self._sessions[node.name]
        session.token = self.token
        return session

    def keep(self, session: AsyncSession) -> None:
        self.token = session.token


async def connect(
    urls: Sequence[str], *, api_key: str | None, agent_id: str, timeout_s: float, entropy: Entropy
) -> Nodes:
    """Clients of the nodes at `urls`; of all members of the table when only one is named. Raises Unavailable when no
    node answers, Unauthorized or Forbidden when the key may not be used."""

    def client(url: str) -> AsyncSpine:
        return AsyncSpine(url, api_key=api_key, agent_id=agent_id, timeout=timeout_s, entropy=entropy)

    asked = list(urls)
    if len(asked) == 1:
        async with client(asked[0]) as one:
            asked = _addresses(await one.topology()) or asked
    clients = [client(url) for url in asked]
    names = await asyncio.gather(*(_name(made, url) for made, url in zip(clients, asked, strict=True)))
    nodes = Nodes(
        [Node(name or url, url, made) for name, url, made in zip(names, asked, clients, strict=True)], entropy
    )
    if not any(names):
        await nodes.close()
        raise Unavailable(f"none of {', '.join(asked)} answers", code="unreachable")
    return nodes


async def _name(client: AsyncSpine, url: str) -> str | None:
    """What the node calls itself; None when it does not answer."""
    try:
        _, document = await client.probe(url, "/v1/cluster/status", timeout=PROBE_S)
    except SpineError:
        return None
    return str(document.get("node") or url.removeprefix("http://"))


def _addresses(table: dict[str, Any]) -> list[str]:
    found = []
    for member in table.get("members", ()):
        host = f"[{member['host']}]" if ":" in member["host"] else member["host"]
        found.append(f"http://{host}:{member['port']}")
    return found
