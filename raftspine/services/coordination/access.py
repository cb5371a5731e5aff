"""Refusals at the front door that belong in the audit.

The rule: a refused privileged act is written to the log once the refusal has been sent, and it costs its author more
than us: of one key one refusal is being written at a time, those that come meanwhile are only counted and logged.
"""

import asyncio

import structlog

from raftspine.core.ledger.limits import REASON_BYTES
from raftspine.core.ledger.lock_commands import NoteRefusal
from raftspine.errors import SpineError
from raftspine.services.coordination.door import Caller, Door

log = structlog.get_logger(__name__)


class Access:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._writing: dict[str, asyncio.Task[None]] = {}
        self.unwritten = 0

    def refused(self, key: str, action: str, subject: str) -> None:
        """A key was not good enough for an act; returns at once."""
        log.warning("a privileged act was refused", key=key, action=action, subject=subject)
        if key in self._writing:
            self.unwritten += 1
            return
        task = asyncio.get_running_loop().create_task(self._write(key, action, subject))
        self._writing[key] = task
        task.add_done_callback(lambda _: self._writing.pop(key, None))

    async def _write(self, key: str, action: str, subject: str) -> None:
        subject = subject.encode()[:REASON_BYTES].decode(errors="ignore")
        try:
            await self._door.execute(self._door.group(key), NoteRefusal(action, subject), Caller(key))
        except SpineError as error:
            self.unwritten += 1
            log.warning("a refused act could not be audited", key=key, action=action, reason=error.message)
