"""The opaque version text of a memory (its ETag): written here, compared everywhere as text.

The rule: one text names one stored state of one id, on either path, for ever. Ring versions carry their
dot, strong ones their place in the group's log. If two states could share a text, a compare-and-set would
pass that must not.
"""


def ring_version_text(origin: str, seq: int) -> str:
    """The version of a ring memory: the dot of the version shown."""
    return f"r-{origin}-{seq}"


def strong_version_text(group: int, index: int, sub: int) -> str:
    """The version of a strong memory: group, log index and place within that entry's batch."""
    return f"s-{group}-{index}-{sub}"


def log_origin(group: int) -> str:
    """The origin of ring versions that a group's log writes when a memory leaves it. Never a node's: those
    contain a `~`."""
    return f"log-{group}"


def is_log_origin(origin: str) -> bool:
    """Whether an origin is a group's log rather than the boot of a node."""
    return origin.startswith("log-") and "~" not in origin
