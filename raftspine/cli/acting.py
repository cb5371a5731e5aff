"""What the commands of coordination share: open a client, do one thing, print what came of it."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from raftspine.cli import output
from raftspine.cli.exits import Exit
from raftspine.client import AsyncSpine

Act = Callable[[AsyncSpine], Awaitable[Any]]

Columns = Mapping[str, str | Callable[[dict[str, Any]], Any]]
"""A heading and what stands below it: a field, or what is made of an item."""


def act(arguments: Namespace, work: Act, told: Callable[[Any], str] | None = None) -> int:
    """Do it; print the answer as JSON, or as a sentence, or as fields."""

    async def working() -> Any:
        async with output.client(arguments, agent_id=getattr(arguments, "agent", None)) as spine:
            return await work(spine)

    answer = asyncio.run(working())
    if arguments.output == "json":
        output.as_json(answer)
    elif told is not None:
        print(output.one_line(told(answer)))
    else:
        output.fields({name: value for name, value in answer.items() if not isinstance(value, bool) or value})
    return Exit.OK


def listed(
    arguments: Namespace,
    work: Callable[[AsyncSpine], AsyncIterator[dict[str, Any]]],
    columns: Columns,
) -> int:
    """Print all items: a JSON list, or a table whose columns are fields or made of them."""

    async def working(spine: AsyncSpine) -> list[dict[str, Any]]:
        return [item async for item in work(spine)]

    async def opened() -> list[dict[str, Any]]:
        async with output.client(arguments) as spine:
            return await working(spine)

    found = asyncio.run(opened())
    if arguments.output == "json":
        output.as_json(found)
    else:
        output.table(tuple(columns), [[_cell(item, made) for made in columns.values()] for item in found])
    return Exit.OK


def followed(
    arguments: Namespace,
    work: Callable[[AsyncSpine], AsyncIterator[Any]],
    told: Callable[[Any], Sequence[Any]],
) -> int:
    """Print items as they come: one JSON document a line, or words. Ends after --count, or by interrupt."""

    async def following() -> None:
        async with output.client(arguments) as spine:
            left = arguments.count
            async with aclosing(work(spine)) as items:  # type: ignore[type-var]
                async for item in items:
                    if arguments.output == "json":
                        output.as_line(item)
                    else:
                        print(*(output.one_line(word) for word in told(item)), sep="  ", flush=True)
                    left = None if left is None else left - 1
                    if left == 0:
                        return

    asyncio.run(following())
    return Exit.OK


def _cell(item: dict[str, Any], made: str | Callable[[dict[str, Any]], Any]) -> Any:
    value = item.get(made) if isinstance(made, str) else made(item)
    return "" if value is None else value
