"""One client's connection, as uvicorn's server opens it: from bytes to requests, with bounds on heads, and admission.

uvicorn accepts another class in place of its own protocols (`http=`). Its own do not limit heads: the application does
not see a head before it is complete, and it could grow, or arrive slowly, for ever. tests/web/test_uvicorn.py checks
what uvicorn's server expects of such a class. Between requests the keep-alive timeout applies. From the opening of the
connection, or the first byte of a further request, to the end of its head, the limits of this file apply. A body that
arrives slowly is refused by the application: service/web/connections/request_limits.py.

A client may close its sending side after its request, and still gets its answer. If it has disconnected, its work is
dropped.
"""

import asyncio
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from service.web.connections.admission import AdmissionLimit
from service.web.connections.connection_limit import ConnectionLimit, Permission
from service.web.connections.exchange import Exchange
from service.web.connections.flow import HIGH_WATER_BYTES
from service.web.connections.framing import RefusedHeadError, decode_path
from service.web.connections.response_sender import AnsweringProtocol, address_of
from service.web.operations.request_log import QUIET_PATHS
from service.web.outcome import QueueFullError
from service.web.problems import HEADER_TOO_LARGE, PROBLEM_TYPES, REQUEST_TIMEOUT, TOO_MANY_CONNECTIONS, ProblemType

_RETRY_SECONDS = 1
_RETRY = f"Retry-After: {_RETRY_SECONDS}\r\n"
MAX_PIPELINED = 8
"""Most requests of a connection that wait behind the one being answered; later ones are not parsed yet."""
_CHUNK_BYTES = 16  # of a chunk besides its data: its size and two line ends
_WORK, _NO_WORK = ("/v1/", "/v2/"), ("/v1/admin/", "/v2/health/", "/v2/repository/")


class HttpConnection(AnsweringProtocol):
    """Closes a connection whose request head is wrong (400), too large (431) or too slow (408); refuses work when full.

    Its own answers have the same form as the application's, and are logged and counted in the same way.

    Args:
        config, server_state, app_state: from uvicorn; the application is `config.loaded_app`.
        admission_limit: shared by all connections.
        max_header_bytes: most bytes that may arrive without completing a head or being part of a body; trailers count,
            too. A head that arrives in one piece is left to the application to refuse.
        header_seconds: most seconds from a head's first byte to its last.
        limit: limits the number of connections.
        root_path: the prefix that a proxy puts before all paths.
    """

    def __init__(
        self,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        admission_limit: AdmissionLimit,
        max_header_bytes: int,
        header_seconds: float,
        limit: ConnectionLimit,
        root_path: str = "",
        _loop: asyncio.AbstractEventLoop | None = None,
        **named: Any,
    ) -> None:
        super().__init__(config=config, server_state=server_state, **named)
        self._app_state = app_state
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self._max_header_bytes = max_header_bytes
        self._admission_limit = admission_limit
        self._turned_away = False
        self._header_seconds = header_seconds
        self._limit = limit
        self._permission = Permission.ANY_REQUEST
        self._idle_since = 0.0
        self._prefix = root_path
        self._timer: asyncio.TimerHandle | None = None
        self._expects_100 = False  # otherwise the connection would be kept
        self._num_turned_away = 0  # requests refused whose answers have not been sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when a client has connected."""
        self._idle_since = self.loop.time()
        self._permission = self._limit.permission(self._connections, self._idle_since)
        self._may_linger = self._permission is Permission.ANY_REQUEST
        super().connection_made(transport)
        self._server = address_of(transport.get_extra_info("sockname"))
        if self._permission is Permission.NOTHING:
            self.transport.abort()
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Called with bytes from the client."""
        if self._ignores_input:
            if self._lingering is not None:
                self._lingering.discard(data)
            return
        if self._unparsed:  # these bytes arrived before reading was paused
            self._unparsed += data
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        if not self.flow.write_paused:
            self._num_turned_away = 0
        self._bare_bytes += len(data)
        if self._keep_alive_timer is not None:
            self._stop_keep_alive()
        self.parse(data)
        if self._has_begun and self._keep_alive_timer is not None:  # after the rest of a refused body
            self._stop_keep_alive()
        if self._ignores_input:
            self._unparsed = b""
        elif self._unparsed:
            self._bare_bytes = 0
            self.flow.hold()
            if self._idle:
                self.loop.call_soon(self._go_on)
        elif self._bare_bytes > self._max_header_bytes:
            self.refuse(HEADER_TOO_LARGE, f"at most {self._max_header_bytes} bytes of headers are accepted")
        elif self._timer is None and self._keep_alive_timer is None and self._idle:
            self._start_timer()  # also for the rest of a refused body

    def _go_on(self) -> None:
        """Parse what had to wait and resume reading, if another request may be parsed."""
        if not self.flow.held or self._waiting or self.flow.write_paused or self.transport.is_closing():
            return
        data, self._unparsed = self._unparsed, b""
        self.flow.held = False
        if data:
            self._read(data)
        self.flow.resume_reading()

    def has_room(self) -> bool:
        """Whether another request may be parsed."""
        return len(self._waiting) + self._num_turned_away < MAX_PIPELINED and not self._ignores_input

    def on_head(self) -> None:
        """Called when a head is complete; from here the application limits the request."""
        if self._timer is not None:
            self._stop_timer()
        if self._keep_alive_timer is not None:
            self._stop_keep_alive()
        self._bare_bytes = len(self._segment) - self._at
        parsed = httptools.parse_url(self.url)
        path = parsed.path.decode("ascii")
        if "%" in path:
            path = decode_path(parsed.path)
        if self._permission is Permission.PROBES and path.removeprefix(self._prefix) not in QUIET_PATHS:
            detail = f"{self._limit.most} connections are open; try again in {_RETRY_SECONDS} s"
            raise RefusedHeadError(TOO_MANY_CONNECTIONS, detail, _RETRY)
        method = self.parser.get_method()
        idle = self.exchange is None or self.exchange.response_complete
        counts = idle and _is_work(path.removeprefix(self._prefix))
        limit = self._admission_limit
        if counts and limit.inside >= limit.max_inside and method != b"OPTIONS":  # a preflight is not computed
            self._turned_away = True
            self._start_timer()  # limits the body, which the application does not read
            if self.expect_100_continue:
                self._turn_away(keep_alive=False)
            return
        version = self.parser.get_http_version()
        keep_alive = version != "1.0" and self.parser.should_keep_alive() and self._permission is not Permission.PROBES
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": version,
            "server": self._server,
            "client": self.client,
            "scheme": "http",
            "method": method.decode("ascii"),
            "path": path,
            "raw_path": parsed.path,
            "root_path": "",
            "query_string": parsed.query or b"",
            "headers": self.headers,
            "state": self._app_state.copy(),
        }
        self._expects_100 = self.expect_100_continue and keep_alive
        self.exchange = Exchange(
            self,
            scope,
            keep_alive=keep_alive and not self._expects_100,  # after a refusal the client may or may not send the body
            expects_100=self.expect_100_continue,
            limit=limit if counts else None,
        )
        if idle:
            self._start(self.exchange)
        else:
            self._waiting.append(self.exchange)  # keep reading, to notice a disconnection

    def on_data(self, body: bytes) -> None:
        """Called with a part of the body. The bytes that frame chunks count like headers, beyond what a chunk needs."""
        self._bare_bytes = max(0, self._bare_bytes - len(body) - _CHUNK_BYTES)
        exchange = self.exchange
        if self._turned_away or exchange is None or exchange.response_complete:
            return
        exchange.add(body)
        if len(exchange.body) > HIGH_WATER_BYTES:
            self.flow.pause_reading()
        if self._waiting and sum(len(waiting.body) for waiting in self._waiting) > HIGH_WATER_BYTES:
            self.flow.hold()

    def on_message_complete(self) -> None:
        """Called at the end of the body; next comes another head."""
        if self._has_offer:
            return  # this is the end of the head, not of a body
        self._in_head = True
        self._bare_bytes = len(self._segment) - self._at
        exchange = self.exchange
        if self._turned_away:
            self._turned_away = False
            self._turn_away(keep_alive=self.parser.should_keep_alive())
        elif exchange is not None:
            if self._expects_100 and not (exchange.response_started or self._shutting_down):
                exchange.keep_alive = True
            exchange.end()
            if not self.parser.should_keep_alive():  # a trailer may have closed the connection; the parser stops then
                exchange.keep_alive = False
            if exchange.response_complete:  # the body was refused and is now complete
                self._stop_timer()
                if exchange.keep_alive:
                    self._await_request()
                else:
                    self.transport.close()
        self.url = b""

    def on_response_complete(self) -> None:
        """Called when an answer is sent: begin the next, or send the refusal that comes after all of them."""
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._last_refusal is not None and self._idle and not self.transport.is_closing():
            self._answer(*self._last_refusal, keep_alive=False)
        elif self.flow.held:
            self.loop.call_soon(self._go_on)  # later: the parser's error would hide the application's

    def resume_writing(self) -> None:
        """Called when the system has accepted all bytes."""
        super().resume_writing()
        self._go_on()

    @property
    def idle_since(self) -> float | None:
        """When its last answer was sent or it was opened; None while a request arrives or is answered."""
        busy = not self._idle or not self._in_head or self.flow.write_paused or self.flow.held
        busy = busy or self.transport.is_closing()
        return None if busy else self._idle_since

    def on_close(self) -> None:
        """Called when the connection will be closed, or is lost."""
        self._stop_timer()

    def _turn_away(self, *, keep_alive: bool) -> None:
        """Answer 429, and be ready for the next request."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        detail = f"{self._admission_limit.max_inside} requests are being answered; try again in {_RETRY_SECONDS} s"
        self._num_turned_away += 1
        self._answer(PROBLEM_TYPES[QueueFullError], detail, _RETRY, keep_alive=keep_alive)
        if keep_alive:
            self.on_response_complete()

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
            self.transport.close()  # it sent nothing, or continues sending a refused body

    def refuse(self, problem_type: ProblemType, detail: str, headers: str = "") -> None:
        """Answer after the answers before it, and close. Nothing more is read."""
        self._stop_timer()
        self._ignores_input = True
        if self.transport.is_closing():
            return
        self.drop_unfinished()
        if self._in_head and not self._idle:
            self._last_refusal = problem_type, detail, headers
        elif not (self._in_head or self._turned_away) and self.exchange is not None and self.exchange.response_started:
            self.transport.close()  # its answer has begun
        else:
            self._answer(problem_type, detail, headers, keep_alive=False)


def _is_work(path: str) -> bool:
    """Whether this path is computed; probes and admin requests are always admitted."""
    return path.startswith(_WORK) and not path.startswith(_NO_WORK)
