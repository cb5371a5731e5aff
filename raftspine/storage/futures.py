"""A future that several callers wait for, and that none of them can spoil for the others.

Awaiting a plain future hands the awaiting task the right to cancel it: one client that hangs up would cancel
the commit that sixty others share.
"""

from asyncio import Future
from typing import Any


class SharedFuture(Future[None]):
    """Cannot be cancelled; a cancelled task that waits for it ends when it resolves."""

    def cancel(self, msg: Any = None) -> bool:
        return False

    def fail(self, error: BaseException) -> None:
        """Set an exception that nobody needs to fetch: there may be no one waiting, and that is no fault."""
        self.set_exception(error)
        self.exception()
