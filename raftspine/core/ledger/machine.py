"""From bytes in a shard group's log to outcomes and effects: the one door to the ledger.

The rule: a table says which family decides which command; a further family is further rows. The function is
total and deterministic: what is no command becomes an outcome, and only a command of a newer format stops it,
with Corrupt, because the group must then halt rather than diverge.
"""

from collections.abc import Callable
from typing import Any

from raftspine.core.ledger import (
    access,
    commands,
    elections,
    endings,
    fence,
    freezes,
    gate_acts,
    gate_commands,
    gates,
    lock_commands,
    locks,
    memories,
    requests,
    sessions,
    task_commands,
    tasks,
    terraform,
    terraform_commands,
    terraform_locks,
    txn,
    wake,
)
from raftspine.core.ledger.commands import Command, Malformed
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import LedgerView, Place, Result
from raftspine.core.ledger.work import family

Decide = Callable[[LedgerView, Any, Place, int, int], Result]

FAMILIES: dict[type, Decide] = {
    commands.PutMemory: memories.apply,
    commands.PatchMemory: memories.apply,
    commands.DeleteMemory: memories.apply,
    commands.VoidRequest: requests.void,
    lock_commands.OpenSession: family(sessions.open),
    lock_commands.RenewSession: family(sessions.renew),
    lock_commands.SpreadSession: family(sessions.spread),
    lock_commands.CloseSession: family(endings.close),
    lock_commands.ExpireSession: family(endings.expire),
    lock_commands.AcquireLock: family(locks.acquire),
    lock_commands.AcquireAll: family(locks.acquire_all),
    lock_commands.ReleaseLock: family(locks.release),
    lock_commands.BreakLock: family(locks.break_lock),
    lock_commands.ExpireTicket: family(locks.expire_ticket),
    lock_commands.Proclaim: family(elections.proclaim),
    lock_commands.RaiseFence: family(fence.raise_fence),
    lock_commands.NoteRefusal: family(access.note),
    lock_commands.Wake: family(wake.wake),
    task_commands.EnqueueTask: family(tasks.enqueue),
    task_commands.ClaimTasks: family(tasks.claim),
    task_commands.ExtendTask: family(tasks.extend),
    task_commands.CompleteTask: family(tasks.complete),
    task_commands.FailTask: family(tasks.fail),
    task_commands.RequeueTask: family(tasks.requeue),
    task_commands.RemoveTask: family(tasks.remove),
    task_commands.PutGate: family(gates.put),
    task_commands.PassGate: family(gates.pass_through),
    task_commands.DeleteGate: family(gates.delete),
    task_commands.Txn: family(txn.apply),
    gate_commands.RequestGate: family(gate_acts.request),
    gate_commands.ApproveRequest: family(gate_acts.approve),
    gate_commands.EndRequest: family(gate_acts.end),
    gate_commands.ReportCheck: family(gate_acts.report),
    gate_commands.LiftHold: family(gate_acts.lift_hold),
    gate_commands.AdmitRequest: family(gate_acts.admit),
    gate_commands.CompleteRequest: family(gate_acts.complete),
    gate_commands.OverrideRequest: family(gate_acts.override),
    gate_commands.PutFreeze: family(freezes.put),
    gate_commands.LiftFreeze: family(freezes.lift),
    terraform_commands.LockState: family(terraform_locks.lock),
    terraform_commands.UnlockState: family(terraform_locks.unlock),
    terraform_commands.PutState: family(terraform.put),
    terraform_commands.DeleteState: family(terraform.delete),
    terraform_commands.RestoreState: family(terraform.restore),
}


def apply(view: LedgerView, command: Command | Malformed, at: Place, group: int, time_ms: int) -> Result:
    """Decide one command. The host stores the effects, in order, before it applies the next."""
    if isinstance(command, Malformed):
        return Outcome(Status.MALFORMED, reason=command.reason), []
    return FAMILIES[type(command)](view, command, at, group, time_ms)


def apply_encoded(view: LedgerView, data: bytes, at: Place, group: int, time_ms: int) -> Result:
    """As `apply`, from bytes. Corrupt when the command is of a newer format: the host must halt the group."""
    return apply(view, commands.decode(data), at, group, time_ms)
