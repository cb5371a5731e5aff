"""`cluster status`: one screen that says what is up, what is wrong and what to do.

It asks every member itself and believes each only about itself, so it works, and tells the truth, when some
of them are down; a single node's account of the others would be as old as its last contact with them.
"""

import asyncio
from argparse import Namespace
from typing import Any
from urllib.parse import urlsplit

import msgspec
from rich.text import Text

from raftspine.cli import output
from raftspine.cli.diagnosis import Finding, View, diagnose, raft_lag, ring_lag, snapshots
from raftspine.cli.exits import Exit
from raftspine.client import AsyncSpine
from raftspine.errors import SpineError, Unavailable
from raftspine.model import Member, NodeId

PROBE_S = 2.0
"""A healthy node answers in milliseconds. A stopped one should not make an operator wait."""


def status(arguments: Namespace) -> int:
    """Print the screen. 0 when all is well, 1 when something is wrong, 5 when no node answers."""
    views = asyncio.run(_look(arguments))
    findings = diagnose(views)
    if arguments.output == "json":
        output.as_json(
            {
                "ok": not findings,
                "nodes": [_document(view, views) for view in views],
                "findings": [finding._asdict() for finding in findings],
            }
        )
    else:
        _print(views, findings)
    if all(view.status is None for view in views):
        return Exit.UNAVAILABLE
    return Exit.FAILED if findings else Exit.OK


async def _look(arguments: Namespace) -> list[View]:
    """Every member's account of itself; the members by the table, or by --url where no node knows the table."""
    arguments.timeout = min(arguments.timeout, PROBE_S)
    async with output.client(arguments) as spine:
        try:
            table = msgspec.convert((await spine.topology())["members"], tuple[Member, ...])
        except (Unavailable, KeyError, msgspec.ValidationError):
            table = tuple(_unnamed(url) for url in arguments.url)
        return list(await asyncio.gather(*(_ask(spine, member) for member in table)))


async def _ask(spine: AsyncSpine, member: Member) -> View:
    unasked = View(member, None)
    try:
        code, document = await spine.probe(unasked.url, "/v1/cluster/status", timeout=PROBE_S)
    except SpineError as error:
        return unasked._replace(silence=error.message.removeprefix(f"{unasked.url}: "))
    if code != 200:
        explained = document.get("error", {}).get("message", "")
        return unasked._replace(silence=f"it answers {code} {explained}".rstrip())
    named = msgspec.structs.replace(member, id=NodeId(document.get("node", member.id)))
    return View(named, document)


def _unnamed(url: str) -> Member:
    parts = urlsplit(url)
    port = parts.port or 80
    return Member(NodeId(parts.netloc), parts.hostname or "", port, port + 10)


def _document(view: View, views: list[View]) -> dict[str, Any]:
    member = view.member
    seconds, pending = ring_lag(view, views)
    return {
        "node": member.id,
        "url": view.url,
        "zone": member.zone,
        "state": _state(view),
        "reasons": [view.silence] if view.status is None else list(view.status.get("reasons", ())),
        "leads": _count(view, "leader"),
        "groups": _count(view, None),
        "raft_lag": raft_lag(view, views),
        "ring_lag_seconds": seconds,
        "pending_dots": pending,
        "store_used_ratio": None if view.status is None else view.status.get("store_used_ratio"),
        "epoch": None if view.status is None else view.status.get("epoch"),
        "version": None if view.status is None else view.status.get("version"),
        "snapshots": snapshots(view),
    }


def _state(view: View) -> str:
    if view.status is None:
        return "down"
    return "ready" if view.status.get("ready") else "not ready"


def _count(view: View, role: str | None) -> int:
    groups = () if view.status is None else view.status.get("groups", ())
    return sum(1 for group in groups if role is None or group["role"] == role)


def _print(views: list[View], findings: list[Finding]) -> None:
    colours = {"ready": "green", "not ready": "yellow", "down": "red"}
    rows = []
    for view in views:
        shown = _document(view, views)
        state = Text(shown["state"], style=f"bold {colours[shown['state']]}")
        if view.status is None:
            rows.append((shown["node"], shown["url"], shown["zone"], state, *["-"] * 5))
            continue
        rows.append(
            (
                shown["node"],
                shown["url"],
                shown["zone"],
                state,
                f"{shown['leads']} of {shown['groups']}",
                str(shown["raft_lag"]),
                f"{shown['ring_lag_seconds']:.1f} s ({shown['pending_dots']})",
                f"{shown['store_used_ratio'] or 0:.0%}",
                shown["version"],
            )
        )
    columns = ("node", "address", "zone", "state", "leads", "log behind", "ring behind", "store", "version")
    output.table(columns, rows)
    print()
    console = output.console()
    for line in (line for view in views for line in snapshots(view)):
        console.print(output.plain(line), soft_wrap=True)
    if not findings:
        console.print(Text("all is well", style="green"))
    for finding in findings:
        console.print(Text.assemble(("✗ ", "bold red"), output.plain(finding.problem)), soft_wrap=True)
        console.print(Text.assemble("  → ", output.plain(finding.remedy)), soft_wrap=True)
