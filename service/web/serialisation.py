"""Answers that take long to write: in other threads, until their deadline passes or nobody waits for them any more.

A request of a few bytes can ask for 40 000 PNGs, which take ten times as long to write as to compute. So the deadline
holds for writing too, a client that goes away ends it, and the largest answers take turns: they would otherwise have
every thread in which the bodies of others are read.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from service.web.disconnection import answer_unless_gone
from service.web.memory_budget import share_of
from service.web.outcome import DeadlineError

_FEW_NUMBERS = 2**14
"""Numbers, or pixels, of an answer that is written sooner than another thread begins."""
_LARGE_NUMBERS = 2**20
_LARGE_AT_ONCE = 2
_check: ContextVar[Callable[[], None]] = ContextVar("check", default=lambda: None)


class _AbandonedError(Exception):
    """Nobody waits for the answer; nobody sees this either."""


def check_wanted() -> None:
    """Called between the pieces of an answer, so that writing it can end before its end.

    Raises:
        DeadlineError: its time is over. What nobody waits for raises an error that nobody sees.
    """
    _check.get()()


class Writer:
    """Writes answers: small ones at once, others in other threads, the largest of them two at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._working: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive

    async def write(self, request: Request, make: Callable[[], Response], *, numbers: int, seconds: float) -> Response:
        """What `make` makes.

        Args:
            request: whose client may go away.
            make: where it takes long, it calls `check_wanted` every few milliseconds.
            numbers: or pixels, of the answer.
            seconds: what is left of the request's deadline.

        Raises:
            DeadlineError: it is not written in time.
            ClientDisconnect: the client has gone. Whatever `make` raises, too.
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
                async with self._slots if numbers > _LARGE_NUMBERS else nullcontext():
                    if answer.done():
                        return
                    share.lend()
                    try:
                        made = await run_in_threadpool(_checked, make, check)
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
            answer.cancel()  # tells the thread, which has its turn, and its memory, for as long as it goes on


def _checked(make: Callable[[], Response], check: Callable[[], None]) -> Response:
    _check.set(check)  # in this call's own context
    return make()


def _expire(answer: "asyncio.Future[Response]") -> None:
    if not answer.done():
        answer.set_exception(_too_late())


def _too_late() -> DeadlineError:
    return DeadlineError("the answer was computed, but not written in time; ask for less at once, or for npy")
