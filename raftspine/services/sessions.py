"""Session tokens at the door: text in, a `Token` to work with, text out.

A token names the writes its holder must see. It is opaque and signed, so that a client can neither invent
dependencies (and stall every read on a write that never was) nor carry a token of another cluster. Verifying costs
microseconds, but a busy client repeats the same token many times, so the last few thousand are remembered.
"""

import asyncio
import hashlib
from collections.abc import Callable

from raftspine.core import session
from raftspine.core.session import Token
from raftspine.errors import Unavailable
from raftspine.model import GroupId
from raftspine.ports import ReplicatedLog
from raftspine.services.deadlines import Late, within

REMEMBERED = 4096


class Sessions:
    """Opens and seals tokens of one cluster. `stable(group, origin, seq)` says what no token needs to name."""

    def __init__(self, secret: bytes, stable: Callable[[int, str, int], bool]) -> None:
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"spine-session").digest()
        self._stable = stable
        self._known: dict[str, Token] = {}

    def open(self, text: str | None) -> Token | None:
        """The token, or None when there is none. Read-only: `extend` before changing it. Raises InvalidRequest."""
        if text is None:
            return None
        token = self._known.get(text)
        if token is None:
            token = session.decode(text, self._key)
            self._remember(text, token)
        return token

    def extend(self, token: Token | None) -> Token:
        """A copy that may be changed, without what every replica already has."""
        fresh = Token({}, {})
        if token is not None:
            fresh.merge(token)
            fresh.prune(self._stable)
        return fresh

    def seal(self, token: Token) -> str:
        """The token as text. It comes back with the next request, so it is remembered and must not change again."""
        text = session.encode(token, self._key)
        self._remember(text, token)
        return text

    def _remember(self, text: str, token: Token) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[text] = token


async def log_applied(log: ReplicatedLog, token: Token, group: GroupId, wait_ms: int) -> bool:
    """Whether this replica has applied what the session saw in the group's log, waiting at most `wait_ms`."""
    index = token.index.get(group)
    if index is None:
        return True
    try:
        await within(log.wait_applied(group, index), wait_ms / 1000, asyncio.get_running_loop())
    except Late:
        return False
    return True


async def require_log(log: ReplicatedLog, token: Token, group: GroupId, wait_ms: int) -> None:
    """Wait until this replica has applied what the session saw in the group's log. Raises
    Unavailable(`session_unavailable`) after `wait_ms`. Most sessions saw nothing there: callers look first, and spare
    themselves the wait."""
    if not await log_applied(log, token, group, wait_ms):
        raise Unavailable(
            "this replica has not yet applied this session's strong writes",
            code="session_unavailable",
            details={"group": group},
            retry_after_ms=200,
        )
