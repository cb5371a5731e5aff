"""Gates from the shell: for people who approve, for pipelines that ask, and for whoever must stop everything.

`gate verify` is made for scripts: exit code 0 and nothing else means yes; a gate that says no is 4, a store that
cannot be asked 5, and both mean that the next step is not taken.
"""

import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from raftspine.cli import output
from raftspine.cli.acting import Columns, act, listed
from raftspine.cli.exits import Exit, complain
from raftspine.client import AsyncSpine
from raftspine.client.coordination.gates import Gate, verify_chain
from raftspine.errors import Misuse


def open(arguments: Namespace) -> int:
    """Open a gate."""
    policy = _policy(arguments)
    return _on(
        arguments,
        lambda gate: gate.open(
            uses=arguments.uses, expires_at=arguments.expires_at, policy=policy, reason=arguments.reason
        ),
        lambda told: f"{told['name']} is open",
    )


def close(arguments: Namespace) -> int:
    """Close a gate."""
    policy = _policy(arguments)
    return _on(
        arguments,
        lambda gate: gate.close(policy=policy, reason=arguments.reason),
        lambda told: f"{told['name']} is closed",
    )


def listing(arguments: Namespace) -> int:
    """Print all gates."""
    columns: Columns = {
        "name": "name",
        "open": "open",
        "why not": "closed_because",
        "uses": "uses_left",
        "passes": "passes",
    }
    return listed(arguments, lambda spine: spine.gates(arguments.prefix), columns)


def show(arguments: Namespace) -> int:
    """Print a gate."""
    return _on(arguments, lambda gate: gate.show())


def remove(arguments: Namespace) -> int:
    """Remove a gate."""

    async def work(gate: Gate) -> dict[str, Any]:
        await gate.delete()
        return {"removed": gate.name}

    return _on(arguments, work, lambda told: f"removed {told['removed']}")


def pass_(arguments: Namespace) -> int:
    """Go through a simple gate."""

    async def work(gate: Gate) -> dict[str, Any]:
        passed = await gate.pass_()
        return {"pass_id": passed.id, "fencing_token": passed.token, "uses_left": passed.uses_left}

    return _on(arguments, work)


def request(arguments: Namespace) -> int:
    """Ask to take an artifact through."""
    return _on(
        arguments,
        lambda gate: gate.request(
            arguments.digest, subject=arguments.subject, id=arguments.id, metadata=arguments.metadata
        ),
        _request,
    )


def requests(arguments: Namespace) -> int:
    """Print the requests of a gate."""

    def work(spine: AsyncSpine) -> AsyncIterator[dict[str, Any]]:
        return spine.gate(arguments.name).requests()

    columns: Columns = {"id": "id", "state": "state", "subject": "subject", "artifact": "artifact_digest",
               "requester": "requester", "lacks": _lacks}  # fmt: skip
    return listed(arguments, work, columns)


def status(arguments: Namespace) -> int:
    """Print a request."""
    return _on(arguments, lambda gate: gate.show_request(arguments.id))


def approve(arguments: Namespace) -> int:
    """Approve the artifact of a request."""
    return _on(
        arguments,
        lambda gate: gate.approve(arguments.id, arguments.digest, comment=arguments.comment, groups=arguments.groups),
        _request,
    )


def reject(arguments: Namespace) -> int:
    """End a request, as an approver."""
    return _on(arguments, lambda gate: gate.reject(arguments.id, reason=arguments.reason), _request)


def cancel(arguments: Namespace) -> int:
    """End one's own request."""
    return _on(arguments, lambda gate: gate.cancel(arguments.id, reason=arguments.reason), _request)


def report(arguments: Namespace) -> int:
    """Say what a check found."""
    ok = arguments.verdict == "ok"
    return _on(
        arguments,
        lambda gate: gate.report(arguments.id, arguments.digest, arguments.check, ok, details=arguments.details),
        _request,
    )


def hold(arguments: Namespace) -> int:
    """Put a hold back."""
    return _on(arguments, lambda gate: gate.lift_hold(arguments.id, arguments.hold, lifted=False), _request)


def lift(arguments: Namespace) -> int:
    """Lift a hold."""
    return _on(arguments, lambda gate: gate.lift_hold(arguments.id, arguments.hold), _request)


def override(arguments: Namespace) -> int:
    """One person's word that the conditions be set aside."""
    return _on(arguments, lambda gate: gate.override(arguments.id, arguments.digest, arguments.reason), _request)


def admit(arguments: Namespace) -> int:
    """Go through."""
    return _on(
        arguments,
        lambda gate: gate.admit(arguments.id, arguments.digest, wait=arguments.wait),
        lambda told: str(told["fencing_token"]),
    )


def verify(arguments: Namespace) -> int:
    """May the next irreversible step be taken?"""
    return _on(
        arguments,
        lambda gate: gate.verify(arguments.id, arguments.token, arguments.digest),
        lambda told: f"yes, until {told['open_until']}",
    )


def complete(arguments: Namespace) -> int:
    """Say how the deployment ended."""
    ok = arguments.verdict == "ok"
    return _on(
        arguments,
        lambda gate: gate.complete(arguments.id, arguments.token, ok=ok, details=arguments.details),
        _request,
    )


def freeze(arguments: Namespace) -> int:
    """Let nothing through."""
    return act(
        arguments,
        lambda spine: spine.freezes.freeze(
            arguments.reason,
            scope=arguments.scope,
            id=arguments.id,
            until=arguments.until,
            overridable=not arguments.no_override,
        ),
        lambda told: f"frozen: {told['freeze_id']}",
    )


def unfreeze(arguments: Namespace) -> int:
    """Lift a freeze."""
    return act(
        arguments,
        lambda spine: spine.freezes.lift(arguments.id, reason=arguments.reason),
        lambda told: f"lifted {told['freeze_id']}",
    )


def freezes(arguments: Namespace) -> int:
    """Print the freezes in force."""

    async def work(spine: AsyncSpine) -> AsyncIterator[dict[str, Any]]:
        for found in await spine.freezes.list():
            yield found

    columns: Columns = {"id": "freeze_id", "gates": lambda item: item["prefix"] or "(all)", "until": "until",
                        "by": "by", "reason": "reason"}  # fmt: skip
    return listed(arguments, work, columns)


def audit(arguments: Namespace) -> int:
    """Print a gate's chain, or verify an exported one."""
    if arguments.verify is not None:
        return _verify_file(arguments)
    if arguments.name is None:
        raise Misuse("which gate's? Name it, or verify an exported chain with --verify FILE")

    async def work(spine: AsyncSpine) -> AsyncIterator[dict[str, Any]]:
        for entry in await spine.gate(arguments.name).audit():
            yield entry

    columns: Columns = {"seq": "seq", "action": "action", "by": "actor", "request": "subject",
               "refused": lambda item: "refused" if item["refused"] else "", "details": "details",
               "hash": lambda item: item["hash"][:12]}  # fmt: skip
    return listed(arguments, work, columns)


def _verify_file(arguments: Namespace) -> int:
    try:
        entries = msgspec.json.decode(_read(arguments.verify), type=list[dict[str, Any]])
        wrong = verify_chain(entries)
    except (msgspec.DecodeError, KeyError) as error:
        raise Misuse(
            f"{arguments.verify} is not an exported chain (gate audit NAME --output json): {error}"
        ) from error
    head = entries[-1]["hash"] if entries else None
    if arguments.output == "json":
        output.as_json({"holds": wrong is None, "entries": len(entries), "wrong": wrong, "head": head})
    elif wrong is None:
        print(f"the chain holds: {len(entries)} entries" + (f", the last {head}" if head else ""))
    if wrong is not None:
        complain(f"the chain does not hold: {wrong}")
        return Exit.FAILED
    return Exit.OK


def _on(
    arguments: Namespace,
    work: Callable[[Gate], Awaitable[dict[str, Any]]],
    told: Callable[[dict[str, Any]], str] | None = None,
) -> int:
    return act(arguments, lambda spine: work(spine.gate(arguments.name)), told)


def _request(told: dict[str, Any]) -> str:
    lacks = _lacks(told)
    return f"{told['id']} is {told['state']}" + (f": {lacks}" if lacks else "")


def _lacks(told: dict[str, Any]) -> str:
    return "; ".join(one["reason"] for one in told.get("unmet") or ())


def _policy(arguments: Namespace) -> Any:
    if arguments.policy is None:
        return None
    try:
        return yaml.safe_load(_read(arguments.policy))  # JSON is YAML
    except yaml.YAMLError as error:
        raise Misuse(f"{arguments.policy}: {error}") from error


def _read(file: str) -> str:
    return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
