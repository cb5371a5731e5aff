"""Who may do what: a key names a role, a route names what it needs.

Keys are stored as SHA-256 digests, so reading the configuration does not yield one, and looking a digest up
takes the same time whatever the guess was. Without any key the node trusts whoever reaches it, which is
only sound where nobody else can: on loopback. Binding wider without keys is therefore refused, not warned
about.
"""

from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256

from raftspine.config.apikeys import KeyRole
from raftspine.config.checks import is_loopback
from raftspine.errors import Forbidden, Misuse, Unauthorized


class Access(IntEnum):
    """What a route needs, weakest first; each includes those before it. OPEN is for probes."""

    OPEN = 0
    READ = 1
    WRITE = 2
    OPERATE = 3


GRANTS = {
    KeyRole.READER: Access.READ,
    KeyRole.WRITER: Access.WRITE,
    KeyRole.OPERATOR: Access.OPERATE,
    KeyRole.APPROVER: Access.READ,
}
"""An approver decides gates; of memories it may only read."""


class Auth:
    """The keys of this node: hex SHA-256 of the key -> role name. Misuse names a faulty entry."""

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._grants: dict[bytes, Access] = {}
        for digest, role in (keys or {}).items():
            try:
                raw = bytes.fromhex(digest)
                self._grants[raw] = GRANTS[KeyRole(role)]
            except ValueError as error:
                raise Misuse(f"API key {digest[:8]}…: {error}; roles: {', '.join(KeyRole)}") from error
            if len(raw) != 32:
                raise Misuse(f"API key {digest[:8]}…: a key is listed by its SHA-256, 64 hex digits")

    @property
    def open(self) -> bool:
        """No keys: everyone who can connect may do everything."""
        return not self._grants

    def admit(self, authorization: str | None, needs: Access) -> None:
        """Raises Unauthorized without a known key, Forbidden when its role does not reach."""
        if not self._grants or needs is Access.OPEN:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer <key>")
        granted = self._grants.get(sha256(key.strip().encode("utf-8", "surrogateescape")).digest())
        if granted is None:
            raise Unauthorized("this API key is not known")
        if granted < needs:
            raise Forbidden(f"this API key may not {needs.name.lower()}", details={"needs": needs.name.lower()})

    def check_bind(self, host: str) -> None:
        """Misuse for an address beyond loopback while there are no keys."""
        if self.open and not is_loopback(host):
            raise Misuse(
                f"refusing to serve HTTP on {host} without API keys: anyone who reaches it could write. "
                "Configure security.api_keys, or bind to 127.0.0.1"
            )
