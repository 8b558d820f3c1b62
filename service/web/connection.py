"""One client's connection: uvicorn's protocol, with the bounds on a request's head that it lacks, and a door.

Until a head is complete no application sees it, and uvicorn with httptools lets it grow, and trickle, for ever.
Between requests uvicorn's own keep-alive timeout holds; from the connection's opening, and from each further request's
first byte, to the end of its head, these do. A body that trickles is refused by the application: service/web/limits.py.

A client that has said all may close its side and still gets its answer; one that is gone takes its work with it.
"""

import asyncio
import socket
from typing import Any, cast
from urllib.parse import unquote

import httptools

from service.web.admission import PLACE, Door, Place, is_work, leaving
from service.web.errors import (
    HEADER_TOO_LARGE,
    KINDS,
    PROBLEM_JSON,
    REQUEST_TIMEOUT,
    Kind,
    problem_document,
)
from service.web.outcome import QueueFullError
from service.web.protocol import StrictProtocol
from service.web.request_log import RequestLog, request_id_of
from service.web.transport import LINGER_SECONDS, LINGER_SHUTDOWN_SECONDS, Corked, Lingering, close_lingeringly

_RETRY_SECONDS = 1
_PROBE_SECONDS = 0.1
_MAX_PROBE_SECONDS = 10.0
_HTTP_1_0_SECONDS = 1.0
_MAX_LOGGED_PATH = 200


class Connection(StrictProtocol):
    """Closes a connection whose request head is wrong (400), too large (431) or too slow (408); refuses work when full.

    What it answers itself looks, and is logged and counted, as what the application answers.

    Args:
        door: shared by all connections.
        lingering: those that are being closed, shared by all.
        max_header_bytes: that may arrive without completing a head or bringing a body; trailers count too. A head that
            comes whole in one piece is the application's to refuse.
        header_seconds: from a head's first byte to its last.
        request_log: where answers are logged and counted.
        root_path: what a proxy has before all paths.
    """

    def __init__(
        self,
        *args: Any,
        door: Door,
        lingering: set[Lingering],
        max_header_bytes: int,
        header_seconds: float,
        request_log: RequestLog,
        root_path: str = "",
        **named: Any,
    ) -> None:
        super().__init__(*args, max_header_bytes=max_header_bytes, **named)
        self.app = leaving(self.app)
        self._door = door
        self._place: Place | None = None
        self._turned_away = False
        self._header_seconds = header_seconds
        self._request_log = request_log
        self._prefix = root_path
        self._bare_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._expects_100 = False  # and would keep the connection
        self._deaf = False  # nothing more is parsed
        self._last_refusal: tuple[Kind, str, str] | None = None  # to be sent after the answers before it
        self._all_lingering = lingering
        self._lingering: Lingering | None = None
        self._corked: Corked
        self._shutting_down = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client has connected, and should say what it wants."""
        self._corked = Corked(transport, self.loop, self._close)
        super().connection_made(cast(asyncio.Transport, self._corked))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Some bytes, of a head or of a body."""
        if self._deaf:
            if self._lingering is not None:
                self._lingering.discard(data)
            return
        if self._timer is None and self._idle:
            self._start_timer()  # also for what is left of a body that was refused
        self._bare_bytes += len(data)
        self._unset_keepalive_if_required()
        self.parse(data)
        if self._bare_bytes > self._max_header_bytes and not self._deaf:
            self.refuse(HEADER_TOO_LARGE, f"at most {self._max_header_bytes} bytes of headers are accepted")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client has closed its side: it has said all, or it is gone. Returns whether the connection stays open."""
        if self._idle or not self._in_head or self.transport.is_closing():
            self.transport.close()
            return None
        self.cycle.keep_alive = False
        self.loop.call_later(_PROBE_SECONDS, self._probe, _PROBE_SECONDS)
        return True

    def on_head(self) -> None:
        """The head is read; from here the application bounds the request."""
        self._stop_timer()
        self._bare_bytes = 0
        idle = self._idle
        if idle and self._door.is_full and self._wants_work:
            self._turned_away = True
            self._start_timer()  # of the body, which nobody reads
            if self.expect_100_continue:
                self._turn_away(keep_alive=False)
            return
        self.start_request()
        self._expects_100 = self.expect_100_continue and self.cycle.keep_alive
        if self._expects_100:
            self.cycle.keep_alive = False  # whoever is refused before its body may send it, or another request
        if idle and is_work(self.scope["path"].removeprefix(self._prefix)):
            self._place = cast(dict[str, Any], self.scope)[PLACE] = Place(self._door)

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._bare_bytes = 0
        if not self._turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is read; what comes now is another head."""
        if self._has_offer:
            return  # what looks like the end of the body is that of the head
        self._in_head = True
        self._bare_bytes = 0
        if self._place is not None:
            self._place.enter()
            self._place = None
        if self._turned_away:
            self._turned_away = False
            self._turn_away(keep_alive=self.parser.should_keep_alive())
        else:
            if self._expects_100 and not (self.cycle.response_started or self._shutting_down):
                self.cycle.keep_alive = True
            super().on_message_complete()
        self.url = b""

    def on_response_complete(self) -> None:
        """An answer is sent; the next is begun, or a refusal of what came after all of them."""
        super().on_response_complete()
        if self._last_refusal is not None and self._idle and not self.transport.is_closing():
            self._answer(*self._last_refusal, keep_alive=False)

    def shutdown(self) -> None:
        """The service ends: close now, or after the answer."""
        self._shutting_down = True
        super().shutdown()
        if self._lingering is not None:
            self._lingering.hurry()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self._stop_timer()
        self._corked.forget()
        if self._lingering is not None:
            self._lingering.end()
        super().connection_lost(exc)

    @property
    def _wants_work(self) -> bool:
        """Whether the request would be computed, whose head has just come; a browser's preflight never is."""
        path = httptools.parse_url(self.url).path.decode("ascii")
        return is_work(unquote(path).removeprefix(self._prefix)) and self.parser.get_method() != b"OPTIONS"

    def _turn_away(self, *, keep_alive: bool) -> None:
        """Answer 429, and be ready for the next request."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        detail = f"{self._door.max_inside} requests are being answered; try again in {_RETRY_SECONDS} s"
        self._answer(KINDS[QueueFullError], detail, f"Retry-After: {_RETRY_SECONDS}\r\n", keep_alive=keep_alive)
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
            self.refuse(REQUEST_TIMEOUT, f"the request's headers were not complete after {self._header_seconds:g} s")
        elif self._turned_away:
            self._turn_away(keep_alive=False)
        else:
            self.transport.close()  # it never said anything, or goes on sending what was refused

    def refuse(self, kind: Kind, detail: str, headers: str = "") -> None:
        """Answer, after what came before, and close; nothing more is read."""
        self._stop_timer()
        self._deaf = True
        if self.transport.is_closing():
            return
        if self._idle:
            self._answer(kind, detail, headers, keep_alive=False)
        elif self._in_head:
            self._last_refusal = kind, detail, headers
        elif self.pipeline or self.cycle.response_started:  # these bytes would be taken for another answer's
            self.transport.close()
        else:
            self._answer(kind, detail, keep_alive=False)

    def _answer(self, kind: Kind, detail: str, headers: str = "", *, keep_alive: bool) -> None:
        method, path, request_id = "", "", request_id_of(self.headers if self.url else ())
        if self.url:
            method, target = self.parser.get_method().decode(), self.url.partition(b"?")[0]
            path = target[:_MAX_LOGGED_PATH].decode("latin-1")
        body = problem_document(kind, detail, request_id)
        head = f"HTTP/1.1 {int(kind.status)} {kind.status.phrase}\r\nContent-Type: {PROBLEM_JSON}\r\n{headers}"
        head += f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: {request_id}\r\n"
        head += "" if keep_alive else "Connection: close\r\n"
        date = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        self.transport.write(head.encode() + date + b"\r\n" + (b"" if method == "HEAD" else body))
        self._request_log.refused(kind, detail, method=method, path=path, client=self.client, request_id=request_id)
        if not keep_alive:
            self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        """Close the connection, lingeringly where its client may still be sending."""
        sending = not self._in_head or self._bare_bytes or self._deaf or self.pipeline or self.flow.read_paused
        self._deaf = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if not self._idle:  # nobody will be there for the answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if transport.is_closing() or not sending:
            transport.close()
            return
        self.flow.resume_reading()
        seconds = LINGER_SHUTDOWN_SECONDS if self._shutting_down else LINGER_SECONDS
        self._lingering = close_lingeringly(transport, self.loop, self._all_lingering, seconds=seconds)

    def _probe(self, seconds: float) -> None:
        """Find out whether a client that has closed its side is still there, as only sending something can.

        A system whose program is gone answers to anything with a reset; a client skips this answer and waits on.
        HTTP/1.0 has none that it could skip.
        """
        if self._idle or self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.close()
            return
        if self.scope["http_version"] == "1.0":
            if seconds < _HTTP_1_0_SECONDS:
                self.loop.call_later(_HTTP_1_0_SECONDS, self._probe, _HTTP_1_0_SECONDS)
            else:
                self.transport.close()
            return
        if not self.pipeline and not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(seconds, self._probe, min(2 * seconds, _MAX_PROBE_SECONDS))
