"""Wait for an answer of the inference thread, and notice if the client disconnects meanwhile."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.web.problems import RequestError

T = TypeVar("T")
PATIENCE_SECONDS = 0.02  # most answers take less; watching for a disconnection would cost more than computing them


async def answer_unless_gone(request: Request, answer: "asyncio.Future[T]") -> T:
    """Wait for the answer. If the client disconnects first, the work is dropped before its next chunk.

    Raises:
        ClientDisconnect: the client has disconnected.
        RequestError: the client sent something that is refused. Also whatever the answer raises.
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
    """Fail the answer if the client disconnects or sends something that is refused, after its body has been read."""
    reason: Exception = ClientDisconnect()
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except RequestError as error:
        reason = error
    if not answer.done():
        answer.set_exception(reason)
