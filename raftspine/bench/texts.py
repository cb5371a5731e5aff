"""What each workload is called where people read it."""

from raftspine.bench.coordination import ACTS
from raftspine.bench.workloads import MIXES

PEERS = {
    "etcd-put": "put through the JSON gateway",
    "etcd-range": "linearizable range of one key",
    "etcd-lock": "lock + unlock through the JSON gateway, a name for each client",
    "etcd-lock-one": "lock + unlock through the JSON gateway, one name for all",
    "zookeeper-lock": "kazoo's lock, acquire + release, a name for each client",
    "zookeeper-lock-one": "kazoo's lock, acquire + release, one name for all",
}


def text_of(workload: str) -> str:
    """Raises KeyError for a workload that nobody knows."""
    if workload in MIXES:
        return MIXES[workload].text
    return ACTS[workload].text if workload in ACTS else PEERS[workload]
