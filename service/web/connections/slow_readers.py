"""Close connections whose clients read answers too slowly, and limit the memory of answers that are not read.

An answer that its client does not read stays in memory. Small answers fit into the system's buffers; this file is about
the others.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog
from prometheus_client import Counter

MIN_BYTES_PER_SECOND = 2**14
"""The rate at which a client must read an answer on average, not counting the first `seconds`."""
_LOOK_SECONDS = 1.0
_log = structlog.get_logger()

Reason = Literal["stalled", "slow", "memory"]


class Sink(Protocol):
    """The interface of the sending side of a connection."""

    @property
    def unsent(self) -> int:
        """Bytes that the system has not accepted."""

    @property
    def taken(self) -> int:
        """Bytes that the client's system has received since the connection was opened."""

    def abort(self) -> None:
        """Close the connection at once, and drop what was to be sent."""


@dataclass
class _Wait:
    """What is known of one client that reads slowly.

    Attributes:
        to_come: returns the bytes of its answer that have not been written to the sink yet.
        about: fields for the log.
        taken: bytes that had been received at the last check.
        taken_here: bytes received since the wait began.
        seconds: how long there was something to read.
        idle_seconds: how long nothing of it has been read.
        size: the most bytes that were waiting.
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
    """Closes connections whose clients read nothing or too little for too long, or that need too much memory together.

    Time in which there was nothing to read does not count.

    Args:
        seconds: within this time a client must read something; afterwards also `MIN_BYTES_PER_SECOND` on average.
        max_bytes: most bytes of answers that may wait for all clients; beyond it the slowest are closed.
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
        """Watch a client, because the system does not accept more bytes; no effect if it is watched already."""
        if sink in self._waits:
            return
        self._waits[sink] = _Wait(to_come, about, sink.taken)
        if self._timer is None:
            self._looked_at = loop.time()
            self._timer = loop.call_later(self._look_seconds, self._look, loop)

    def remove(self, sink: Sink) -> None:
        """Stop watching a client, because its answers are sent or its connection is closed."""
        self._waits.pop(sink, None)

    @property
    def bytes_waiting(self) -> int:
        """Bytes of all answers that wait for clients."""
        return sum(wait.size for wait in self._waits.values())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        elapsed = min(now - self._looked_at, 2 * self._look_seconds)  # a delayed event loop is not the clients' fault
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
