"""Exit codes, and the last door an error goes through.

A script must be able to tell *no* from *unknown* without reading English: so each kind of outcome has a
number of its own, and whatever goes wrong leaves one line on stderr. A stack trace would be neither readable
by the operator nor parseable by the script; `RAFTSPINE_DEBUG=1` gives it back to whoever wants it.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from enum import IntEnum

from raftspine import errors
from raftspine.errors import SpineError


class Exit(IntEnum):
    """What a command's exit code says. 130 is an interrupt and 141 a closed pipe, as shells have it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    UNKNOWN = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


BY_CLASS: tuple[tuple[type[SpineError], Exit], ...] = (
    (errors.NotFound, Exit.NOT_FOUND),
    (errors.Conflict, Exit.CONFLICT),
    (errors.PreconditionFailed, Exit.CONFLICT),
    (errors.Misdirected, Exit.UNAVAILABLE),
    (errors.Unavailable, Exit.UNAVAILABLE),
    (errors.Unknown, Exit.UNKNOWN),
    (errors.InvalidRequest, Exit.USAGE),
    (errors.TooLarge, Exit.USAGE),
    (errors.Misuse, Exit.USAGE),
    (SpineError, Exit.FAILED),
)

HELP = """\
exit codes: 0 done; 1 failed; 2 the command, the request or the configuration is at fault; 3 no such memory;
4 refused by the stored state; 5 nothing happened, try again; 6 may have happened, ask again with the same
key; 130 interrupted
"""


def of(error: SpineError) -> Exit:
    """The exit code of the nearest class in the table."""
    return next(code for kind, code in BY_CLASS if isinstance(error, kind))


def guard(command: Callable[[Namespace], int], arguments: Namespace) -> int:
    """Run a command; an error becomes its exit code and one line on stderr."""
    try:
        return command(arguments)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except SpineError as error:
        if os.environ.get("RAFTSPINE_DEBUG"):
            raise
        complain(explain(error))
        return of(error)
    except OSError as error:
        if os.environ.get("RAFTSPINE_DEBUG"):
            raise
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return Exit.FAILED
    except Exception as error:
        if os.environ.get("RAFTSPINE_DEBUG"):
            raise
        text = " ".join(str(error).split())
        complain(f"internal error ({type(error).__name__}: {text}); RAFTSPINE_DEBUG=1 shows where")
        return Exit.FAILED


def explain(error: SpineError) -> str:
    """The error as one line: what a person needs, with the machine's word for it. Only the faults of a
    configuration come as a list, because each has a line of its own to look at."""
    if isinstance(error, errors.Misuse):
        return error.message
    text = f"{' '.join(error.message.split())} [{error.code}]"
    details = error.details
    if "field" in details and str(details["field"]) not in error.message:
        text += f" (field {details['field']})"
    if isinstance(error, errors.Unknown) and "idempotency_key" in details:
        text += f" (key {details['idempotency_key']})"
    return text


def complain(text: str) -> None:
    """Say on stderr what went wrong."""
    print(f"raftspine: {text}", file=sys.stderr)
