"""From bytes in a shard group's log to outcomes and effects: the one door to the ledger.

The rule: a table says which family decides which command; a further family (locks, gates, tasks) is further
rows. The function is total and deterministic: what is no command becomes an outcome, and only a command of
a newer format stops it, with Corrupt, because the group must then halt rather than diverge.
"""

from collections.abc import Callable
from typing import Any

from raftspine.core.ledger import commands, memories, requests
from raftspine.core.ledger.commands import Command, Malformed
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView, Place, Result

Decide = Callable[[LedgerView, Any, Place, int, int], Result]

FAMILIES: dict[type, Decide] = {
    commands.PutMemory: memories.apply,
    commands.PatchMemory: memories.apply,
    commands.DeleteMemory: memories.apply,
    commands.VoidRequest: requests.void,
}


def apply(view: LedgerView, command: Command | Malformed, at: Place, group: int, time_ms: int) -> Result:
    """Decide one command. The host stores the effects, in order, before it applies the next."""
    if isinstance(command, Malformed):
        return Outcome(Status.MALFORMED, reason=command.reason), []
    return FAMILIES[type(command)](view, command, at, group, time_ms)


def apply_encoded(view: LedgerView, data: bytes, at: Place, group: int, time_ms: int) -> Result:
    """As `apply`, from bytes. Corrupt when the command is of a newer format: the host must halt the group."""
    return apply(view, commands.decode(data), at, group, time_ms)
