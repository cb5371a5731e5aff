"""A TCP proxy between two nodes of one machine whose link is to be slow, cut or mute.

To put it on the link of two nodes, tell the node with the smaller id (the one that dials) the proxy's port as
the other's peer port.

    proxy = DelayProxy(0, ("127.0.0.1", real_port), delay_ms=5)
    await proxy.start()          # proxy.port is the one to dial
    proxy.delay_ms = 50          # from now on, both ways
    proxy.cut(); proxy.heal()    # connections reset and refused; accepted again
    proxy.mute(); proxy.heal()   # bytes held back both ways, connections stay open: a half-open link
    await proxy.close()

Bytes never overtake one another, whatever the delay does. `ThreadedProxy` runs one beside a test that has no
event loop.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from typing import Any, Self

Address = tuple[str, int]


class DelayProxy:
    def __init__(self, listen_port: int, target: Address, delay_ms: float = 0) -> None:
        self._listen_port = listen_port
        self.target = target
        self.delay_ms = delay_ms
        self.accepted = 0
        self._cut = False
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Pair(self).client, "127.0.0.1", self._listen_port
        )

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._cut = True
        self._open.set()
        for pair in list(self._pairs):
            pair.abort()

    def mute(self) -> None:
        """Carry nothing, but keep the connections."""
        self._open.clear()

    def heal(self) -> None:
        self._cut = False
        self._open.set()

    async def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await asyncio.gather(*(pair.ended for pair in list(self._pairs)))


class _Pair:
    """One connection through the proxy: two ends and a pump for each direction."""

    def __init__(self, proxy: DelayProxy) -> None:
        self.proxy = proxy
        self.client = _End(self)
        self.server = _End(self)
        self.tasks: list[asyncio.Task[None]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        proxy._pairs.add(self)

    def opened(self, end: "_End") -> None:
        if end is not self.client:
            return
        self.proxy.accepted += 1
        if self.proxy._cut:
            self.abort()
        else:
            self.tasks.append(asyncio.create_task(self._connect()))

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            self.abort()
            return
        self.tasks.append(asyncio.create_task(self._pump(self.client, self.server)))
        self.tasks.append(asyncio.create_task(self._pump(self.server, self.client)))

    async def _pump(self, source: "_End", sink: "_End") -> None:
        loop = asyncio.get_running_loop()
        while True:
            await source.has_data.wait()
            while source.arrived:
                at, data = source.arrived[0]
                wait = at + self.proxy.delay_ms / 1000 - loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                await self.proxy._open.wait()
                if sink.transport is not None:
                    sink.transport.write(data)
                source.arrived.popleft()
            source.has_data.clear()
            if source.lost:
                self.abort()
                return

    def abort(self) -> None:
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.abort()
        current = asyncio.current_task()
        for task in self.tasks:
            if task is not current:
                task.cancel()
        self.proxy._pairs.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)


class _End(asyncio.Protocol):
    def __init__(self, pair: _Pair) -> None:
        self.pair = pair
        self.transport: Any = None
        self.arrived: deque[tuple[float, bytes]] = deque()
        self.has_data = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.pair.opened(self)

    def data_received(self, data: bytes) -> None:
        self.arrived.append((asyncio.get_running_loop().time(), data))
        self.has_data.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.has_data.set()


class ThreadedProxy:
    """A DelayProxy on an event loop of its own, for tests written without one. Use as a context manager; the
    methods may be called from any thread."""

    def __init__(self, listen_port: int, target: Address, delay_ms: float = 0) -> None:
        self._arguments = (listen_port, target, delay_ms)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._proxy = self._run(self._make())
        self.port = self._proxy.port
        return self

    async def _make(self) -> DelayProxy:
        proxy = DelayProxy(*self._arguments)
        await proxy.start()
        return proxy

    def __exit__(self, *_: object) -> None:
        self._run(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        self._call(self._proxy.cut)

    def mute(self) -> None:
        self._call(self._proxy.mute)

    def heal(self) -> None:
        self._call(self._proxy.heal)

    def delay(self, delay_ms: float) -> None:
        self._proxy.delay_ms = delay_ms

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, act: Any) -> None:
        async def run() -> None:
            act()

        self._run(run())
