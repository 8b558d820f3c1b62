"""Limit large bodies that are still arriving to half of the memory; if that is full, the slowest is refused.

So clients that send much at first and then little cannot block other requests, or clients that send at full speed.
"""

import asyncio
from dataclasses import dataclass
from typing import NoReturn

from service.web.memory_budget import Budget
from service.web.problems import MemoryFullError

_GRACE_SECONDS = 2.0
"""Seconds in which no body counts as slow. Rates are measured over at most twice this time."""


@dataclass(eq=False)
class IncomingBody:
    """One body that is arriving.

    Attributes:
        num_bytes: bytes that have arrived.
        since, bytes_then: time and bytes at the start of the measurement of its rate.
        last: when bytes last arrived.
        timer: of the wait for more bytes; it is ended at once if this body is refused.
    """

    since: float
    last: float
    num_bytes: int = 0
    bytes_then: int = 0
    gave_way: bool = False
    timer: asyncio.Timeout | None = None

    def rate(self, now: float) -> float:
        """Recent bytes per second."""
        return (self.num_bytes - self.bytes_then) / max(now - self.since, 1e-9)

    def speed(self, now: float) -> tuple[float, float]:
        """Speed for comparing bodies: 0 if nothing came for `_GRACE_SECONDS`, and lower the longer nothing came."""
        idle = now - self.last
        return (0.0 if idle >= _GRACE_SECONDS else self.rate(now)), -idle


class IncomingBodies:
    """All large bodies that are arriving. Used only on the event loop.

    Args:
        budget: the memory of all requests.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._limit = budget.limit // 2
        self._bodies: set[IncomingBody] = set()
        self._num_bytes = 0

    def add(self) -> IncomingBody:
        """Add a large body."""
        now = asyncio.get_running_loop().time()
        incoming = IncomingBody(since=now, last=now)
        self._bodies.add(incoming)
        return incoming

    def grow(self, incoming: IncomingBody, num_bytes: int) -> None:
        """Set the bytes of a body that have arrived.

        Raises:
            MemoryFullError: there is not enough memory, and no other body is slower.
        """
        if incoming.gave_way:
            self.refuse()
        now = asyncio.get_running_loop().time()
        if now - incoming.since > 2 * _GRACE_SECONDS:  # start a new measurement, from the rate so far
            incoming.bytes_then = int(incoming.num_bytes - incoming.rate(now) * _GRACE_SECONDS)
            incoming.since = now - _GRACE_SECONDS
        self._num_bytes += num_bytes - incoming.num_bytes
        incoming.num_bytes, incoming.last = num_bytes, now
        while self._num_bytes > self._limit:
            slow = [body for body in self._bodies if now - body.since >= _GRACE_SECONDS]
            slowest = min(slow, key=lambda body: body.speed(now), default=incoming)
            self.end(slowest)
            slowest.gave_way = True
            if slowest is incoming:
                self.refuse()
            if slowest.timer is not None and not slowest.timer.expired():  # an expired one ends by itself
                slowest.timer.reschedule(now)

    def end(self, incoming: IncomingBody) -> None:
        """Remove a body that is complete, or is not read any more."""
        if incoming in self._bodies:
            self._bodies.remove(incoming)
            self._num_bytes -= incoming.num_bytes

    def refuse(self) -> NoReturn:
        """Refuse the body that gave way to others.

        Raises:
            MemoryFullError: always.
        """
        seconds = self._budget.retry_seconds()
        problem = f"bodies that are arriving hold {self._num_bytes} bytes of memory, and this one came slowest"
        raise MemoryFullError(f"{problem}; try again in {seconds} s", seconds)
