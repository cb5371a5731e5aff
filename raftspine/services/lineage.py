"""Which ring versions count beside the log, decided the same on every replica whatever arrives first.

An id may leave the ring (promotion) and come back (demotion) while ring writes of it are still travelling. A
replica applies the log at its own pace, so "was the strong record there when the version arrived?" has as many
answers as replicas: one keeps the version, another does not, both have its dot, and nothing ever makes them equal
again. The rule here asks the version instead: every demotion carries a number of the log's own origin, a write
carries in its context the last one it had seen, and

* a version belongs to a strong record's past unless it has seen a demotion later than that record's promotion;
* within a ring record only the versions of the latest demotion seen count; what had not seen it has lost to it.

Both depend on the version and the record alone. What loses goes to the conflict log, never silently away.
"""

from functools import lru_cache

from raftspine.core.version_text import log_origin
from raftspine.model import RingRecord, StrongRecord, Version

origin_of_log = lru_cache(maxsize=128)(log_origin)


def epoch(group: int, version: Version) -> int:
    """The last demotion of its id that a version has seen, or is; 0 when it never left the ring."""
    origin = origin_of_log(group)
    return version.seq if version.origin == origin else version.context.get(origin, 0)


def outlives(group: int, version: Version, strong: StrongRecord) -> bool:
    """Whether a version was written after the id had left the log again: it is newer than the strong record, which
    stands here only because this replica has not applied its demotion yet."""
    return epoch(group, version) > strong.shadow.get(origin_of_log(group), 0)


def outliving(group: int, record: RingRecord, strong: StrongRecord) -> RingRecord | None:
    """What of a ring record is not shadowed by a strong one, alive or dead; the same object when that is all."""
    kept = tuple(v for v in record.versions if outlives(group, v, strong))
    if len(kept) == len(record.versions):
        return record
    return RingRecord(kept, record.context) if kept else None


def settle(group: int, record: RingRecord) -> tuple[RingRecord, tuple[Version, ...]]:
    """The record without the versions that had not seen its latest demotion, and these."""
    latest = record.context.get(origin_of_log(group), 0)
    if not latest or len(record.versions) < 2:
        return record, ()
    fallen = tuple(v for v in record.versions if fallen_to_demotion(group, v, record))
    if not fallen or len(fallen) == len(record.versions):
        return record, ()
    return RingRecord(tuple(v for v in record.versions if v not in fallen), record.context), fallen


def fallen_to_demotion(group: int, version: Version, record: RingRecord) -> bool:
    """Whether a version had not seen the latest demotion that a record of its id knows of."""
    return epoch(group, version) < record.context.get(origin_of_log(group), 0)
