"""A node as `raftspine serve` starts it, but it kills itself (SIGKILL) the first time it passes a step.

usage: python -m tests.support.dying_node CONFIG NODE POINT

Production code has no switch for this: a node is opened on a `World`, and this one's says when to die.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop

from raftspine.cluster.raft_types import RaftLimits
from raftspine.config import Config, load
from raftspine.model import NodeId
from raftspine.node import Sizes, World, real_world, serve

SHORT_LOGS = Sizes(RaftLimits(compact_entries=40, keep_entries=5), rotate_bytes=50_000)


def _die(wanted: str, point: str) -> None:
    if point == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def _world(point: str, config: Config, node: NodeId) -> AsyncIterator[World]:
    async with real_world(config, node) as world:
        yield replace(world, passed=partial(_die, point), sizes=SHORT_LOGS)


def main() -> None:
    config, node, point = Path(sys.argv[1]), NodeId(sys.argv[2]), sys.argv[3]
    uvloop.run(serve(load(config, os.environ, dev=True), node, partial(_world, point)))


if __name__ == "__main__":
    main()
