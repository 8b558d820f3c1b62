"""One request and its answer as ASGI has them: what leaves for each message, and what an application may not do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from service.web.connections.admission import AdmissionLimit
from service.web.connections.exchange import EXCHANGE, Exchange
from service.web.connections.flow import Flow

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"4")]}
App = Callable[[Any, Any, Any], Awaitable[None]]


class Line:
    """Stands in for a connection and for its transport: what was written, and whether it is closed."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = self.completed = False
        self.transport = self.server_state = self
        self.default_headers = [(b"date", b"today")]
        self.loop = asyncio.get_running_loop()
        self.flow = Flow(cast(asyncio.Transport, self))

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def on_response_complete(self) -> None:
        self.completed = True


def exchanged(
    app: App, *, method: str = "GET", keep_alive: bool = True, expects_100: bool = False, body: tuple[bytes, ...] = ()
) -> tuple[Line, Exchange]:
    """What comes of an application that answers a request."""

    async def run() -> tuple[Line, Exchange]:
        line = Line()
        limit = AdmissionLimit(1)
        exchange = Exchange(
            cast(Any, line), {"method": method}, keep_alive=keep_alive, expects_100=expects_100, limit=limit
        )
        for piece in body:
            exchange.add(piece)
        exchange.end()
        assert limit.inside == 1
        await exchange.run(cast(Any, app))
        assert limit.inside == 0
        assert EXCHANGE not in exchange.scope
        return line, exchange

    return asyncio.run(run())


async def answers(_: Any, __: Any, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"yes\n"})


def test_an_answer_and_one_that_ends_the_connection() -> None:
    line, exchange = exchanged(answers)
    assert line.sent == b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 4\r\n\r\nyes\n"
    assert (line.closed, line.completed, exchange.response_complete) == (False, True, True)
    line, _ = exchanged(answers, keep_alive=False)
    assert line.sent.endswith(b"content-length: 4\r\nconnection: close\r\n\r\nyes\n")
    assert line.closed


def test_head_and_an_answer_whose_length_nobody_knows() -> None:
    line, _ = exchanged(answers, method="HEAD")
    assert line.sent.endswith(b"content-length: 4\r\n\r\n")

    async def in_pieces(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 499})
        await send({"type": "http.response.body", "body": b"0123456789abcdef", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})

    line, _ = exchanged(in_pieces)
    head, _, body = line.sent.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 499 \r\ndate: today\r\ntransfer-encoding: chunked"
    assert body == b"10\r\n0123456789abcdef\r\n1\r\n!\r\n0\r\n\r\n"


def test_a_body_is_received_once_and_then_that_the_answer_is_complete() -> None:
    received = []

    async def echoes(_: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        await answers(_, receive, send)
        received.append(await receive())

    line, _ = exchanged(echoes, expects_100=True, body=(b"a", b"b", b"c"))
    assert received == [{"type": "http.request", "body": b"abc", "more_body": False}, {"type": "http.disconnect"}]
    assert line.sent.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_who_waits_for_the_body_is_woken_also_after_another_has_given_up() -> None:
    async def scenario() -> None:
        line = Line()
        exchange = Exchange(cast(Any, line), {"method": "POST"}, keep_alive=True, expects_100=False, limit=None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(exchange.receive(), 0.01)
        waiting = asyncio.create_task(exchange.receive())
        await asyncio.sleep(0)
        exchange.add(b"late")
        assert await waiting == {"type": "http.request", "body": b"late", "more_body": True}
        waiting = asyncio.create_task(exchange.receive())
        await asyncio.sleep(0)
        exchange.disconnected = True
        exchange.wake()
        assert await waiting == {"type": "http.disconnect"}
        await exchange.send(START)  # to nobody
        assert line.sent == b""

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["fail"],
        [{"type": "http.response.body", "body": b"yes\n"}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"x", b"y\r\nset-cookie: z")]}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"x: y\r\nz", b"")]}],
    ],
    ids=["no answer", "failure", "no head", "a header in a header's value", "and in its name"],
)
def test_who_does_not_answer_answers_500_or_loses_the_connection(messages: list[Any]) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        for message in messages:
            if message == "fail":
                raise ValueError("no such thing")
            await send(message)

    line, _ = exchanged(app)
    assert line.closed
    assert b"set-cookie" not in line.sent
    assert not line.sent or line.sent.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


@pytest.mark.parametrize("bodies", [[b"too long"], [b"no"], [b"yes\n", b"more"], ["fail"], ["fail later"]])
def test_an_answer_that_is_not_what_its_head_says_is_cut_off(bodies: list[Any]) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send(START)
        for body in bodies:
            if body == "fail later":
                await send({"type": "http.response.body", "body": b"yes\n"})
            if body in ("fail", "fail later"):
                raise ValueError("no such thing")
            await send({"type": "http.response.body", "body": body})

    line, _ = exchanged(app)
    assert line.closed
    assert line.sent.count(b"HTTP/1.1") == 1
    assert len(line.sent.partition(b"\r\n\r\n")[2]) <= 4
