"""Persist, then send: frames wait here until the journal they rest on is on disk.

A vote or an acknowledgement that leaves first is a promise a power loss breaks, and a promise to a peer
cannot be taken back. One commit is in flight at a time; what gathers meanwhile goes with the next, so a slow
disk makes larger batches and not longer queues.

When a commit fails, the frames that rest on it are dropped for good. The journal stays ahead of the disk in
memory, which is harmless because nobody was told, and the commit is tried again until the disk takes it.
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable

from raftspine.cluster.raft_group import Outgoing
from raftspine.cluster.raft_types import RaftJournal
from raftspine.errors import SpineError
from raftspine.ports import Clock

RETRY_SECONDS = 0.5
"""Pause between attempts to write a journal that failed."""


class Outbox:
    """`send` gets the frames that may leave; `synced` is called after each commit that succeeded, `failed`
    with the error after one that did not and returns what those who wait for it are told. `on_commit` hears how
    many seconds each commit took."""

    def __init__(
        self,
        journal: RaftJournal,
        loop: AbstractEventLoop,
        *,
        send: Callable[[list[Outgoing]], None],
        synced: Callable[[], None],
        failed: Callable[[BaseException], SpineError],
        clock: Clock,
        on_commit: Callable[[float], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._send = send
        self._synced = synced
        self._failed = failed
        self._now = clock.monotonic
        self._on_commit = on_commit
        self._commit_began = 0.0
        self._committing = False
        self._broken = False
        self._closed = False
        self._commit_done: Future[None] | None = None
        self._flying: list[Outgoing] = []
        self._held: list[Outgoing] = []
        self._flying_waiters: list[Future[None]] = []
        self._waiters: list[Future[None]] = []

    def release(self, frames: list[Outgoing]) -> None:
        """Send frames once everything recorded so far is on disk."""
        if self._committing:
            self._held += frames
        elif self._journal.dirty:
            self._held += frames
            self._commit()
        else:
            self._send(frames)

    @property
    def committing(self) -> bool:
        """Whether a commit is in flight."""
        return self._committing

    def flushed(self) -> "Future[None]":
        """Resolves when everything recorded so far is on disk; fails when it could not be written."""
        waiter: Future[None] = self._loop.create_future()
        if not self._committing and not self._journal.dirty:
            waiter.set_result(None)
            return waiter
        self._waiters.append(waiter)
        if not self._committing and not self._broken:
            self._commit()
        return waiter

    def close(self, error: SpineError) -> None:
        """Send nothing more; whoever waits is told `error`."""
        self._closed = True
        self._drop(error)

    async def idle(self) -> None:
        """Returns once no commit is in flight, whatever became of it; after `close` no other follows."""
        if self._commit_done is not None:
            await asyncio.wait([self._commit_done])

    def _commit(self) -> None:
        self._committing = True
        self._commit_began = self._now()
        self._flying, self._held = self._held, []
        self._flying_waiters, self._waiters = self._waiters, []
        self._commit_done = self._journal.commit()
        self._commit_done.add_done_callback(self._committed)

    def _committed(self, done: "Future[None]") -> None:
        self._committing = False
        error = OSError("the journal was closed") if done.cancelled() else done.exception()
        if self._closed:
            return
        if error is not None:
            self._broken = True
            self._drop(self._failed(error))
            self._loop.call_later(RETRY_SECONDS, self._retry)
            return
        self._broken = False
        self._on_commit(self._now() - self._commit_began)
        frames, self._flying = self._flying, []
        self._send(frames)
        _resolve(self._flying_waiters)
        self._synced()
        frames, self._held = self._held, []
        self.release(frames)
        if not self._committing:
            _resolve(self._waiters)

    def _retry(self) -> None:
        if not self._closed and not self._committing:
            self._commit()

    def _drop(self, error: SpineError) -> None:
        self._flying, self._held = [], []
        for waiter in [*self._flying_waiters, *self._waiters]:
            if not waiter.done():
                waiter.set_exception(error)
        self._flying_waiters, self._waiters = [], []


def _resolve(waiters: "list[Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
