"""put, get, list, rm and route: one memory at a time, as the API has it.

Each is a thin translation of arguments to one call of the client. What a command prints is what the server
answered, so that nothing here can disagree with it.
"""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Coroutine
from typing import Any

import msgspec

from raftspine.cli import output
from raftspine.cli.exits import Exit, complain, explain, of
from raftspine.client import Record
from raftspine.errors import Misuse, SpineError


def put(arguments: Namespace) -> int:
    """Store a memory and print its version."""
    content = _content(arguments)
    metadata = None if arguments.metadata is None else _json(arguments.metadata, "--metadata")

    async def work() -> Record:
        async with output.client(arguments, agent_id=arguments.agent, consistency=arguments.consistency) as spine:
            return await spine.put(
                arguments.id,
                content,
                tags=arguments.tags,
                agent_id=arguments.agent,
                namespace=arguments.namespace,
                importance=arguments.importance,
                metadata=metadata,
                ttl_seconds=arguments.ttl,
                pinned=arguments.pinned,
                expected_version=arguments.expected_version,
                if_absent=arguments.if_absent,
            )

    record = asyncio.run(work())
    if arguments.output == "json":
        output.as_json(record)
    else:
        print(f"stored {output.one_line(record.id)} as version {record.version} ({record.consistency})")
    return Exit.OK


def get(arguments: Namespace) -> int:
    """Print a memory, or its content alone."""

    async def work() -> Record:
        async with output.client(arguments) as spine:
            return await spine.get(arguments.id, consistency=arguments.consistency)

    record = asyncio.run(work())
    if arguments.content:
        if isinstance(record.content, str):
            sys.stdout.write(record.content)  # byte for byte, for the next program in the pipe
        else:
            output.as_json(record.content)
    elif arguments.output == "json":
        output.as_json(record)
    else:
        values = msgspec.structs.asdict(record)
        content = values.pop("content")
        output.fields({**values, "tags": ", ".join(record.tags)})
        print(f"\n{output.plain(content)}")
    return Exit.OK


def list_(arguments: Namespace) -> int:
    """Print the memories that meet the filters, in the order of their ids."""

    async def work() -> tuple[list[Record], bool]:
        found: list[Record] = []
        async with output.client(arguments) as spine:
            async for record in spine.list(**filters(arguments), limit=min(arguments.limit, 1000)):
                if len(found) == arguments.limit:
                    return found, True
                found.append(record)
        return found, False

    found, more = asyncio.run(work())
    if arguments.output == "json":
        output.as_json(found)
        return Exit.OK
    rows = [(r.id, r.consistency, ",".join(r.tags), r.agent_id, r.updated_at or "", r.content) for r in found]
    output.table(("id", "consistency", "tags", "agent", "updated", "content"), rows)
    if more:
        print(f"raftspine: there are more than these {arguments.limit}; see --limit", file=sys.stderr)
    return Exit.OK


def remove(arguments: Namespace) -> int:
    """Remove memories; all of them are tried, and the first failure gives the exit code."""

    async def work() -> list[tuple[str, SpineError]]:
        failed = []
        async with output.client(arguments) as spine:
            for id in arguments.ids:
                try:
                    await spine.delete(id, expected_version=arguments.expected_version)
                except SpineError as error:
                    failed.append((id, error))
        return failed

    failed = asyncio.run(work())
    for id, error in failed:
        complain(f"{id}: {explain(error)}")
    if arguments.output == "json":
        lost = {id: error.code for id, error in failed}
        output.as_json({"removed": [id for id in arguments.ids if id not in lost], "failed": lost})
    return of(failed[0][1]) if failed else Exit.OK


def route(arguments: Namespace) -> int:
    """Print what the router decides."""

    async def work() -> dict[str, Any]:
        async with output.client(arguments) as spine:
            return await spine.route(tags=arguments.tags, id=arguments.id)

    return _show(arguments, work())


def _show(arguments: Namespace, work: Coroutine[Any, Any, dict[str, Any]]) -> int:
    answer = asyncio.run(work)
    if arguments.output == "json":
        output.as_json(answer)
    else:
        output.fields({k: ", ".join(v) if isinstance(v, list) else v for k, v in answer.items()})
    return Exit.OK


def filters(arguments: Namespace) -> dict[str, Any]:
    """The filter options under the names the client gives them."""
    return {
        "tag": arguments.tag,
        "namespace": arguments.namespace,
        "agent_id": arguments.agent,
        "prefix": arguments.prefix,
        "updated_since": arguments.since,
    }


def _content(arguments: Namespace) -> Any:
    text = arguments.content
    if text is None or text == "-":
        if text is None and sys.stdin.isatty():
            raise Misuse("no content: give it as an argument, or - to type it and end with ctrl-D")
        data = sys.stdin.buffer.read()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise Misuse(f"the content is not UTF-8 text: {error}") from error
    return _json(text, "the content") if arguments.json else text


def _json(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Misuse(f"{what} is not JSON: {error}") from error
