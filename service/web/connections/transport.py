"""How a connection's bytes leave, and how it is closed."""

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
    """A transport that keeps small writes until the event loop has come to what else is ready.

    So an answer's head and body leave in one system call, and the answers of one batch one after the other: a client
    that sleeps is then woken once, which costs a processor more than writing does. Nothing goes past what is kept: what
    may be done with a transport, and is not here, is not done.

    Args:
        transport: of one connection.
        loop: the event loop.
        close: closes it, once all is sent.
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
        transport.set_write_buffer_limits(high=0)  # so that whoever writes knows as soon as the system takes no more

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send this soon, in order; nothing, once it is closed."""
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
        """Send what is kept, then close."""
        if not self._closed:
            self._send()
            self._closed = True
            self._close(self._transport)

    def abort(self) -> None:
        """Close at once, and send nothing more."""
        self.forget()
        self._transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes that the system has not taken."""
        return self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """Bytes that the client's system has received; where this one does not tell, those that this one has taken."""
        return self._written - self.unsent - self._ask(termios.TIOCOUTQ)

    @property
    def unread(self) -> int:
        """Bytes that have come and are not read yet; 0 where this system does not tell."""
        return self._ask(termios.FIONREAD)

    def _ask(self, request: int) -> int:
        """A number that the system knows of the socket, or 0."""
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
        """Whether it is closed, or about to be."""
        return self._closed or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows of its connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
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
    """A connection on which all is said, while its client may still be sending; what it sends is discarded.

    A socket that is closed before all that arrives is read resets the connection, and then the client's system throws
    the answer away, read or not (RFC 9112, 9.6). It ends when the client closes its side, says nothing for
    `LINGER_IDLE_SECONDS`, or after `LINGER_SECONDS` or a GiB in all; these are nginx's bounds.

    Args:
        transport: what is written to it before is still sent.
        loop: the event loop.
        among: all of its kind.
        seconds: how long at most.
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
        """Count what has come."""
        self._bytes += len(data)
        if self._bytes > _LINGER_BYTES:
            self.end()

    def shorten(self) -> None:
        """The service is shutting down: end in `LINGER_SHUTDOWN_SECONDS` at the latest."""
        self._deadline = min(self._deadline, self._loop.time() + LINGER_SHUTDOWN_SECONDS)
        self._timer.cancel()
        self._timer = self._wait()

    def end(self) -> None:
        """Close the connection, whatever may still come; or it is closed."""
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
    """Close a connection whose client may still be sending; at once, where `MAX_LINGERING` others are being closed."""
    if len(among) >= MAX_LINGERING:
        transport.close()
        return None
    return LingeringClose(transport, loop, among, seconds=seconds)
