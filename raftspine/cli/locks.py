"""Looking at locks, elections and sessions, and the operator's ways of ending them."""

from argparse import Namespace
from typing import Any

from raftspine.cli.acting import act, followed, listed


def listing(arguments: Namespace) -> int:
    """Print locks that are held or waited for."""
    columns = {"name": "name", "mode": "mode", "holder": "holder", "holders": "holders", "waiting": "waiting",
               "token": "fencing_token"}  # fmt: skip
    return listed(arguments, lambda spine: spine.locks(arguments.prefix), columns)


def show(arguments: Namespace) -> int:
    """Print a lock."""
    return act(arguments, lambda spine: spine.show_lock(arguments.name))


def break_(arguments: Namespace) -> int:
    """Take it from its holders."""

    def told(answer: dict[str, Any]) -> str:
        holders = ", ".join(f"{one['owner']} (token {one['fencing_token']})" for one in answer["broken"])
        return f"taken from {holders}"

    return act(
        arguments, lambda spine: spine.break_lock(arguments.name, arguments.reason, token=arguments.token), told
    )


def leader(arguments: Namespace) -> int:
    """Print who leads."""
    return act(arguments, lambda spine: spine.election(arguments.name).leader(), _leader)


def observe(arguments: Namespace) -> int:
    """Print each leader as they change."""
    return followed(arguments, lambda spine: spine.election(arguments.name).observe(), lambda found: [_leader(found)])


def session(arguments: Namespace) -> int:
    """Print a session."""
    return act(arguments, lambda spine: spine.show_presence(arguments.id))


def close_session(arguments: Namespace) -> int:
    """End a session."""
    return act(
        arguments,
        lambda spine: spine.close_presence(arguments.id),
        lambda answer: f"closed; {answer['released']} given back",
    )


def _leader(found: Any) -> str:
    return "nobody" if found is None else f"{found.owner}, term {found.term}, since {found.since}: {found.value}"
