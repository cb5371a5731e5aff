"""Where a watcher stands, as text it may bring back to any node.

The rule: a token names the last event seen in each shard group it watches, and the cluster; a token that is damaged,
of another cluster or of another set of groups is refused, because going on from a wrong place would skip events in
silence. It is no secret and no proof: who forges one only misleads himself.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadText
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from raftspine.errors import Malformed
from raftspine.model import GroupId

V1 = b"\x01"
SUM_BYTES = 4
CHARS_MOST = 8192

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(dict[int, int])


def seal(cluster: str, seen: Mapping[GroupId, int]) -> str:
    """The token for having seen these numbers."""
    data = V1 + _encode(dict(seen))
    return urlsafe_b64encode(data + _sum(cluster, data)).decode().rstrip("=")


def unseal(cluster: str, text: str, field: str = "since") -> dict[GroupId, int]:
    """Raises Malformed."""
    try:
        if len(text) > CHARS_MOST:
            raise ValueError("too long")
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        content, sum_ = data[:-SUM_BYTES], data[-SUM_BYTES:]
        if content[:1] != V1 or sum_ != _sum(cluster, content):
            raise ValueError("another cluster's")
        return {GroupId(group): number for group, number in _decoder.decode(content[1:]).items()}
    except (ValueError, BadText, msgspec.DecodeError) as error:
        raise Malformed(f"{field}: not a token of this cluster's", field=field) from error


def _sum(cluster: str, data: bytes) -> bytes:
    return blake2b(data, digest_size=SUM_BYTES, key=cluster.encode()[:64]).digest()
