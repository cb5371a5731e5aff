"""Calling asynchronous code from threads that have no event loop: a loop on a thread of its own, and how to wait for
it.

The rule: what runs on the loop is the one implementation there is; a thread only waits for its result. A second,
synchronous client would be a second set of retry rules, and the two would disagree in exactly the cases that are hard
to test.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from raftspine.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class LoopThread:
    """An event loop that runs in a daemon thread until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftspine-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. An interrupt of the waiting thread cancels it."""
        if self._loop.is_closed():
            work.close()
            raise Unavailable("this client is closed", code="closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Blocking(Generic[S]):
    """The plain face of one asynchronous object."""

    def __init__(self, inner: S, runner: LoopThread) -> None:
        self._inner = inner
        self._runner = runner


def waiting(
    method: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[Blocking[S], P], T]:
    """The same method, same arguments, same exceptions, that returns when it is done."""

    @wraps(method)
    def wait(self: Blocking[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def work() -> T:
            return await method(self._inner, *args, **kwargs)

        return self._runner.run(work())

    return wait


def iterating(
    method: Callable[Concatenate[S, P], AsyncIterator[T]],
) -> Callable[Concatenate[Blocking[S], P], Iterator[T]]:
    """The same iterator, one item at a time; closed when it is left."""

    @wraps(method)
    def iterate(self: Blocking[S], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return through(self._runner, method(self._inner, *args, **kwargs))

    return iterate


def through(runner: LoopThread, items: AsyncIterator[T]) -> Iterator[T]:
    """The items of an asynchronous iterator that lives on the loop."""

    async def following() -> T:
        return await anext(items)

    async def close() -> None:
        if hasattr(items, "aclose"):
            await items.aclose()

    try:
        while True:
            try:
                item = runner.run(following())
            except StopAsyncIteration:
                return
            yield item
    finally:
        runner.run(close())
