"""`lock run NAME -- command`: a command that runs while a lock is held, and not a moment longer than can be helped.

The rules: the lease is renewed by this process while the command runs; when it is lost the command is told (SIGTERM),
and killed when it does not end in time, because from then on somebody else may be at work. It is killed too when this
process is, for nobody would stop it then. What this cannot do is stop a command while this process is stopped itself:
that is what the fencing token in its environment is for.

Signals are passed on. With a terminal the command stays in our process group, so that it can read from it and the
terminal's own signals (ctrl-C) reach it once, from the terminal; without one it leads a group of its own, and signals
go to all of that group.
"""

import asyncio
import ctypes
import os
import signal
import sys
from argparse import Namespace
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

from raftspine.cli import output
from raftspine.cli.exits import Exit, complain, explain
from raftspine.client import AsyncSpine
from raftspine.client.coordination.leases import Holder, Lease
from raftspine.errors import LeaseLost, LockHeld, Misuse, SpineError

PASSED_ON = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
FROM_TERMINAL = frozenset((signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT)))
_PR_SET_PDEATHSIG = 1


class RunExit(IntEnum):
    """Exit codes besides the command's own; the last three are the shell's and those of coreutils."""

    LOST = 123
    NOT_ACQUIRED = 124
    FAILED = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


class _StoppedError(Exception):
    """A signal came while there was no command to pass it on to."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


def run(arguments: Namespace) -> int:
    """Acquire, run, release; the exit code says which of them went wrong."""
    if not arguments.command:
        raise Misuse("no command: raftspine lock run NAME -- COMMAND [ARGUMENT…]")
    return asyncio.run(_Run(arguments).run())


class _Run:
    def __init__(self, arguments: Namespace) -> None:
        self._arguments = arguments
        self._child: Process | None = None
        self._grouped = not sys.stdin.isatty()
        self._lost = asyncio.Event()
        self._stopped: asyncio.Future[int] | None = None

    async def run(self) -> int:
        async with output.client(self._arguments) as spine:
            with _signals(self._signalled):
                try:
                    return await self._held(self._holder(spine))
                except _StoppedError as stopped:
                    return 128 + stopped.number

    def _holder(self, spine: AsyncSpine) -> Holder:
        given = self._arguments
        wanted = {"ttl": given.ttl, "wait": given.wait, "owner": given.owner, "priority": given.priority,
                  "on_jeopardy": self._jeopardy, "on_lost": lambda lease: self._lost.set()}  # fmt: skip
        if given.permits is not None:
            return spine.semaphore(given.name, given.permits, **wanted)
        return spine.shared(given.name, **wanted) if given.shared else spine.lock(given.name, **wanted)

    async def _held(self, holder: Holder) -> int:
        try:
            lease = await self._until_signalled(holder.acquire())
        except LockHeld as error:
            self._complain(f"{self._arguments.name} is held by {error.holder or 'another'}", error)
            return RunExit.NOT_ACQUIRED
        except SpineError as error:
            self._complain(explain(error), error)
            return RunExit.FAILED
        code = await self._command(lease)
        try:
            await holder.release()
        except LeaseLost as error:
            if not self._lost.is_set():
                self._complain(f"the lease of {self._arguments.name} was lost: {error.message}", error)
            return RunExit.LOST
        return code

    async def _command(self, lease: Lease) -> int:
        name, *words = self._arguments.command
        token = {"RAFTSPINE_LOCK_NAME": lease.name, "RAFTSPINE_LOCK_TOKEN": str(lease.token),
                 "RAFTSPINE_LOCK_LEASE": lease.lease_id}  # fmt: skip
        try:
            self._child = await asyncio.create_subprocess_exec(
                name,
                *words,
                env={**os.environ, **token},
                process_group=0 if self._grouped else None,
                preexec_fn=_die_with_parent(os.getpid()) if sys.platform == "linux" else None,
            )
        except FileNotFoundError:
            self._complain(f"{name}: no such command")
            return RunExit.NOT_FOUND
        except OSError as error:
            self._complain(f"{name}: {error.strerror}")
            return RunExit.NOT_EXECUTABLE
        ended = asyncio.ensure_future(self._child.wait())
        lost = asyncio.ensure_future(self._lost.wait())
        either: tuple[asyncio.Future[Any], ...] = (ended, lost)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await self._stop(ended)
        lost.cancel()
        return ended.result() if ended.result() >= 0 else 128 - ended.result()

    async def _stop(self, ended: "asyncio.Future[int]") -> None:
        self._complain(f"the lease of {self._arguments.name} was lost; stopping the command")
        self._send(signal.SIGTERM)
        await asyncio.wait((ended,), timeout=self._arguments.grace)
        if not ended.done():
            self._send(signal.SIGKILL)
        await ended
        if self._grouped:
            self._send(signal.SIGKILL)  # what it left behind in its group

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _until_signalled(self, work: Coroutine[Any, Any, Lease]) -> Lease:
        """A signal while waiting for the lock withdraws from its queue."""
        self._stopped = stopped = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(work)
        either: tuple[asyncio.Future[Any], ...] = (waiting, stopped)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            raise _StoppedError(stopped.result())
        return waiting.result()

    def _signalled(self, number: int) -> None:
        if self._child is None:
            if self._stopped is not None and not self._stopped.done():
                self._stopped.set_result(number)
        elif self._grouped or number not in FROM_TERMINAL:
            self._send(number)

    def _send(self, number: int) -> None:
        child = self._child
        if child is None:
            return
        with suppress(ProcessLookupError):
            if self._grouped:
                os.killpg(child.pid, number)
            elif child.returncode is None:
                child.send_signal(number)

    # ── words ───────────────────────────────────────────────────────────────────────────────────────────────

    def _jeopardy(self, lease: Lease) -> None:
        self._complain(f"the lease of {lease.name} could not be renewed; {lease.remaining():.1f} s are left")

    def _complain(self, text: str, error: SpineError | None = None) -> None:
        """On stderr: stdout is the command's."""
        if self._arguments.output == "json":
            told = {"message": text, "lock": self._arguments.name}
            if error is not None:
                told |= {"code": error.code, "details": error.details}
            output.as_line(told, stderr=True)
        else:
            complain(text)


@contextmanager
def _signals(handler: Callable[[int], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in PASSED_ON:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in PASSED_ON:
            loop.remove_signal_handler(number)


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Runs in the child between fork and exec: the kernel kills it when this process dies, however that is."""
    library = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request was in force
            os._exit(Exit.FAILED)

    return ask
