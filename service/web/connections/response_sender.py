"""Send a connection's answers, limit how long its client may take to read them, and close the connection.

A client may close its sending side after its request, and still gets its answer. If it has disconnected, its work is
dropped.
"""

import asyncio
import socket
from collections import deque
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from service.web.connections.exchange import Exchange
from service.web.connections.flow import Flow
from service.web.connections.request_parser import StrictProtocol
from service.web.connections.slow_readers import SlowReaders
from service.web.connections.transport import (
    LINGER_SECONDS,
    LINGER_SHUTDOWN_SECONDS,
    BufferedTransport,
    LingeringClose,
    close_lingeringly,
)
from service.web.operations.request_log import RequestLog, request_id_of
from service.web.problem_format import problem_form
from service.web.problems import ProblemType, problem_document

_PROBE_SECONDS = 0.1
_MAX_PROBE_SECONDS = 10.0
_HTTP_1_0_SECONDS = 1.0
_MAX_LOGGED_PATH = 200


class AnsweringProtocol(StrictProtocol):
    """Sends the application's answers, and those of the connection itself, which have the same form and metrics.

    Args:
        lingering: connections that are being closed, common to all connections.
        slow_readers: watches all connections.
        request_log: where answers are logged and counted.
    """

    transport: BufferedTransport
    flow: Flow

    def __init__(
        self,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        lingering: set[LingeringClose],
        slow_readers: SlowReaders,
        request_log: RequestLog,
    ) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.server_state = server_state
        self._connections = cast(set[Any], server_state.connections)  # uvicorn's types name its own classes
        self.client: tuple[str, int] | None = None
        self.exchange: Exchange | None = None
        """The request that was parsed last."""
        self._app = cast(ASGIApp, config.loaded_app)
        self._keep_alive_seconds = config.timeout_keep_alive
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._waiting: deque[Exchange] = deque()  # requests parsed while another is answered
        self._answering: Exchange | None = None
        self._slow_readers = slow_readers
        self._is_watched = False  # by `slow_readers`
        self._request_log = request_log
        self._ignores_input = False  # whether nothing more is parsed
        self._may_linger = True
        self._all_lingering = lingering
        self._lingering: LingeringClose | None = None
        self._shutting_down = False
        self._last_refusal: tuple[ProblemType, str, str] | None = None  # sent after the answers before it
        self._bare_bytes = 0  # bytes since the last complete head or part of a body

    def on_close(self) -> None:
        """Called when the connection will be closed, or is lost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when a client has connected."""
        self._connections.add(self)
        self.transport = BufferedTransport(cast(asyncio.Transport, transport), self.loop, self._close)
        self.flow = Flow(self.transport)
        self.client = address_of(transport.get_extra_info("peername"))

    def eof_received(self) -> bool | None:
        """Called when the client has closed its sending side. Returns whether the connection stays open."""
        self.drop_unfinished()
        if self._idle or not self._in_head or self.transport.is_closing():
            self.transport.close()
            return None
        if self._last_refusal is None and self.exchange is not None:
            self.exchange.keep_alive = False
        self.loop.call_later(_PROBE_SECONDS, self._probe, _PROBE_SECONDS)
        return True

    def drop_unfinished(self) -> None:
        """Drop a waiting request whose body will never be complete."""
        if self._waiting and not self._in_head:
            self._waiting.pop()
            self.exchange = self._waiting[-1] if self._waiting else self._answering
            self._in_head = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is closed, by either side."""
        self.on_close()
        self._connections.discard(self)
        self.transport.forget()
        self._slow_readers.remove(self.transport)
        if self._lingering is not None:
            self._lingering.end()
        self._abandon()
        self.flow.resume_writing()
        self._stop_keep_alive()
        self.headers, self.exchange, self._answering = [], None, None
        self._begun.clear()  # this object is in a cycle of references, which may live long
        del self.parser

    def on_response_complete(self) -> None:
        """Called when the application has sent a whole answer: begin the next."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if self._keep_alive_timer is not None:
                self._stop_keep_alive()
            if self.flow.read_paused:
                self.flow.resume_reading()
            if self._waiting:
                self._start(self._waiting.popleft())
            else:
                self._await_request()
        if self._is_watched and not self.flow.write_paused:
            self._stop_watching()

    def _start(self, exchange: Exchange) -> None:
        """Let the application answer a request."""
        self._answering = exchange
        task = self.loop.create_task(exchange.run(self._app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def _await_request(self) -> None:
        """Close the connection unless another request begins in time."""
        self._keep_alive_timer = self.loop.call_later(self._keep_alive_seconds, self._close_idle)

    def _stop_keep_alive(self) -> None:
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
            self._keep_alive_timer = None

    def _close_idle(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        """Called when the system does not accept more bytes for now."""
        self.flow.pause_writing()
        scope: dict[str, Any] = {"path": "", "state": {}} if self._answering is None else self._answering.scope
        about = {
            "client": self.client[0] if self.client else None,
            "path": scope["path"],
            "request_id": scope["state"].get("request_id"),
        }
        self._is_watched = True
        self._slow_readers.add(self.transport, self.loop, to_come=self._to_come, about=about)

    def resume_writing(self) -> None:
        """Called when the system has accepted all bytes."""
        self.flow.resume_writing()
        if self._idle:
            self._stop_watching()

    def _stop_watching(self) -> None:
        self._is_watched = False
        self._slow_readers.remove(self.transport)

    def _to_come(self) -> int:
        """Bytes of the answer that the application has not sent yet, if it said how many there are."""
        return 0 if self._answering is None else self._answering.num_to_send

    def shutdown(self) -> None:
        """Called when the service shuts down: close now, or after the answer."""
        self._shutting_down = True
        if self.exchange is None or self.exchange.response_complete:
            self.transport.close()
        else:
            self.exchange.keep_alive = False
        if self._lingering is not None:
            self._lingering.shorten()

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that were not read yet; then it is not idle."""
        return self.transport.unread > 0

    @property
    def served(self) -> bool:
        """Whether any of its requests has been answered."""
        return self.exchange is not None

    def drop(self) -> None:
        """Close it; its client is not waiting for anything."""
        self._ignores_input = True
        self.transport.abort()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.exchange is None or self.exchange.response_complete

    def _answer(self, problem_type: ProblemType, detail: str, headers: str = "", *, keep_alive: bool) -> None:
        method, path, request_id = "", "", request_id_of(self.headers if self.url else ())
        if self.url:
            method, target = self.parser.get_method().decode(), self.url.partition(b"?")[0]
            path = target[:_MAX_LOGGED_PATH].decode("latin-1")
        media_type, more = problem_form(self._request_log.own_path(path), detail)
        body = problem_document(problem_type, detail, request_id, **more)
        status = problem_type.status
        head = f"HTTP/1.1 {int(status)} {status.phrase}\r\nContent-Type: {media_type}\r\n{headers}"
        head += f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: {request_id}\r\n"
        head += "" if keep_alive else "Connection: close\r\n"
        date = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        self.transport.write(head.encode() + date + b"\r\n" + (b"" if method == "HEAD" else body))
        self._request_log.refused(
            problem_type, detail, method=method, path=path, client=self.client, request_id=request_id
        )
        if not keep_alive:
            self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        """Close the connection; if its client may still be sending, read on for a while before closing."""
        sending = not self._in_head or self._bare_bytes or self._ignores_input or self._waiting or self.flow.read_paused
        self._ignores_input = True
        self.on_close()
        self._stop_keep_alive()
        self._abandon()
        if transport.is_closing() or not sending or not self._may_linger:
            transport.close()
            return
        self.flow.release()
        seconds = LINGER_SHUTDOWN_SECONDS if self._shutting_down else LINGER_SECONDS
        self._lingering = close_lingeringly(transport, self.loop, self._all_lingering, seconds=seconds)

    def _abandon(self) -> None:
        """The client has disconnected: stop the running request and drop the waiting ones."""
        self._waiting.clear()
        self._unparsed = b""
        self.exchange = self._answering
        if self._answering is not None:
            self._answering.disconnected |= not self._answering.response_complete
            self._answering.wake()

    def _probe(self, seconds: float) -> None:
        """Find out whether a client that has closed its sending side is still there, by sending an interim answer.

        If the client's program has ended, its system replies with a reset. A client that is there ignores the interim
        answer. This is not done for HTTP/1.0, which has no interim answers.
        """
        exchange = self._answering
        if exchange is None or self._idle or self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.close()
            return
        if exchange.scope["http_version"] == "1.0":
            if seconds < _HTTP_1_0_SECONDS:
                self.loop.call_later(_HTTP_1_0_SECONDS, self._probe, _HTTP_1_0_SECONDS)
            else:
                self.transport.close()
            return
        if not exchange.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(seconds, self._probe, min(2 * seconds, _MAX_PROBE_SECONDS))


def address_of(peer: Any) -> tuple[str, int] | None:
    """Host and port, or None if the system does not say."""
    return (str(peer[0]), int(peer[1])) if isinstance(peer, list | tuple) else None
