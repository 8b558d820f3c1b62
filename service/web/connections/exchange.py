"""One request and its answer as an ASGI scope, `receive` and `send`.

The admission limit counts a request from the end of its body to the start of its answer. The last `send` returns only
when the whole answer has been sent, so memory that is counted until the application returns includes an answer that
its client does not read.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any, Protocol

import structlog
from starlette.types import ASGIApp, Message
from uvicorn.server import ServerState

from service.web.connections.admission import AdmissionLimit
from service.web.connections.flow import Flow
from service.web.connections.transport import BufferedTransport

EXCHANGE = "logpx.exchange"
"""The key of a request's `Exchange` in the ASGI scope."""
_PHRASES = {int(status): status.phrase for status in HTTPStatus}
_STATUS_LINES = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(600)]
_IN_NO_NAME = re.compile(b"[^\\w!#$%&'*+.^`|~-]")
_IN_NO_VALUE = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_FAILED = b"Internal Server Error"
_log = structlog.get_logger()


class Connection(Protocol):
    """The interface of a connection that a request needs."""

    transport: BufferedTransport
    flow: Flow
    loop: asyncio.AbstractEventLoop
    server_state: ServerState

    def on_response_complete(self) -> None:
        """Called when the answer has been written."""


class Exchange:
    """A request whose head has arrived, and its answer.

    Args:
        connection: the connection on which it arrived.
        scope: the ASGI scope.
        keep_alive: whether another request may follow.
        expects_100: whether its client waits for 100 Continue before it sends the body.
        limit: the admission limit that counts it, if it is computed.

    Attributes:
        body: the part of the body that has arrived and was not received by the application.
        more_body: whether some of the body has not arrived.
        disconnected: whether the client has disconnected.
        num_to_send: bytes of the answer's body that the application has not sent yet, if it said how many there are.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_expects_100",
        "_has_left",
        "_has_news",
        "_is_inside",
        "_limit",
        "_waiter",
        "body",
        "disconnected",
        "keep_alive",
        "more_body",
        "num_to_send",
        "response_complete",
        "response_started",
        "scope",
    )

    def __init__(
        self,
        connection: Connection,
        scope: dict[str, Any],
        *,
        keep_alive: bool,
        expects_100: bool,
        limit: AdmissionLimit | None,
    ) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_100 = expects_100
        self._limit = limit
        self._is_inside = False
        self._has_left = False
        self.body: bytes | bytearray = b""
        self.more_body = True
        self._has_news = False
        """Whether some of the body, or its end, has arrived and was not received by the application."""
        self._waiter: asyncio.Future[None] | None = None
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._chunked: bool | None = None
        self.num_to_send = 0

    def add(self, body: bytes) -> None:
        """Called when some of the body has arrived."""
        if not self.body:
            self.body = body
        elif isinstance(self.body, bytearray):
            self.body += body
        else:
            self.body = bytearray(self.body) + body
        self._has_news = True
        if self._waiter is not None:
            self.wake()

    def end(self) -> None:
        """Called when all of the body has arrived. The answer may already have begun."""
        if self._limit is not None and not self._has_left:
            self._is_inside = True
            self._limit.inside += 1
        self.more_body = False
        self._has_news = True
        if self._waiter is not None:
            self.wake()

    def wake(self) -> None:
        """Wake the application if it waits for the body."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def leave(self) -> None:
        """Called when the answer begins, or will never begin: the request no longer counts as admitted."""
        self._has_left = True
        if self._is_inside and self._limit is not None:
            self._is_inside = False
            self._limit.inside -= 1

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. If it does not, answer with an error or close the connection."""
        self.scope[EXCHANGE] = self
        failed = False
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - cancelled at shutdown, too: its client is answered, or cut off
            _log.error("the application failed", exc_info=error)
            failed = True
        finally:
            if not self._has_left:
                self.leave()
            del self.scope[EXCHANGE]  # breaks a cycle of references
        if failed or not (self.response_complete or self.disconnected):
            await self._give_up()

    async def receive(self) -> Message:
        """ASGI's `receive`: more of the body, or that the client has disconnected or the answer is complete."""
        connection = self._connection
        if self._expects_100 and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects_100 = False
        if not (self.disconnected or self.response_complete):
            if connection.flow.read_paused:
                connection.flow.resume_reading()
            if not self._has_news:
                if self._waiter is None or self._waiter.done():
                    self._waiter = connection.loop.create_future()
                await self._waiter
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body, self._has_news = bytes(self.body), b"", False
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """A part of the answer. Returns once the system has taken what came before it, and of the body the part itself.

        Raises:
            RuntimeError: this is not the part that comes next, or is none.
        """
        if not self._has_left:
            self.leave()
        flow = self._connection.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"the answer is complete, and then comes {message['type']}")
        if message["type"] != ("http.response.body" if self.response_started else "http.response.start"):
            raise RuntimeError(f"{message['type']} is not what comes next")
        if not self.response_started:
            self._send_head(message)
            return
        self._send_body(message.get("body", b""), more=message.get("more_body", False))
        if flow.write_paused:
            await flow.drain()

    def _send_head(self, message: Message) -> None:
        self.response_started = True
        self._expects_100 = False
        status, method = message["status"], self.scope["method"]
        lines, says_close = [_STATUS_LINES[status]], False
        for name, value in (*self._connection.server_state.default_headers, *message.get("headers", ())):
            if _IN_NO_NAME.search(name) or _IN_NO_VALUE.search(value):
                raise RuntimeError(f"the header {name!r} cannot be sent")
            name = name.lower()
            if name == b"content-length" and self._chunked is None:
                self.num_to_send, self._chunked = int(value), False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.num_to_send, self._chunked = 0, True
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, says_close = False, True
            lines.append(b"%b: %b\r\n" % (name, value))
        if not (self.keep_alive or says_close):
            lines.append(b"connection: close\r\n")
        if self._chunked is None and method != "HEAD" and status not in _BODILESS:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self._connection.transport.write(b"".join(lines))

    def _send_body(self, body: bytes, *, more: bool) -> None:
        transport = self._connection.transport
        if self.scope["method"] == "HEAD":
            self.num_to_send = 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            transport.write(data if more else data + b"0\r\n\r\n")
        else:
            if len(body) > self.num_to_send:
                raise RuntimeError("the body is longer than its content-length")
            self.num_to_send -= len(body)
            transport.write(body)
        if not more:
            if self.num_to_send:
                raise RuntimeError("the body is shorter than its content-length")
            self.response_complete = True
            if self._waiter is not None:
                self.wake()
            if not self.keep_alive:
                transport.close()
            self._connection.on_response_complete()

    async def _give_up(self) -> None:
        """Called when the application has returned without a complete answer."""
        if self.response_started:
            self._connection.transport.close()
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(_FAILED))]
        headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": _FAILED})
