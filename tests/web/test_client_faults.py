"""The client against services that refuse, break, stall and come back: a raw server does what a script says."""

import asyncio
import io
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from logpx import AsyncClient, Client, Latents, LogpxError, ProblemError, SlowServiceError, UnreachableError

Ask = Callable[..., Latents]
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Received:
    """A request, as far as it matters here: `images` has the first pixel of each."""

    headers: dict[str, str]
    target: str
    images: Any


@dataclass
class Service:
    """Encodes an image as its first pixel, unless `behave` says otherwise.

    `behave` gets the number of the request, from 0, and the request; it returns an answer's bytes, or one of "reset"
    (half an answer, then RST), "silence" and "trickle" (a byte at a time). None: the proper answer.
    """

    port: int
    behave: Callable[[int, Received], bytes | str | None] = lambda number, request: None
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read(reader)) is not None:
                number = len(self.received)
                self.received.append(request)
                action = self.behave(number, request)
                if not await self.answer(writer, proper(request) if action is None else action, proper(request)):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, action: bytes | str, whole: bytes) -> bool:
        """Whether the connection goes on."""
        if isinstance(action, bytes):
            writer.write(action)
            await writer.drain()
            return True
        if action == "reset":
            writer.write(whole[: len(whole) // 2])
            await writer.drain()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for number in range(2000 if action == "trickle" else 0):
            writer.write(whole[number : number + 1])
            await writer.drain()
            await asyncio.sleep(0.02)
        if action == "silence":
            await asyncio.sleep(30)
        return False


async def read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    images = np.load(io.BytesIO(body), allow_pickle=False)[:, 0, 0]
    return Received(headers, head[0].split()[1], images)


def proper(request: Received) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.repeat(request.images.astype(np.float32)[:, None, None], 2, axis=1), allow_pickle=False)
    return response(200, stream.getvalue(), "X-Model: m", "X-Model-Version: 3")


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def problem(status: int, slug: str, *headers: str, **members: int) -> bytes:
    document = {"type": f"urn:logpx:problem:{slug}", "title": "t", "status": status, "detail": "d", **members}
    return response(status, json.dumps(document).encode(), *headers)


@pytest.fixture
def service() -> Iterator[Service]:
    """On a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    served = Service(0)
    server = loop.run_until_complete(asyncio.start_server(lambda *streams: served.serve(*streams), "127.0.0.1", 0))
    served.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield served

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["threads", "tasks"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`encode` by either client."""

    def blocking(url: str, images: Any, **options: Any) -> Latents:
        with Client(url, **options) as client:
            return client.encode(images)

    def on_a_loop(url: str, images: Any, **options: Any) -> Latents:
        async def encode() -> Latents:
            async with AsyncClient(url, **options) as client:
                return await client.encode(images)

        return asyncio.run(encode())

    return blocking if request.param == "threads" else on_a_loop


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits no longer than a test; how long it does wait is in the examples of exchange.py."""
    monkeypatch.setattr("logpx.exchange._FIRST_SECONDS", 0.001)


IMAGES = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None], (60, 5, 5))


def test_a_storm_of_refusals_loses_nothing(service: Service, ask: Ask) -> None:
    """Two of three requests are refused; Retry-After is obeyed, here with no time to wait."""
    service.behave = lambda number, _: problem(429, "queue-full", "Retry-After: 0") if number % 3 else None
    latents = ask(service.url, IMAGES, chunk_images=5)
    assert latents.mean[:, 0].tolist() == list(range(60))
    assert (latents.model, latents.version) == ("m", 3)
    assert len(service.received) > 30


def test_a_storm_that_does_not_end_is_told_after_as_many_tries_as_were_asked_for(service: Service, ask: Ask) -> None:
    service.behave = lambda *_: problem(429, "queue-full", "Retry-After: 0")
    with pytest.raises(ProblemError) as raised:
        ask(service.url, IMAGES[:1], retries=5)
    assert (raised.value.status, raised.value.type) == (429, "urn:logpx:problem:queue-full")
    assert len(service.received) == 6


def test_retry_after_is_waited_for(service: Service, ask: Ask) -> None:
    service.behave = lambda number, _: problem(503, "too-many-connections", "Retry-After: 1") if number == 0 else None
    started = time.monotonic()
    ask(service.url, IMAGES[:1])
    assert time.monotonic() - started >= 1


def test_a_service_that_starts_is_waited_for(service: Service, ask: Ask) -> None:
    """503 while models load, and 502 of a proxy before it."""
    service.behave = lambda number, _: (
        [response(502, b"<html>"), problem(503, "not-ready", "Connection: close")][number % 2] if number < 6 else None
    )
    assert ask(service.url, IMAGES[:2]).mean[:, 0].tolist() == [0, 1]
    assert len(service.received) == 7


def test_a_connection_reset_in_the_middle_of_an_answer(service: Service, ask: Ask) -> None:
    service.behave = lambda number, _: "reset" if number % 2 == 0 else None
    assert ask(service.url, IMAGES, chunk_images=7).mean[:, 0].tolist() == list(range(60))


def test_a_connection_that_is_always_reset(service: Service, ask: Ask) -> None:
    service.behave = lambda *_: "reset"
    with pytest.raises(UnreachableError, match=r"POST /v1/encode: no answer came: "):
        ask(service.url, IMAGES[:1])
    assert len(service.received) == 5


def test_nobody_listens(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnreachableError):
        ask(f"http://127.0.0.1:{port}", IMAGES[:1])


@pytest.mark.parametrize("action", ["silence", "trickle"])
def test_a_service_that_is_too_slow(service: Service, ask: Ask, action: str) -> None:
    service.behave = lambda *_: action
    started = time.monotonic()
    with pytest.raises(SlowServiceError, match=r"no answer within 0\.2 s"):
        ask(service.url, IMAGES[:1], timeout=0.2)
    assert time.monotonic() - started < 10
    assert len(service.received) == 1  # a slow service gets no more to do
    assert service.received[0].headers["x-request-timeout-ms"] == "200"


@pytest.mark.parametrize("refusal", [problem(413, "limit-exceeded"), problem(504, "deadline-exceeded")])
def test_what_is_too_large_or_takes_too_long_is_halved_for_all_later_requests(
    service: Service, ask: Ask, refusal: bytes
) -> None:
    service.behave = lambda _, request: refusal if len(request.images) > 6 else None
    assert ask(service.url, IMAGES, chunk_images=20, concurrency=1).mean[:, 0].tolist() == list(range(60))
    sizes = [len(request.images) for request in service.received]
    assert sizes[:7] == [20, 10, 5, 5, 10, 5, 5]
    assert set(sizes[7:]) == {5}


@pytest.mark.parametrize(
    "refusal", [problem(503, "broken-model"), problem(500, "internal-error"), response(404, b"<h1>")]
)
def test_what_another_try_does_not_mend_is_told_at_once(service: Service, ask: Ask, refusal: bytes) -> None:
    service.behave = lambda *_: refusal
    with pytest.raises(ProblemError) as raised:
        ask(service.url, IMAGES[:2])
    assert len(service.received) == 1
    if b"<h1>" in refusal:
        assert (raised.value.type, raised.value.detail, raised.value.index) == ("about:blank", "<h1>", None)


def test_a_redirect_is_no_answer_and_the_key_goes_nowhere_else(service: Service, ask: Ask) -> None:
    service.behave = lambda number, _: response(307, b"", f"Location: {service.url}/elsewhere") if number == 0 else None
    with pytest.raises(ProblemError, match="307"):
        ask(f"{service.url}/prefix/", IMAGES[:1], key="secret")
    (only,) = service.received
    assert only.target == "/prefix/v1/encode?resize=false"
    assert only.headers["authorization"] == "Bearer secret"


def test_the_first_failure_ends_the_call_and_drops_what_waits(service: Service, ask: Ask) -> None:
    """A chunk that would be sent again in a minute is not waited for."""

    def behave(number: int, request: Received) -> bytes | None:
        if 12 in request.images:
            return problem(422, "invalid-image", index=2)
        return problem(429, "queue-full", "Retry-After: 100") if request.images[0] >= 15 else None

    service.behave = behave
    started = time.monotonic()
    with pytest.raises(ProblemError) as raised:
        ask(service.url, IMAGES, chunk_images=5)
    assert raised.value.index == 12
    assert time.monotonic() - started < 20
    assert max(request.images[0] for request in service.received) <= 30


def test_a_generator_without_end_is_read_no_further_than_the_first_failure(service: Service, ask: Ask) -> None:
    service.behave = lambda number, _: problem(422, "invalid-body") if number == 6 else None
    pulled = itertools.count()
    with pytest.raises(ProblemError):
        ask(service.url, (IMAGES[next(pulled) % 60] for _ in itertools.count()), chunk_images=10)
    assert next(pulled) < 150


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>", "the answer is no npy file"),
        (proper(Received({}, "", np.zeros(1))).partition(b"\r\n\r\n")[2], "no header 'x-model'"),
    ],
)
def test_an_answer_of_something_else(service: Service, ask: Ask, body: bytes, told: str) -> None:
    service.behave = lambda *_: response(200, body)
    with pytest.raises(LogpxError, match=told):
        ask(service.url, IMAGES[:1])
