"""Waiting for an answer of the inference thread while its client may go away."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.web.problems import RequestError

T = TypeVar("T")
PATIENCE_SECONDS = 0.02  # most answers are there by then; watching for a client that leaves costs more than they do


async def answer_unless_gone(request: Request, answer: "asyncio.Future[T]") -> T:
    """Wait for the answer, unless the client goes away first: then the work is dropped before its next chunk.

    Raises:
        ClientDisconnect: the client has gone.
        RequestError: it sends what is refused. Whatever the answer raises, too.
    """
    loop = asyncio.get_running_loop()
    watching: list[asyncio.Task[None]] = []
    watch = loop.call_later(PATIENCE_SECONDS, lambda: watching.append(loop.create_task(_watch(request, answer))))
    try:
        return await answer
    finally:
        watch.cancel()
        for task in watching:
            task.cancel()


async def _watch(request: Request, answer: "asyncio.Future[Any]") -> None:
    """Settle the answer when the client has closed the connection, or sends what is refused; its body has been read."""
    reason: Exception = ClientDisconnect()
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except RequestError as error:
        reason = error
    if not answer.done():
        answer.set_exception(reason)
