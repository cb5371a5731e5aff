"""A hash over everything a group's log has done to its state, so that replicas can compare what they came to.

A replica whose state differs from the others' answers wrongly and never notices by itself. Each entry therefore adds
its effects, in the bytes that are stored anyway, to a chain of hashes:

    digest' = BLAKE2b-128(digest, log index, length and CRC-32 of the effects)

(a cyclic checksum inside: it takes a quarter of the time, and what this guards against is no adversary). Whenever the
log passes a multiple of INTERVAL, the chain so far becomes a `Mark` that replicas can compare. The rule: **what goes
in is the same on all replicas, and all of it that decides later answers goes in**. So effects that depend on what of
the ring a replica has (conflict rows) stay out, and index rows too, since they follow from the records.

Because a later digest contains the earlier ones, a difference shows at every mark that follows it, whichever mark is
the first to be compared. It shows for EPOCH entries: then the chain begins anew, at an index all replicas share. That
is for chains that began at different places (a replica upgraded later than the others has no chain for what came
before), which could otherwise never be compared again. `since` says where a chain began.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

from raftspine.errors import Corrupt
from raftspine.ports import Mark

INTERVAL = 1024
EPOCH = 64 * INTERVAL
MARKS_KEPT = 8


class Chain(Struct, frozen=True, array_like=True):
    """The chain behind the last applied entry, and the newest mark."""

    since: int
    digest: bytes
    mark: Mark | None = None


START = Chain(0, b"")
"""Of a group that has applied nothing yet."""


def advance(chain: Chain | None, before: int, index: int, effects: Iterable[bytes]) -> Chain | None:
    """The chain behind entry `index`, the next that is applied after `before`. `effects` are what it did, in order.
    None while there is none: state that was stored by a version without chains gets one at the next boundary."""
    if before // INTERVAL != index // INTERVAL:
        below = index - index % INTERVAL
        mark = None if chain is None else Mark(below, chain.since, chain.digest)
        if chain is None or before // EPOCH != index // EPOCH:
            chain = Chain(below, b"", mark)
        else:
            chain = Chain(chain.since, chain.digest, mark)
    if chain is None:
        return None
    done = b"".join(effects)
    digest = blake2b(b"%b%d %d %d" % (chain.digest, index, len(done), crc32(done)), digest_size=16).digest()
    return Chain(chain.since, digest, chain.mark)


def decode(data: Any) -> Chain | None:
    """A chain as it was stored, from plain data. Raises Corrupt."""
    if data is None:
        return None
    try:
        return msgspec.convert(data, Chain)
    except msgspec.ValidationError as error:
        raise Corrupt(f"hash chain: {error}") from error
