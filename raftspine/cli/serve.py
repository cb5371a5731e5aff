"""`serve`: one node of a cluster, in this process, until it is told to stop.

The only command that imports the node; all others are clients.
"""

import os
import signal
import threading
from argparse import Namespace
from pathlib import Path

from raftspine import config, node
from raftspine.model import NodeId

GRACE_S = 30.0
"""For a node that was told to stop. Past this it hangs, and would hold its ports against the next start."""


def serve(arguments: Namespace) -> int:
    """Run the node. Raises Misuse for every fault of the configuration at once."""
    if arguments.parent_pipe:
        threading.Thread(target=_follow_parent, name="parent-pipe", daemon=True).start()
    loaded = config.load(Path(arguments.config), os.environ, dev=arguments.dev)
    return node.run(loaded, NodeId(arguments.node))


def _follow_parent() -> None:
    """Stop when standard input closes: the kernel closes the other end however the parent ended, kill -9
    included, so that no node outlives the `dev` that started it."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
