"""One client's connection: uvicorn's protocol, with the bounds on a request's head that it lacks, and a door.

Until a head is complete no application sees it, and uvicorn with httptools lets it grow, and trickle, for ever.
Between requests uvicorn's own keep-alive timeout holds; from the connection's opening, and from each further request's
first byte, to the end of its head, these do. A body that trickles is refused by the application: service/web/limits.py.

The door is for more requests than the event loop can even read. A refusal by the application costs a good part of what
an answer does; here, by the head alone, little. So under any load the time goes to those that are let in.
"""

import asyncio
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import httptools
import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.web.errors import HEADER_TOO_LARGE, KINDS, PROBLEM_JSON, REQUEST_TIMEOUT, Kind
from service.web.metrics import Metrics
from service.web.scheduler import QueueFullError

_LARGE_BYTES = 2**14
_RETRY_SECONDS = 1
_PLACE = "logpx.place"


class Corked:
    """A transport that keeps small writes until the event loop has come to what else is ready.

    So an answer's head and body leave in one system call, and the answers of one batch one after the other: a client
    that sleeps is then woken once, which costs a processor more than writing does.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send this soon, in order."""
        if len(data) > _LARGE_BYTES:
            self._send()
            self._transport.write(data)
            return
        if not self._kept:
            self._loop.call_soon(self._send)
        self._kept.append(data)

    def close(self) -> None:
        """Send what is kept, then close."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, []
            self._transport.write(b"".join(kept))


class Door:
    """How many requests are inside, over all connections: their body is there, and their answer has not begun.

    Neither clients that send slowly nor clients that read slowly take room, or a few could shut all others out.

    Args:
        max_inside: requests that are let in; further ones get a 429.
    """

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0

    @property
    def is_full(self) -> bool:
        """Whether no further request is let in."""
        return self.inside >= self.max_inside


class Place:
    """One request's place, from its whole body to its answer's head."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._inside = False
        self._left = False

    def enter(self) -> None:
        """The body is there. An answer may have come before it."""
        if not self._left:
            self._inside = True
            self._door.inside += 1

    def leave(self) -> None:
        """The answer begins, or never will."""
        self._left = True
        if self._inside:
            self._inside = False
            self._door.inside -= 1


def leaving(app: ASGIApp) -> ASGIApp:
    """The app, which gives a request's place back when its answer begins."""

    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        place: Place | None = scope.get(_PLACE)
        if place is None:
            await app(scope, receive, send)
            return

        async def send_and_leave(message: Message) -> None:
            place.leave()
            await send(message)

        try:
            await app(scope, receive, send_and_leave)
        finally:
            place.leave()

    return left


class Connection(HttpToolsProtocol):
    """Closes a connection whose request head is too large (431) or too slow (408); refuses work when it is full (429).

    Args:
        door: shared by all connections.
        max_header_bytes: that may arrive without completing a head or bringing a body; trailers count too. A head that
            comes whole in one piece is the application's to refuse.
        header_seconds: from a head's first byte to its last.
        metrics: where refusals are counted.
    """

    def __init__(
        self, *args: Any, door: Door, max_header_bytes: int, header_seconds: float, metrics: Metrics, **named: Any
    ) -> None:
        super().__init__(*args, **named)
        self.app = leaving(self.app)
        self._door = door
        self._place: Place | None = None
        self._turned_away = False
        self._max_header_bytes = max_header_bytes
        self._header_seconds = header_seconds
        self._refusals = metrics.refusals
        self._in_head = True
        self._bare_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client has connected, and should say what it wants."""
        super().connection_made(cast(asyncio.Transport, Corked(transport, self.loop)))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Some bytes, of a head or of a body."""
        if self._timer is None and self._idle:
            self._start_timer()  # also for what is left of a body that was refused
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._bare_bytes > self._max_header_bytes:
            self._refuse(HEADER_TOO_LARGE, f"at most {self._max_header_bytes} bytes of headers are accepted")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, kept; or a trailer, of which we know none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is read; from here the application bounds the request."""
        self._stop_timer()
        self._in_head = False
        self._bare_bytes = 0
        idle = self._idle
        if idle and self._door.is_full and self._wants_work:
            self._turned_away = True
            self._start_timer()  # of the body, which nobody reads
            if self.expect_100_continue:
                self._turn_away(keep_alive=False)
            return
        super().on_headers_complete()
        if idle and _is_work(self.scope["path"]):
            self._place = cast(dict[str, Any], self.scope)[_PLACE] = Place(self._door)

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._bare_bytes = 0
        if not self._turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is read; what comes now is another head."""
        self._in_head = True
        self._bare_bytes = 0
        if self._place is not None:
            self._place.enter()
            self._place = None
        if self._turned_away:
            self._turned_away = False
            self._turn_away(keep_alive=self.parser.should_keep_alive())
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _wants_work(self) -> bool:
        """Whether the request would be computed, whose head has just come; a browser's preflight never is."""
        path = httptools.parse_url(self.url).path.decode("ascii")
        return _is_work(unquote(path)) and self.parser.get_method() != b"OPTIONS"

    def _turn_away(self, *, keep_alive: bool) -> None:
        """Answer 429, and be ready for the next request."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        kind = KINDS[QueueFullError]
        self._refusals.labels(kind.slug).inc()
        detail = f"{self._door.max_inside} requests are being answered; try again in {_RETRY_SECONDS} s"
        headers = f"Retry-After: {_RETRY_SECONDS}\r\nX-Content-Type-Options: nosniff\r\n"
        self._answer(kind, detail, headers, keep_alive=keep_alive)
        if keep_alive:
            self.on_response_complete()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._in_head and self._bare_bytes:
            self._refuse(REQUEST_TIMEOUT, f"the request's headers were not complete after {self._header_seconds:g} s")
        else:
            self.transport.close()  # it never said anything, or goes on sending what was refused

    def _refuse(self, kind: Kind, detail: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        self._refusals.labels(kind.slug).inc()
        if self._idle:  # else these bytes would be taken for the answer to another request
            self._answer(kind, detail, keep_alive=False)
        else:
            self.transport.close()

    def _answer(self, kind: Kind, detail: str, headers: str = "", *, keep_alive: bool) -> None:
        head, body = _problem(kind, detail, headers, keep_alive)
        self.transport.write(head if self.parser.get_method() == b"HEAD" else head + body)
        if not keep_alive:
            self.transport.close()


@lru_cache(maxsize=16)
def _problem(kind: Kind, detail: str, headers: str, keep_alive: bool) -> tuple[bytes, bytes]:
    """A whole answer's head and body."""
    document = {"type": f"urn:logpx:problem:{kind.slug}", "title": kind.title, "status": int(kind.status)}
    body = orjson.dumps({**document, "detail": detail})
    head = f"HTTP/1.1 {int(kind.status)} {kind.status.phrase}\r\nContent-Type: {PROBLEM_JSON}\r\n{headers}"
    head += f"Content-Length: {len(body)}\r\n" + ("" if keep_alive else "Connection: close\r\n")
    return head.encode() + b"\r\n", body


def _is_work(path: str) -> bool:
    """Whether requests to it are computed; probes and admin calls always come in."""
    return path.startswith("/v1/") and not path.startswith("/v1/admin/")
