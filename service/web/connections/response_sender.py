"""A connection's answers: how they leave, how long their client may take over them, and how the connection is closed.

A client that has said all may close its side and still gets its answer; one that is gone takes its work with it.
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
from service.web.problems import PROBLEM_JSON, ProblemType, problem_document

_PROBE_SECONDS = 0.1
_MAX_PROBE_SECONDS = 10.0
_HTTP_1_0_SECONDS = 1.0
_MAX_LOGGED_PATH = 200


class AnsweringProtocol(StrictProtocol):
    """Sends answers, the application's and those of the connection itself, which look and are counted like them.

    Args:
        lingering: connections that are being closed, shared by all.
        slow_readers: of all connections.
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
        self._connections = cast(set[Any], server_state.connections)  # of uvicorn's own classes, by its types
        self.client: tuple[str, int] | None = None
        self.exchange: Exchange | None = None
        """The request that was parsed last."""
        self._app = cast(ASGIApp, config.loaded_app)
        self._keep_alive_seconds = config.timeout_keep_alive
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._waiting: deque[Exchange] = deque()  # parsed, while another is answered
        self._answering: Exchange | None = None
        self._slow_readers = slow_readers
        self._is_watched = False  # by them
        self._request_log = request_log
        self._ignores_input = False  # nothing more is parsed
        self._may_linger = True
        self._all_lingering = lingering
        self._lingering: LingeringClose | None = None
        self._shutting_down = False
        self._last_refusal: tuple[ProblemType, str, str] | None = None  # to be sent after the answers before it
        self._bare_bytes = 0  # that came since the last head or piece of a body was complete

    def on_close(self) -> None:
        """The connection is about to be closed, or is lost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected."""
        self._connections.add(self)
        self.transport = BufferedTransport(cast(asyncio.Transport, transport), self.loop, self._close)
        self.flow = Flow(self.transport)
        self.client = address_of(transport.get_extra_info("peername"))

    def eof_received(self) -> bool | None:
        """The client has closed its side: it has said all, or it is gone. Returns whether the connection stays open."""
        self.drop_unfinished()
        if self._idle or not self._in_head or self.transport.is_closing():
            self.transport.close()
            return None
        if self._last_refusal is None and self.exchange is not None:
            self.exchange.keep_alive = False
        self.loop.call_later(_PROBE_SECONDS, self._probe, _PROBE_SECONDS)
        return True

    def drop_unfinished(self) -> None:
        """A request whose body will not be complete is not begun, where it waits for others to be answered."""
        if self._waiting and not self._in_head:
            self._waiting.pop()
            self.exchange = self._waiting[-1] if self._waiting else self._answering
            self._in_head = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
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
        self._begun.clear()  # this object is in a cycle of references, which Python may keep for long
        del self.parser

    def on_response_complete(self) -> None:
        """An answer is handed over; the next is begun."""
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
        """Have the application answer."""
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
        """The system takes no more of an answer for now."""
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
        """The system has taken all that there was."""
        self.flow.resume_writing()
        if self._idle:
            self._stop_watching()

    def _stop_watching(self) -> None:
        self._is_watched = False
        self._slow_readers.remove(self.transport)

    def _to_come(self) -> int:
        """Bytes of the answer that the application has still to hand over, as far as it said how many there are."""
        return 0 if self._answering is None else self._answering.num_to_send

    def shutdown(self) -> None:
        """The service ends: close now, or after the answer."""
        self._shutting_down = True
        if self.exchange is None or self.exchange.response_complete:
            self.transport.close()
        else:
            self.exchange.keep_alive = False
        if self._lingering is not None:
            self._lingering.shorten()

    @property
    def has_unread(self) -> bool:
        """Whether something has come that nobody has looked at: then it is not idle."""
        return self.transport.unread > 0

    @property
    def served(self) -> bool:
        """Whether a request of it has ever been answered."""
        return self.exchange is not None

    def drop(self) -> None:
        """Close it; its client is owed nothing."""
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
        body = problem_document(problem_type, detail, request_id)
        status = problem_type.status
        head = f"HTTP/1.1 {int(status)} {status.phrase}\r\nContent-Type: {PROBLEM_JSON}\r\n{headers}"
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
        """Close the connection, lingeringly where its client may still be sending."""
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
        """Nobody will be there for the answers: what is computed ends, and what waits for its turn is not begun."""
        self._waiting.clear()
        self._unparsed = b""
        self.exchange = self._answering
        if self._answering is not None:
            self._answering.disconnected |= not self._answering.response_complete
            self._answering.wake()

    def _probe(self, seconds: float) -> None:
        """Find out whether a client that has closed its side is still there, as only sending something can.

        A system whose program is gone answers to anything with a reset; a client skips this answer and waits on.
        HTTP/1.0 has none that it could skip.
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
    """Host and port, where the system tells them."""
    return (str(peer[0]), int(peer[1])) if isinstance(peer, list | tuple) else None
