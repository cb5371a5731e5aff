"""Who may do what: a key names a role, a route names what it needs.

A key comes as a bearer token, or as the password of Basic credentials, which is what clients can send that know
nothing else (Terraform).

Keys are stored as SHA-256 digests, so reading the configuration does not yield one, and looking a digest up
takes the same time whatever the guess was. Without any key the node trusts whoever reaches it, which is
only sound where nobody else can: on loopback. Binding wider without keys is therefore refused, not warned
about.
"""

from base64 import b64decode
from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256
from typing import NamedTuple

from raftspine.config.apikeys import ApiKey, KeyRole
from raftspine.config.checks import is_loopback
from raftspine.errors import Forbidden, Misuse, Unauthorized


class Access(IntEnum):
    """What a route needs, weakest first; each includes those before it. OPEN is for probes."""

    OPEN = 0
    READ = 1
    WRITE = 2
    APPROVE = 3
    OPERATE = 4


GRANTS = {
    KeyRole.READER: Access.READ,
    KeyRole.WRITER: Access.WRITE,
    KeyRole.OPERATOR: Access.OPERATE,
    KeyRole.APPROVER: Access.APPROVE,
}
"""An approver decides gates, and may do what a writer may."""


class Grant(NamedTuple):
    access: Access
    name: str


class Auth:
    """The keys of this node: hex SHA-256 of the key -> its role, or name and role. Misuse names a faulty entry."""

    def __init__(self, keys: Mapping[str, str | ApiKey] | None = None) -> None:
        self._grants: dict[bytes, Grant] = {}
        for digest, key in (keys or {}).items():
            name, role = key if isinstance(key, ApiKey) else (digest[:8], key)
            try:
                raw = bytes.fromhex(digest)
                self._grants[raw] = Grant(GRANTS[KeyRole(role)], name)
            except ValueError as error:
                raise Misuse(f"API key {digest[:8]}…: {error}; roles: {', '.join(KeyRole)}") from error
            if len(raw) != 32:
                raise Misuse(f"API key {digest[:8]}…: a key is listed by its SHA-256, 64 hex digits")

    @property
    def open(self) -> bool:
        """No keys: everyone who can connect may do everything."""
        return not self._grants

    def admit(self, authorization: str | None, needs: Access) -> str | None:
        """The name of the key; None where there are no keys. Raises Unauthorized without a known key, Forbidden (with
        the key's name) when its role does not reach."""
        if not self._grants or needs is Access.OPEN:
            return None
        key = _key(authorization or "")
        if not key:
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer <key>")
        granted = self._grants.get(sha256(key).digest())
        if granted is None:
            raise Unauthorized("this API key is not known")
        if granted.access < needs:
            what = needs.name.lower()
            raise Forbidden(f"this API key may not {what}", details={"needs": what, "key": granted.name})
        return granted.name

    def allows(self, authorization: str | None, needs: Access) -> bool:
        """Whether `admit` would let this pass."""
        try:
            self.admit(authorization, needs)
        except (Unauthorized, Forbidden):
            return False
        return True

    def check_bind(self, host: str) -> None:
        """Misuse for an address beyond loopback while there are no keys."""
        if self.open and not is_loopback(host):
            raise Misuse(
                f"refusing to serve HTTP on {host} without API keys: anyone who reaches it could write. "
                "Configure security.api_keys, or bind to 127.0.0.1"
            )


def user_of(authorization: str | None) -> str:
    """The user name of Basic credentials, for logs and audits: nothing proves it. Empty when there is none."""
    user, _, _ = _basic(authorization or "").partition(b":")
    return user.decode("utf-8", "replace")


def _key(authorization: str) -> bytes:
    """The key in the header; empty when there is none."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode("utf-8", "surrogateescape")
    return _basic(authorization).partition(b":")[2]


def _basic(authorization: str) -> bytes:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return b64decode(credentials.strip(), validate=True)
    except ValueError:
        return b""
