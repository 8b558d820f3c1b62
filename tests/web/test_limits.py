"""What one request holds, and how long its body may take, whatever the application does; without a service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.web.connections.incoming_bodies import IncomingBodies
from service.web.connections.request_limits import Limits
from service.web.memory_budget import MEMORY, SENT_AT_ONCE, Budget
from service.web.operations.settings import Settings
from service.web.problems import LimitError, MemoryFullError, SlowBodyError

LIMIT = 8_000_000
Handle = Callable[[Scope, Receive, Send], Awaitable[None]]


class Client:
    """Sends what it is told to, and takes every answer."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[Message] = asyncio.Queue()

    def send(self, num_bytes: int, *, more: bool = True) -> None:
        """A piece of its body."""
        self._sent.put_nowait({"type": "http.request", "body": bytes(num_bytes), "more_body": more})

    def leave(self) -> None:
        """Close the connection."""
        self._sent.put_nowait({"type": "http.disconnect"})

    def ask(self, limits: Limits) -> "asyncio.Task[None]":
        """Begin a request."""
        scope = {"type": "http", "path": "/", "query_string": b"", "headers": [], "method": "POST", "client": self}
        return asyncio.create_task(limits(scope, self._sent.get, self._take))

    async def _take(self, _: Message) -> None:
        """An answer, or a part of it."""


def bounded(app: Handle, **settings: Any) -> tuple[Limits, Budget]:
    budget = Budget(LIMIT)
    return Limits(app, Settings(**settings), budget), budget


async def turns(number: int = 20) -> None:
    """So many rounds of the event loop, in which all that can happen does."""
    for _ in range(number):
        await asyncio.sleep(0)


async def read_all(_: Scope, receive: Receive, __: Send) -> None:
    """An application that wants the whole body."""
    while (await receive()).get("more_body", False):
        pass


# ── Memory


@pytest.mark.parametrize("then", ["no body", "a byte", "gone"])
def test_what_a_request_took_before_it_asked_for_its_body_it_goes_on_holding(then: str) -> None:
    """As a request for samples does, which looks whether its client is there only while it is computed."""
    held = 0

    async def compute(scope: Scope, receive: Receive, _: Send) -> None:
        nonlocal held
        scope[MEMORY].hold(1_000_000)
        await receive()
        held = budget.held

    limits, budget = bounded(compute)

    async def ask() -> None:
        client = Client()
        request = client.ask(limits)
        client.leave() if then == "gone" else client.send(int(then == "a byte"), more=False)
        await request

    asyncio.run(ask())
    assert held == 1_000_000
    assert budget.held == 0


def test_a_file_that_is_read_piece_by_piece_takes_no_memory_and_what_is_there_does() -> None:
    held: list[int] = []

    async def answer(scope: Scope, _: Receive, send: Send) -> None:
        pieces = [bytes(SENT_AT_ONCE)] * 16 if scope["client"] is file else [bytes(1_000_000)]
        length = sum(map(len, pieces))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            held.append(budget.held)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    limits, budget = bounded(answer)

    async def ask() -> None:
        await file.ask(limits)
        await Client().ask(limits)

    file = Client()
    asyncio.run(ask())
    assert held == [0] * 16 + [1_000_000]
    assert budget.held == 0


# ── Bodies that arrive


def test_a_body_that_gave_way_is_counted_no_more_though_more_of_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.connections.incoming_bodies._GRACE_SECONDS", 0.0)

    async def arrive() -> None:
        arrivals = IncomingBodies(Budget(LIMIT))
        for _ in range(3):
            slow, fast = arrivals.add(), arrivals.add()
            arrivals.grow(slow, 200_000)
            arrivals.grow(fast, 3_900_000)
            assert slow.gave_way
            with pytest.raises(MemoryFullError):
                arrivals.grow(slow, 350_000)  # it was there already
            arrivals.end(slow)
            arrivals.end(fast)
        alone = arrivals.add()
        arrivals.grow(alone, LIMIT // 2)
        assert not alone.gave_way

    asyncio.run(arrive())


@pytest.mark.parametrize("why", ["too long", "too late"])
def test_a_body_that_was_refused_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Its refusal is not sent before its client reads; another that needs the room is not to pay for that."""
    monkeypatch.setattr("service.web.connections.incoming_bodies._GRACE_SECONDS", 0.0)
    errors: list[Exception] = []
    read: list[Client] = []
    taken = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_all(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - which it is, the test says
            errors.append(error)
            await taken.wait()
        else:
            read.append(scope["client"])

    limits, budget = bounded(app, max_body_bytes=2_000_000, max_json_bytes=1_000_000)

    async def arrive() -> None:
        refused, one, other = Client(), Client(), Client()
        requests = [refused.ask(limits)]
        refused.send(1_900_000)
        await turns()
        if why == "too long":
            refused.send(200_000)
        else:
            later(3600)
        await turns()
        assert [type(error) for error in errors] == [LimitError if why == "too long" else SlowBodyError]
        for client in (one, other):
            requests.append(client.ask(limits))
            client.send(1_500_000)
            await turns()
        for client in (one, other):
            client.send(0, more=False)
        await turns()
        taken.set()
        await asyncio.gather(*requests)
        assert read == [one, other]
        assert len(errors) == 1

    asyncio.run(arrive())
    assert budget.held == 0


def test_a_body_whose_time_is_just_over_gives_way_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.connections.incoming_bodies._GRACE_SECONDS", 0.0)

    async def arrive() -> None:
        loop, arrivals = asyncio.get_running_loop(), IncomingBodies(Budget(LIMIT))
        slow, fast = arrivals.add(), arrivals.add()
        arrivals.grow(slow, 200_000)
        grown = loop.create_future()

        def grow() -> None:
            try:
                arrivals.grow(fast, 3_900_000)
            except Exception as error:  # noqa: BLE001 - the test is to show it
                grown.set_exception(error)
            else:
                grown.set_result(None)

        async def wait() -> None:
            async with asyncio.timeout_at(loop.time() - 1) as slow.timer:
                loop.call_soon(grow)  # after the timer, before the one whose time is over hears of it
                await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            await wait()
        await grown
        assert slow.gave_way

    asyncio.run(arrive())


def later(seconds: float) -> None:
    """The event loop's clock is put forward."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


def test_a_body_has_its_time_from_when_it_is_asked_for() -> None:
    """Before that a model may be loaded, which is not its client's doing."""

    async def load_and_read(scope: Scope, receive: Receive, send: Send) -> None:
        later(100)
        await turns()
        await read_all(scope, receive, send)

    async def ask(app: Handle) -> None:
        client = Client()
        request = client.ask(bounded(app, body_seconds=60)[0])
        await turns(40)
        client.send(1, more=False)
        await request

    async def read_and_wait(scope: Scope, receive: Receive, send: Send) -> None:
        asyncio.get_running_loop().call_soon(later, 100)
        await read_all(scope, receive, send)

    asyncio.run(ask(load_and_read))
    with pytest.raises(SlowBodyError):
        asyncio.run(ask(read_and_wait))
