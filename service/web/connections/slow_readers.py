"""Clients that take their answers slowly: how long each may take, and how much may wait for all of them.

An answer that its client does not read stays in memory. Small ones vanish into the system's buffers; this is about what
does not fit there.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog
from prometheus_client import Counter

MIN_BYTES_PER_SECOND = 2**14
"""What a client must take on average over an answer, not counting the first `seconds`."""
_LOOK_SECONDS = 1.0
_log = structlog.get_logger()

Reason = Literal["stalled", "slow", "memory"]


class Sink(Protocol):
    """The sending side of a connection."""

    @property
    def unsent(self) -> int:
        """Bytes that the system has not taken."""

    @property
    def taken(self) -> int:
        """Bytes that the client's system has received, since the connection was opened."""

    def abort(self) -> None:
        """Close the connection, and forget what was to be sent."""


@dataclass
class _Wait:
    """For one client.

    Attributes:
        to_come: gives the bytes of its answer that are not in the sink yet.
        about: what the log says of it.
        taken: bytes, when last looked at.
        taken_here: bytes, since the wait began.
        seconds: how long there was something to take.
        idle_seconds: how long none of it has been taken.
        size: the most bytes that waited.
    """

    to_come: Callable[[], int]
    about: Mapping[str, object]
    taken: int
    taken_here: int = 0
    seconds: float = 0.0
    idle_seconds: float = 0.0
    size: int = 0

    @property
    def rate(self) -> float:
        return self.taken_here / self.seconds if self.seconds else 0.0


class SlowReaders:
    """Closes connections whose client takes nothing for too long, or too little, or that hold too much memory together.

    Time in which there was nothing to take does not count.

    Args:
        seconds: in which a client must take something; from then on it must also have taken `MIN_BYTES_PER_SECOND`.
        max_bytes: of answers that may wait for all clients; beyond, those that take the least a second are closed.
        closed: counts closed connections by reason.
    """

    def __init__(self, seconds: float, max_bytes: int, closed: Counter) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._closed: Mapping[Reason, Counter] = {
            "stalled": closed.labels("stalled"),
            "slow": closed.labels("slow"),
            "memory": closed.labels("memory"),
        }
        self._look_seconds = min(_LOOK_SECONDS, seconds / 4)
        self._waits: dict[Sink, _Wait] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0

    def add(
        self,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
        *,
        to_come: Callable[[], int],
        about: Mapping[str, object],
    ) -> None:
        """The system takes no more of an answer for now; nothing new where that is known."""
        if sink in self._waits:
            return
        self._waits[sink] = _Wait(to_come, about, sink.taken)
        if self._timer is None:
            self._looked_at = loop.time()
            self._timer = loop.call_later(self._look_seconds, self._look, loop)

    def remove(self, sink: Sink) -> None:
        """Its answers are sent, or its connection is closed."""
        self._waits.pop(sink, None)

    @property
    def bytes_waiting(self) -> int:
        """Of all answers, as far as clients have made them wait."""
        return sum(wait.size for wait in self._waits.values())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        elapsed = min(
            now - self._looked_at, 2 * self._look_seconds
        )  # a loop that was held up is not the clients' doing
        self._looked_at = now
        for sink, wait in list(self._waits.items()):
            if reason := self._judge(sink, wait, elapsed):
                self._close(sink, reason)
        while len(self._waits) > 1 and self.bytes_waiting > self._max_bytes:
            self._close(min(self._waits, key=lambda sink: self._waits[sink].rate), "memory")
        self._timer = loop.call_later(self._look_seconds, self._look, loop) if self._waits else None

    def _judge(self, sink: Sink, wait: _Wait, elapsed: float) -> Reason | None:
        before, wait.taken = wait.taken, sink.taken
        waiting = sink.unsent
        wait.size = max(wait.size, waiting + wait.to_come())
        wait.taken_here += wait.taken - before
        if not waiting:
            wait.idle_seconds = 0
            return None
        wait.seconds += elapsed
        wait.idle_seconds = 0 if wait.taken > before else wait.idle_seconds + elapsed
        if wait.idle_seconds >= self._seconds:
            return "stalled"
        if wait.taken_here < MIN_BYTES_PER_SECOND * (wait.seconds - self._seconds):
            return "slow"
        return None

    def _close(self, sink: Sink, reason: Reason) -> None:
        wait = self._waits.pop(sink)
        self._closed[reason].inc()
        _log.warning(
            "slow reader closed",
            reason=reason,
            taken=wait.taken_here,
            unsent=sink.unsent + wait.to_come(),
            seconds=round(wait.seconds, 1),
            **wait.about,
        )
        sink.abort()
