"""The client: `AsyncSpine` for programs with an event loop, `Spine` for those without.

See DESIGN.md beside this file for what it promises and why it is cut this way.
"""

import logging

from raftspine.client.blocking import Session, Spine
from raftspine.client.operations import UNSET
from raftspine.client.records import BatchResult, Page, Record
from raftspine.client.spine import AsyncSession, AsyncSpine

__all__ = ["UNSET", "AsyncSession", "AsyncSpine", "BatchResult", "Page", "Record", "Session", "Spine"]

logging.getLogger("raftspine.client").addHandler(logging.NullHandler())  # whoever wants to read it adds another
