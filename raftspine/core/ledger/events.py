"""What changed in a shard group, numbered without gaps, for those who watch.

The rule: every change of a strong memory, lock, election, gate or task that the log decides appends one event
in the same entry, and a replayed request appends none. An event's number is its place in the group's history:
the next is always one more, so a watcher that has seen number n asks for n + 1 and can neither miss an event nor
see it twice, at whichever replica it asks, and across restarts and snapshots, because events are rows like any
other. The window is bounded by count and age. Who asks below its lower end must be told so (`compacted`): what
it missed is gone, and silence would look like "nothing happened".
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from raftspine.core.ledger.state import Effect, LedgerView, Place, SetCounter, SetRing, SetStrong
from raftspine.core.ledger.tables import Table, pack
from raftspine.core.version_text import ring_version_text, strong_version_text
from raftspine.model import GroupId, Memory

KEPT = 50_000
"""Events a group keeps at most."""
KEPT_MS = 3_600_000
"""How long an event is kept at most once another follows."""
TRIM_EVERY = 64
"""How often, in events, the window's lower end is looked at: a strong write must not pay for it each time."""
TRIMMED_PER_EVENT = 2
"""How many leave for one that came: more than one, so that a window above its bounds shrinks."""

LAST = "events/last"
"""Counter: the newest event's number; the first has 1."""
FIRST = "events/first"
"""Counter: the lowest number that can still be read; 0 means 1."""


class Event(Struct, frozen=True, array_like=True):
    """`index`, `sub`: the log entry and the command in it. `kind`: memory, lock, election, gate, freeze or task.
    `key`: the thing's name (a task's: queue, a slash, id; a request's: gate, a slash, id). `change`: what
    happened, in one word. `revision`: the thing's version text or its revision's number. `data`: a few
    particulars, never a memory's content."""

    index: int
    sub: int
    time_ms: int
    kind: str
    key: str
    change: str
    revision: str
    data: dict[str, Any] = {}


class Happening(NamedTuple):
    """An event before it has a place."""

    kind: str
    key: str
    change: str
    revision: str
    data: dict[str, Any]


class Window(NamedTuple):
    """Which numbers can be read: first <= n <= last; first is last + 1 when there are none."""

    first: int
    last: int


EVENTS = Table("event", Event)


def window(view: LedgerView) -> Window:
    return Window(view.counter(FIRST) or 1, view.counter(LAST))


def read(view: LedgerView, number: int, limit: int) -> list[tuple[int, Event]]:
    """Up to `limit` events from `number` on, in order. Below `window(view).first` there is nothing to return: the
    caller must say `compacted` before it asks."""
    rows = EVENTS.page(view, b"", start=pack(number), limit=limit)
    return [(int.from_bytes(key, "big"), event) for key, event in rows]


def append(view: LedgerView, at: Place, time_ms: int, happened: Sequence[Happening]) -> list[Effect]:
    """The effects of giving events their numbers, and of letting go of as many as the window's bounds say."""
    if not happened:
        return []
    first, last = window(view)
    effects: list[Effect] = []
    for number, what in enumerate(happened, last + 1):
        event = Event(at.index, at.sub, time_ms, what.kind, what.key, what.change, what.revision, what.data)
        effects.append(EVENTS.set(number, value=event))
    newest = last + len(happened)
    effects.append(SetCounter(LAST, newest))
    if newest // TRIM_EVERY > last // TRIM_EVERY:
        effects += _trim(view, first, last, newest, time_ms)
    return effects


def _trim(view: LedgerView, first: int, last: int, newest: int, time_ms: int) -> list[Effect]:
    """Let go of what is beyond the window's bounds, from its lower end."""
    effects: list[Effect] = []
    kept_from = first
    most = TRIMMED_PER_EVENT * max(TRIM_EVERY, newest - last)
    while kept_from <= last and kept_from - first < most and _gone(view, kept_from, newest, time_ms):
        effects.append(EVENTS.set(kept_from, value=None))
        kept_from += 1
    if kept_from != first:
        effects.append(SetCounter(FIRST, kept_from))
    return effects


def _gone(view: LedgerView, number: int, last: int, time_ms: int) -> bool:
    if last - number + 1 > KEPT:
        return True
    event = EVENTS.get(view, number)
    return event is None or event.time_ms + KEPT_MS < time_ms


def of_memories(effects: Iterable[Effect], group: int) -> list[Happening]:
    """What effects on memories mean to a watcher."""
    happened = []
    for effect in effects:
        if isinstance(effect, SetStrong) and effect.new is not None:
            old = None if effect.old is None else effect.old.memory
            new = effect.new.memory
            change = "deleted" if new is None else "created" if old is None else "changed"
            version = strong_version_text(GroupId(group), effect.new.index, effect.new.sub)
            happened.append(Happening("memory", effect.id, change, version, _about(old, new)))
        elif isinstance(effect, SetRing):
            version = ring_version_text(effect.version.origin, effect.version.seq)
            happened.append(Happening("memory", effect.id, "demoted", version, _about(None, effect.version.memory)))
    return happened


def _about(old: Memory | None, new: Memory | None) -> dict[str, Any]:
    """Namespace and tags, those of before included, so that who watches a tag hears of its loss."""
    told = new or old
    if told is None:
        return {}
    tags = dict.fromkeys((*(() if old is None else old.tags), *told.tags))
    return {"namespace": told.namespace, "tags": list(tags), "agent_id": told.agent_id}
