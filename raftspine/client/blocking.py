"""The blocking face: the async client on a loop of its own, in a thread of its own (see `threads`). It has no rule of
its own: every method waits for the one of the same name."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from raftspine.client.coordination.blocking import BlockingCoordination
from raftspine.client.operations import Operations
from raftspine.client.records import Record
from raftspine.client.spine import DEFAULT_TIMEOUT_S, AsyncSession, AsyncSpine
from raftspine.client.threads import Blocking, LoopThread, waiting
from raftspine.errors import Unavailable
from raftspine.ports import Entropy


class _Face(Blocking[Operations]):
    """Operations as plain calls; see `Operations` for what each one does."""

    put = waiting(Operations.put)
    add = waiting(Operations.add)
    patch = waiting(Operations.patch)
    delete = waiting(Operations.delete)
    batch = waiting(Operations.batch)
    get = waiting(Operations.get)
    page = waiting(Operations.page)
    conflicts = waiting(Operations.conflicts)
    versions = waiting(Operations.versions)
    route = waiting(Operations.route)
    topology = waiting(Operations.topology)
    status = waiting(Operations.status)
    request_status = waiting(Operations.request_status)
    void_request = waiting(Operations.void_request)

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

    def __init__(self, session: AsyncSession, runner: LoopThread) -> None:
        super().__init__(session, runner)
        self._session = session

    @property
    def token(self) -> str | None:
        """Hand it to another process to let it see what this session has seen."""
        return self._session.token


class Spine(_Face, BlockingCoordination):
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
        super().__init__(self._client, LoopThread())

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
