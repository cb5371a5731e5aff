"""Whatever bytes arrive: no crash, nothing delivered, no memory beyond a frame."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftspine.cluster import frames
from raftspine.cluster.frames import BadFrame, Opener, Sealer
from raftspine.cluster.handshake import BULK, MAIN, Acceptor, Dialer, Handshake, Identity, Refused

KEY = b"k" * 32
MAX = 1 << 16

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
messages = st.lists(st.lists(plain, min_size=1, max_size=4).map(tuple), max_size=5)


def feed(opener: Opener, data: bytes, pieces: list[int]) -> list[list[tuple[Any, ...]]]:
    """Feed data cut at these places."""
    cuts = sorted({min(piece, len(data)) for piece in pieces} | {0, len(data)})
    got: list[list[tuple[Any, ...]]] = []
    for start, end in pairwise(cuts):
        got.extend(opener.feed(data[start:end]))
    return got


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 2000), max_size=6))
def test_what_is_sealed_arrives_however_it_is_cut(batches: list[list[tuple[Any, ...]]], pieces: list[int]) -> None:
    sealer = Sealer(KEY)
    stream = b"".join(sealer.seal([frames.encode(message) for message in batch]) for batch in batches)
    assert feed(Opener(KEY, MAX), stream, pieces) == batches


@given(st.binary(max_size=4000), st.lists(st.integers(0, 4000), max_size=4))
def test_bytes_of_a_stranger_never_deliver(data: bytes, pieces: list[int]) -> None:
    opener = Opener(KEY, MAX)
    try:
        assert feed(opener, data, pieces) == []
    except BadFrame as error:
        assert error.reason in ("oversize", "short", "tag")
    assert len(opener._rest) <= max(MAX + 4, len(data))


@given(messages, st.data())
def test_a_damaged_stream_delivers_at_most_what_came_before(
    batch: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    sealer = Sealer(KEY)
    first = sealer.seal([frames.encode(message) for message in batch])
    second = bytearray(sealer.seal([b"\x91\x01"]))
    at = data.draw(st.integers(0, len(second) - 1))
    second[at] ^= data.draw(st.integers(1, 255))
    got: list[list[tuple[Any, ...]]] = []
    try:
        for delivered in Opener(KEY, MAX).feed(first + bytes(second)):
            got.append(delivered)  # noqa: PERF402 (the list is wanted when the feed raises)
    except BadFrame:
        pass
    assert got == [batch]


@given(st.binary(max_size=200))
def test_a_proven_payload_of_any_bytes_delivers_messages_or_fails(payload: bytes) -> None:
    sealer = Sealer(KEY)
    tag = sealer._keyed.copy()
    tag.update(bytes(8) + payload)
    frame = (frames.TAG_BYTES + len(payload)).to_bytes(4, "big") + tag.digest() + payload
    try:
        for delivered in Opener(KEY, MAX).feed(frame):
            assert all(isinstance(message, tuple) and message for message in delivered)
    except BadFrame as error:
        assert error.reason in ("malformed", "short")


A = Identity("a", "prod", b"0123456789abcdef")


@given(
    st.binary(max_size=300),
    st.booleans(),
    st.sampled_from([b"", b"RSPN\x00\x01", b"RSPN\x00\x01\x02\x00\x20"]),
)
def test_a_handshake_with_a_stranger_never_ends_well(data: bytes, dialing: bool, start: bytes) -> None:
    end: Handshake = Dialer(A, "b", BULK, b"1" * 32) if dialing else Acceptor(A._replace(node="b"), ("a",), b"2" * 32)
    try:
        end.feed(start + data)
    except Refused as refused:
        assert refused.reason.isidentifier()
    assert end.session is None


@given(st.integers(0, 3), st.integers(0, 400), st.integers(1, 255))
def test_a_handshake_with_one_changed_byte_never_ends_well(step: int, at: int, change: int) -> None:
    dialer, acceptor = Dialer(A, "b", MAIN, b"1" * 32), Acceptor(A._replace(node="b"), ("a",), b"2" * 32)
    sides: tuple[Handshake, Handshake] = (acceptor, dialer)
    data = dialer.hello
    try:
        for number in range(4):
            if number == step:
                changed = bytearray(data)
                changed[at % len(data)] ^= change
                data = bytes(changed)
            data = sides[number % 2].feed(data)
    except Refused:
        pass
    assert dialer.session is None
    # Only a WELCOME that was changed on the way back leaves the acceptor with a session: its proof was good.
    assert acceptor.session is None or step == 3


@pytest.mark.parametrize("limit", [frames.MAX_FRAME_BYTES, frames.MAX_BULK_FRAME_BYTES])
def test_the_largest_message_of_a_lane_fits_its_frame(limit: int) -> None:
    largest = limit - frames.OVERHEAD_BYTES
    message = frames.encode((bytes(largest - 6),))
    assert len(message) == largest
    assert [len(batch) for batch in Opener(KEY, limit).feed(Sealer(KEY).seal([message]))] == [1]
