"""Large bodies that are still arriving: half of the memory at most, and where that is full the slowest gives way.

So clients that send much and then little hold up neither requests that are there nor clients that send at full speed.
"""

import asyncio
from dataclasses import dataclass
from typing import NoReturn

from service.web.memory_budget import Budget
from service.web.problems import MemoryFullError

_GRACE_SECONDS = 2.0
"""In which no body is called slow; a rate is measured over twice as much at most."""


@dataclass(eq=False)
class IncomingBody:
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


class IncomingBodies:
    """All of them. Belongs to the event loop.

    Args:
        budget: of all requests.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._limit = budget.limit // 2
        self._bodies: set[IncomingBody] = set()
        self._num_bytes = 0

    def add(self) -> IncomingBody:
        """A body that is no small one."""
        now = asyncio.get_running_loop().time()
        incoming = IncomingBody(since=now, last=now)
        self._bodies.add(incoming)
        return incoming

    def grow(self, incoming: IncomingBody, num_bytes: int) -> None:
        """So much of it is there now.

        Raises:
            MemoryFullError: there is no room for it, and no other body is slower.
        """
        if incoming.gave_way:
            self.refuse()
        now = asyncio.get_running_loop().time()
        if now - incoming.since > 2 * _GRACE_SECONDS:  # the rate goes on from what it was
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
            if slowest.timer is not None and not slowest.timer.expired():  # then it ends by itself
                slowest.timer.reschedule(now)

    def end(self, incoming: IncomingBody) -> None:
        """It is complete, or nobody reads it any more."""
        if incoming in self._bodies:
            self._bodies.remove(incoming)
            self._num_bytes -= incoming.num_bytes

    def refuse(self) -> NoReturn:
        """Tell the client of a body that gave way.

        Raises:
            MemoryFullError: always.
        """
        seconds = self._budget.retry_seconds()
        problem = f"bodies that are arriving hold {self._num_bytes} bytes of memory, and this one came slowest"
        raise MemoryFullError(f"{problem}; try again in {seconds} s", seconds)
