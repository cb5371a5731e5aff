"""Handlers of Terraform's HTTP backend (its client: internal/backend/remote-state/http).

The rule: a refusal that a lock causes carries the holder's info at the top of its body, where Terraform reads it,
beside the envelope every other client reads. A state is handed over and back byte for byte.
"""

from base64 import b64decode, b64encode
from hashlib import md5
from typing import Any

import msgspec

from raftspine.core.limits import Limits, check_agent
from raftspine.errors import Conflict, InvalidRequest, Malformed
from raftspine.http import parse
from raftspine.http.auth import Access, Auth, user_of
from raftspine.http.call import Call
from raftspine.http.coordination.common import Handler, caller, name, shown
from raftspine.http.coordination.terraform_bodies import About, AfterQuery, LockInfo, LockQuery
from raftspine.http.problems import extra_headers
from raftspine.http.reply import JSON, Reply
from raftspine.services.coordination.door import Caller
from raftspine.services.coordination.terraform import Terraform

CONTENT_MD5 = "content-md5"
_info = msgspec.json.Decoder(LockInfo)
_about = msgspec.json.Decoder(About)


def naming_the_holder(handler: Handler) -> Handler:
    """A handler whose refusals tell the lock's holder as Terraform expects it."""

    async def told(call: Call) -> Reply:
        try:
            return await handler(call)
        except Conflict as error:
            info = error.details.get("lock")
            if not isinstance(info, dict):
                raise
            status, body = call.error_body(error)
            return call.reply(status, {**info, "error": body}, extra_headers(status, body))

    return told


class TerraformHandlers:
    def __init__(self, on: Terraform, limits: Limits, auth: Auth) -> None:
        self._states = on
        self._limits = limits
        self._auth = auth

    async def read(self, call: Call) -> Reply:
        return _state(call, await self._states.read(name(call)))

    async def write(self, call: Call) -> Reply:
        data: bytes = call.body
        if not data:
            raise Malformed("a state is required", field="$")
        check_md5(call, data)
        about: About = parse.decode(data, _about)
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"the state is not UTF-8 at byte {error.start}", field="$") from error
        asked = self._caller(call, f"terraform.write {self._lock(call)}")
        written = await self._states.write(asked, name(call), content, msgspec.to_builtins(about), self._lock(call))
        return call.reply(201 if written["created"] else 200, written)

    async def delete(self, call: Call) -> Reply:
        asked = self._caller(call, f"terraform.delete {self._lock(call)}")
        return call.reply(200, await self._states.delete(asked, name(call), self._lock(call)))

    async def lock(self, call: Call) -> Reply:
        info = msgspec.to_builtins(call.body)
        asked = self._caller(call, "terraform.lock", call.body)
        taken = await self._states.lock(asked, name(call), info)
        taken.pop("renew_after_ms")
        return call.reply(200, shown(taken))

    async def unlock(self, call: Call) -> Reply:
        """The body is what the lock was taken with; without one, whoever holds the lock loses it."""
        info: LockInfo | None = parse.decode(call.body, _info) if call.body else None
        asked = self._caller(call, "terraform.unlock", info)
        may_break = self._auth.allows(call.headers.get(parse.AUTHORIZATION), Access.OPERATE)
        told = {} if info is None else msgspec.to_builtins(info)
        return call.reply(200, await self._states.unlock(asked, name(call), told, may_break=may_break))

    async def holder(self, call: Call) -> Reply:
        held = await self._states.holder(name(call))
        held.pop("renew_after_ms")
        return call.reply(200, shown(held))

    async def versions(self, call: Call) -> Reply:
        return call.reply(200, {"versions": shown(await self._states.versions(name(call)))})

    async def version(self, call: Call) -> Reply:
        return _state(call, await self._states.version(name(call), _number(call)))

    async def restore(self, call: Call) -> Reply:
        asked = self._caller(call, f"terraform.restore {self._lock(call)}")
        restored = await self._states.restore(asked, name(call), _number(call), self._lock(call))
        return call.reply(200, restored)

    async def audit(self, call: Call) -> Reply:
        query: AfterQuery = call.query
        return call.reply(200, {"entries": await self._states.audit(name(call), query.after)})

    def _caller(self, call: Call, op: str, info: LockInfo | None = None) -> Caller:
        """The key's name; where there are no keys X-Agent-Id, the user of the backend block, or who Terraform says
        it is run by."""
        asked = caller(call, self._limits, op)
        agent = call.key or asked.agent or user_of(call.headers.get(parse.AUTHORIZATION))
        if not agent and info is not None:
            agent = info.who
        check_agent(agent, self._limits, "Authorization")
        return asked._replace(agent=agent)

    def _lock(self, call: Call) -> str:
        query: LockQuery = call.query
        return query.id or ""


def check_md5(call: Call, data: bytes) -> None:
    """Malformed when what arrived is not what was sent."""
    sent = call.headers.get(CONTENT_MD5)
    if sent is None:
        return
    try:
        same = b64decode(sent, validate=True) == _md5(data)
    except ValueError:
        same = False
    if not same:
        raise Malformed("Content-MD5 is not the base64 of this body's MD5", field="Content-MD5")


def _state(call: Call, found: dict[str, Any]) -> Reply:
    data = found["content"].encode()
    lines = f"Content-MD5: {b64encode(_md5(data)).decode()}\r\nX-Spine-State-Version: {found['number']}\r\n"
    if found["version"]:
        lines += f'ETag: "{found["version"]}"\r\n'
    return call.raw(data, JSON, lines)


def _md5(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()


def _number(call: Call) -> int:
    text = call.params[1]
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidRequest("version: a number from the list of versions", field="version")
    return int(text)
