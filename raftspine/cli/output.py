"""How results reach the terminal: a table for people, JSON for programs, from the same plain values.

JSON goes out as one document per command, and nothing else goes to stdout with it, so that `| jq` always
works. Text that came from memories is printed as it is, never read as markup: a memory that says "[red]" must
not be able to paint the operator's screen, nor control characters move its cursor.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raftspine.client import AsyncSpine

PIPE_WIDTH = 100_000


def client(arguments: Namespace, **options: Any) -> AsyncSpine:
    """The client that the common options describe."""
    return AsyncSpine(arguments.url, api_key=arguments.api_key, timeout=arguments.timeout, **options)


def console(*, stderr: bool = False) -> Console:
    """The terminal; a pipe has no width, so nothing is shortened for it."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def as_json(value: Any) -> None:
    """One JSON document on stdout."""
    encoded = msgspec.json.encode(value)
    pretty = msgspec.json.format(encoded, indent=2) if sys.stdout.isatty() else encoded
    sys.stdout.write(pretty.decode() + "\n")


def as_line(value: Any, *, stderr: bool = False) -> None:
    """One JSON document on a line of its own, at once: for what has no end."""
    file = sys.stderr if stderr else sys.stdout
    file.write(msgspec.json.encode(value).decode() + "\n")
    file.flush()


def fields(values: Mapping[str, Any]) -> None:
    """Names and values, one a line; empty ones left out."""
    shown = [(name, value) for name, value in values.items() if value not in (None, "", (), [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {plain(value)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table as wide as the terminal. Cells are shortened, never wrapped; `Text` cells keep their colour."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=True, overflow="ellipsis")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row))
    console().print(made)


def plain(value: Any) -> str:
    """A value as text: strings as they are, everything else as JSON."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(value: Any) -> str:
    return " ".join(plain(value).split())
