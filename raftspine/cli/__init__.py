"""The command line. `main` is its only way in; see DESIGN.md beside this file for the rules every command
keeps."""

import os
import sys
from collections.abc import Mapping, Sequence

from raftspine.cli import exits
from raftspine.cli.parser import build


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code (see `exits`). Usage errors leave by SystemExit(2), as
    argparse does."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parsed = build(os.environ if environ is None else environ).parse_args(arguments)
    return exits.guard(parsed.run, parsed)
