"""The blocking face: the async client on a loop of its own, in a thread of its own.

There is one implementation of every operation; what is here only waits for it. A second, synchronous client
would be a second set of retry rules, and the two would disagree in exactly the cases that are hard to test.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from raftspine.client.operations import Operations
from raftspine.client.records import Record
from raftspine.client.spine import DEFAULT_TIMEOUT_S, AsyncSession, AsyncSpine
from raftspine.errors import Unavailable
from raftspine.ports import Entropy

P = ParamSpec("P")
T = TypeVar("T")


class _Loop:
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


def _blocking(
    method: Callable[Concatenate[Operations, P], Awaitable[T]],
) -> "Callable[Concatenate[_Face, P], T]":
    """The same method, same arguments, same exceptions, that returns when it is done."""

    @wraps(method)
    def wait(self: "_Face", /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def work() -> T:
            return await method(self._operations, *args, **kwargs)

        return self._runner.run(work())

    return wait


class _Face:
    """Operations as plain calls; see `Operations` for what each one does."""

    def __init__(self, operations: Operations, runner: _Loop) -> None:
        self._operations = operations
        self._runner = runner

    put = _blocking(Operations.put)
    add = _blocking(Operations.add)
    patch = _blocking(Operations.patch)
    delete = _blocking(Operations.delete)
    batch = _blocking(Operations.batch)
    get = _blocking(Operations.get)
    page = _blocking(Operations.page)
    conflicts = _blocking(Operations.conflicts)
    versions = _blocking(Operations.versions)
    route = _blocking(Operations.route)
    topology = _blocking(Operations.topology)
    status = _blocking(Operations.status)
    request_status = _blocking(Operations.request_status)
    void_request = _blocking(Operations.void_request)

    def list(self, **filters: Any) -> Iterator[Record]:
        """All memories that meet the filters of `page`, fetched page by page while you iterate."""
        cursor: str | None = filters.pop("cursor", None)
        while True:
            page = self.page(cursor=cursor, **filters)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return


class Session(_Face):
    """A line of work that reads what it wrote; see `AsyncSession`."""

    def __init__(self, session: AsyncSession, runner: _Loop) -> None:
        super().__init__(session, runner)
        self._session = session

    @property
    def token(self) -> str | None:
        """Hand it to another process to let it see what this session has seen."""
        return self._session.token


class Spine(_Face):
    """A blocking client of one cluster; safe to share between threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:8788",
        *,
        api_key: str | None = None,
        agent_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        consistency: str | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        """The arguments of `AsyncSpine`."""
        self._client = AsyncSpine(
            url, api_key=api_key, agent_id=agent_id, timeout=timeout, consistency=consistency, entropy=entropy
        )
        super().__init__(self._client, _Loop())

    def __enter__(self) -> "Spine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, those of the sessions included, and end the thread. May be called twice."""
        try:
            self._runner.run(self._client.close())
        except Unavailable:
            return
        self._runner.stop()

    def session(
        self, *, agent_id: str | None = None, consistency: str | None = None, token: str | None = None
    ) -> Session:
        """A new session, for `agent_id` or the client's own. `token` continues an earlier one."""
        return Session(self._client.session(agent_id=agent_id, consistency=consistency, token=token), self._runner)
