"""The key layout of a node's data, on one page. Nothing else builds or takes apart a key.

The rule: the shard group follows the kind, so that what moves, is snapshotted or is dropped together lies
together; and no key can run into its neighbour, whatever bytes a user puts into an id or a tag. A layout
spread over several files is how an overwrite comes to leave a stale index row, or one tenant's scan to read
another's rows.

    kind    rest of the key                              value
    m       group, id                                    ring record
    s       group, id                                    strong record
    d       group, origin, 0, seq                        dot log: the id that this write changed
    v       group, origin                                the part of the dot log trimmed away: base, extras
    c       group, id, 0, stamp, digest of the dot       a write that lost: version, when, against which
    r       group, digest                                ring write an Idempotency-Key caused
    q       group, digest                                strong result an Idempotency-Key caused
    a       group                                        last applied log entry: index, term, more
    l       group, table, 0, name                        the ledger's other tables: counter, and those below
    i       group, field, value, id, 0, path             index row, empty; path: r (ring) or s (strong)
    x       name                                         the node's own: identity, table, log position, format

Kinds are one byte, a group two, seq, stamp and times eight, digests 16 (8 for dots), all numbers
big-endian. Ids hold no NUL and at most 255 bytes. An index value is its length and its bytes, or 255 and a
16-byte digest when it is long: equal values have equal keys, and that is all an index by value promises.
Times are ordered as numbers. The longest index row has 3 + 1 + 65 + 255 + 2 bytes.

The tables of coordination build the rest of their keys themselves (core/ledger/tables.py): texts end with NUL,
numbers have eight bytes.

    table    rest of the key                 value
    session  id                              an open session: number, TTL, owner, how much it holds
    held     session, kind, place, name      index by session; kind lock: space, name; kind task: queue, id
    lock     space, name                     a lock in use: mode, holders, waiting; space: lock or election
    ask      space, name, lease              a lease, or the ticket it was before
    lease    space, name, token              the lease of a current token
    wait     space, name, rank, number       the queue of a lock: the lease
    fence    resource                        the highest token seen
    gate     name                            a gate: state, uses, expiry, policy
    queue    queue                           a task queue: how many tasks are in each state
    task     queue, id                       a task's state
    body     queue, id                       its payload, later its result
    ready    queue, rank, number             the order of what can be claimed
    dead     queue, number                   dead letters in the order of dying
    dedupe   queue, digest                   the unfinished task with this key
    due      time, kind, place, name         what comes due at a time of the log
    event    number                          what changed, for those who watch
    freeze   id                              a freeze: the gates it closes, why, until when
    gate-request  gate, id                   a request at a gate with a policy
    gate-queue    gate, place                the queue of a gate: the request
    gate-open     gate, id                   a request that is through
    gate-subject  gate, digest               the newest request for this subject
    gate-history  gate, number               the requests in the order of asking
    gate-ended    gate, number               those that ended, in the order of ending
    gate-tally    gate                       how many live, how many ended ones are remembered
    audit-chain   kind, name, seq            one act on a thing, with the hash of the one before
    audit-head    kind, name                 the newest act's number and hash

Names there have at most 255 bytes and ids 100, so the longest, in `held`, has 3 + 5 + 102 + 5 + 256 + 101. LMDB's
limit is 511.
"""

from functools import lru_cache
from hashlib import blake2b

RING = b"m"
STRONG = b"s"
DOT = b"d"
VECTOR = b"v"
CONFLICT = b"c"
RING_REQUEST = b"r"
STRONG_REQUEST = b"q"
APPLIED = b"a"
LEDGER = b"l"
INDEX = b"i"
META = b"x"

BY_AGENT = b"a"
BY_NAMESPACE = b"n"
BY_TAG = b"t"
BY_UPDATE = b"u"
BY_EXPIRY = b"e"

RING_PATH = b"\0r"
STRONG_PATH = b"\0s"

LOG_POSITION = META + b"log position"
STORE_FORMAT = META + b"store format"

LONGEST_PLAIN_VALUE = 64
MAX_KEY_BYTES = 511
"""LMDB's limit as it is compiled by default."""


@lru_cache(maxsize=1024)
def kind_of_group(kind: bytes, group: int) -> bytes:
    """What all keys of a kind in a group begin with."""
    return kind + group.to_bytes(2, "big")


def after(prefix: bytes) -> bytes:
    """The lowest key above everything that begins with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        raise ValueError("no key lies above this prefix")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def span(kind: bytes, group: int) -> tuple[bytes, bytes]:
    """Bounds of a kind's rows in a group, for a scan."""
    prefix = kind_of_group(kind, group)
    return prefix, after(prefix)


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────


def ring(group: int, id: str) -> bytes:
    return kind_of_group(RING, group) + id.encode()


def strong(group: int, id: str) -> bytes:
    return kind_of_group(STRONG, group) + id.encode()


def id_of_record(key: bytes) -> str:
    """The id in a ring or strong key."""
    return key[3:].decode()


# ── dots ──────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4096)
def origin_dots(group: int, origin: str) -> bytes:
    """What the dot rows of one origin begin with."""
    return kind_of_group(DOT, group) + origin.encode() + b"\0"


def dot(group: int, origin: str, seq: int) -> bytes:
    return origin_dots(group, origin) + seq.to_bytes(8, "big")


def origin_and_seq(key: bytes) -> tuple[str, int]:
    """What a dot key says."""
    return key[3:-9].decode(), int.from_bytes(key[-8:], "big")


def vector(group: int, origin: str) -> bytes:
    return kind_of_group(VECTOR, group) + origin.encode()


def origin_of_vector(key: bytes) -> str:
    return key[3:].decode()


# ── conflicts, requests, positions, the node's own ────────────────────────────────────────────────────────


def conflicts(group: int, id: str) -> bytes:
    """What the conflict rows of one id begin with."""
    return kind_of_group(CONFLICT, group) + id.encode() + b"\0"


def conflict(group: int, id: str, stamp: int, origin: str, seq: int) -> bytes:
    name = blake2b(b"%s\0%d" % (origin.encode(), seq), digest_size=8).digest()
    return conflicts(group, id) + number(stamp) + name


def ring_request(group: int, digest: bytes) -> bytes:
    return kind_of_group(RING_REQUEST, group) + digest


def strong_request(group: int, digest: bytes) -> bytes:
    return kind_of_group(STRONG_REQUEST, group) + digest


def applied(group: int) -> bytes:
    return kind_of_group(APPLIED, group)


def ledger(group: int, table: str, name: str) -> bytes:
    return ledger_table(group, table) + name.encode()


@lru_cache(maxsize=4096)
@lru_cache(maxsize=4096)
def ledger_table(group: int, table: str) -> bytes:
    """What the keys of one of the ledger's tables begin with."""
    return kind_of_group(LEDGER, group) + table.encode() + b"\0"


def meta(name: str) -> bytes:
    """A row of the node itself."""
    return META + name.encode()


# ── indexes ───────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=8192)
def by_value(group: int, field: bytes, value: str) -> bytes:
    """What the index rows of all ids with this agent, namespace or tag begin with; ids follow in order."""
    plain = value.encode()
    if len(plain) > LONGEST_PLAIN_VALUE:
        plain = b"\xff" + blake2b(plain, digest_size=16).digest()
    else:
        plain = bytes([len(plain)]) + plain
    return kind_of_group(INDEX, group) + field + plain


def by_time(group: int, field: bytes, at_ms: int) -> bytes:
    """What the index rows of this millisecond begin with; BY_UPDATE and BY_EXPIRY are ordered by time, then id."""
    return index_field(group, field) + (at_ms if at_ms > 0 else 0).to_bytes(8, "big")


@lru_cache(maxsize=1024)
def index_field(group: int, field: bytes) -> bytes:
    """What all rows of one index begin with."""
    return kind_of_group(INDEX, group) + field


def time_and_id(key: bytes) -> tuple[int, str]:
    """What a key of a time index says."""
    return int.from_bytes(key[4:12], "big"), key[12:-2].decode()
