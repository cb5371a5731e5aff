"""Whoever proposed is owed exactly one of three answers (design/strong-path.md §4), and they must not blur:

    a result       the entry is on a majority's disks and applied here
    Unavailable    nothing was appended; asking elsewhere is safe
    Unknown        it was appended and may yet be applied: another leader's log does not hold it, a snapshot
                   covers it, or leadership was lost and nobody said in time what became of it

A caller told "no" where "unknown" was true writes twice; the other way round it waits for nothing. So there
are two places to be in, the queue and the log, and a refusal can only come from the first.
"""

from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raftspine.cluster.raft_types import RaftLimits
from raftspine.errors import SpineError, TooLarge, Unavailable, Unknown
from raftspine.model import GroupId


class _Entered(NamedTuple):
    """The callers whose commands make up one entry."""

    term: int
    callers: "list[Future[Any]]"


class Proposals:
    """One group's callers, from their question to their answer."""

    def __init__(self, group: GroupId, loop: AbstractEventLoop, limits: RaftLimits) -> None:
        self._group = group
        self._loop = loop
        self._limits = limits
        self._queue: deque[tuple[bytes, Future[Any]]] = deque()
        self._entered: dict[int, _Entered] = {}
        self._outstanding = 0

    @property
    def queued(self) -> bool:
        return bool(self._queue)

    @property
    def many(self) -> bool:
        """Whether the queue fills an entry by itself."""
        return len(self._queue) >= self._limits.entry_commands

    @property
    def entered(self) -> bool:
        """Whether anybody waits for an entry in the log."""
        return bool(self._entered)

    def submit(self, command: bytes) -> "Future[Any]":
        """Queue a command for the next entry. TypeError unless it is bytes: no replica could read it back."""
        if type(command) is not bytes:
            raise TypeError(f"a command is bytes, not {type(command).__name__}")
        caller: Future[Any] = self._loop.create_future()
        if self._outstanding >= self._limits.outstanding:
            text = f"too many proposals are waiting in group {self._group}"
            caller.set_exception(Unavailable(text, code="overloaded", retry_after_ms=100))
        elif len(command) > self._limits.command_bytes:
            text = f"a command of {len(command)} bytes is above the limit of {self._limits.command_bytes}"
            caller.set_exception(TooLarge(text))
        else:
            self._outstanding += 1
            self._queue.append((command, caller))
        return caller

    def enter(self, append: Callable[[list[bytes]], int], term: int) -> None:
        """Close entries over the queue, as few as the limits allow. `append` returns the entry's index."""
        queue, limits = self._queue, self._limits
        while queue:
            commands: list[bytes] = []
            callers: list[Future[Any]] = []
            size = 0
            while queue and len(commands) < limits.entry_commands:
                size += len(queue[0][0])
                if commands and size > limits.entry_bytes:
                    break
                command, caller = queue.popleft()
                commands.append(command)
                callers.append(caller)
            self._entered[append(commands)] = _Entered(term, callers)

    def enter_alone(self, index: int, term: int) -> "Future[Any]":
        """The caller of an entry that is no batch of commands; its result is the only one."""
        caller: Future[Any] = self._loop.create_future()
        self._outstanding += 1
        self._entered[index] = _Entered(term, [caller])
        return caller

    def applied(self, index: int, term: int, results: list[Any]) -> None:
        """An entry was applied here. Answers are given by the loop, after the turn."""
        entered = self._entered.pop(index, None)
        if entered is None:
            return
        self._outstanding -= len(entered.callers)
        if entered.term == term:
            for caller, result in zip(entered.callers, results, strict=True):
                if not caller.done():
                    caller.set_result(result)
        else:
            fail(entered.callers, self._unknown("another leader's entry took the place of this one"))

    def refuse(self, error: SpineError) -> None:
        """Nothing in the queue will be appended."""
        self._outstanding -= len(self._queue)
        fail((caller for _, caller in self._queue), error)
        self._queue.clear()

    def superseded(self, index: int) -> None:
        """Entries from `index` on are being cut. Another replica may hold them still, so their fate is open."""
        self._give_up([at for at in self._entered if at >= index], "a new leader's log does not hold this entry")

    def covered(self, index: int) -> None:
        """A snapshot stands for entries up to `index`, and does not say what they came to."""
        self._give_up([at for at in self._entered if at <= index], "a snapshot covers this entry")

    def abandon(self, reason: str) -> None:
        """What became of the entries in the log will not be known here."""
        self._give_up(list(self._entered), reason)

    def _give_up(self, indexes: list[int], reason: str) -> None:
        for index in indexes:
            callers = self._entered.pop(index).callers
            self._outstanding -= len(callers)
            fail(callers, self._unknown(reason))

    def _unknown(self, reason: str) -> Unknown:
        return Unknown(reason, details={"group": self._group})


def fail(futures: "Iterable[Future[Any]]", error: SpineError) -> None:
    """Fail those that still wait."""
    for future in futures:
        if not future.done():
            future.set_exception(error)
