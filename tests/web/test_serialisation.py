"""Writing a long answer ends at its deadline, and when its client goes away; the largest take turns."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from service.engine.anomaly.detector import AnomalyScores, Judgement
from service.web.memory_budget import MEMORY, Budget, Share
from service.web.outcome import DeadlineError
from service.web.responses import anomaly_rows, images_reply, json_reply
from service.web.serialisation import Writer, check_wanted

LONG = 3600.0
LARGE, MEDIUM = 2**21, 2**15


class Endless:
    """An answer that is never finished; `ended` once its thread has left it."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> Response:
        self.began.set()
        try:
            while True:
                check_wanted()
                time.sleep(0.001)
        finally:
            self.ended.set()


class Counted:
    """Work in threads that goes on until it may end; `most` of it was done at once."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Semaphore(0), threading.Event()
        self.most = self._running = 0

    def __call__(self) -> Response:
        self._running += 1
        self.most = max(self.most, self._running)
        self.begun.release()
        assert self.may_end.wait(60)
        self._running -= 1
        return Response()


def request_of(receive: Callable[[], Any], accept: str = "*/*", share: Share | None = None) -> Request:
    scope = {"type": "http", "headers": [(b"accept", accept.encode())], MEMORY: share or Share(Budget(2**30))}
    return Request(scope, receive)


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("numbers", [1, MEDIUM, LARGE])
def test_an_answer_is_handed_over_and_so_is_an_error(numbers: int) -> None:
    def fails() -> Response:
        raise ValueError("no such form")

    async def ask() -> None:
        writer, request = Writer(), request_of(stays)
        assert (await writer.write(request, lambda: Response(b"yes"), numbers=numbers, seconds=LONG)).body == b"yes"
        with pytest.raises(ValueError, match="no such form"):
            await writer.write(request, fails, numbers=numbers, seconds=LONG)

    asyncio.run(ask())


@pytest.mark.parametrize("numbers", [MEDIUM, LARGE])
def test_writing_ends_when_its_client_goes_away(numbers: int) -> None:
    endless = Endless()

    async def goes() -> dict[str, Any]:
        while not endless.began.is_set():
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(Writer().write(request_of(goes), endless, numbers=numbers, seconds=LONG))
    assert endless.ended.wait(60)


@pytest.mark.parametrize("numbers", [MEDIUM, LARGE])
def test_writing_ends_at_its_deadline(numbers: int) -> None:
    endless = Endless()
    with pytest.raises(DeadlineError, match="not written in time"):
        asyncio.run(Writer().write(request_of(stays), endless, numbers=numbers, seconds=0.05))
    assert not endless.began.is_set() or endless.ended.wait(60)  # where every processor was busy with something else


def test_the_largest_are_written_two_at_a_time_and_their_deadline_holds_meanwhile() -> None:
    first, second, third = Endless(), Endless(), Endless()

    async def ask() -> None:
        writer, request = Writer(), request_of(stays)
        holding = [
            asyncio.create_task(writer.write(request, one, numbers=LARGE, seconds=LONG)) for one in (first, second)
        ]
        while not (first.began.is_set() and second.began.is_set()):
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineError, match="not written in time"):
            await writer.write(request, third, numbers=LARGE, seconds=0.05)
        other = await writer.write(request, lambda: Response(b"other"), numbers=MEDIUM, seconds=LONG)
        assert other.body == b"other"
        holding[0].cancel()
        await asyncio.wait(holding[:1])
        next_one = await writer.write(request, lambda: Response(b"next"), numbers=LARGE, seconds=LONG)
        assert next_one.body == b"next"
        holding[1].cancel()
        await asyncio.wait(holding)

    asyncio.run(ask())
    assert first.ended.wait(60)
    assert second.ended.wait(60)
    assert not third.began.is_set()


@pytest.mark.parametrize("numbers", [MEDIUM, LARGE])
def test_long_answers_are_written_two_at_a_time_though_their_clients_leave(numbers: int) -> None:
    """A thread cannot be stopped within a PNG: it keeps its turn, and its request what it holds, to its end."""
    make, budget = Counted(), Budget(2**30)

    async def ask(writer: Writer, receive: Callable[[], Any]) -> None:
        share = Share(budget)
        share.hold(2**20)
        try:
            await writer.write(request_of(receive, share=share), make, numbers=numbers, seconds=LONG)
        finally:
            share.end()

    async def goes() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def crowd() -> None:
        writer = Writer()
        for _ in range(6):
            with pytest.raises(ClientDisconnect):
                await ask(writer, goes)
        assert make.begun.acquire(timeout=60)
        assert make.begun.acquire(timeout=60)
        assert budget.held == 2 * 2**20
        last = asyncio.create_task(ask(writer, stays))
        await asyncio.sleep(0.05)
        make.may_end.set()
        await last
        while budget.held:
            await asyncio.sleep(0.001)

    asyncio.run(crowd())
    assert make.most == 2


def test_few_threads_read_bodies_so_that_the_event_loop_waits_for_few(client: TestClient) -> None:
    read = Counted()

    async def crowd() -> None:
        tasks = [asyncio.create_task(run_in_threadpool(read)) for _ in range(20)]
        for _ in range(8):
            while not read.begun.acquire(blocking=False):
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        read.may_end.set()
        await asyncio.gather(*tasks)

    assert client.portal is not None
    client.portal.call(crowd)
    assert read.most == 8


def long_answers() -> Iterator[tuple[str, Callable[[], Response]]]:
    images = np.zeros((200, 1, 28, 28), np.float32)
    yield "PNGs", lambda: images_reply({}, images, media="application/json", form="png")
    yield "numbers", lambda: images_reply({}, images, media="application/json", form="array")
    yield "a grid", lambda: images_reply({}, images, media="image/png", form="png")
    one = np.zeros(200)
    judged = {"log_likelihood": Judgement(one, one, one > 0)}
    maps = np.zeros((200, 1, 28, 28))
    scores = AnomalyScores(judged, one, one, one, one.astype(np.int64), one > 0, 100, maps)
    yield "maps", lambda: json_reply({"results": anomaly_rows(scores, "png")})
    yield "maps as numbers", lambda: json_reply({"results": anomaly_rows(scores, "array")})


@pytest.mark.parametrize(("name", "make"), list(long_answers()))
def test_every_long_answer_looks_at_its_deadline(name: str, make: Callable[[], Response]) -> None:
    make()  # without a deadline nothing ends it
    with pytest.raises(DeadlineError):
        asyncio.run(Writer().write(request_of(stays), make, numbers=MEDIUM, seconds=-1))
