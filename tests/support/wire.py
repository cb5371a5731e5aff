"""A connection without a socket: what a protocol writes is collected, what it asks of its transport is noted."""

import asyncio


class Wire(asyncio.Transport):
    """Collects what a protocol writes."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.data = b""
        self.closed = False
        self.reading = True
        self.changed = asyncio.Event()
        """The connection was closed, or has another protocol."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += bytes(data)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol
        self.changed.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.changed.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
