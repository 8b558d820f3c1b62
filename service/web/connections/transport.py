"""Write a connection's bytes, and close it."""

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LARGE_BYTES = 2**14
MAX_LINGERING = 256
LINGER_SECONDS = 30.0
LINGER_IDLE_SECONDS = 5.0
LINGER_SHUTDOWN_SECONDS = 1.0
_LINGER_BYTES = 2**30


class BufferedTransport(asyncio.Transport):
    """A transport that collects small writes until the event loop has handled everything else that is ready.

    So an answer's head and body are sent with one system call, and the answers of one batch one after the other: a
    client that sleeps is woken only once, which takes more processor time than writing. All writes go through this
    class, so no bytes can overtake others; it has only those methods of a transport that are used.

    Args:
        transport: the connection's transport.
        loop: the event loop.
        close: closes the connection once everything is sent.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close: Callable[[asyncio.Transport], None]
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._close = close
        self._closed = False
        self._kept: list[bytes | bytearray | memoryview[Any]] = []
        self._written = 0
        transport.set_write_buffer_limits(high=0)  # pause as soon as the system does not accept more

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send bytes soon, in order; ignored after `close`."""
        if self._closed:
            return
        if len(data) > _LARGE_BYTES:
            self._send()
            self._written += len(data)
            self._transport.write(data)
            return
        if not self._kept:
            self._loop.call_soon(self._send)
        self._kept.append(data)

    def close(self) -> None:
        """Send what has been collected, then close."""
        if not self._closed:
            self._send()
            self._closed = True
            self._close(self._transport)

    def abort(self) -> None:
        """Close at once, without sending anything more."""
        self.forget()
        self._transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes that the system has not accepted."""
        return self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """Bytes that the client's system has received or, if that is not known, that this system has accepted."""
        return self._written - self.unsent - self._ask(termios.TIOCOUTQ)

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not read yet; 0 if the system does not say."""
        return self._ask(termios.FIONREAD)

    def _ask(self, request: int) -> int:
        """A number that the system knows about the socket, or 0."""
        answer = array.array("i", [0])
        with suppress(OSError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), request, answer)
        return answer[0]

    def forget(self) -> None:
        """The connection is lost, and with it what was kept; who closes it is let go of, whom nothing holds then."""
        self._kept = []
        self._closed = True
        self._close = _do_nothing

    def is_closing(self) -> bool:
        """Whether it is closed or will be closed."""
        return self._closed or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Information about the connection; see asyncio's transports."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Pause reading."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading."""
        self._transport.resume_reading()

    def _send(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, []
            data = b"".join(kept)
            self._written += len(data)
            self._transport.write(data)


def _do_nothing(_: asyncio.Transport) -> None:
    """In place of what closes a connection that is closed."""


class LingeringClose:
    """A connection that will be closed, while its client may still be sending; what it sends is discarded.

    If a socket is closed before everything that arrives has been read, the connection is reset, and the client's system
    discards the answer even if it was not read yet (RFC 9112, 9.6). The connection is closed when the client closes its
    side or sends nothing for `LINGER_IDLE_SECONDS`, or after `LINGER_SECONDS` or a GiB; these are nginx's limits.

    Args:
        transport: bytes written to it before are still sent.
        loop: the event loop.
        among: all connections that are being closed like this.
        seconds: the longest time.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        among: "set[LingeringClose]",
        *,
        seconds: float = LINGER_SECONDS,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._among = among
        self._bytes = 0
        self._looked_at_bytes = 0
        self._deadline = loop.time() + seconds
        among.add(self)
        transport.write_eof()
        self._timer = self._wait()

    def discard(self, data: bytes) -> None:
        """Count and discard bytes."""
        self._bytes += len(data)
        if self._bytes > _LINGER_BYTES:
            self.end()

    def shorten(self) -> None:
        """Called when the service shuts down: close after at most `LINGER_SHUTDOWN_SECONDS`."""
        self._deadline = min(self._deadline, self._loop.time() + LINGER_SHUTDOWN_SECONDS)
        self._timer.cancel()
        self._timer = self._wait()

    def end(self) -> None:
        """Close the connection, or note that it is closed."""
        self._timer.cancel()
        self._among.discard(self)
        self._transport.close()

    def _wait(self) -> asyncio.TimerHandle:
        return self._loop.call_at(min(self._deadline, self._loop.time() + LINGER_IDLE_SECONDS), self._look)

    def _look(self) -> None:
        if self._bytes == self._looked_at_bytes or self._loop.time() >= self._deadline:
            self.end()
        else:
            self._looked_at_bytes = self._bytes
            self._timer = self._wait()


def close_lingeringly(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, among: set[LingeringClose], *, seconds: float
) -> LingeringClose | None:
    """Close a connection whose client may still be sending; at once if `MAX_LINGERING` others are being closed."""
    if len(among) >= MAX_LINGERING:
        transport.close()
        return None
    return LingeringClose(transport, loop, among, seconds=seconds)
