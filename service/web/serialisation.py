"""Write large answers in other threads, and stop when the deadline passes or the client disconnects.

A request of a few bytes can ask for 40 000 PNGs, which take ten times as long to write as to compute. So the deadline
applies to writing, too, and a disconnection ends it. Only two of the largest answers are written at a time, and two of
the others, in threads of their own: Python runs one thread at a time, so each more would only keep the event loop
waiting for its turn, and those in which bodies are read.
"""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response

from service.web.disconnection import answer_unless_gone
from service.web.memory_budget import share_of
from service.web.outcome import DeadlineError

_FEW_NUMBERS = 2**14
"""Answers with at most so many numbers or pixels are written in less time than another thread takes to start."""
_LARGE_NUMBERS = 2**18  # so that none of the others is written for long, and those after it need not wait long
_LARGE_AT_ONCE, _OTHERS_AT_ONCE = 2, 2
_check: ContextVar[Callable[[], None]] = ContextVar("check", default=lambda: None)


class _AbandonedError(Exception):
    """Nobody waits for the answer any more. Nobody sees this error."""


def check_wanted() -> None:
    """Called between the pieces of an answer, to stop writing it early.

    Raises:
        DeadlineError: the deadline has passed. If the client has disconnected, an error that nobody sees is raised.
    """
    _check.get()()


class Writer:
    """Writes small answers at once, others in other threads: two of the largest at a time, and two of the others."""

    def __init__(self) -> None:
        self._large, self._others = asyncio.Semaphore(_LARGE_AT_ONCE), asyncio.Semaphore(_OTHERS_AT_ONCE)
        self._threads = CapacityLimiter(_LARGE_AT_ONCE + _OTHERS_AT_ONCE)
        self._working: set[asyncio.Task[None]] = set()  # the event loop does not keep tasks alive

    async def write(self, request: Request, make: Callable[[], Response], *, numbers: int, seconds: float) -> Response:
        """Call `make`, which writes the answer, and return its result.

        Args:
            request: the request, whose client may disconnect.
            make: if it takes long, it calls `check_wanted` every few milliseconds.
            numbers: how many numbers or pixels the answer has.
            seconds: time left until the request's deadline.

        Raises:
            DeadlineError: the answer was not written in time.
            ClientDisconnect: the client has disconnected. Also whatever `make` raises.
        """
        if numbers <= _FEW_NUMBERS:
            return make()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        deadline = time.monotonic() + seconds
        share = share_of(request)

        def check() -> None:
            if answer.done():
                raise _AbandonedError
            if time.monotonic() > deadline:
                raise _too_late()

        async def work() -> None:
            try:
                async with self._large if numbers > _LARGE_NUMBERS else self._others:
                    if answer.done():
                        return
                    share.lend()
                    try:
                        made = await to_thread.run_sync(_checked, make, check, limiter=self._threads)
                    finally:
                        share.end()
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
                if answer.done():
                    error.__traceback__ = None  # in whose frames is all that the answer was made of, and this error
                else:
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(made)

        working = loop.create_task(work())
        self._working.add(working)
        working.add_done_callback(self._working.discard)
        expiry = loop.call_later(seconds, _expire, answer)
        try:
            return await answer_unless_gone(request, answer)
        finally:
            expiry.cancel()
            answer.cancel()  # tells the thread, which keeps its turn and its memory until it stops


def _checked(make: Callable[[], Response], check: Callable[[], None]) -> Response:
    _check.set(check)  # only for this call
    return make()


def _expire(answer: "asyncio.Future[Response]") -> None:
    if not answer.done():
        answer.set_exception(_too_late())


def _too_late() -> DeadlineError:
    return DeadlineError("the answer was computed, but not written in time; ask for less at once, or for npy")
