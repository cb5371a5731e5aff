"""Privileged acts that a front end refused because of the key they came with.

The rule: what a person may do is settled before the log, but that somebody tried is written down in it, in a chain of
that key's own, so that a leaked key shows itself wherever it was tried. The acts themselves never reached the log.
"""

from raftspine.core.ledger import audit, limits
from raftspine.core.ledger.lock_commands import NoteRefusal
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.work import Work, invalid

KIND = "access"


def note(work: Work, command: NoteRefusal) -> Outcome:
    wrong = limits.first(
        limits.name(command.agent, "agent"),
        limits.name(command.action, "action"),
        limits.reason(command.subject),
    )
    if wrong:
        return invalid(command.agent, wrong)
    audit.append(work, KIND, command.agent, command.action, command.subject, refused=True)
    return Outcome(Status.DONE, command.agent)
