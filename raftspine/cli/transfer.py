"""import and export: whole files of memories, one JSON object a line.

Both say on stderr how far they are, when someone is watching, and leave stdout to the result. An export
appears under its name only when it is complete; a half-written file that looks whole is worse than none.
"""

import asyncio
import gzip
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from raftspine.cli import lines, output
from raftspine.cli.exits import Exit, complain, explain, of
from raftspine.cli.importer import Importer
from raftspine.cli.memories import filters

EXPORT_PAGE = 200
"""Memories of up to 1 MiB each: keeps a page within what both ends hold in memory at ease."""

SHOWN_FAILURES = 50
"""Lines of complaint a person reads; one cause often fails thousands of lines."""


def load(arguments: Namespace) -> int:
    """Store the memories of a file. 1 when a line failed, 5 or 6 when the cluster went away."""
    with _opened(arguments.file) as raw:
        importer = asyncio.run(_load(arguments, raw))
    for failure in importer.failures[:SHOWN_FAILURES]:
        name = f" ({failure.id})" if failure.id else ""
        complain(f"line {failure.line}{name}: {failure.message}")
    if len(importer.failures) > SHOWN_FAILURES:
        complain(f"and {len(importer.failures) - SHOWN_FAILURES} more; --output json lists them all")
    if importer.gave_up is not None:
        complain(f"gave up: {explain(importer.gave_up)}; run the same import again to go on")
    if arguments.output == "json":
        failed = [failure._asdict() for failure in importer.failures]
        output.as_json({"stored": importer.stored, "created": importer.created, "failed": failed})
    else:
        print(f"stored {importer.stored} memories ({importer.created} new), {len(importer.failures)} failed")
    if importer.gave_up is not None:
        return of(importer.gave_up)
    return Exit.FAILED if importer.failures else Exit.OK


async def _load(arguments: Namespace, raw: IO[bytes]) -> Importer:
    size = os.fstat(raw.fileno()).st_size if arguments.file != "-" else None
    with _progress() as shown:
        task = shown.add_task("importing", total=size)
        seen = 0

        def done(count: int) -> None:
            nonlocal seen
            seen += count
            shown.update(task, completed=raw.tell() if size else seen, description=f"imported {seen}")

        async with output.client(arguments) as spine:
            importer = Importer(spine, batch=arguments.batch, concurrency=arguments.concurrency, progress=done)
            await importer.run(lines.read(raw))
    return importer


def dump(arguments: Namespace) -> int:
    """Write the memories that meet the filters, in the order of their ids."""
    file = arguments.file or "-"
    with _created(file) as stream:
        count = asyncio.run(_dump(arguments, stream))
    if file != "-":
        if arguments.output == "json":
            output.as_json({"exported": count, "file": file})
        else:
            print(f"exported {count} memories to {file}")
    return Exit.OK


async def _dump(arguments: Namespace, stream: IO[bytes]) -> int:
    count = 0
    with _progress() as shown:
        task = shown.add_task("exporting", total=None)
        async with output.client(arguments) as spine:
            async for record in spine.list(**filters(arguments), limit=EXPORT_PAGE):
                stream.write(msgspec.json.encode(record) + b"\n")
                count += 1
                shown.update(task, completed=count, description=f"exported {count}")
    return count


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with Path(name).open("rb") as file:
            yield file


@contextmanager
def _created(name: str) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well, and is removed when it does not."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = Path(f"{name}.part")
    try:
        with part.open("wb") as file:
            if name.endswith(".gz"):
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    yield cast("IO[bytes]", packed)
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(name)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _progress() -> Progress:
    """A bar on stderr; nothing at all when stderr is not a terminal."""
    console = output.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
