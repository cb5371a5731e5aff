"""How replicas of a ring memory come to agree without asking one another.

The rule: a version is obsolete exactly when its dot is covered by the context of a record that does not
hold it. Merging keeps what neither side has replaced, so it may run in any order, any number of times, on
any replica, and ends in the same record. Without dots, clocks alone decide, and an acknowledged write
vanishes whenever two agents write within the error of their clocks.

At most one live version per origin survives, because an origin has always seen its own earlier writes: the
number of siblings is bounded by the number of node boots that wrote without hearing of one another. It is
deliberately not bounded by cutting the list here: which versions a cut removes depends on how many had met
at that moment, so two orders of delivery would end in different records
(tests/properties/test_core_merge.py shows the case). A record that is `crowded` is collapsed by an ordinary
write over everything seen.

Source: Preguiça et al., "Dotted Version Vectors" (2010); the coverage rule is the ORSWOT's.

All values are immutable by convention, contexts included: they are shared, never changed in place.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from raftspine.core.version_text import is_log_origin
from raftspine.model import Memory, RingRecord, Version

MAX_SIBLINGS = 8
"""Above this many live versions a record should be rewritten; see `crowded`."""

Context = dict[str, int]


class Merged(NamedTuple):
    """`losers`: live versions that became, by this merge, second to a concurrent one. `changed`: whether the
    record differs from the local one."""

    record: RingRecord
    losers: tuple[Version, ...]
    changed: bool


def rank(version: Version) -> tuple[int, str, int]:
    """The order among concurrent versions; the highest is shown. Total, since a dot is never used twice."""
    return (version.stamp, version.origin, version.seq)


def winner(record: RingRecord) -> Version:
    """The version a reader is shown."""
    return record.versions[0]


def crowded(record: RingRecord) -> bool:
    """Whether so many siblings have piled up that the next holder should write the winner again over all of them."""
    return len(record.versions) > MAX_SIBLINGS


def covers(context: Context, version: Version) -> bool:
    """Whether a context has seen a version."""
    return context.get(version.origin, 0) >= version.seq


def mint(
    local: RingRecord | None,
    id: str,
    origin: str,
    seq: int,
    stamp: int,
    memory: Memory | None,
    request: bytes = b"",
    deps: tuple[tuple[int, str, int], ...] = (),
) -> Version:
    """A new version that replaces all of `local`. `stamp` must come from `Hlc.tick` with `floor(local)`.

    `local` must be this node's record as of now, joined with what a quorum read brought, if there was one.
    An origin's later dot covers its earlier ones, so minting from a record read some time ago would
    replace, without a conflict, what this node wrote in between.
    """
    return Version(id, origin, seq, stamp, {} if local is None else local.context, memory, request, deps)


def floor(local: RingRecord | None) -> int:
    """The stamp a new version must exceed, so that the replacement outranks what it replaces."""
    return 0 if local is None else local.versions[0].stamp


def put(local: RingRecord | None, incoming: Version) -> Merged:
    """Merge one version into a record. A version seen before changes nothing."""
    origin = incoming.origin
    seq = incoming.seq
    context = incoming.context
    if local is None:
        return Merged(RingRecord((incoming,), {**context, origin: seq}), (), True)
    seen = local.context
    if seen.get(origin, 0) >= seq:
        return Merged(local, (), False)
    joint = (
        {**seen, origin: seq} if context is seen or context == seen else _join_contexts(seen, context, origin, seq)
    )
    versions = local.versions
    rivals = [v for v in versions if v.seq > context.get(v.origin, 0) and v.origin != origin]
    if not rivals:
        return Merged(RingRecord((incoming,), joint), (), True)
    live = sorted([*rivals, incoming], key=rank, reverse=True)
    return Merged(RingRecord(tuple(live), joint), _newly_beaten(live, versions), True)


def join(a: RingRecord, b: RingRecord) -> Merged:
    """Merge two records of one id. The record is the same for any order and grouping of joins; the losers and
    `changed` are told from `a`'s point of view."""
    if a is b:
        return Merged(a, (), False)
    theirs = {v.dot: v for v in b.versions}
    live = []
    for version in a.versions:
        twin = theirs.pop(version.dot, None)
        if twin is not None:
            live.append(_same_write(version, twin))
        elif not covers(b.context, version):
            live.append(version)
    live += [version for version in theirs.values() if not covers(a.context, version)]
    live.sort(key=rank, reverse=True)
    record = RingRecord(tuple(live), union(a.context, b.context))
    return Merged(record, _newly_beaten(live, a.versions), record != a)


def fresh(local: RingRecord | None, incoming: RingRecord, covered: Callable[[str, int], bool]) -> RingRecord:
    """`incoming` without the versions that this replica has seen and no longer holds.

    `covered` asks the group's vector. A record that travelled for a while must pass here before it is
    joined into the store: the context that would tell its versions are obsolete may have been pruned since.
    """
    held = set() if local is None else {v.dot for v in local.versions}
    kept = tuple(v for v in incoming.versions if v.dot in held or not covered(v.origin, v.seq))
    return incoming if len(kept) == len(incoming.versions) else RingRecord(kept, incoming.context)


def prune_context(record: RingRecord, stable: Callable[[str, int], bool]) -> RingRecord:
    """The record without the context entries nobody needs any more; the same object when there are none.

    `stable(origin, seq)` says whether every replica has seen a dot. An entry may go once every *live*
    version is stable: only then has each replica dropped what the entry says was replaced. Asking about the
    entry's own dot would be too early, for a replica may have seen the old version and not yet the new one.
    A late carrier of a dropped dot is stopped by the group's vector, which never shrinks; see `fresh`.
    """
    if not all(stable(v.origin, v.seq) for v in record.versions):
        return record
    own = {v.origin for v in record.versions}
    # A log's origin stays (there is one per group): the ledger asks for it, see ledger/memories.py.
    spare = [o for o, seq in record.context.items() if o not in own and not is_log_origin(o) and stable(o, seq)]
    if not spare:
        return record
    return RingRecord(
        tuple(replace(v, context=_without(v.context, spare)) for v in record.versions),
        _without(record.context, spare),
    )


def _newly_beaten(live: list[Version], before: tuple[Version, ...]) -> tuple[Version, ...]:
    """Live losers that had not lost before. The same request minted twice is one write, not a conflict."""
    if len(live) < 2:
        return ()
    best = live[0]
    known = {v.dot for v in before[1:]}
    return tuple(v for v in live[1:] if v.dot not in known and not (v.request and v.request == best.request))


def _join_contexts(seen: Context, context: Context, origin: str, seq: int) -> Context:
    joint = union(seen, context)
    joint[origin] = seq
    return joint


def union(a: Context, b: Context) -> Context:
    """A context that has seen what either has."""
    joint = dict(a)
    for origin, seq in b.items():
        if seq > joint.get(origin, 0):
            joint[origin] = seq
    return joint


def _same_write(mine: Version, twin: Version) -> Version:
    # Replicas prune contexts at different times, so one dot may come with two contexts; their union is safe.
    if mine.context == twin.context:
        return mine
    return replace(mine, context=union(mine.context, twin.context))


def _without(context: Context, origins: list[str]) -> Context:
    return {origin: seq for origin, seq in context.items() if origin not in origins}
