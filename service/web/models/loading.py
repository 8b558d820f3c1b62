"""Load versions that requests ask for: once for all who wait, within each one's deadline, and not too often."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import structlog

from service.web.outcome import DeadlineError
from service.web.problems import TooManyLoadsError

_log = structlog.get_logger()
T = TypeVar("T")
_SHARE = 0.1
"""The share of time that may be spent on loading."""
_AT_ONCE_SECONDS = 60.0
"""Seconds of loading that are allowed at once after a time with little loading."""


class Loads(Generic[T]):
    """Loads in progress. Requests for the same version wait for the same load, which continues if all give up."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[T]] = {}

    async def wait(self, key: Hashable, load: Callable[[], Coroutine[Any, Any, T]], *, timeout_seconds: float) -> T:
        """The result of `load`, which is started unless it is in progress.

        Raises:
            DeadlineError: not loaded in time. Also whatever `load` raises.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(load())
            task.add_done_callback(lambda done: self._end(key, done))
        done, _ = await asyncio.wait([task], timeout=timeout_seconds)
        if not done:
            raise DeadlineError(f"not loaded within {timeout_seconds:g} s; loading continues, so try again later")
        return task.result()

    def cancel(self) -> None:
        """Cancel all loads."""
        for task in self._under_way.values():
            task.cancel()

    def _end(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved, even if nobody waits for it


async def repeat(reload: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Reload for ever, each time after a pause of this many seconds; return at once if it is 0.

    An error is logged, but only once while it stays the same.
    """
    shown = None
    while seconds:
        await asyncio.sleep(seconds)
        try:
            await reload()
            shown = None
        except Exception as error:  # noqa: BLE001 - whatever it was, it may be over at the next poll
            if shown != str(error):
                shown = str(error)
                _log.error("the store cannot be reloaded", reason=shown, kind=type(error).__name__)


class LoadTime:
    """Limits the time for loading to a tenth of all time, with up to a minute at once.

    Otherwise requests for versions that do not fit into memory together would cause loading all the time.

    >>> now = 0.0
    >>> load_time = LoadTime(lambda: now)
    >>> load_time.spend(63)
    >>> load_time.check()
    Traceback (most recent call last):
        ...
    service.web.problems.TooManyLoadsError: versions asked for by number are loaded too often; try again in 30 s
    >>> now = 30.0
    >>> load_time.check()
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = _AT_ONCE_SECONDS
        self._at = clock()

    def check(self) -> None:
        """Refuse another load if recent ones took too long. How long one takes is only known afterwards.

        Raises:
            TooManyLoadsError: the time for loading is used up.
        """
        self._recover()
        if self._left < 0:
            raise TooManyLoadsError(max(1, math.ceil(-self._left / _SHARE)))

    def spend(self, seconds: float) -> None:
        """Add the time of a finished load."""
        self._recover()
        self._left -= seconds

    def _recover(self) -> None:
        now = self._clock()
        self._left = min(_AT_ONCE_SECONDS, self._left + _SHARE * (now - self._at))
        self._at = now
