"""Whether a connection is read from, and may be written to."""

import asyncio

HIGH_WATER_BYTES = 2**16
"""Of a body that the application has not received: beyond, nothing more is read."""


class Flow:
    """One connection's.

    Args:
        transport: of the connection.

    Attributes:
        read_paused: nothing is read for now.
        held: nothing is read, whoever asks for more.
        write_paused: the system takes no more of what was written.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.held = False
        self.write_paused = False
        self._can_write = asyncio.Event()
        self._can_write.set()

    async def drain(self) -> None:
        """Return once the system has taken all, or the connection is lost."""
        await self._can_write.wait()

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless it is held."""
        if self.read_paused and not self.held:
            self.read_paused = False
            self._transport.resume_reading()

    def hold(self) -> None:
        """Read nothing more until `release`."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on."""
        self.held = False
        self.resume_reading()

    def pause_writing(self) -> None:
        """The system takes no more."""
        self.write_paused = True
        self._can_write.clear()

    def resume_writing(self) -> None:
        """The system has taken all, or the connection is lost."""
        self.write_paused = False
        self._can_write.set()
