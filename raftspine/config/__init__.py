"""The cluster file and the environment -> one frozen `Config` (see DESIGN.md).

`load` and `parse` give the configuration or every fault in it; `guard_bind` is asked before a port is opened.
"""

from raftspine.config.apikeys import ApiKey, KeyRole, load_api_keys
from raftspine.config.checks import guard_bind
from raftspine.config.load import load, parse
from raftspine.config.presets import PRESETS, Timing
from raftspine.config.schema import (
    Config,
    ConfigFaults,
    Consistency,
    Fault,
    Partitioning,
    Replication,
    Security,
    Storage,
)

__all__ = [
    "PRESETS",
    "ApiKey",
    "Config",
    "ConfigFaults",
    "Consistency",
    "Fault",
    "KeyRole",
    "Partitioning",
    "Replication",
    "Security",
    "Storage",
    "Timing",
    "guard_bind",
    "load",
    "load_api_keys",
    "parse",
]
