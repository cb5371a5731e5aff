"""Who is on the other end of a new connection: a mutual proof, as functions of bytes.

Any process that reaches the peer port could otherwise vote. The rule: both ends prove that they know the
cluster secret, over both nonces, both node ids, the lane, the cluster and the protocol version, before
either end reads a frame; the keys that seal the frames come out of the same transcript, so they serve this
connection only. Binding the ids and the direction keeps a proof from being reflected or spent elsewhere;
binding the cluster keeps a node that was moved, with its old secret, from joining what it left.

The node with the smaller id dials::

    dialer                                              acceptor
    HELLO      lane, cluster, nonce, from, to   ──────▶ member? its turn to dial? meant for me?
               ◀──────────────────────────  CHALLENGE   nonce
    PROOF      HMAC("dialer", transcript)       ──────▶ from here on the acceptor takes frames
               ◀──────────────────────────  WELCOME     HMAC("acceptor", transcript)

The acceptor proves itself second, so a stranger gets nothing to guess the secret against. Each step is magic,
version, kind, length, body; REFUSAL may come instead of an answer, with one word of reason. It is not
authenticated, so it only feeds a log line.

Source of the shape: the challenge-response of ISO/IEC 9798-4 (mutual, three passes) with HMAC (RFC 2104).
"""

import hashlib
import hmac
import struct
from collections.abc import Container
from typing import NamedTuple

from raftspine.model import NodeId

PROTOCOL_VERSION = 1

MAGIC = b"RSPN"
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_BODY_BYTES = 1024

MAIN, BULK = 0, 1
HELLO, CHALLENGE, PROOF, WELCOME, REFUSAL = range(1, 6)

_STEP = struct.Struct(">4sHBH")
_HELLO = struct.Struct(">B32s32sB")


class Refused(Exception):
    """The handshake ends here. `reason` is a word for metrics; `tell` is for the other end, or empty."""

    def __init__(self, reason: str, *, tell: bool = False, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail
        self.tell = _step(REFUSAL, reason.encode()) if tell else b""


class Identity(NamedTuple):
    """Who this node is and what it shares with the others."""

    node: NodeId
    cluster: str
    secret: bytes


class Session(NamedTuple):
    """What both ends agree on when the handshake is over."""

    peer: NodeId
    lane: int
    send_key: bytes
    receive_key: bytes


class Handshake:
    """One end of it. Feed what arrives, write what comes back; `session` is set when it is done, and `rest`
    then holds the bytes that followed."""

    session: Session | None = None

    def __init__(self, identity: Identity, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        self._identity = identity
        self._nonce = nonce
        self._transcript = b""
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Bytes to write in return. Raises Refused."""
        self.rest += data
        answer = b""
        while self.session is None:
            step = self._take()
            if step is None:
                break
            answer += self._receive(*step)
        return answer

    def _take(self) -> tuple[int, bytes] | None:
        data = self.rest
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise Refused("not_raftspine")
        if len(data) < _STEP.size:
            return None
        _, version, kind, length = _STEP.unpack_from(data)
        if version != PROTOCOL_VERSION:
            # Told to the other end in a step of our version, which it recognizes by the same test.
            detail = f"the peer speaks version {version}, this node {PROTOCOL_VERSION}"
            raise Refused("version", tell=kind != REFUSAL, detail=detail)
        if length > MAX_BODY_BYTES:
            raise Refused("oversize")
        end = _STEP.size + length
        if len(data) < end:
            return None
        self.rest = data[end:]
        return kind, data[_STEP.size : end]

    def _receive(self, kind: int, body: bytes) -> bytes:
        raise NotImplementedError

    def _mac(self, label: bytes) -> bytes:
        return hmac.digest(self._identity.secret, label + b"\0" + self._transcript, "sha256")

    def _agree(self, peer: NodeId, lane: int, *, dialed: bool) -> Session:
        ours, theirs = (b"frames of dialer", b"frames of acceptor")[:: 1 if dialed else -1]
        return Session(peer, lane, self._mac(ours), self._mac(theirs))


class Dialer(Handshake):
    """The end that connects. `hello` is the first thing to write."""

    def __init__(self, identity: Identity, peer: NodeId, lane: int, nonce: bytes) -> None:
        super().__init__(identity, nonce)
        self._peer = peer
        self._lane = lane
        me, to = identity.node.encode(), peer.encode()
        body = _HELLO.pack(lane, _digest(identity.cluster), nonce, len(me)) + me + bytes([len(to)]) + to
        self._transcript = _version_bytes() + body
        self._challenged = False
        self.hello = _step(HELLO, body)

    def _receive(self, kind: int, body: bytes) -> bytes:
        if kind == REFUSAL:
            raise Refused("refused_by_peer", detail=body[:32].decode("ascii", "replace"))
        if kind == CHALLENGE and len(body) == NONCE_BYTES and not self._challenged:
            self._challenged = True
            self._transcript += body
            return _step(PROOF, self._mac(b"dialer"))
        if kind == WELCOME and self._challenged:
            if not hmac.compare_digest(body, self._mac(b"acceptor")):
                raise Refused("proof")
            self.session = self._agree(self._peer, self._lane, dialed=True)
            return b""
        raise Refused("malformed")


class Acceptor(Handshake):
    """The end that listens. `members` is asked when HELLO arrives."""

    def __init__(self, identity: Identity, members: Container[NodeId], nonce: bytes) -> None:
        super().__init__(identity, nonce)
        self._members = members
        self.peer: NodeId | None = None  # as claimed, for logs; proven only when `session` is set
        self._lane = MAIN

    def _receive(self, kind: int, body: bytes) -> bytes:
        if kind == HELLO and self.peer is None:
            self.peer, self._lane = self._check_hello(body)
            self._transcript = _version_bytes() + body + self._nonce
            return _step(CHALLENGE, self._nonce)
        if kind == PROOF and self.peer is not None:
            if not hmac.compare_digest(body, self._mac(b"dialer")):
                raise Refused("proof", tell=True)
            self.session = self._agree(self.peer, self._lane, dialed=False)
            return _step(WELCOME, self._mac(b"acceptor"))
        raise Refused("malformed")

    def _check_hello(self, body: bytes) -> tuple[NodeId, int]:
        try:
            lane, cluster, _nonce, size = _HELLO.unpack_from(body)
            at = _HELLO.size + size
            peer = NodeId(body[_HELLO.size : at].decode())
            target = body[at + 1 :].decode()
            whole = body[at] == len(body) - at - 1
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise Refused("malformed") from error
        if not whole or lane not in (MAIN, BULK):
            raise Refused("malformed")
        if cluster != _digest(self._identity.cluster):
            raise Refused("cluster", tell=True, detail="the peer belongs to another cluster")
        if target != self._identity.node:
            raise Refused("misdirected", tell=True, detail=f"the peer looks for {target!r} at this address")
        if peer not in self._members:
            raise Refused("stranger", tell=True, detail=f"{peer!r} is not a member")
        if peer >= self._identity.node:
            raise Refused("direction", tell=True, detail=f"{peer!r} is not the one to dial")
        return peer, lane


def _step(kind: int, body: bytes) -> bytes:
    return _STEP.pack(MAGIC, PROTOCOL_VERSION, kind, len(body)) + body


def _version_bytes() -> bytes:
    return MAGIC + PROTOCOL_VERSION.to_bytes(2, "big")


def _digest(cluster: str) -> bytes:
    return hashlib.sha256(b"raftspine cluster\0" + cluster.encode()).digest()
