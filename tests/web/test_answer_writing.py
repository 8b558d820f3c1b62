"""Writing a long answer ends at its deadline, and when its client goes away; the largest take turns."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from service.engine.anomaly import AnomalyScores, Judgement
from service.web.outcome import DeadlineError
from service.web.replies import anomaly_rows, images_reply, json_reply
from service.web.writing import check_wanted, write_answer

LONG = 3600.0


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


def request_of(receive: Callable[[], Any], accept: str = "*/*") -> Request:
    return Request({"type": "http", "headers": [(b"accept", accept.encode())]}, receive)


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def goes() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_an_answer_is_handed_over_and_so_is_an_error() -> None:
    def fails() -> Response:
        raise ValueError("no such form")

    async def ask() -> None:
        answer = await write_answer(request_of(stays), lambda: Response(b"yes"), seconds=LONG, turns=None)
        assert answer.body == b"yes"
        with pytest.raises(ValueError, match="no such form"):
            await write_answer(request_of(stays), fails, seconds=LONG, turns=asyncio.Semaphore(1))

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("receive", "seconds", "error"), [(stays, 0.05, DeadlineError), (goes, LONG, ClientDisconnect)]
)
def test_writing_ends_when_nobody_waits(receive: Callable[[], Any], seconds: float, error: type[Exception]) -> None:
    endless = Endless()
    with pytest.raises(error):
        asyncio.run(write_answer(request_of(receive), endless, seconds=seconds, turns=None))
    assert endless.ended.wait(60)


def test_the_largest_wait_for_their_turn_and_their_deadline_holds_meanwhile() -> None:
    first, second = Endless(), Endless()

    async def ask() -> None:
        turns = asyncio.Semaphore(1)
        request = request_of(stays)
        holding = asyncio.create_task(write_answer(request, first, seconds=LONG, turns=turns))
        while not first.began.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineError, match="not written in time"):
            await write_answer(request, second, seconds=0.05, turns=turns)
        small = await write_answer(request, lambda: Response(b"small"), seconds=LONG, turns=None)
        assert small.body == b"small"
        holding.cancel()
        await asyncio.wait([holding])
        third = await write_answer(request, lambda: Response(b"third"), seconds=LONG, turns=turns)
        assert third.body == b"third"

    asyncio.run(ask())
    assert first.ended.wait(60)
    assert not second.began.is_set()


def long_answers() -> Iterator[tuple[str, Callable[[], Response]]]:
    images = np.zeros((200, 1, 28, 28), np.float32)
    request = request_of(stays)
    yield "PNGs", lambda: images_reply(request, {}, images, form="png")
    yield "numbers", lambda: images_reply(request, {}, images, form="array")
    yield "a grid", lambda: images_reply(request_of(stays, "image/png"), {}, images, form="png")
    one = np.zeros(200)
    judged = {"log_likelihood": Judgement(one, one, one > 0)}
    maps = np.zeros((200, 1, 28, 28))
    scores = AnomalyScores(judged, one, one, 100, maps)
    yield "maps", lambda: json_reply({"results": anomaly_rows(scores, "png")})
    yield "maps as numbers", lambda: json_reply({"results": anomaly_rows(scores, "array")})


@pytest.mark.parametrize(("name", "make"), list(long_answers()))
def test_every_long_answer_looks_at_its_deadline(name: str, make: Callable[[], Response]) -> None:
    make()  # without a deadline nothing ends it
    with pytest.raises(DeadlineError):
        asyncio.run(write_answer(request_of(stays), make, seconds=-1, turns=None))
