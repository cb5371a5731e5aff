"""One HTTP/1.1 connection of the load generator: bytes out, status and session token back.

The generator shares the machine with the nodes it measures, so every microsecond here is one that they do not
get. It therefore reads just what it needs: the status, the length, the token. A full HTTP client costs ten
times that, and the figures would be its own.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from raftspine.errors import SpineError, Unavailable

RECEIVE = 1 << 18
CONNECT_S = 2.0


class Address(NamedTuple):
    host: str
    port: int


def addresses(urls: Sequence[str]) -> list[Address]:
    """Where these nodes listen. Only plain HTTP: TLS would measure the generator's cipher."""
    found = []
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SpineError(f"the load generator speaks plain HTTP only, not {url}")
        found.append(Address(parts.hostname, parts.port or 80))
    return found


class Connection:
    """A keep-alive connection with at most one request under way.

    `kind` and `intended` describe that request: its class of operation and when it should have been sent
    (seconds). `follow` makes the next request of an operation that takes several. `session` is the header line
    with the token of the last reply, or empty.
    """

    __slots__ = (
        "_buffer",
        "_length_name",
        "_socket",
        "_token_name",
        "address",
        "body",
        "fd",
        "follow",
        "intended",
        "keeps_token",
        "kind",
        "number",
        "session",
    )

    def __init__(self, number: int, address: Address, *, keeps_token: bool) -> None:
        self.number = number
        self.address = address
        self.keeps_token = keeps_token
        self.kind = 0
        self.intended = 0.0
        self.follow: Callable[[Any], bytes] | None = None
        self.session = b""
        self.body = b""
        self._length_name = b"Content-Length: "
        self._token_name = b"X-Spine-Session: "
        self.connect(address)

    def connect(self, address: Address) -> None:
        """(Re)connect. Raises Unavailable."""
        self.address = address
        self._buffer = b""
        try:
            self._socket = socket.create_connection(address, CONNECT_S)
        except OSError as error:
            raise Unavailable(f"{address.host}:{address.port}: {error.strerror or error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes) -> None:
        """Raises OSError when the connection is gone."""
        try:
            sent = self._socket.send(request)
        except BlockingIOError:
            sent = 0
        if sent < len(request):
            self._socket.settimeout(CONNECT_S)
            self._socket.sendall(request[sent:])
            self._socket.setblocking(False)

    def receive(self) -> int:
        """The status of a reply that is now complete, or 0. Raises OSError when the connection is gone."""
        try:
            data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            return 0
        if not data:
            raise ConnectionResetError("closed by the node")
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return 0
        at = data.find(self._length_name, 0, end)
        if at < 0:
            return self._unusual(data, end)
        start = at + len(self._length_name)
        need = end + 4 + int(data[start : data.find(b"\r", start)])
        return self._complete(data, end, need)

    def _complete(self, data: bytes, end: int, need: int) -> int:
        if len(data) < need:
            self._buffer = data
            return 0
        if len(data) > need:
            raise SpineError("the node sent more than it was asked for")
        self._buffer = b""
        self.body = data[end + 4 :]
        if self.keeps_token:
            at = data.find(self._token_name, 0, end)
            if at >= 0:
                self.session = data[at : data.find(b"\r\n", at) + 2]
        return int(data[9:12])

    def _unusual(self, data: bytes, end: int) -> int:
        """A reply without the header as we spell it: another spelling, which is learnt, or no body at all."""
        names = data[:end].lower()
        at = names.find(b"\r\ncontent-length:")
        if at >= 0:
            start = at + 2
            value = start + len(b"content-length:")
            while data[value : value + 1] == b" ":
                value += 1
            self._length_name = data[start:value]
            return self._complete(data, end, end + 4 + int(data[value : data.find(b"\r", value)]))
        if data[9:12] in (b"204", b"304"):
            return self._complete(data, end, end + 4)
        raise SpineError("the load generator understands replies with a Content-Length only")
