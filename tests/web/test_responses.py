"""Large answers are written and sent in pieces, and are the same bytes as if they were not."""

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi import Response
from starlette.types import Message

from service.web.responses import PiecewiseResponse, json_reply, npy_reply

WHOLE = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
NUMBERS = np.random.default_rng(0).normal(size=(40, 3, 50, 60)).astype(np.float32)
RECORDS = [{"score": float(number), "reliable": number > 0, "proposal": "laplace"} for number in range(20_000)]
TEXTS = ["iVBORw0KGgo=" * 100] * 500


def sent(response: Response) -> list[Message]:
    """What a response sends."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("a response reads nothing")

    asyncio.run(response({"type": "http", "method": "GET", "headers": []}, receive, send))
    return messages


def checked_body(response: Response) -> tuple[bytes, int]:
    """The whole body, after a look at its frame; and the length of the longest piece."""
    start, *pieces = sent(response)
    headers: Mapping[bytes, bytes] = dict(start["headers"])
    bodies = [bytes(piece["body"]) for piece in pieces]
    assert start["status"] == 200
    assert headers[b"server-timing"] == b"queue;dur=1"
    assert int(headers[b"content-length"]) == sum(len(body) for body in bodies)
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return b"".join(bodies), max(len(body) for body in bodies)


@pytest.mark.parametrize(
    ("value", "pieces"),
    [(WHOLE, False), (NUMBERS, True), (RECORDS, True), (TEXTS, True), (NUMBERS[:1, 0, 0], False), ([1, 2], False)],
)
def test_json_in_pieces_is_the_same_json(value: Any, pieces: bool) -> None:
    document = {"model": "digits", "version": 1, "images": value, "seed": None}
    response = json_reply(document, {"Server-Timing": "queue;dur=1"})
    assert isinstance(response, PiecewiseResponse) == pieces
    body, longest = checked_body(response)
    assert body == orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    assert longest < 2**20


def test_one_image_of_many_numbers_is_written_in_pieces_too() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 400, 500)).astype(np.float32)
    body, longest = checked_body(json_reply({"images": image}, {"Server-Timing": "queue;dur=1"}))
    assert body == orjson.dumps({"images": image}, option=orjson.OPT_SERIALIZE_NUMPY)
    assert longest < 2**20


@pytest.mark.parametrize("array", [WHOLE, NUMBERS, np.zeros((700, 800), np.float32).T])
def test_npy_in_pieces_is_the_same_npy(array: Any) -> None:
    body, longest = checked_body(npy_reply(array, {"Server-Timing": "queue;dur=1"}))
    np.testing.assert_array_equal(np.load(io.BytesIO(body), allow_pickle=False), array)
    assert longest <= 2**20
