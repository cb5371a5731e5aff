"""The timings of a cluster, as one default and small edits to it.

The rule: an operator picks a preset by where the nodes are, and changes a single value only with a reason. A
preset is what it changes against `lan`, so what it is about can be read in one line. Without presets ten
related numbers get tuned one by one, until an election takes less time than the heartbeat that prevents it.

Where the numbers come from: a heartbeat is a few round trips; an election is ten or more heartbeats, so that
neither one lost packet nor a busy second core on a development machine starts one; a leader gives up
(`check_quorum_ms`) before anyone else can be elected.
"""

import msgspec
from msgspec import Struct


class Timing(Struct, frozen=True):
    """Milliseconds. The defaults are the preset `lan`.

    `heartbeat_ms`: a leader's sign of life. `election_min_ms`, `election_max_ms`: silence after which a
    follower stands for election, drawn anew each time. `check_quorum_ms`: a leader that has not heard from a
    majority for this long steps down. `ring_timeout_ms`, `strong_timeout_ms`: how long a request of either
    path may take. `digest_interval_ms`: how often replicas compare vectors. `checkpoint_interval_ms`: how
    often the redo log is folded into the tree. `sync_interval_ms`: the longest an acknowledged ring write
    stays unsynced under durability `interval`. `peer_dead_ms`: silence after which a link is given up.
    """

    heartbeat_ms: int = 100
    election_min_ms: int = 1000
    election_max_ms: int = 2000
    check_quorum_ms: int = 1000
    ring_timeout_ms: int = 2000
    strong_timeout_ms: int = 5000
    digest_interval_ms: int = 1000
    checkpoint_interval_ms: int = 250
    sync_interval_ms: int = 100
    peer_dead_ms: int = 2000


EDITS: dict[str, dict[str, int]] = {
    "lan": {},
    "local": {
        "heartbeat_ms": 100,
        "election_min_ms": 750,
        "election_max_ms": 1500,
        "check_quorum_ms": 750,
        "digest_interval_ms": 500,
    },
    "wan": {
        "heartbeat_ms": 400,
        "election_min_ms": 4000,
        "election_max_ms": 8000,
        "check_quorum_ms": 4000,
        "ring_timeout_ms": 5000,
        "strong_timeout_ms": 10_000,
        "digest_interval_ms": 3000,
        "peer_dead_ms": 5000,
    },
}

PRESETS = tuple(EDITS)


def timing(preset: str) -> Timing:
    """The timings of one of PRESETS."""
    return msgspec.structs.replace(Timing(), **EDITS[preset])
