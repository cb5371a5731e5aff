"""Pages of memories out of the indexes: in order, resumable, and as expensive as the page is long.

The rule: the index only proposes; each proposal is checked against the record a reader would be shown. So a
row for a ring memory that a promotion has shadowed, or for one that expired, cannot surface, and which
index was used never changes the result. The cursor is the place in the order (an id, or a time and an id),
not a count: memories that come and go between two pages neither shift nor repeat the others.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from raftspine.errors import InvalidRequest
from raftspine.model import Memory
from raftspine.ports import View
from raftspine.storage import keys
from raftspine.storage.records import Found, is_expired, resolve

SMALLEST_CHUNK = 8
LARGEST_CHUNK = 256
PROBED_GROUPS = 4
PROBED_ROWS = 64

Place = tuple[int, str]
"""Where an id stands in the order: (updated_at, id), or (0, id) when the order is by id."""


class Query(Protocol):
    """What services.values.ListQuery brings. Filters are conjunctive; order is by id, or by (updated_at, id)
    when `updated_since_ms` is given."""

    @property
    def tag(self) -> str | None: ...
    @property
    def namespace(self) -> str | None: ...
    @property
    def agent_id(self) -> str | None: ...
    @property
    def prefix(self) -> str | None: ...
    @property
    def updated_since_ms(self) -> int | None: ...
    @property
    def limit(self) -> int: ...
    @property
    def after(self) -> str | None: ...


class FoundPage(NamedTuple):
    """`next` is the cursor of the following page, None when this was the last one."""

    items: list[Found]
    next: str | None


def page(view: View, groups: Sequence[int], query: Query, now_ms: int) -> FoundPage:
    """The next page over these groups. Raises InvalidRequest (field ``cursor``) for a cursor that this order
    did not issue, Corrupt."""
    by_time = query.updated_since_ms is not None
    last = None if query.after is None else _place(query.after, by_time)
    candidates = _by_time(view, groups, query, last) if by_time else _by_id(view, groups, query, last)
    items: list[Found] = []
    seen: Place | None = None
    for updated_at, id, group in candidates:
        if (updated_at, id) == seen:
            continue  # the ring's and the log's row of one id
        seen = (updated_at, id)
        found = resolve(view, group, id)
        if found is None or is_expired(found.memory, now_ms) or not _matches(found, query):
            continue
        if by_time and found.memory.updated_at_ms != updated_at:
            continue
        if len(items) == query.limit:
            tail = items[-1]
            return FoundPage(items, cursor(tail.id, tail.memory.updated_at_ms if by_time else None))
        items.append(found)
    return FoundPage(items, None)


def cursor(id: str, updated_at_ms: int | None) -> str:
    """The cursor of what follows this memory; with its update time when the order is by time."""
    place = [id] if updated_at_ms is None else [updated_at_ms, id]
    return urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


def expired(view: View, group: int, now_ms: int, limit: int) -> list[str]:
    """Ids with a version, on either path, whose time has come; oldest first, possibly repeated."""
    lo = keys.index_field(group, keys.BY_EXPIRY)
    hi = keys.by_time(group, keys.BY_EXPIRY, now_ms + 1)
    return [keys.time_and_id(key)[1] for key, _ in view.scan(lo, hi, limit=limit)]


def _place(text: str, by_time: bool) -> Place:
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        if by_time:
            return msgspec.msgpack.decode(data, type=tuple[int, str])
        return 0, msgspec.msgpack.decode(data, type=tuple[str])[0]
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise InvalidRequest("this is not a cursor of this list", field="cursor") from error


def _matches(found: Found, query: Query) -> bool:
    memory: Memory = found.memory
    return (
        (query.tag is None or query.tag in memory.tags)
        and (query.agent_id is None or query.agent_id == memory.agent_id)
        and (query.namespace is None or query.namespace == memory.namespace)
        and (query.prefix is None or found.id.startswith(query.prefix))
    )


# ── where candidates come from ────────────────────────────────────────────────────────────────────────────

Candidate = tuple[int, str, int]


def _by_time(view: View, groups: Sequence[int], query: Query, last: Place | None) -> Iterator[Candidate]:
    since = query.updated_since_ms or 0
    sources = []
    for group in groups:
        lo = keys.by_time(group, keys.BY_UPDATE, since)
        if last is not None:
            lo = max(lo, keys.by_time(group, keys.BY_UPDATE, last[0]) + last[1].encode() + b"\0\xff")
        hi = keys.after(keys.index_field(group, keys.BY_UPDATE))
        sources.append(_walk(view, group, lo, hi, _chunk(query.limit, len(groups)), keys.time_and_id))
    return merge(*sources)


def _by_id(view: View, groups: Sequence[int], query: Query, last: Place | None) -> Iterator[Candidate]:
    chosen = _most_selective(view, groups, query)
    chunk = _chunk(query.limit, len(groups))
    sources = []
    for group in groups:
        if chosen is None:
            prefixes, tail = [keys.kind_of_group(kind, group) for kind in (keys.RING, keys.STRONG)], 0
        else:
            prefixes, tail = [keys.by_value(group, *chosen)], 2
        for prefix in prefixes:
            start = prefix + (query.prefix or "").encode()
            lo, hi = start, keys.after(start)
            if last is not None:
                lo = max(lo, prefix + last[1].encode() + b"\0\xff")
            sources.append(_walk(view, group, lo, hi, chunk, _id_parser(len(prefix), tail)))
    return merge(*sources)


def _id_parser(head: int, tail: int) -> Callable[[bytes], Place]:
    """Takes the id out of a key: what stands between `head` and `tail` bytes."""
    return lambda key: (0, key[head : len(key) - tail].decode())


def _walk(
    view: View, group: int, lo: bytes, hi: bytes, chunk: int, place: Callable[[bytes], Place]
) -> Iterator[Candidate]:
    """All rows in [lo, hi), fetched in growing chunks so that a short page stays cheap."""
    while lo < hi:
        rows = view.scan(lo, hi, limit=chunk)
        for key, _ in rows:
            yield *place(key), group
        if len(rows) < chunk:
            return
        lo = rows[-1][0] + b"\0"
        chunk = min(2 * chunk, LARGEST_CHUNK)


def _chunk(limit: int, sources: int) -> int:
    """First guess at a source's share of the page."""
    return min(max(SMALLEST_CHUNK, 2 * limit // max(sources, 1)), LARGEST_CHUNK)


def _most_selective(view: View, groups: Sequence[int], query: Query) -> tuple[bytes, str] | None:
    """The filter whose index has the fewest rows in a sample of the groups; None when no filter has an index."""
    given = ((keys.BY_TAG, query.tag), (keys.BY_AGENT, query.agent_id), (keys.BY_NAMESPACE, query.namespace))
    usable = [(field, value) for field, value in given if value]
    if len(usable) < 2:
        return usable[0] if usable else None

    def rows(chosen: tuple[bytes, str]) -> int:
        total = 0
        for group in islice(groups, PROBED_GROUPS):
            prefix = keys.by_value(group, *chosen)
            total += len(view.scan(prefix, keys.after(prefix), limit=PROBED_ROWS))
        return total

    return min(usable, key=rows)
