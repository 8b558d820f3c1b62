"""Loading what requests ask for: once for all who wait, each within its own deadline, and not all the time."""

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
"""Of all time, what may go into loading."""
_AT_ONCE_SECONDS = 60.0
"""Of loading, when there was little for long."""


class Loads(Generic[T]):
    """Loads under way. Whoever asks for one meanwhile waits for the same; it goes on when nobody waits any more."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[T]] = {}

    async def wait(self, key: Hashable, load: Callable[[], Coroutine[Any, Any, T]], *, timeout_seconds: float) -> T:
        """What `load` returns, begun now unless it is under way.

        Raises:
            DeadlineError: not loaded in time. Whatever `load` raises, too.
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
        """Let nobody wait any longer."""
        for task in self._under_way.values():
            task.cancel()

    def _end(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # looked at, also where nobody has waited for it


async def repeat(reload: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Reload again and again, with a pause of so long before each; never where it is 0.

    An error is logged, once as long as it stays the same.
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
    """How much time may go into loading: a tenth of all, but a minute at once.

    Versions that drive one another out of memory, each asked for in turn, would otherwise be loaded for ever.

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
        """Refuse to begin another load where the last ones took too long; how long one will take nobody knows before.

        Raises:
            TooManyLoadsError.
        """
        self._recover()
        if self._left < 0:
            raise TooManyLoadsError(max(1, math.ceil(-self._left / _SHARE)))

    def spend(self, seconds: float) -> None:
        """Count a load that has ended."""
        self._recover()
        self._left -= seconds

    def _recover(self) -> None:
        now = self._clock()
        self._left = min(_AT_ONCE_SECONDS, self._left + _SHARE * (now - self._at))
        self._at = now
