"""The process that writes the tree, so that the node's process never waits for LMDB or for the disk beneath
it.

A batch of some thousand rows keeps a core busy for tens of milliseconds and the disk for a few more. On a
thread of the node it would fight the event loop for the interpreter lock row by row. The rule: this process
owns all writes, takes one batch at a time from its standard input (a socket), puts it into one synced
transaction, and answers when it is durable. Putting a batch in twice does no harm, so the node may send it
again when this process has died.

When the node dies the socket ends and so does this process. It ignores interrupts and terminations, because a
service manager sends those to both at once and the node still has its last checkpoint to make. It imports as
little as possible: it starts with every node and is started again in the middle of trouble.

    request   length (8), msgpack map of keys to values, nil for a removal
    answer    status (1), length (4), text for people
"""

import fcntl
import os
import signal
import socket
import struct
import sys
from typing import Any

import lmdb
import msgpack

REQUEST = struct.Struct(">Q")
ANSWER = struct.Struct(">cI")

APPLIED = b"k"
FULL = b"f"
FAILED = b"e"

MAX_READERS = 512
"""Reader slots cost 64 bytes each; running out of them would stop snapshots."""

RECEIVE_BYTES = 1 << 20

WRITER_LOCK = "writer"

WALK = "walk"
"""The argument that makes this process read every row and end, instead of writing."""


def open_environment(path: str, map_size_bytes: int, *, readonly: bool) -> Any:
    """The LMDB environment with the settings both processes must agree on. Every commit is synced."""
    return lmdb.open(
        path,
        map_size=map_size_bytes,
        mode=0o600,
        readonly=readonly,
        max_readers=MAX_READERS,
    )


def apply(environment: Any, rows: dict[bytes, bytes | None]) -> None:
    """Put all rows in one durable transaction. Sorted, so that neighbours share pages and look-ups; by the
    bare keys, which is ten times as fast as sorting pairs."""
    order = sorted(rows)
    present = [(key, value) for key in order if (value := rows[key]) is not None]
    with environment.begin(write=True) as transaction:
        if len(present) < len(order):
            for key in order:
                if rows[key] is None:
                    transaction.delete(key)
        with transaction.cursor() as cursor:
            cursor.putmulti(present)


def serve(channel: socket.socket, path: str, map_size_bytes: int) -> None:
    """Until the other side closes the channel."""
    _wait_for_turn(path)
    environment = open_environment(path, map_size_bytes, readonly=False)
    try:
        while (payload := _receive(channel)) is not None:
            try:
                apply(environment, msgpack.unpackb(payload, strict_map_key=False))
            except (lmdb.MapFullError, lmdb.DiskError) as error:
                _answer(channel, FULL, str(error))
            except lmdb.Error as error:
                # The environment may be beyond use; the node starts a new process with a new one.
                _answer(channel, FAILED, str(error))
                return
            else:
                _answer(channel, APPLIED, "")
    finally:
        environment.close()


def _wait_for_turn(path: str) -> None:
    """Wait for an earlier process to end, which may have survived its node with a batch in hand: older rows
    must not come on top of newer ones. The lock goes with this process."""
    fd = os.open(os.path.join(path, WRITER_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)


def _receive(channel: socket.socket) -> bytearray | None:
    head = _exactly(channel, REQUEST.size)
    return None if head is None else _exactly(channel, REQUEST.unpack(head)[0])


def _exactly(channel: socket.socket, size: int) -> bytearray | None:
    """None when the channel ended first: the node died, and half a batch is no batch."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view, min(len(view), RECEIVE_BYTES))
        if count == 0:
            return None
        view = view[count:]
    return data


def _answer(channel: socket.socket, status: bytes, text: str) -> None:
    data = text.encode()
    channel.sendall(ANSWER.pack(status, len(data)) + data)


def walk(path: str, map_size_bytes: int) -> None:
    """Touch every page that holds a row. Dies of SIGBUS where the file lacks one, which is why it is done here."""
    environment = open_environment(path, map_size_bytes, readonly=True)
    with environment.begin() as transaction, transaction.cursor() as cursor:
        for _ in cursor:
            pass
    environment.close()


def main() -> None:
    if sys.argv[3:] == [WALK]:
        walk(sys.argv[1], int(sys.argv[2]))
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        try:
            serve(channel, sys.argv[1], int(sys.argv[2]))
        except ConnectionError:
            return  # the node died while an answer was on its way


if __name__ == "__main__":
    main()
