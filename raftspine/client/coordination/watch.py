"""Changes as they happen: each once, in the order of its shard group, and none left out.

    async for event in spine.watch(kinds=["lock"], prefix="deploy/"):
        ...

The rule: every event comes with a token that says, for each shard group, up to where the store has told; a broken
connection is made again at another node, from the token of the last event that was given out. So none is told twice
and none left out, whichever nodes die in between. When the window of kept events has moved past the token, Compacted
is raised: silence would look like "nothing happened". Read the state then, and watch from that time on.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from raftspine.client import problems
from raftspine.client.coordination import obtain
from raftspine.client.coordination.channel import Channel
from raftspine.errors import Compacted, Unavailable

IDLE_S = 30.0
"""Without a line for so long, a node is taken for dead: it sends one every ten seconds."""


class Event(Struct, frozen=True):
    """`kind`: memory, lock, election, gate, task or freeze. `key`: the thing's name. `change`: what happened, in one
    word. `at`: RFC 3339. `data`: particulars, never a memory's content. `token`: `since` for whoever goes on behind
    it."""

    kind: str
    key: str
    change: str
    token: str = ""
    revision: str = ""
    at: str | None = None
    group: int = 0
    number: int = 0
    data: dict[str, Any] = {}


class Told(NamedTuple):
    """One server-sent event."""

    id: str
    event: str
    data: bytes


async def watch(
    on: Channel,
    *,
    prefix: str | None,
    kinds: Sequence[str],
    tag: str | None,
    since: str | None,
) -> AsyncIterator[Event]:
    """Events without end. Raises Compacted."""
    query = {"prefix": prefix, "kinds": ",".join(kinds) or None, "tag": tag}
    token = since
    while True:
        try:
            async with aclosing(_told(on.follow("/v1/watch", {**query, "since": token}, IDLE_S))) as stream:
                async for told in stream:
                    if told.event == "error":
                        raise problems.from_envelope(500, msgspec.json.decode(told.data)["error"])
                    token = told.id
                    if told.event != "bookmark":
                        yield msgspec.structs.replace(msgspec.json.decode(told.data, type=Event), token=told.id)
        except Compacted:
            raise
        except Unavailable as error:
            await obtain.before_asking_again(error)


async def _told(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[Told, None]:
    """Server-sent events out of their lines (WHATWG HTML, section 9.2). One that was cut off is dropped."""
    fields: dict[str, bytes] = {}
    async with aclosing(lines) as received:
        async for line in received:
            if line.strip():
                name, _, value = line.rstrip(b"\r\n").partition(b":")
                fields[name.decode()] = value.removeprefix(b" ")
            elif fields:
                yield Told(fields.get("id", b"").decode(), fields.get("event", b"").decode(), fields.get("data", b""))
                fields = {}
