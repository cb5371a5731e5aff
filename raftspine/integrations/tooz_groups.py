"""Groups with members, made of strong memories and sessions.

A group is one memory: its members, each with capabilities and the session that keeps it. The rules: who is in a group
is read linearizably and counts only while the member's session is open, so a member that died is gone for everybody
at once, although its entry stays until somebody writes the group next; and every change is a compare-and-set of the
whole memory, so two who join at once both end up in it. A second memory lists the groups. It is written after a group
was made and after one was removed, always with a new content, so that of a creation and a removal that cross each
other the later one wins there as well.
"""

import asyncio
import base64
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tooz import coordination, utils

from raftspine.client import AsyncSpine, Record
from raftspine.client.coordination import presence
from raftspine.errors import Conflict, NotFound, PreconditionFailed, Unavailable

INDEX = "tooz/groups"
TAGS = ("lock",)
"""What sends a memory through the log."""
NAMESPACE = "tooz"
SESSIONS_AT_ONCE = 32
"""How many sessions are asked after at the same time."""


def text(name: bytes | str) -> str:
    """A name of tooz as one of ours: ASCII, reversible, and without the braces that mean something here."""
    return quote(utils.to_binary(name), safe="")


def name(given: str) -> bytes:
    """The name of tooz behind one of ours."""
    return unquote_to_bytes(given)


class Member(NamedTuple):
    """A member of a group as it is stored."""

    session: str
    capabilities: str

    @classmethod
    def of(cls, session: str, capabilities: Any) -> "Member":
        return cls(session, base64.b64encode(utils.dumps(capabilities)).decode())

    def told(self) -> Any:
        """Its capabilities, as they were given."""
        return utils.loads(base64.b64decode(self.capabilities))


class Group(NamedTuple):
    """A group as it was read: its live members by name, and what it must still be when it is written."""

    version: str
    members: dict[str, Member]


Edit = Callable[[dict[str, Member]], dict[str, Member] | None]
"""New members from those there are (None: remove the group); raises to refuse."""


class Groups:
    def __init__(self, spine: AsyncSpine) -> None:
        self._spine = spine
        self._turn = asyncio.Semaphore(SESSIONS_AT_ONCE)

    async def read(self, group: bytes | str) -> Group:
        """Raises GroupNotCreated."""
        record = await self._get(_id(group))
        if record is None:
            raise coordination.GroupNotCreated(group)
        stored = {member: Member(**told) for member, told in record.content["members"].items()}
        alive = await asyncio.gather(*(self._alive(member.session) for member in stored.values()))
        return Group(
            record.version,
            {each: member for (each, member), lives in zip(stored.items(), alive, strict=True) if lives},
        )

    async def create(self, group: bytes | str) -> None:
        """Raises GroupAlreadyExist."""
        try:
            await self._spine.put(_id(group), {"members": {}}, tags=TAGS, namespace=NAMESPACE, if_absent=True)
        except PreconditionFailed:
            if text(group) not in await self.list():
                await self._list(group)
            raise coordination.GroupAlreadyExist(group) from None
        await self._list(group)

    async def change(self, group: bytes | str, edit: Edit) -> None:
        """Write what `edit` makes of a group's live members; as often as somebody else was faster."""
        while True:
            found = await self.read(group)
            members = edit(dict(found.members))
            try:
                if members is None:
                    await self._spine.delete(_id(group), expected_version=found.version)
                    return await self._list(group)
                content = {"members": {each: member._asdict() for each, member in members.items()}}
                await self._spine.put(
                    _id(group), content, tags=TAGS, namespace=NAMESPACE, expected_version=found.version
                )
            except (Conflict, NotFound):
                continue
            return None

    async def list(self) -> list[str]:
        record = await self._get(INDEX)
        return [] if record is None else record.content["groups"]

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _get(self, id: str) -> Record | None:
        try:
            return await self._spine.get(id, consistency="strong")
        except NotFound as error:
            if error.details.get("confirmed") is False:
                raise Unavailable("no majority could say whether there is such a group") from error
            return None

    async def _alive(self, session: str) -> bool:
        async with self._turn:
            try:
                await presence.show(self._spine.channel, session)
            except NotFound:
                return False
            return True

    async def _list(self, group: bytes | str) -> None:
        """Have the index say of a group what is true of it."""
        while True:
            record = await self._get(INDEX)
            listed: list[str] = [] if record is None else record.content["groups"]
            there = await self._get(_id(group)) is not None
            without = [each for each in listed if each != text(group)]
            changes = 0 if record is None else record.content["changes"]
            content = {"groups": [*without, text(group)] if there else without, "changes": changes + 1}
            try:
                await self._spine.put(
                    INDEX,
                    content,
                    tags=TAGS,
                    namespace=NAMESPACE,
                    if_absent=record is None,
                    expected_version=None if record is None else record.version,
                )
            except (Conflict, PreconditionFailed):
                continue
            return


def _id(group: bytes | str) -> str:
    return f"tooz/group/{text(group)}"
