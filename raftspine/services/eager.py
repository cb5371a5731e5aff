"""Start work now, and make a task of it only if it has to wait.

Much of what a node is asked ends without waiting, above all a read that this replica may answer. A task for it costs
its creation and a turn of the loop, a tenth of a whole read. So the first step of a coroutine runs here, in its
caller's callback; what is left of it, if anything, becomes an ordinary task. Python 3.12 has this as ``eager_start``.

The rule: until it first waits, work started here has no task of its own. It may therefore await futures and start
tasks, but not use `asyncio.timeout`, which asks for the current task (`deadlines.within` is free to be used).
"""

from asyncio import AbstractEventLoop, CancelledError, Future
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start(work: "Coroutine[Any, Any, T]", loop: AbstractEventLoop) -> "Future[T]":
    """A future of what `work` returns or raises: done already, or the task that does the rest."""
    try:
        awaited = work.send(None)
    except StopIteration as end:
        done: Future[T] = loop.create_future()
        done.set_result(end.value)
        return done
    except CancelledError:
        done = loop.create_future()
        done.cancel()
        return done
    except Exception as error:  # noqa: BLE001 - handed on to whoever asks the future
        done = loop.create_future()
        done.set_exception(error)
        return done
    return loop.create_task(_rest(work, awaited))


async def _rest(work: "Coroutine[Any, Any, T]", awaited: Any) -> T:
    return await _resumed(work, awaited)


@coroutine
def _resumed(work: "Coroutine[Any, Any, T]", awaited: Any) -> "Generator[Any, Any, T]":
    """Go on with work that waits for `awaited`, as `yield from` would."""
    try:
        while True:
            try:
                value = yield awaited
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the work's to handle
                awaited = work.throw(error)
            else:
                awaited = work.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
