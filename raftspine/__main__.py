"""`python -m raftspine` is the same program as `raftspine`; child nodes are started this way, because the
script may not be on their PATH."""

import sys

from raftspine.cli import main

if __name__ == "__main__":
    sys.exit(main())
