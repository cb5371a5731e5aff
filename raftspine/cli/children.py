"""The nodes that `dev` starts: processes that are watched, stopped, and never left behind.

Each child holds the reading end of a pipe whose other end is ours (`serve --parent-pipe`): when this process
ends, in whatever way, the pipe closes and the child stops. Signals alone would not do: nobody sends one after
kill -9.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

STOP_S = 20.0
"""Handing leadership over and flushing takes a second; a node that takes this long is stuck."""

LOG_TAIL = 12


class NodeSpec(NamedTuple):
    """One node of the development cluster: its name and where it listens on the loopback."""

    id: str
    port: int

    @property
    def peer_port(self) -> int:
        return self.port + 10

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Child:
    """A running node and where its output goes."""

    def __init__(self, spec: NodeSpec, process: Process, log: Path) -> None:
        self.spec = spec
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, spec: NodeSpec, config: Path, log: Path) -> "Child":
        """Start the node on this Python, appending its output to `log`."""
        command = (sys.executable, "-m", "raftspine", "serve", "--dev", "--parent-pipe")
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command, "--config", str(config), "--node", spec.id, stdin=PIPE, stdout=output, stderr=STDOUT
            )
        return cls(spec, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ended(self) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        return await self._process.wait()

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:])

    def terminate(self) -> None:
        if self.alive:
            self._process.terminate()

    def kill(self) -> None:
        if self.alive:
            self._process.kill()


async def stop(children: Sequence[Child], hurry: asyncio.Event) -> None:
    """Ask all to stop and wait for them; kill those that do not within STOP_S, or at once when `hurry` is set."""
    for child in children:
        child.terminate()
    gone = asyncio.gather(*(child.ended() for child in children))
    hurried = asyncio.ensure_future(hurry.wait())
    either: list[asyncio.Future[Any]] = [gone, hurried]
    await asyncio.wait(either, timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    for child in children:
        child.kill()
    await gone
