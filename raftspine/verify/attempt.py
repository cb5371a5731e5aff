"""One recorded operation: written down before it is sent, and completed by what its caller could conclude.

The table of outcomes is the whole of it, and the part that must not be wrong: a refusal that may have taken effect
and is recorded as failed would accuse the store of what it did not do; an answer recorded as unknown would excuse
it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from raftspine.checkers.history import Operation, Pending
from raftspine.errors import Conflict, NotFound, PreconditionFailed, SpineError, Unavailable, Unknown

T = TypeVar("T")

REFUSED = {"refused": True}


async def write(
    pending: Pending, call: Awaitable[T], output: Callable[[T], Any] = lambda _: None, *, conditional: bool = False
) -> Operation:
    """A write. With `conditional`, a version conflict is an answer; without, it is a failure."""
    try:
        answer = await call
    except (Conflict, PreconditionFailed) as error:
        return pending.ok(REFUSED) if conditional else pending.fail(error=error.code)
    except SpineError as error:
        if maybe_done(error):
            return pending.unknown(error=error.code)
        return pending.fail(error=error.code)
    return pending.ok(output(answer))


async def read(pending: Pending, call: Awaitable[T], output: Callable[[T], Any], *, local: bool = False) -> Operation:
    """A read. What is not found is nothing, once a majority has confirmed it, or at once for a `local` read of one
    replica's own state; every error is a failure, for a read changes nothing."""
    try:
        answer = await call
    except NotFound as error:
        if local or error.details.get("confirmed", True):
            return pending.ok(None)
        return pending.fail(error="not_confirmed")
    except SpineError as error:
        return pending.fail(error=error.code)
    return pending.ok(output(answer))


def maybe_done(error: SpineError) -> bool:
    """Whether a write that ended so may have taken effect. What is of none of the known kinds (an answer that cannot
    be read, a server's own fault) may have."""
    if isinstance(error, Unavailable):
        return bool(error.details.get("indeterminate", False))
    if isinstance(error, Unknown):
        return True
    return type(error) is SpineError or error.code == "internal"
