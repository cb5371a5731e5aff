"""From a memory to its shard group: what is hashed, and how.

The rule: the strategy picks a text (`id`, `agent` or `tag`), a digest of that text picks the group, and
neither depends on the process, the number of nodes or the table. Without it a memory would be looked for
where another process would not have put it; Python's own `hash()` is salted per process and would do
exactly that.
"""

from collections.abc import Iterable
from hashlib import blake2b

from raftspine.errors import Misuse
from raftspine.model import GroupId

STRATEGIES = ("id", "agent", "tag")


def partition_key(strategy: str, id: str, agent_id: str, tags: Iterable[str]) -> str:
    """The text whose digest decides the group.

    `agent` keeps one agent's memories together, `tag` those with the same first tag in sorted order
    (sorted, so that the order in which a writer lists its tags does not move the memory). A memory without
    an agent or without tags falls back to its id. Misuse for an unknown strategy.
    """
    if strategy == "id":
        return id
    if strategy == "agent":
        return agent_id or id
    if strategy == "tag":
        return min(tags, default=id)
    raise Misuse(f"partitioning.strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")


def group_of(key: str, groups: int) -> GroupId:
    """The shard group of a partition key, 0 <= group < `groups`. The bias of the modulo is below 2**-58."""
    return GroupId(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % groups)


def coordination_key(name: str) -> str:
    """The text whose digest decides the group of a lock, election, gate, queue or fence: the part in the first
    `{braces}` of its name when there is one and it is not empty, else the whole name.

    So a lock can be put beside what it guards, whatever it is called: the lock `{dep-42}/deploy` lies in the group
    of the memory `dep-42` (where memories are placed by id), and names that share a pin share a group (the hash
    tags of Redis Cluster).
    """
    _, opened, rest = name.partition("{")
    pin, closed, _ = rest.partition("}")
    return pin if opened and closed and pin else name
