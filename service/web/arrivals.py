"""Large bodies that are still arriving: half of the memory at most, and where that is full the slowest gives way.

So clients that send much and then little hold up neither requests that are there nor clients that send at full speed.
"""

import asyncio
from dataclasses import dataclass
from typing import NoReturn

from service.web.errors import MemoryFullError
from service.web.memory import Budget

_GRACE_SECONDS = 2.0
"""In which no body is called slow; a rate is measured over twice as much at most."""


@dataclass(eq=False)
class Arrival:
    """One body.

    Attributes:
        num_bytes: that are there.
        since, bytes_then: from when its rate is measured.
        last: when some of it came.
        timer: of the wait for more, which ends at once where it gives way.
    """

    since: float
    last: float
    num_bytes: int = 0
    bytes_then: int = 0
    gave_way: bool = False
    timer: asyncio.Timeout | None = None

    def rate(self, now: float) -> float:
        """Bytes a second of late."""
        return (self.num_bytes - self.bytes_then) / max(now - self.since, 1e-9)

    def speed(self, now: float) -> tuple[float, float]:
        """For comparing bodies: none where nothing came for `_GRACE_SECONDS`, and then, the longer the less."""
        idle = now - self.last
        return (0.0 if idle >= _GRACE_SECONDS else self.rate(now)), -idle


class Arrivals:
    """All of them. Belongs to the event loop.

    Args:
        budget: of all requests.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._limit = budget.limit // 2
        self._bodies: set[Arrival] = set()
        self._num_bytes = 0

    def add(self) -> Arrival:
        """A body that is no small one."""
        now = asyncio.get_running_loop().time()
        arrival = Arrival(since=now, last=now)
        self._bodies.add(arrival)
        return arrival

    def grow(self, arrival: Arrival, num_bytes: int) -> None:
        """So much of it is there now.

        Raises:
            MemoryFullError: there is no room for it, and no other body is slower.
        """
        if arrival.gave_way:
            self.refuse()
        now = asyncio.get_running_loop().time()
        if now - arrival.since > 2 * _GRACE_SECONDS:  # the rate goes on from what it was
            arrival.bytes_then = int(arrival.num_bytes - arrival.rate(now) * _GRACE_SECONDS)
            arrival.since = now - _GRACE_SECONDS
        self._num_bytes += num_bytes - arrival.num_bytes
        arrival.num_bytes, arrival.last = num_bytes, now
        while self._num_bytes > self._limit:
            slow = [body for body in self._bodies if now - body.since >= _GRACE_SECONDS]
            slowest = min(slow, key=lambda body: body.speed(now), default=arrival)
            self.end(slowest)
            slowest.gave_way = True
            if slowest is arrival:
                self.refuse()
            if slowest.timer is not None and not slowest.timer.expired():  # then it ends by itself
                slowest.timer.reschedule(now)

    def end(self, arrival: Arrival) -> None:
        """It is complete, or nobody reads it any more."""
        if arrival in self._bodies:
            self._bodies.remove(arrival)
            self._num_bytes -= arrival.num_bytes

    def refuse(self) -> NoReturn:
        """Tell the client of a body that gave way.

        Raises:
            MemoryFullError: always.
        """
        seconds = self._budget.retry_seconds()
        problem = f"bodies that are arriving hold {self._num_bytes} bytes of memory, and this one came slowest"
        raise MemoryFullError(f"{problem}; try again in {seconds} s", seconds)
