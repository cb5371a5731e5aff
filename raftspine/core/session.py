"""What a client has written (and, for causal reads, read), in a token it carries from node to node.

The rule: a node may answer a session from its own copy only when it covers what the token names for that
group; a token is signed, so nobody can be made to wait for a write that never was. Without it "read your
writes" ends at the next load balancer.

Layout: one form byte, the body (msgpack), a 16-byte keyed BLAKE2b over both, all in base64url without
padding. Form 1 is the two maps as they are: fast, and nearly every token is that small. Form 2 lists each
origin once, with a bitmap of groups and numbers of one fixed width, which holds 64 groups x 3 origins. What
does not fit even so is not dropped in silence: its group becomes *wide*, and a read there must merge N - W
+ 1 replicas, which meets every acknowledged write without being told which.
"""

import hashlib
import hmac
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from functools import lru_cache

import msgspec

from raftspine.errors import Malformed

MAX_CHARS = 1500
SESSION_HEADER = "X-Spine-Session"

_FORM_PLAIN = b"\x01"
_FORM_PACKED = b"\x02"
_MAC_BYTES = 16
_PLAIN_BYTES = 360
"""A plain body above this is worth packing (about 480 characters)."""
_MAX_BODY = MAX_CHARS * 3 // 4 - _MAC_BYTES - 1

Dots = dict[int, dict[str, int]]
_Plain = tuple[Dots, dict[int, int], list[int]]
_Packed = tuple[list[tuple[str, int, int, bytes]], tuple[int, int, bytes], int]

_pack = msgspec.msgpack.Encoder().encode
_plain = msgspec.msgpack.Decoder(_Plain)
_packed = msgspec.msgpack.Decoder(_Packed)
_URLSAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST = (_ALPHABET, "", _ALPHABET[::16], _ALPHABET[::4])
"""What a text may end in, by its length modulo 4."""


class Token:
    """A session's dependencies. `dots[group][origin]` = sequence number, `index[group]` = Raft log index,
    `wide` = groups whose dots no longer fit, see the module's docstring."""

    __slots__ = ("dots", "index", "wide")

    def __init__(
        self, dots: Dots | None = None, index: dict[int, int] | None = None, wide: set[int] | None = None
    ) -> None:
        self.dots: Dots = {} if dots is None else dots
        self.index: dict[int, int] = {} if index is None else index
        self.wide: set[int] = set() if wide is None else wide

    def wrote(self, group: int, origin: str, seq: int) -> None:
        """Depend on a ring write."""
        mine = self.dots.get(group)
        if mine is None:
            self.dots[group] = {origin: seq}
        elif seq > mine.get(origin, 0):
            mine[origin] = seq

    def logged(self, group: int, index: int) -> None:
        """Depend on a log entry."""
        if index > self.index.get(group, 0):
            self.index[group] = index

    def merge(self, other: "Token") -> None:
        """Depend on everything `other` depends on."""
        for group, dots in other.dots.items():
            for origin, seq in dots.items():
                self.wrote(group, origin, seq)
        for group, index in other.index.items():
            self.logged(group, index)
        self.wide |= other.wide

    def prune(self, stable: Callable[[int, str, int], bool]) -> None:
        """Forget the dots that every replica has: no read can miss them."""
        for group in list(self.dots):
            kept = {o: s for o, s in self.dots[group].items() if not stable(group, o, s)}
            if kept:
                self.dots[group] = kept
            else:
                del self.dots[group]

    def needs(self, group: int) -> dict[str, int]:
        """The dots a replica must cover to answer alone (read only). When `group in token.wide`, none can."""
        return self.dots.get(group, _NOTHING)

    @property
    def full(self) -> bool:
        """Whether some dependency is known only as "somewhere in this group"."""
        return bool(self.wide)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Token)
            and self.dots == other.dots
            and self.index == other.index
            and self.wide == other.wide
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Token({self.dots!r}, {self.index!r}, {self.wide!r})"


_NOTHING: dict[str, int] = {}


def encode(token: Token, key: bytes) -> str:
    """The token as text of at most 1500 characters. Groups that do not fit are moved to `token.wide`, in
    place, the largest first."""
    body = _FORM_PLAIN + _pack((token.dots, token.index, sorted(token.wide) if token.wide else ()))
    if len(body) > _PLAIN_BYTES:
        body = _fit(token)
    mac = _keyed(key).copy()
    mac.update(body)
    text = b2a_base64(body + mac.digest(), newline=False).translate(_URLSAFE)
    return text.rstrip(b"=").decode("ascii")


def decode(text: str, key: bytes) -> Token:
    """The token in a text. Malformed naming the header when it is malformed, foreign or tampered with."""
    if len(text) > MAX_CHARS:
        raise _refused(f"is longer than {MAX_CHARS} characters")
    try:
        data = a2b_base64(text.encode("ascii").translate(_STANDARD) + b"=" * (-len(text) % 4), strict_mode=True)
    except (UnicodeEncodeError, Base64Error) as error:
        raise _refused("is not base64url") from error
    if text[-1:] not in _LAST[len(text) % 4]:
        raise _refused("is not base64url")  # stray bits in the last character: two texts for one token
    body = data[:-_MAC_BYTES]
    mac = _keyed(key).copy()
    mac.update(body)
    if not hmac.compare_digest(mac.digest(), data[-_MAC_BYTES:]):
        raise _refused("was not issued by this cluster")
    try:
        if body[:1] == _FORM_PLAIN:
            dots, index, wide = _plain.decode(body[1:])
            return Token(dots, index, set(wide))
        if body[:1] == _FORM_PACKED:
            return _unpack(body[1:])
    except (msgspec.DecodeError, ValueError) as error:
        raise _refused("has contents this version cannot read") from error
    raise _refused("has a form this version cannot read")


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> "hashlib.blake2b":
    # Keying BLAKE2b compresses a whole block; a copy of the keyed state saves that for each token.
    return hashlib.blake2b(key=key[:64], digest_size=_MAC_BYTES, person=b"spine-session")


def _refused(why: str) -> Malformed:
    return Malformed(f"the session token {why}", field=SESSION_HEADER)


def _fit(token: Token) -> bytes:
    body = _FORM_PACKED + _packed_body(token)
    while len(body) > _MAX_BODY and token.dots:
        largest = max(token.dots, key=lambda group: (len(token.dots[group]), group))
        token.wide.add(largest)
        del token.dots[largest]
        body = _FORM_PACKED + _packed_body(token)
    return body


def _packed_body(token: Token) -> bytes:
    by_origin: dict[str, dict[int, int]] = {}
    for group, dots in token.dots.items():
        for origin, seq in dots.items():
            by_origin.setdefault(origin, {})[group] = seq
    rows = [(origin, *_pack_numbers(by_origin[origin])) for origin in sorted(by_origin)]
    return _pack((rows, _pack_numbers(token.index), sum(1 << group for group in token.wide)))


def _pack_numbers(numbers: dict[int, int]) -> tuple[int, int, bytes]:
    """Bitmap of groups, width in bytes, and the numbers in order of group."""
    width = (max(numbers.values(), default=0).bit_length() + 7) // 8 or 1
    groups = sorted(numbers)
    return sum(1 << g for g in groups), width, b"".join(numbers[g].to_bytes(width, "big") for g in groups)


def _unpack_numbers(bitmap: int, width: int, data: bytes) -> dict[int, int]:
    groups = _groups_in(bitmap)
    if width < 1 or len(data) != width * len(groups):
        raise ValueError("the numbers do not match the bitmap")
    return {g: int.from_bytes(data[i * width : (i + 1) * width], "big") for i, g in enumerate(groups)}


def _groups_in(bitmap: int) -> list[int]:
    return [g for g in range(bitmap.bit_length()) if bitmap >> g & 1]


def _unpack(body: bytes) -> Token:
    rows, index, wide = _packed.decode(body)
    token = Token(index=_unpack_numbers(*index), wide=set(_groups_in(wide)))
    for origin, bitmap, width, data in rows:
        for group, seq in _unpack_numbers(bitmap, width, data).items():
            token.dots.setdefault(group, {})[origin] = seq
    return token
