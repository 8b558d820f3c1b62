"""Flow control: whether a connection is read, and whether it can be written to."""

import asyncio

HIGH_WATER_BYTES = 2**16
"""Reading is paused when the application has not received so many bytes of the body."""


class Flow:
    """Flow control of one connection.

    Args:
        transport: the connection's transport.

    Attributes:
        read_paused: reading is paused.
        held: reading is paused and cannot be resumed before `release`.
        write_paused: the system does not accept more bytes for now.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.held = False
        self.write_paused = False
        self._can_write = asyncio.Event()
        self._can_write.set()

    async def drain(self) -> None:
        """Wait until the system has accepted all bytes, or the connection is lost."""
        await self._can_write.wait()

    def pause_reading(self) -> None:
        """Pause reading."""
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, unless it is held."""
        if self.read_paused and not self.held:
            self.read_paused = False
            self._transport.resume_reading()

    def hold(self) -> None:
        """Pause reading until `release`."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Resume reading after `hold`."""
        self.held = False
        self.resume_reading()

    def pause_writing(self) -> None:
        """Called when the system does not accept more bytes."""
        self.write_paused = True
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Called when the system has accepted all bytes, or the connection is lost."""
        self.write_paused = False
        self._can_write.set()
