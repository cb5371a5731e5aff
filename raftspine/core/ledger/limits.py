"""Bounds on what a command of coordination may say, checked in the log itself.

The rule: a front end refuses early and with the field's name, but what bounds keys, numbers and the work of one
entry is checked where it matters, because a command may come from any version of any front end. Each check
gives the reason as a fixed text, or None: replicas of different library versions must say the same.
"""

from typing import Any

import msgspec

NAME_BYTES = 255
"""Names of locks, elections, gates, queues and resources, in UTF-8."""
ID_BYTES = 100
"""Ids of sessions, leases, claims and tasks."""
TTL_MS = (2_000, 86_400_000)
"""A lease shorter than a lost packet's repetition is lost by chance; one longer than a day is a mistake."""
DELAY_MS = 86_400_000
PRIORITIES = (-100, 100)
DATA_BYTES = 64 * 1024
"""A payload or result, encoded."""
METADATA_BYTES = 4096
"""What a session, lease or candidate says of itself, and what a leader proclaims."""
DEPTH = 128
"""Containers in containers. Deeper ones are refused before they are encoded: how deep an encoder can go depends on
the stack below it, which differs between replicas."""
REASON_BYTES = 1024
HELD_PER_SESSION = 1024
"""What one session may hold and wait for: its end gives all of it back in one log entry."""
NAMES_AT_ONCE = 64
"""Locks in one acquire_all, operations in one transaction or completion, guards of one write."""
CLAIMS_AT_ONCE = 64
CLAIMED_BYTES = 1 << 20
"""Payloads in one claim's answer, roughly: the answer is remembered with the request."""
THEN_BYTES = 256 * 1024
READ_BYTES = 4 << 20
"""Memories in one transaction's answer, which is remembered as well."""
TASKS_PER_QUEUE = 1_000_000
"""Unfinished ones."""
ATTEMPTS = 1_000_000
NOT_BEFORE_MS = 366 * 86_400_000
"""How far ahead a task may be put off."""
PERMITS = 1_000_000
NUMBER = 1 << 53
"""Above every token, time and count; what a JSON client can hold exactly."""

_encode = msgspec.msgpack.Encoder().encode


def name(text: str, what: str = "name") -> str | None:
    return _text(text, NAME_BYTES, what)


def id(text: str, what: str = "id") -> str | None:
    return _text(text, ID_BYTES, what)


def _text(text: str, most: int, what: str) -> str | None:
    if not text:
        return f"{what} is empty"
    if "\0" in text:
        return f"{what} holds NUL"
    return f"{what} is longer than {most} bytes" if len(text.encode()) > most else None


def ttl(ms: int) -> str | None:
    return between(ms, *TTL_MS, "ttl_ms")


def between(value: int, low: int, high: int, what: str) -> str | None:
    return None if low <= value <= high else f"{what} is not between {low} and {high}"


def data(value: Any, what: str, most: int = DATA_BYTES) -> str | None:
    if _is_deep(value):
        return f"{what} is nested more than {DEPTH} deep"
    return f"{what} is longer than {most} bytes" if size(value) > most else None


def _is_deep(value: Any) -> bool:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += [key for key in item if isinstance(key, tuple)]
            elif isinstance(item, list | tuple):
                below += item
        if not below:
            return False
        level = below
    return True


def size(value: Any) -> int:
    """Bytes of a value, encoded."""
    return len(_encode(value))


def reason(text: str) -> str | None:
    return f"reason is longer than {REASON_BYTES} bytes" if len(text.encode()) > REASON_BYTES else None


def first(*reasons: str | None) -> str | None:
    """The first reason there is."""
    return next((reason for reason in reasons if reason is not None), None)
