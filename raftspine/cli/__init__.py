"""The command line. `main` is its only way in; see DESIGN.md beside this file for the rules every command keeps."""

import os
import sys
from collections.abc import Mapping, Sequence

from raftspine.cli import exits
from raftspine.cli.parser import build


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code (see `exits`). Usage errors leave by SystemExit(2), as
    argparse does."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    behind: list[str] | None = None
    if arguments[:2] == ["lock", "run"] and "--" in arguments:
        # What is behind the dashes is another program's, options and all; argparse would read it as ours.
        at = arguments.index("--")
        arguments, behind = arguments[:at], arguments[at + 1 :]
    parser = build(os.environ if environ is None else environ)
    parsed, left = parser.parse_known_args(arguments)
    late = getattr(parsed, "optional_argument", None)
    if late is not None and len(left) == 1 and getattr(parsed, late) is None and _is_word(left[0]):
        # Before Python 3.13, argparse settles an optional argument at the first word it sees, and so refuses
        # `put ID --tags a CONTENT`.
        setattr(parsed, late, left.pop())
    if behind is not None:
        parsed.command += behind
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return exits.guard(parsed.run, parsed)


def _is_word(text: str) -> bool:
    return text == "-" or not text.startswith("-")
