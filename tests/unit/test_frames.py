"""Frames and handshakes as functions of bytes: what is taken, what ends the connection."""

from contextlib import suppress
from hashlib import blake2b

import pytest

from raftspine.cluster import frames, handshake
from raftspine.cluster.frames import BadFrame, Opener, Sealer
from raftspine.cluster.handshake import BULK, MAIN, Acceptor, Dialer, Identity, Refused

KEY = b"k" * 32
MAX = 1 << 20


def encoded(*messages: tuple[object, ...]) -> list[bytes]:
    return [frames.encode(message) for message in messages]


def opened(data: bytes, key: bytes = KEY) -> list[list[tuple[object, ...]]]:
    return list(Opener(key, MAX).feed(data))


def test_messages_arrive_in_order_and_nested_tuples_as_lists() -> None:
    frame = Sealer(KEY).seal(encoded((0, "a", (1, 2)), (1, 7, "b", {"x": b"\x00"})))
    assert opened(frame) == [[(0, "a", [1, 2]), (1, 7, "b", {"x": b"\x00"})]]


def test_an_empty_frame_is_a_keep_alive() -> None:
    assert opened(Sealer(KEY).seal([])) == [[]]


def test_frames_cut_at_every_byte_arrive_whole() -> None:
    sealer = Sealer(KEY)
    stream = b"".join(sealer.seal(encoded((n, "x" * n))) for n in range(5))
    for cut in range(len(stream)):
        opener = Opener(KEY, MAX)
        got = list(opener.feed(stream[:cut])) + list(opener.feed(stream[cut:]))
        assert got == [[(n, "x" * n)] for n in range(5)], cut


def test_every_flipped_bit_of_a_frame_is_noticed() -> None:
    frame = Sealer(KEY).seal(encoded((0, "raft", 5)))
    for position in range(4, len(frame)):
        for bit in range(8):
            bad = bytearray(frame)
            bad[position] ^= 1 << bit
            with pytest.raises(BadFrame) as error:
                opened(bytes(bad))
            assert error.value.reason == "tag"


def test_replayed_left_out_and_foreign_frames_fail() -> None:
    sealer = Sealer(KEY)
    first, second = sealer.seal(encoded((1,))), sealer.seal(encoded((2,)))
    for stream, good in ((first + first, 1), (second, 0), (first + second + first, 2)):
        opener = Opener(KEY, MAX)
        got = []
        with pytest.raises(BadFrame, match="tag"):
            for messages in opener.feed(stream):
                got.append(messages)  # noqa: PERF402 (the list is wanted when the feed raises)
        assert len(got) == good
    with pytest.raises(BadFrame, match="tag"):
        opened(first, b"other key" * 3)


def test_an_oversize_length_fails_before_anything_is_collected() -> None:
    opener = Opener(KEY, MAX)
    with pytest.raises(BadFrame, match="oversize"):
        list(opener.feed((MAX + 1).to_bytes(4, "big")))
    with pytest.raises(BadFrame, match="short"):
        list(Opener(KEY, MAX).feed((3).to_bytes(4, "big")))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x91\xc0",
        b"\x91\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x91\x91\xc1",
        b"\x90\x90",
    ],
)
def test_a_proven_payload_that_is_no_list_of_messages_is_malformed(payload: bytes) -> None:
    tag = blake2b(bytes(8) + payload, key=KEY, digest_size=frames.TAG_BYTES).digest()
    frame = (len(tag) + len(payload)).to_bytes(4, "big") + tag + payload
    with pytest.raises(BadFrame) as error:
        opened(frame)
    assert error.value.reason == ("malformed" if len(payload) >= 5 else "short")


# ── handshake ──────────────────────────────────────────────────────────────────────────────────────────────

A = Identity("a", "prod", b"0123456789abcdef")
B = Identity("b", "prod", b"0123456789abcdef")


def pair(
    dialer: Identity = A,
    acceptor: Identity = B,
    to: str = "b",
    members: tuple[str, ...] = ("a",),
    lane: int = MAIN,
) -> tuple[Dialer, Acceptor]:
    return Dialer(dialer, to, lane, b"1" * 32), Acceptor(acceptor, members, b"2" * 32)


def shake(dialer: Dialer, acceptor: Acceptor) -> None:
    challenge = acceptor.feed(dialer.hello)
    proof = dialer.feed(challenge)
    dialer.feed(acceptor.feed(proof))


def test_both_ends_agree_on_keys_that_differ_by_direction() -> None:
    dialer, acceptor = pair(lane=BULK)
    shake(dialer, acceptor)
    mine, theirs = dialer.session, acceptor.session
    assert mine is not None and theirs is not None
    assert (mine.peer, theirs.peer, mine.lane, theirs.lane) == ("b", "a", BULK, BULK)
    assert mine.send_key == theirs.receive_key and mine.receive_key == theirs.send_key
    assert mine.send_key != mine.receive_key
    assert Dialer(A, "b", BULK, b"1" * 32).session is None


def test_keys_depend_on_both_nonces() -> None:
    keys = set()
    for mine, theirs in ((b"1", b"2"), (b"3", b"2"), (b"1", b"4")):
        dialer, acceptor = Dialer(A, "b", MAIN, mine * 32), Acceptor(B, ("a",), theirs * 32)
        shake(dialer, acceptor)
        assert dialer.session is not None
        keys.add(dialer.session.send_key)
    assert len(keys) == 3


def test_a_handshake_in_single_bytes_works_and_leaves_what_follows() -> None:
    dialer, acceptor = pair()
    challenge = b"".join(acceptor.feed(bytes([byte])) for byte in dialer.hello)
    proof = b"".join(dialer.feed(bytes([byte])) for byte in challenge)
    welcome = acceptor.feed(proof)
    dialer.feed(welcome + b"frames")
    assert dialer.session is not None and dialer.rest == b"frames"


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("cluster", {"dialer": A._replace(cluster="staging")}),
        ("misdirected", {"to": "c"}),
        ("stranger", {"members": ("c",)}),
        ("direction", {"dialer": A._replace(node="z"), "members": ("z",)}),
        ("proof", {"dialer": A._replace(secret=b"another secret!!")}),
    ],
)
def test_the_acceptor_refuses_and_says_why(reason: str, arguments: dict[str, object]) -> None:
    dialer, acceptor = pair(**arguments)  # type: ignore[arg-type]
    with pytest.raises(Refused) as refused:
        shake(dialer, acceptor)
    assert refused.value.reason == reason
    assert acceptor.session is None
    with pytest.raises(Refused) as heard:
        dialer.feed(refused.value.tell)
    assert (heard.value.reason, heard.value.detail) == ("refused_by_peer", reason)


def test_the_dialer_refuses_an_acceptor_without_the_secret() -> None:
    dialer, _ = pair()
    impostor = Acceptor(B._replace(secret=b"a guessed secret"), ("a",), b"2" * 32)
    proof = dialer.feed(impostor.feed(dialer.hello))
    assert proof
    with pytest.raises(Refused, match="proof"):
        dialer.feed(handshake._step(handshake.WELCOME, impostor._mac(b"acceptor")))
    assert dialer.session is None


def test_a_proof_cannot_be_reflected_or_played_again() -> None:
    dialer, acceptor = pair()
    proof = dialer.feed(acceptor.feed(dialer.hello))
    again = Acceptor(B, ("a",), b"3" * 32)
    again.feed(dialer.hello)
    with pytest.raises(Refused, match="proof"):
        again.feed(proof)
    reflected = handshake._step(handshake.WELCOME, proof[-handshake.PROOF_BYTES :])
    with pytest.raises(Refused, match="proof"):
        dialer.feed(reflected)


def test_every_flipped_bit_of_a_hello_is_refused_in_the_end() -> None:
    hello = pair()[0].hello
    for position in range(len(hello)):
        bad = bytearray(hello)
        bad[position] ^= 1
        dialer, acceptor = pair()
        with suppress(Refused):  # a length that grew leaves the acceptor waiting, until its time is over
            acceptor.feed(dialer.feed(acceptor.feed(bytes(bad))))
        assert acceptor.session is None, f"byte {position} may be changed unnoticed"


def test_another_version_is_refused_on_both_sides() -> None:
    dialer, acceptor = pair()
    other = dialer.hello[:4] + (2).to_bytes(2, "big") + dialer.hello[6:]
    with pytest.raises(Refused) as refused:
        acceptor.feed(other)
    assert refused.value.reason == "version" and "version 2" in refused.value.detail
    answer = bytearray(refused.value.tell)
    answer[4:6] = (2).to_bytes(2, "big")
    with pytest.raises(Refused, match="version"):
        dialer.feed(bytes(answer))


def test_other_protocols_are_refused_at_the_first_byte() -> None:
    for greeting in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\x00", b"RSPM"):
        with pytest.raises(Refused, match="not_raftspine"):
            pair()[1].feed(greeting)
    with pytest.raises(Refused, match="oversize"):
        pair()[1].feed(b"RSPN\x00\x01\x01\xff\xff")
