"""Sending the lines of a file to a cluster, in batches, several at a time.

Two rules. Lines with one id are sent in the order of the file, whatever runs in parallel, because the last
one must win: each id belongs to one worker, and no batch holds an id twice. And a failure costs its own line
only: the rest goes on, so that one bad line in a million is found by one run and not by a million.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from raftspine.cli.exits import explain
from raftspine.cli.lines import Line
from raftspine.client import AsyncSpine
from raftspine.errors import Rejected, SpineError, Unavailable, Unknown

MAX_BATCH_BYTES = 1 << 20
"""Bounds what one request holds, whatever the size of a memory; a single larger one goes alone."""

MAX_DEAD_BATCHES = 3
"""Batches in a row to which nobody answered, each after the client's own retries: then the cluster is down."""

MAX_ROUNDS = 6
"""How often lines are sent again that the server answered with *not now* or *unknown*; with the pauses
between them, 6 s, longer than an election."""

FIRST_PAUSE_S = 0.1


class Failure(NamedTuple):
    line: int
    id: str
    code: str
    message: str


class Importer:
    """One run. `stored` and `failures` may be read while it goes on; `progress` is told of each line done."""

    def __init__(self, spine: AsyncSpine, *, batch: int, concurrency: int, progress: Callable[[int], None]) -> None:
        self._spine = spine
        self._batch = batch
        self._progress = progress
        self._queues: list[asyncio.Queue[list[Line]]] = [asyncio.Queue(1) for _ in range(concurrency)]
        self._dead = 0
        self.stored = 0
        self.created = 0
        self.failures: list[Failure] = []
        self.gave_up: SpineError | None = None
        """Why the run ended before the file did. Running it again is safe: a put repeated changes nothing."""

    async def run(self, lines: Iterable[Line]) -> None:
        """Send all lines. Raises only what reading the file raises."""
        workers = [asyncio.create_task(self._work(queue)) for queue in self._queues]
        try:
            await self._distribute(lines)
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _distribute(self, lines: Iterable[Line]) -> None:
        """Every line to the worker of its id; an empty batch tells a worker that there are no more."""
        open_batches: list[dict[str, Line]] = [{} for _ in self._queues]
        sizes = [0] * len(self._queues)
        for line in lines:
            if self.gave_up is not None:
                break
            if line.op is None:
                self._fail(line, "invalid_line", line.fault)
                continue
            n = zlib.crc32(line.id.encode("utf-8", "surrogatepass")) % len(self._queues)
            waiting = open_batches[n]
            full = len(waiting) == self._batch or sizes[n] + line.size > MAX_BATCH_BYTES
            if waiting and (full or line.id in waiting):
                await self._queues[n].put(list(waiting.values()))
                waiting = open_batches[n] = {}
                sizes[n] = 0
            waiting[line.id] = line
            sizes[n] += line.size
        for queue, waiting in zip(self._queues, open_batches, strict=True):
            if waiting:
                await queue.put(list(waiting.values()))
            await queue.put([])

    async def _work(self, queue: asyncio.Queue[list[Line]]) -> None:
        while lines := await queue.get():
            if self.gave_up is None:
                await self._send(lines)

    async def _send(self, lines: list[Line]) -> None:
        """One batch, and again those of its lines that may yet succeed."""
        pause = FIRST_PAUSE_S
        for last in (*[False] * (MAX_ROUNDS - 1), True):
            try:
                results = await self._spine.batch(line.op for line in lines if line.op is not None)
            except (Unavailable, Unknown) as error:
                self._nobody_there(lines, error)
                return
            except Rejected as error:
                await self._refused(lines, error)
                return
            self._dead = 0
            again = []
            for line, result in zip(lines, results, strict=True):
                if result.error is None:
                    self._stored(result.status)
                elif isinstance(result.error, (Unavailable, Unknown)) and not last:
                    again.append(line)
                else:
                    self._fail(line, result.error.code, explain(result.error))
            if not again:
                return
            lines = again
            await asyncio.sleep(pause)
            pause *= 2

    async def _refused(self, lines: list[Line], error: Rejected) -> None:
        """A batch refused as a whole is cut in two until the line at fault stands alone."""
        if len(lines) == 1:
            self._fail(lines[0], error.code, explain(error))
            return
        middle = len(lines) // 2
        await self._send(lines[:middle])
        await self._send(lines[middle:])

    def _nobody_there(self, lines: list[Line], error: SpineError) -> None:
        for line in lines:
            self._fail(line, error.code, explain(error))
        self._dead += 1
        if self._dead >= MAX_DEAD_BATCHES and self.gave_up is None:
            self.gave_up = error

    def _stored(self, status: int) -> None:
        self.stored += 1
        self.created += status == 201
        self._progress(1)

    def _fail(self, line: Line, code: str, message: str) -> None:
        self.failures.append(Failure(line.number, line.id, code, message))
        self._progress(1)
