"""Values on the command line: what an argument's text must look like, and how a command is found."""

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from importlib import import_module
from typing import Any


def command(module: str, function: str) -> Callable[[Namespace], int]:
    """A command by name: its module is imported when it is run."""

    def run(arguments: Namespace) -> int:
        found: Callable[[Namespace], int] = getattr(import_module(f"raftspine.cli.{module}"), function)
        return found(arguments)

    return run


def commas(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65535):
        raise ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def batch_size(text: str) -> int:
    if positive(text) > 1000:
        raise ArgumentTypeError("a batch holds at most 1000 memories")
    return int(text)


def importance(text: str) -> str | float:
    if text in ("low", "medium", "high", "critical"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is none of low, medium, high, critical, and not a number from 0 to 1")
    return value


def not_negative_float(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else positive_float(text)


def json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"not JSON: {error}") from error
